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
    """The draws of one update: z, eps ~ N(0, I) [B, C, H, W], timesteps t [B] int64, and the condition c of B prompts."""

    z: Tensor
    c: Condition
    t: Tensor
    eps: Tensor

    def split(self, size: int) -> Iterator[tuple[Tensor, Condition, Tensor, Tensor]]:
        """Yield micro-batches (z, c, t, eps) of ``size`` samples."""
        yield from zip(*(x.split(size) for x in (self.z, self.c, self.t, self.eps)), strict=True)


@dataclass
class Networks:
    """phi (``teacher``), psi (``fake``), theta (``generator``); ``empty`` is the condition of the empty prompt ∅, for one sample.

    ``two_stage`` sends the generator's gradient through one score network at a time, which saves memory (see ``vjp.py``).
    """

    teacher: Denoiser
    fake: Denoiser
    generator: Generator
    empty: Condition
    guidance: Guidance
    alpha: float = 1.0
    two_stage: bool = False


def update_fake_score(nets: Networks, update: NetworkUpdate, batch: Batch, micro_batch: int) -> Stats:
    """Lines 3-5 of Algorithm 1: one Adam step of psi on Eq. 7. The generator's images x_g carry no gradient."""
    schedule, kappa = nets.fake.schedule, nets.guidance
    for z, c, t, eps in batch.split(micro_batch):
        with torch.no_grad():
            x_g, keep = finite_samples(nets.generator(z, c))  # Eq. 9
        x_t = schedule.add_noise(x_g, eps, t)  # Eq. 2
        (eps_fake,) = guided_eps(nets.fake, x_t, t, c, nets.empty, (kappa.kappa1,))  # Eq. 6
        update.accumulate(fake_score_loss(eps_fake, eps), keep, x_g)  # Eq. 7
    return update.step()


def update_generator(nets: Networks, update: NetworkUpdate, batch: Batch, micro_batch: int) -> Stats:
    """Lines 6-8 of Algorithm 1: one Adam step of theta on Eq. 8. The gradient reaches x_g through both score networks."""
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
    """One iteration of Algorithm 1: update psi, then theta, each with its draws and micro-batch. Pairs are (psi's, theta's)."""
    psi_stats = update_fake_score(nets, psi, batches[0], micro_batches[0])
    theta_stats = update_generator(nets, theta, batches[1], micro_batches[1])
    return psi_stats, theta_stats
