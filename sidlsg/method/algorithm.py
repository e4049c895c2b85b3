"""Algorithm 1 of the paper. Nothing here knows about files, processes, precision, logging or model families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidlsg.method.condition import Condition
from sidlsg.method.denoiser import Denoiser
from sidlsg.method.generator import Generator
from sidlsg.method.guidance import Guidance, conditional, guided, predictions
from sidlsg.method.losses import fake_score_loss, generator_loss
from sidlsg.method.statistics import generator_statistics
from sidlsg.method.update import Losses, NetworkUpdate, Stats, finite_samples


@dataclass
class Batch:
    """The draws of one update: z, eps ~ N(0, I) [B, C, H, W], timesteps t [B] int64, and the condition c of B prompts."""

    z: Tensor
    c: Condition
    t: Tensor
    eps: Tensor

    @property
    def nbytes(self) -> int:
        """Memory of all its tensors."""
        return sum(x.nbytes for x in (self.z, self.t, self.eps, *self.c.tensors.values()))

    def split(self, size: int) -> Iterator[tuple[Tensor, Condition, Tensor, Tensor]]:
        """Yield micro-batches (z, c, t, eps) of ``size`` samples."""
        yield from zip(*(x.split(size) for x in (self.z, self.c, self.t, self.eps)), strict=True)


@dataclass
class Networks:
    """phi (``teacher``), psi (``fake``), theta (``generator``); ``empty`` is the condition of the empty prompt ∅, for one sample.

    With ``two_stage`` the generator's update keeps the graph of no score network: the backward pass runs them again, one after
    the other. ``t_range`` is the first and the last t that is drawn, which only statistics are sorted by.
    """

    teacher: Denoiser
    fake: Denoiser
    generator: Generator
    empty: Condition
    guidance: Guidance
    alpha: float = 1.0
    two_stage: bool = False
    t_range: tuple[int, int] = (20, 979)


def fake_score_losses(nets: Networks, z: Tensor, c: Condition, t: Tensor, eps: Tensor) -> Losses:
    """Eq. 7 for each sample; the generator's images x_g carry no gradient."""
    kappa1 = nets.guidance.kappa1
    with torch.no_grad():
        x_g, keep = finite_samples(nets.generator(z, c))  # Eq. 9
    x_t = nets.fake.schedule.add_noise(x_g, eps, t)  # Eq. 2
    eps_fake = guided(*predictions(nets.fake, x_t, t, c, nets.empty, kappa1), kappa1)  # Eq. 6
    return Losses(fake_score_loss(eps_fake, eps), keep, x_g)  # Eq. 7


def generator_losses(nets: Networks, z: Tensor, c: Condition, t: Tensor, eps: Tensor) -> Losses:
    """Eq. 8 for each sample. The gradient reaches x_g through both score networks, whose weights take none (see ``frozen``)."""
    schedule, (_, kappa2, kappa3, kappa4) = nets.fake.schedule, nets.guidance
    phi, psi = (_recomputed(net) if nets.two_stage else net for net in (nets.teacher, nets.fake))
    x_g, keep = finite_samples(nets.generator(z, c))  # Eq. 9
    x_t = schedule.add_noise(x_g, eps, t)  # Eq. 2
    real = predictions(phi, x_t, t, c, nets.empty, kappa4)
    fake = predictions(psi, x_t, t, c, nets.empty, kappa2, kappa3)
    eps_real, eps_fake2, eps_fake3 = guided(*real, kappa4), guided(*fake, kappa2), guided(*fake, kappa3)  # Eq. 6
    ratio = schedule.noise_to_data_ratio(t, x_t)
    loss = generator_loss(eps_real, eps_fake2, eps_fake3, eps, ratio, nets.alpha)  # Eqs. 8 and 9
    eps_phi = real[1] if conditional(kappa4) else None
    statistics = generator_statistics(eps_real, eps_fake2, eps_phi, eps, t, nets.t_range)
    return Losses(loss, keep, x_g.detach(), statistics)


def _recomputed(net: Denoiser) -> Callable[[Tensor, Tensor, Condition], Tensor]:
    """``net`` without its graph, which the backward pass makes when it gets there."""
    return partial(checkpoint, net, use_reentrant=False, preserve_rng_state=False)


def update_fake_score(nets: Networks, update: NetworkUpdate, batch: Batch, micro_batch: int) -> Stats:
    """Lines 3-5 of Algorithm 1: one Adam step of psi on Eq. 7."""
    for part in batch.split(micro_batch):
        update.accumulate(fake_score_losses(nets, *part))
    return update.step()


def update_generator(nets: Networks, update: NetworkUpdate, batch: Batch, micro_batch: int) -> Stats:
    """Lines 6-8 of Algorithm 1: one Adam step of theta on Eq. 8."""
    with nets.fake.frozen():
        for part in batch.split(micro_batch):
            update.accumulate(generator_losses(nets, *part))
    return update.step()
