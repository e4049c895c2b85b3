"""A distillation from its settings to its student: the engine, the loop around it, its checks, logs and scores.

Imports evaluation, sampling, runs, planning, teachers, config, method and the base modules.
"""
