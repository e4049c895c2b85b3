"""The method as the paper has it: Algorithm 1, its losses, guidance, schedule, optimiser and random draws.

Tensors in, tensors out: nothing in this room knows about files, model families, processes or the command line. It imports torch,
numpy and ``sidlsg.errors``. Start with ``algorithm.py``.
"""
