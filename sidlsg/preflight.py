"""Checks before the first update, that cost seconds and save days."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from sidlsg import rng
from sidlsg.config import Config
from sidlsg.distill import Batch, Networks, update_generator
from sidlsg.errors import SidlsgError
from sidlsg.guidance import Guidance
from sidlsg.models import plain_attention, unet_latent_shape
from sidlsg.prompts import TextEncoder

# Added to kappa4 for a gradient that is not zero, large against the rounding of half precision.
RAISE = 10


class _Probe:
    """Stands in for the generator's NetworkUpdate: takes the gradient [parameters], float32, and leaves no trace."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.parameters = list(module.parameters())
        self.gradient = torch.empty(0)

    def accumulate(self, loss: Tensor, keep: Tensor, x_g: Tensor) -> None:
        gradients = torch.autograd.grad(loss.sum(), self.parameters)
        self.gradient = torch.cat([g.float().flatten() for g in gradients])

    def step(self) -> None:
        return None


def preflight(nets: Networks, config: Config, prompt: str, encode: TextEncoder, attention: str) -> str:
    """Check that psi and theta are copies of phi and that gradients through attention are right; returns a report.

    With psi = phi and kappa2 = kappa4 the generator's gradient is zero, up to the rounding of terms that cancel. With
    kappa4 raised it is not, and must be the one that attention written out in plain operations gives.

    Args:
        attention: the attention in use, for the messages.

    Raises SidlsgError, saying what to change, when a check fails.
    """
    denoiser, k4 = nets.generator.denoiser, config.guidance.kappa4
    shape = unet_latent_shape(denoiser.unet)
    draws = rng.draw(config.seed, rng.PREFLIGHT, 0, 1, shape, config.t_init, config.t_init)
    device = nets.empty.device
    batch = Batch(draws.z.to(device), encode([prompt]), draws.t.to(device), draws.eps.to(device))

    def gradient(kappa4: float) -> Tensor:
        probe = _Probe(denoiser.unet)
        update_generator(replace(nets, guidance=Guidance(1, k4, k4, kappa4)), probe, batch, 1)  # type: ignore[arg-type]
        return probe.gradient

    zero, probed = gradient(k4).norm().item(), gradient(k4 + RAISE)
    size = probed.norm().item()
    if not (math.isfinite(size) and size > 0):
        raise SidlsgError(
            f"pre-flight: the generator's gradient is {size} before the first update; try --precision fp32"
        )
    exact = config.precision == "fp32" and not config.tf32
    if not zero <= (1e-4 if exact else 0.02) * size:
        raise SidlsgError(
            f"pre-flight: with ψ = φ and κ2 = κ4 the generator's gradient must be zero, but its norm is {zero:.3g} "
            f"(against {size:.3g} with κ4 raised by {RAISE}). The precision or the attention kernel is at fault: "
            "try --precision fp32, or attention: eager in the preset."
        )
    try:
        with ExitStack() as stack:
            for unet in (nets.teacher.unet, nets.fake.unet, denoiser.unet):
                stack.enter_context(plain_attention(unet))
            gap = (gradient(k4 + RAISE) - probed).norm().item() / size
        compared = f"within {gap:.1g} of plain attention's"
    except torch.cuda.OutOfMemoryError:
        gap, compared = 0.0, "not compared with plain attention's (no memory for that)"
    if not gap <= (1e-2 if exact else 0.5):
        raise SidlsgError(
            f"pre-flight: the gradient through attention ({attention}) differs from plain attention's by {gap:.1%}; "
            "use attention: eager in the preset, or another version of the attention library"
        )
    schedule = denoiser.schedule
    ratio = schedule.noise_to_data_ratio(config.t_init, torch.zeros(1, dtype=torch.float64)).item()
    return (
        f"pre-flight: ψ = φ gives zero generator gradient ({zero:.1g} against {size:.3g} with κ4 + {RAISE}); attention "
        f"{attention}, its gradient {compared}; latents are never clipped; {schedule.prediction_type} teacher, "
        f"σ/a at t_init {ratio:.4f}"
    )
