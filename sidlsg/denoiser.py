"""What Algorithm 1 calls: networks as functions of (x_t, t, c), whatever they are underneath.

A transformer or flow-matching teacher enters here, as another class with the same call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sidlsg.schedule import NoiseSchedule


class Denoiser:
    """A UNet as eps(x_t, t, c): v-prediction converted, low precision kept inside.

    Args:
        unet: a ``UNet2DConditionModel`` or anything called alike.
        autocast: compute dtype under autocast (weights stay as they are), or None to compute in the weights' dtype.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule, autocast: torch.dtype | None = None) -> None:
        self.unet, self.schedule, self.autocast = unet, schedule, autocast

    def __call__(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """x_t [B, C, H, W], t [B] int64, c [B, L, D] -> eps [B, C, H, W] in the dtype of x_t."""
        dtype = x_t.dtype if self.autocast else next(self.unet.parameters()).dtype
        # One autocast region per forward: autocast caches the cast weights for the length of the region, and a cast
        # made inside no_grad would cut later passes off from their gradient (pytorch issue 112583).
        with torch.autocast(x_t.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.unet(x_t.to(dtype), t, c.to(dtype)).sample
        return self.schedule.eps_from_output(output.to(x_t.dtype), x_t, t)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradient for the weights inside; gradients still flow to x_t. Restores what was there."""
        wanted = [p.requires_grad for p in self.unet.parameters()]
        self.unet.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, want in zip(self.unet.parameters(), wanted, strict=True):
                parameter.requires_grad_(want)


class OneStepGenerator:
    """x_g = f_theta(sigma_{t_init} z, t_init, c) (Eq. 9). The network sees sigma_{t_init} z, not z."""

    def __init__(self, denoiser: Denoiser, t_init: int = 625) -> None:
        self.denoiser, self.t_init = denoiser, t_init

    def __call__(self, z: Tensor, c: Tensor) -> Tensor:
        """z [B, C, H, W] ~ N(0, I), c [B, L, D] -> scaled latents x_g [B, C, H, W]."""
        schedule = self.denoiser.schedule
        t = torch.full((len(z),), self.t_init, device=z.device)
        _, sigma = schedule.coefficients(t, z)
        x_t = sigma * z
        return schedule.x0_from_eps(x_t, self.denoiser(x_t, t, c), t)
