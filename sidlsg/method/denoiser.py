"""A network as what Algorithm 1 calls: eps(x_t, t, c), whatever is underneath."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sidlsg.method.condition import Condition
from sidlsg.method.schedule import NoiseSchedule

# (network, x_t [B, C, H, W], t [B], c) -> what the network predicts, [B, C, H, W]; a model family says how.
Predict = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]


class Denoiser:
    """A network as eps(x_t, t, c): its prediction converted to eps, low precision kept inside.

    Args:
        network: a UNet, or whatever ``predict`` can call.
        predict: how the network is called, from its model family.
        autocast: compute dtype under autocast (weights stay as they are), or None to compute in the weights' dtype.
    """

    def __init__(
        self, network: nn.Module, schedule: NoiseSchedule, predict: Predict, autocast: torch.dtype | None = None
    ) -> None:
        self.network, self.schedule, self.predict, self.autocast = network, schedule, predict, autocast

    def __call__(self, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        """x_t [B, C, H, W], t [B] int64, c of B samples -> eps [B, C, H, W] in the dtype of x_t."""
        dtype = x_t.dtype if self.autocast else next(self.network.parameters()).dtype
        # One autocast region per forward: autocast caches the cast weights for the length of the region, and a cast
        # made inside no_grad would cut later passes off from their gradient (pytorch issue 112583).
        with torch.autocast(x_t.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.predict(self.network, x_t.to(dtype), t, c.to(dtype))
        return self.schedule.eps_from_output(output.to(x_t.dtype), x_t, t)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradient for the weights inside; gradients still flow to x_t. Restores what was there."""
        wanted = [p.requires_grad for p in self.network.parameters()]
        self.network.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, want in zip(self.network.parameters(), wanted, strict=True):
                parameter.requires_grad_(want)
