"""Which attention a network computes: through which kernel of PyTorch's, by xFormers, or written out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.backends import cuda
from torch.nn.functional import scaled_dot_product_attention

TOKENS = 256
# What the gradient of PyTorch's attention is called, by kernel.
KERNELS = {"Flash": "FlashAttention", "Cudnn": "cuDNN", "Efficient": "memory-efficient"}


def choose_attention(network: Any, attention: str, dtype: torch.dtype | None = None) -> str:
    """Let the network compute attention as the setting says; returns what is in use, with PyTorch's kernels by size of head.

    ``flash``, ``cudnn`` and ``efficient`` leave PyTorch that kernel, in the whole process, and the memory-efficient one for
    layers that it cannot compute. xFormers falls back to PyTorch's choice, whose kernels save the same memory.

    Args:
        dtype: that attention is computed in; None: that of the weights.
    """
    cuda.enable_flash_sdp(attention not in ("cudnn", "efficient"))
    cuda.enable_cudnn_sdp(attention not in ("flash", "efficient"))
    if attention == "eager":
        network.set_attn_processor(AttnProcessor())
        return attention
    if attention == "xformers":
        try:
            network.enable_xformers_memory_efficient_attention()
            return attention
        except Exception:  # not installed, or no GPU
            attention = "xFormers is not usable here; sdpa"
    weight = next(network.parameters())
    layers = [m for m in network.modules() if isinstance(m, Attention)]
    sizes: dict[str, list[int]] = {}
    for size in sorted({layer.inner_dim // layer.heads for layer in layers}):
        sizes.setdefault(kernel(size, weight.device, dtype or weight.dtype), []).append(size)
    shown = "; ".join(f"{name} for heads of {', '.join(map(str, found))}" for name, found in sizes.items())
    return f"{attention} ({shown})"


def kernel(size: int, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that computes a head of ``size`` numbers where gradients are recorded, found by computing one."""
    x = torch.zeros(1, TOKENS, 1, size, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
    gradient = scaled_dot_product_attention(x, x, x).grad_fn
    name = gradient.name() if gradient else ""
    return next((kernel for part, kernel in KERNELS.items() if part in name), "plain")


@contextmanager
def plain_attention(network: Any) -> Iterator[None]:
    """Attention written out in matrix products and a softmax, inside the block: slow, large, and surely right."""
    kept = dict(network.attn_processors)
    network.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        network.set_attn_processor(kept)
