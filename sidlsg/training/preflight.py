"""Checks before the first update, that cost seconds and save days."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from sidlsg.errors import SidlsgError, UsageError, sentence
from sidlsg.method import draws
from sidlsg.method.algorithm import generator_losses
from sidlsg.method.guidance import Guidance
from sidlsg.method.times import UniformTimes
from sidlsg.training.attention import plain_attention
from sidlsg.training.engine import Engine

# Added to kappa4 for a gradient that is not zero, large against the rounding of half precision.
RAISE = 10
# How large the gradient that must be zero may be, as a share of that one: rounding, of fp32 and of 16 bit (or TF32).
EXACT_ZERO, HALF_ZERO = 1e-4, 0.02
# How far the gradient through attention may be from plain attention's, as a share of it. On the embedded teacher an honest kernel
# is within 1e-6 in fp32 and 0.02 in bf16, one that loses half its gradient is off by 0.3 to 0.5.
EXACT_GAP, HALF_GAP = 0.01, 0.2


def check_compiler(device: torch.device) -> None:
    """Compile something small for ``device``; raises UsageError, saying what to do, where ``torch.compile`` does not work."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, of Triton or of inductor, each of its own type
        raise UsageError(
            f"compile is on, but torch.compile does not work here: {sentence(error)} Install a C compiler and Python's headers "
            "(on Debian and Ubuntu: apt install build-essential python3-dev), or give --set compile=false"
        ) from error


def norm(gradient: Iterable[Tensor]) -> float:
    """The norm over all parameters, in float32, with one of them in hand at a time."""
    return torch.stack([g.float().norm() for g in gradient]).norm().item()


def preflight(engine: Engine, prompt: str) -> str:
    """Check that psi and theta are copies of phi and that gradients through attention are right; returns a report.

    With psi = phi and kappa2 = kappa4 the generator's gradient is zero, up to the rounding of terms that cancel. With
    kappa4 raised it is not, and must be the one that attention written out in plain operations gives.

    Raises SidlsgError, saying what to change, when a check fails.
    """
    nets, config, attention = engine.nets, engine.config, engine.attention
    network, k4 = engine.generator, config.guidance.kappa4
    times = UniformTimes(config.t_init, config.t_init)
    drawn = draws.draw(config.seed, draws.PREFLIGHT, 0, 1, engine.teacher.latent_shape, times)
    z, t, eps = (x.to(nets.empty.device) for x in (drawn.z, drawn.t, drawn.eps))
    c = engine.encode([prompt])

    def gradient(kappa4: float) -> tuple[Tensor, ...]:
        guidance = Guidance(1, k4, k4, kappa4)
        with nets.fake.frozen():
            loss = generator_losses(replace(nets, guidance=guidance), z, c, t, eps).loss
            return torch.autograd.grad(loss.sum(), list(network.parameters()))

    zero = norm(gradient(k4))
    probed = gradient(k4 + RAISE)
    size = norm(probed)
    probed = tuple(g.cpu() for g in probed)  # two gradients at once would need more memory than training
    if not (math.isfinite(size) and size > 0):
        modules = {name: part for name, part in engine.teacher.parts.items() if isinstance(part, nn.Module)}
        if bad := [name for name, part in modules.items() if not all(p.isfinite().all() for p in part.parameters())]:
            raise SidlsgError(
                f"pre-flight: weights in the {', '.join(bad)} of {engine.teacher.source} are not finite; fetch or copy it "
                "again, or try --precision fp32"
            )
        raise SidlsgError(
            f"pre-flight: the generator's gradient is {size} before the first update; try --precision fp32"
        )
    exact = config.precision == "fp32" and not config.tf32
    if not zero <= (EXACT_ZERO if exact else HALF_ZERO) * size:
        raise SidlsgError(
            f"pre-flight: with ψ = φ and κ2 = κ4 the generator's gradient must be zero, but its norm is {zero:.3g} "
            f"(against {size:.3g} with κ4 raised by {RAISE}). The precision or the attention kernel is at fault: "
            "try --precision fp32, or attention: eager in the preset."
        )
    try:
        with ExitStack() as stack:
            for net in (engine.teacher.network, engine.fake, network):
                stack.enter_context(plain_attention(net))
            gap = norm(g - p.to(g.device) for g, p in zip(gradient(k4 + RAISE), probed, strict=True)) / size
        compared = f"within {gap:.1g} of plain attention's"
    except torch.cuda.OutOfMemoryError:
        gap, compared = 0.0, "not compared with plain attention's (no memory for that)"
    if not gap <= (EXACT_GAP if exact else HALF_GAP):
        raise SidlsgError(
            f"pre-flight: the gradient through attention ({attention}) differs from plain attention's by {gap:.1%}; "
            "use attention: eager in the preset, or another version of the attention library"
        )
    schedule = engine.teacher.schedule
    ratio = schedule.noise_to_data_ratio(config.t_init, torch.zeros(1, dtype=torch.float64)).item()
    return (
        f"pre-flight: ψ = φ gives zero generator gradient ({zero:.1g} against {size:.3g} with κ4 + {RAISE}); attention "
        f"{attention}, its gradient {compared}; latents are never clipped; {schedule.prediction_type} teacher, "
        f"σ/a at t_init {ratio:.4f}"
    )
