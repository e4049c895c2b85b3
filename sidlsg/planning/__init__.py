"""What a run will cost before it starts: passes, operations, memory by component, time on a GPU, and whether it fits.

Imports teachers (the registry, and networks on the meta device), config, method and the base modules. Without torch except where
operations are counted.
"""
