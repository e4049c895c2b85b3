"""What a configuration makes of a teacher: three networks, two updates and an average. `distill` trains it, `bench` times it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.devices import DTYPES
from sidlsg.errors import SidlsgError
from sidlsg.method import draws
from sidlsg.method.algorithm import Batch, Networks, update_fake_score, update_generator
from sidlsg.method.ema import Ema, ema_decay
from sidlsg.method.generator import OneStepGenerator
from sidlsg.method.optim import FullAdam, LeanAdam
from sidlsg.method.rate import decayed_lr
from sidlsg.method.times import UniformTimes
from sidlsg.method.update import NetworkUpdate, Stats
from sidlsg.teachers.family import Model, PromptEncoder
from sidlsg.training.attention import choose_attention


def stored_dtype(config: Config) -> torch.dtype:
    """The dtype of the trained weights: half only in the paper's pure fp16."""
    return DTYPES["fp16"] if config.precision == "fp16" else DTYPES["fp32"]


@dataclass(frozen=True)
class HostBatch:
    """One update's draws before they reach the device: in pinned memory if it is a GPU, so that the copies make nothing wait.

    z, eps: [B, C, H, W]; t: [B]; tokens: of B prompts, by name; kept: [B] bool, false where the prompt is dropped, or None where
    none can be.
    """

    z: Tensor
    eps: Tensor
    t: Tensor
    tokens: dict[str, Tensor]
    kept: Tensor | None


@dataclass
class Engine:
    """phi, psi and theta with everything that updates them, as the configuration asks.

    ``ahead`` is None between two iterations. In one that was left after psi's step it is the statistics of that step, and
    ``iterate`` goes on with theta's update.
    """

    config: Config
    teacher: Model
    fake: nn.Module
    generator: nn.Module
    encode: PromptEncoder
    nets: Networks
    psi: NetworkUpdate
    theta: NetworkUpdate
    ema: Ema | None
    attention: str
    ahead: Stats | None = None

    @classmethod
    def build(cls, config: Config, teacher: Model, device: torch.device) -> Engine:
        """psi and theta as copies of the teacher's network (which is changed to the configuration's layout in place).

        The teacher's VAE goes to the CPU: only drawing needs it.

        Raises SidlsgError when the teacher has fewer timesteps than the configuration uses.
        """
        if len(teacher.schedule) <= max(config.t_max, config.t_init):
            raise SidlsgError(f"the teacher has {len(teacher.schedule)} timesteps; t_max and t_init must be smaller")
        teacher.vae.to("cpu")
        configure_network(teacher.network, config)
        autocast = DTYPES["bf16"] if config.precision == "bf16" else None
        attention = choose_attention(teacher.network, config.attention, autocast)
        fake = deepcopy(teacher.network).requires_grad_(True)
        generator = deepcopy(teacher.network).requires_grad_(True)
        if config.half_teacher and autocast is not None:
            halve_weights(teacher.network, autocast)
        encode = teacher.encoder()
        nets = Networks(
            teacher=teacher.denoiser(autocast=autocast),
            fake=teacher.denoiser(fake, autocast),
            generator=OneStepGenerator(teacher.denoiser(generator, autocast), config.t_init),
            empty=encode.empty,
            guidance=config.guidance,
            alpha=config.alpha,
            two_stage=config.two_stage,
            t_range=(config.t_min, config.t_max),
        )
        ema_device = torch.device("cpu") if config.ema_device == "cpu" else None
        return cls(
            config,
            teacher,
            fake,
            generator,
            encode,
            nets,
            psi=_update(config, fake, None),
            theta=_update(config, generator, config.clip_value),
            ema=Ema(generator, ema_device) if config.ema else None,
            attention=attention,
        )

    def compile(self) -> None:
        """Compile the three networks in place, so that names of weights stay as they are; shapes are static."""
        # Every batch size of every kind of pass (trained, frozen, without gradient) is compiled once, and dynamo counts those of
        # the three networks together: an LSG run needs seven, its grids and scores more, and the limit of eight would end it.
        torch._dynamo.config.recompile_limit = 64
        for network in (self.teacher.network, self.fake, self.generator):
            network.compile(dynamic=False)

    def draw(self, update: int, first: int, prompts: Sequence[str]) -> HostBatch:
        """One update's draws for the samples first, first + 1, ... of the run, one a prompt. Any thread may call it.

        Args:
            update: ``draws.FAKE_SCORE``, whose prompts are dropped with the configured probability, or ``draws.GENERATOR``.
        """
        config = self.config
        times = UniformTimes(config.t_min, config.t_max)
        found = draws.draw(config.seed, update, first, len(prompts), self.teacher.latent_shape, times)
        drops = update == draws.FAKE_SCORE and config.drops_prompts

        def pinned(x: Tensor) -> Tensor:
            return x.pin_memory() if self.encode.device.type == "cuda" else x

        tokens = {name: pinned(ids) for name, ids in self.encode.tokens(prompts).items()}
        kept = pinned(found.u >= config.drop_prompt) if drops else None
        return HostBatch(pinned(found.z), pinned(found.eps), pinned(found.t), tokens, kept)

    def send(self, batch: HostBatch) -> Batch:
        """Draws to the networks' device, their prompts encoded there; the host waits for neither."""

        def sent(x: Tensor) -> Tensor:
            return x.to(self.encode.device, non_blocking=True)

        c = self.encode.encode({name: sent(ids) for name, ids in batch.tokens.items()})
        if batch.kept is not None:
            c = c.where(sent(batch.kept), self.encode.empty)
        return Batch(sent(batch.z), c, sent(batch.t), sent(batch.eps))

    def iterate(self, batches: tuple[Batch, Batch], images_seen: int) -> tuple[Stats, Stats]:
        """One iteration of Algorithm 1, psi's update and then theta's, and of the average, at ``images_seen`` images."""
        config, (fake, micro) = self.config, self.config.micro_batches
        for update in (self.psi, self.theta):
            update.optimizer.param_groups[0]["lr"] = decayed_lr(config.lr, images_seen, config.images, config.lr_decay)
        if self.ahead is None:
            self.ahead = update_fake_score(self.nets, self.psi, batches[0], fake)
        stats = self.ahead, update_generator(self.nets, self.theta, batches[1], micro)
        if self.ema:
            self.ema.update(ema_decay(images_seen, config.batch, config.ema_half_life, config.ema_ramp_up))
        self.ahead = None
        return stats

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of the run's state, by file of a checkpoint; the tensors themselves, not copies."""
        groups: dict[str, dict[str, Tensor]] = {
            "fake": dict(self.fake.named_parameters()),
            "generator": dict(self.generator.named_parameters()),
            "fake_adam": {n: self.psi.optimizer.second_moment(p) for n, p in self.fake.named_parameters()},
            "generator_adam": {n: self.theta.optimizer.second_moment(p) for n, p in self.generator.named_parameters()},
        }
        if self.ema:
            groups["ema"] = self.ema.average
        return groups

    def finite(self) -> bool:
        """Whether every number of the state is finite; waits once for each device that holds some of it."""
        flags: dict[torch.device, list[Tensor]] = {}
        for group in self.state().values():
            for tensor in group.values():
                flags.setdefault(tensor.device, []).append(tensor.isfinite().all())
        return all(bool(torch.stack(found).all()) for found in flags.values())

    @property
    def whole(self) -> bool:
        """Whether the state is one that a run can go on from: false when an error left a step of an optimiser, or of the average,
        in its middle."""
        return self.psi.optimizer.steps == self.theta.optimizer.steps + (self.ahead is not None)

    @property
    def lr(self) -> float:
        """The learning rate of the last update."""
        return self.theta.optimizer.param_groups[0]["lr"]

    @property
    def adam_steps(self) -> dict[str, int]:
        """Optimiser steps taken by each network."""
        return {"fake": self.psi.optimizer.steps, "generator": self.theta.optimizer.steps}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, dict[str, Tensor]], adam_steps: dict[str, int]) -> None:
        """Take over what ``state`` and ``adam_steps`` gave; the tensors have the names and shapes that ``state`` has."""
        for name, group in self.state().items():
            for key, tensor in group.items():
                tensor.copy_(tensors[name][key])
        self.psi.optimizer.steps, self.theta.optimizer.steps = adam_steps["fake"], adam_steps["generator"]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The generator carries its averaged weights inside the block, where there is an average."""
        with self.ema.swapped_in() if self.ema else nullcontext():
            yield

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside the block the generator carries its averaged weights, and the VAE is on the networks' device."""
        with self.averaged(), self.teacher.decoding(self.encode.device):
            yield


def _update(config: Config, net: nn.Module, clip_value: float | None) -> NetworkUpdate:
    options: dict[str, Any] = {"lr": config.lr, "eps": config.adam_eps}
    if config.lean_adam:
        adam: LeanAdam | FullAdam = LeanAdam(net.parameters(), offload=config.offload_optimizer, **options)
    else:
        adam = FullAdam(net.parameters(), **options)
    reduce = distributed.all_reduce_sum if distributed.started() else None
    return NetworkUpdate(net, adam, config.batch, clip_value, reduce)


def configure_network(network: Any, config: Config) -> None:
    """Memory layout and checkpointing as the configuration asks."""
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()  # also where weights are frozen: it acts whenever gradients are recorded
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32


def halve_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights that autocast would cast anyway (convolutions, matrix products) in its dtype.

    Normalisations keep theirs, so results under autocast are bit-equal to those of the full-precision network.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
