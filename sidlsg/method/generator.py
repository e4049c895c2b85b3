"""The generator: noise and a condition in, clean latents out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sidlsg.method.condition import Condition
from sidlsg.method.denoiser import Denoiser


class Generator(Protocol):
    """What Algorithm 1 trains: x_g = step(*rollout(z, c), c). Gradients reach the weights through ``step`` only.

    A few-step generator is another class with these methods, whose ``rollout`` makes all steps but the last, without gradient.
    """

    def rollout(self, z: Tensor, c: Condition) -> tuple[Tensor, Tensor]:
        """z ~ N(0, I) [B, C, H, W] -> the input x_t [B, C, H, W] of the last step and its timesteps t [B]."""
        ...

    def step(self, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        """The last step: clean latents x_g [B, C, H, W], in the scaling that the network was trained on."""
        ...

    def __call__(self, z: Tensor, c: Condition) -> Tensor:
        """x_g = G_theta(z, c)."""
        ...


class OneStepGenerator:
    """x_g = f_theta(sigma_{t_init} z, t_init, c) (Eq. 9). The network's input is sigma_{t_init} z, not z."""

    def __init__(self, denoiser: Denoiser, t_init: int = 625) -> None:
        self.denoiser, self.t_init = denoiser, t_init

    def rollout(self, z: Tensor, c: Condition) -> tuple[Tensor, Tensor]:
        t = torch.full((len(z),), self.t_init, device=z.device)
        _, sigma = self.denoiser.schedule.coefficients(t, z)
        return sigma * z, t

    def step(self, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:
        return self.denoiser.schedule.x0_from_eps(x_t, self.denoiser(x_t, t, c), t)

    def __call__(self, z: Tensor, c: Condition) -> Tensor:
        return self.step(*self.rollout(z, c), c)
