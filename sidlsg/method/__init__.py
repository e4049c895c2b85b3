"""The method of the paper: Algorithm 1, its losses, guidance, schedule, optimiser and random draws.

Tensors in, tensors out: this subpackage knows nothing of files, model families, processes or the command line. It imports only
torch, numpy and ``sidlsg.errors``. Start with ``algorithm.py``.
"""
