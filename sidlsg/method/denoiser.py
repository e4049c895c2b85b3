"""The interface through which Algorithm 1 calls every network: eps(x_t, t, c)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sidlsg.method.condition import Condition
from sidlsg.method.schedule import NoiseSchedule

# (network, x_t [B, C, H, W], t [B], c) -> the network's own output [B, C, H, W]; every model family supplies one.
Predict = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]


class Denoiser:
    """A network as eps(x_t, t, c), whatever it predicts and in whatever precision it runs.

    Args:
        network: a UNet, or anything that ``predict`` can call.
        schedule: the forward process of the network's training, which converts its output to eps.
        predict: calls the network; from its model family.
        autocast: compute dtype under autocast (weights stay as they are), or None to compute in the weights' dtype.
    """

    def __init__(
        self, network: nn.Module, schedule: NoiseSchedule, predict: Predict, autocast: torch.dtype | None = None
    ) -> None:
        self.network, self.schedule, self.predict, self.autocast = network, schedule, predict, autocast

    def __call__(self, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        """x_t [B, C, H, W], t [B] int64, c of B samples -> eps [B, C, H, W] in the dtype of x_t."""
        dtype = x_t.dtype if self.autocast else next(self.network.parameters()).dtype
        # One autocast region per call: within a region autocast caches the weights it has cast, and weights cast under no_grad
        # would leave later passes without a gradient (pytorch issue 112583).
        with torch.autocast(x_t.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.predict(self.network, x_t.to(dtype), t, c.to(dtype))
        return self.schedule.eps_from_output(output.to(x_t.dtype), x_t, t)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside the block the weights need no gradient; gradients still flow to x_t. Restores ``requires_grad`` afterwards."""
        wanted = [p.requires_grad for p in self.network.parameters()]
        self.network.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, want in zip(self.network.parameters(), wanted, strict=True):
                parameter.requires_grad_(want)
