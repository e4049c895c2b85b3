"""The forward process x_t = a_t x + sigma_t eps (Eq. 2) of any DDPM schedule, and conversions between predictions made under it.

Timesteps are integers 0 ... T-1. Every function takes ``t`` of shape [B] (or a plain int) and broadcasts over [B, ...].
Arithmetic is in the dtype of the given tensors; the training loop gives float32 in every precision mode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sidlsg.errors import UsageError


class NoiseSchedule:
    """Tables of a_t = sqrt(alpha_bar_t) and sigma_t = sqrt(1 - alpha_bar_t).

    Args:
        betas: [T], each in (0, 1).
        prediction_type: what the network predicts, ``epsilon`` or ``v_prediction``.

    Raises UsageError for other betas or prediction types.
    """

    def __init__(self, betas: Tensor, prediction_type: str = "epsilon") -> None:
        if prediction_type not in ("epsilon", "v_prediction"):
            raise UsageError(
                f'the teacher predicts "{prediction_type}"; SiD-LSG handles "epsilon" and "v_prediction" (DDPM) teachers'
            )
        betas = betas.double().cpu()
        if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
            raise UsageError("the teacher's betas must be a list of numbers strictly between 0 and 1")
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        self.betas = betas
        self.prediction_type = prediction_type
        self._a, self._sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.betas)

    def coefficients(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and sigma_t, [B, 1, ...] (for an int t, scalars) to broadcast against ``like``, in its dtype and on its device."""
        key = (like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = (self._a.to(*key), self._sigma.to(*key))
        a, sigma = self._tables[key]
        if isinstance(t, int):
            return a[t], sigma[t]
        shape = (-1,) + (1,) * (like.ndim - 1)
        return a[t].view(shape), sigma[t].view(shape)

    def add_noise(self, x: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """x_t = a_t x + sigma_t eps (Eq. 2)."""
        a_t, sigma_t = self.coefficients(t, x)
        return a_t * x + sigma_t * eps

    def x0_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """The data prediction f = (x_t - sigma_t eps) / a_t."""
        a_t, sigma_t = self.coefficients(t, x_t)
        return (x_t - sigma_t * eps) / a_t

    def eps_from_output(self, output: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """The network's output converted to eps: for v = a_t eps - sigma_t x0, eps = a_t v + sigma_t x_t."""
        if self.prediction_type == "epsilon":
            return output
        a_t, sigma_t = self.coefficients(t, x_t)
        return a_t * output + sigma_t * x_t

    def noise_to_data_ratio(self, t: Tensor | int, like: Tensor) -> Tensor:
        """sigma_t / a_t, shaped to broadcast against ``like``; 2.5017 at t = 625 in Stable Diffusion's schedule."""
        a_t, sigma_t = self.coefficients(t, like)
        return sigma_t / a_t
