"""Algorithm 1 of the paper. Nothing here knows about files, processes, precision, logging or model families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sidlsg.method.condition import Condition
from sidlsg.method.denoiser import Denoiser
from sidlsg.method.generator import Generator
from sidlsg.method.guidance import Guidance, guided_eps
from sidlsg.method.losses import fake_score_loss, generator_loss
from sidlsg.method.update import NetworkUpdate, Stats, finite_samples
from sidlsg.method.vjp import at_once, one_at_a_time


@dataclass
class Batch:
    """What one update draws for B samples: z, eps ~ N(0, I) [B, C, H, W], t [B] int64, and the prompts' condition c."""

    z: Tensor
    c: Condition
    t: Tensor
    eps: Tensor

    def split(self, size: int) -> Iterator[tuple[Tensor, Condition, Tensor, Tensor]]:
        """Micro-batches (z, c, t, eps) of ``size`` samples."""
        yield from zip(*(x.split(size) for x in (self.z, self.c, self.t, self.eps)), strict=True)


@dataclass
class Networks:
    """phi, psi and theta with what they share; ``empty`` is the condition of the empty prompt ∅, of one sample.

    ``two_stage``: the generator's gradient passes through one score network at a time, which saves memory.
    """

    teacher: Denoiser
    fake: Denoiser
    generator: Generator
    empty: Condition
    guidance: Guidance
    alpha: float = 1.0
    two_stage: bool = False


def update_fake_score(nets: Networks, update: NetworkUpdate, batch: Batch, micro_batch: int) -> Stats:
    """Lines 3-5 of Algorithm 1: one Adam step of psi on Eq. 7, over images the generator makes without gradient."""
    schedule, kappa = nets.fake.schedule, nets.guidance
    for z, c, t, eps in batch.split(micro_batch):
        with torch.no_grad():
            x_g, keep = finite_samples(nets.generator(z, c))  # Eq. 9
        x_t = schedule.add_noise(x_g, eps, t)  # Eq. 2
        (eps_fake,) = guided_eps(nets.fake, x_t, t, c, nets.empty, (kappa.kappa1,))  # Eq. 6
        update.accumulate(fake_score_loss(eps_fake, eps), keep, x_g)  # Eq. 7
    return update.step()


def update_generator(nets: Networks, update: NetworkUpdate, batch: Batch, micro_batch: int) -> Stats:
    """Lines 6-8 of Algorithm 1: one Adam step of theta on Eq. 8, through x_g and through both score networks."""
    schedule, kappa = nets.fake.schedule, nets.guidance
    through = one_at_a_time if nets.two_stage else at_once
    with nets.fake.frozen():
        for z, c, t, eps in batch.split(micro_batch):
            x_g, keep = finite_samples(nets.generator(z, c))  # Eq. 9
            x_t = schedule.add_noise(x_g, eps, t)  # Eq. 2
            ratio = schedule.noise_to_data_ratio(t, x_t)
            real = partial(guided_eps, nets.teacher, t=t, c=c, empty=nets.empty, kappas=(kappa.kappa4,))  # Eq. 6
            fake = partial(guided_eps, nets.fake, t=t, c=c, empty=nets.empty, kappas=(kappa.kappa2, kappa.kappa3))
            loss = partial(generator_loss, eps=eps, ratio=ratio, alpha=nets.alpha)  # Eqs. 8 and 9
            update.accumulate(through(loss, (real, fake), x_t), keep, x_g.detach())
    return update.step()


def train_iteration(
    nets: Networks,
    psi: NetworkUpdate,
    theta: NetworkUpdate,
    batches: tuple[Batch, Batch],
    micro_batches: tuple[int, int],
) -> tuple[Stats, Stats]:
    """One pass through the loop of Algorithm 1, with independent draws and micro-batches for the two updates."""
    psi_stats = update_fake_score(nets, psi, batches[0], micro_batches[0])
    theta_stats = update_generator(nets, theta, batches[1], micro_batches[1])
    return psi_stats, theta_stats
