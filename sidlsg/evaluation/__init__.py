"""Evaluation by named protocols, which fix the pictures, their preprocessing, the feature networks and the scores.

Imports sampling, runs, teachers and the base modules (data, errors, files, ...). Protocols, published results and weights files
are YAML tables beside the code.
"""
