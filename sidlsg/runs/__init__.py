"""A run on disk: its folder, its checkpoints, and how to open its model, for training, sampling and evaluation.

Imports teachers, config and the base modules (errors, files), but not training: opening a run does not need the code that
trains it.
"""
