"""Exponential moving average of the generator, in fp32, with a half-life counted in images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ema_decay(images_seen: int, batch: int, half_life: float, ramp_up: float | None) -> float:
    """The factor 0.5^(batch / h) by which the average is multiplied in an iteration that starts at ``images_seen`` images.

    The half-life h = min(half_life, ramp_up x images_seen) grows from 0, so that the initial weights are forgotten quickly; with
    ``ramp_up`` None, h = half_life.
    """
    if ramp_up is not None:
        half_life = min(half_life, ramp_up * images_seen)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


class Ema:
    """Averages of ``module``'s parameters by name, in fp32 or wider; buffers are not averaged (the UNets here have none).

    Args:
        device: where the averages are kept; None is the module's own. On the CPU they take no GPU memory, but every update
            copies the weights over the bus once.
    """

    def __init__(self, module: nn.Module, device: torch.device | None = None) -> None:
        self.module = module
        self.average: dict[str, Tensor] = {
            name: p.detach().to(device or p.device, torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay average + (1 - decay) theta."""
        averages = list(self.average.values())
        current = [p.to(a.device, a.dtype) for p, a in zip(self.module.parameters(), averages, strict=True)]
        torch._foreach_lerp_(averages, current, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the module has the averaged weights."""
        parameters = dict(self.module.named_parameters())
        kept = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data = self.average[name].to(p.device, p.dtype)
            yield
        finally:
            for name, p in parameters.items():
                p.data = kept[name]
