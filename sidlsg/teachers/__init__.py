"""Models from elsewhere: their names, their files, their families, and the folders that students are written to.

A family (``stable_diffusion.py``, ``sdxl.py``) says everything that Algorithm 1 does not want to know about a model. Imports
``sidlsg.method`` and the base modules (errors, data, devices, files, prompts).
"""
