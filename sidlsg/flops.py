"""Floating-point operations of a UNet, counted on the meta device: no weights, no GPU, seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class UnetCost:
    """Of one sample at the network's own resolution; a multiplication and an addition are two operations.

    forward, backward (all gradients), input_backward (of a frozen network: towards x_t only) in FLOP.
    """

    parameters: int
    forward: int
    backward: int
    input_backward: int


def count(unet: Any, tokens: int = 77) -> UnetCost:
    """Count a UNet2DConditionModel on the meta device.

    Args:
        tokens: length of the text embedding; Stable Diffusion's is 77.
    """
    config = unet.config
    size = config.sample_size
    x = torch.empty(1, config.in_channels, size, size, device="meta")
    c = torch.empty(1, tokens, config.cross_attention_dim, device="meta")
    t = torch.zeros(1, dtype=torch.int64, device="meta")

    def measure(train: bool) -> tuple[int, int]:
        unet.requires_grad_(train)
        x_t = x.clone().requires_grad_(not train)
        with FlopCounterMode(display=False) as forward:
            out = unet(x_t, t, c).sample
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    forward, backward = measure(train=True)
    _, input_backward = measure(train=False)
    return UnetCost(sum(p.numel() for p in unet.parameters()), forward, backward, input_backward)
