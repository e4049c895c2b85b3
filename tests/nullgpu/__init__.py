"""A GPU that computes nothing: an unchanged CUDA build of PyTorch on a device without kernels and without memory.

``build.py`` makes the library that is preloaded, ``run.py`` runs a preset on it, ``cards.py`` says what the device claims to be.
Nothing on it has a value, and no time on it means anything; PyTorch's dispatcher, autocast, autograd engine, caching allocator,
pinned memory, choice of attention kernel and inductor are the real ones.
"""
