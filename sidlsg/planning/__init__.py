"""Predicts what a run will cost: passes, operations, memory by component, time on a GPU, and whether it fits.

Imports teachers (the registry, and networks on the meta device), config, method and the base modules. Does not import
torch except to count operations.
"""
