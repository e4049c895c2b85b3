"""Scores by named protocol: which pictures, how they are prepared, which networks look at them, what is compared and reported.

Imports sampling, runs, teachers, method and the ground. Protocols, published rows and weights files are tables beside the code.
"""
