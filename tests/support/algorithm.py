"""phi, psi and theta in float64 on the tiny UNet, and the draws of an update."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sidlsg.method.algorithm import Batch, Networks, update_fake_score, update_generator
from sidlsg.method.generator import OneStepGenerator
from sidlsg.method.guidance import Guidance
from sidlsg.method.optim import LeanAdam
from sidlsg.method.schedule import NoiseSchedule
from sidlsg.method.update import NetworkUpdate, Stats
from sidlsg.teachers.schedules import ddpm_schedule
from support.tiny import SD_BETAS, TOKENS, WIDTH, denoiser, text, tiny_unet

KAPPAS = {
    "long": (1, 1, 1, 3),
    "short": (1, 0.5, 0.5, 1),
    "lsg-simple": (2, 1, 1, 1),
    "lsg": (1.5, 1.5, 1.5, 1.5),
    "all different": (2.0, 0.3, 1.7, 4.5),
    "zero": (0, 0, 1, 0),
}


class Setup:
    """phi, psi, theta in float64 with their updates; psi and theta differ from phi after ``disturb``."""

    def __init__(
        self,
        kappas=(1.5,) * 4,
        alpha=1.0,
        batch=8,
        prediction="epsilon",
        autocast=None,
        dtype=torch.float64,
        unet=None,
    ):
        unet = (unet or tiny_unet()).to(dtype)
        self.schedule = NoiseSchedule(ddpm_schedule(SD_BETAS).betas, prediction)
        self.phi, self.psi, self.theta = (copy.deepcopy(unet) for _ in range(3))
        self.phi.requires_grad_(False)
        torch.manual_seed(7)
        self.empty = text(torch.randn(1, TOKENS, WIDTH, dtype=dtype))
        self.nets = Networks(
            denoiser(self.phi, self.schedule, autocast),
            denoiser(self.psi, self.schedule, autocast),
            OneStepGenerator(denoiser(self.theta, self.schedule, autocast), 625),
            self.empty,
            Guidance(*kappas),
            alpha,
        )
        self.update_psi = NetworkUpdate(self.psi, LeanAdam(self.psi.parameters(), lr=1e-4), batch)
        self.update_theta = NetworkUpdate(self.theta, LeanAdam(self.theta.parameters(), lr=1e-4), batch)

    def iterate(self, first: Batch, second: Batch, micro_batch: int = 4) -> tuple[Stats, Stats]:
        """One iteration of Algorithm 1."""
        psi = update_fake_score(self.nets, self.update_psi, first, micro_batch)
        return psi, update_generator(self.nets, self.update_theta, second, micro_batch)

    def disturb(self) -> None:
        torch.manual_seed(11)
        for net in (self.psi, self.theta):
            for p in net.parameters():
                p.data += 0.02 * torch.randn_like(p)


def draws(seed: int, batch: int = 8, dtype=torch.float64) -> Batch:
    g = torch.Generator().manual_seed(seed)
    z, eps = torch.randn(2, batch, 4, 4, 4, generator=g, dtype=dtype)
    c = text(torch.randn(batch, TOKENS, WIDTH, generator=g, dtype=dtype))
    return Batch(z, c, torch.randint(20, 980, (batch,), generator=g), eps)


def parameters(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def capture_gradient(setup: Setup, batch: Batch, micro_batch: int = 8) -> Tensor:
    """The generator's accumulated gradient just before its Adam step."""
    found: list[Tensor] = []
    setup.update_theta.optimizer.step = lambda: found.append(  # type: ignore[method-assign, assignment]
        torch.cat([p.grad.flatten() for p in setup.theta.parameters()])  # type: ignore[union-attr]
    )
    update_generator(setup.nets, setup.update_theta, batch, micro_batch)
    return found[0]
