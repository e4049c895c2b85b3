"""Measures what distillation and sampling cost on the device at hand, and shows the paper's Table 4 beside it.

Imports training, evaluation, sampling, planning, teachers, config, method and the base modules.
"""
