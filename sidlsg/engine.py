"""What a configuration makes of a teacher: three networks, two updates and an average. `distill` trains it, `bench` times it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sidlsg.config import Config
from sidlsg.denoiser import Denoiser, OneStepGenerator
from sidlsg.distill import Batch, Networks, train_iteration
from sidlsg.ema import Ema, ema_decay
from sidlsg.errors import SidlsgError
from sidlsg.models import DTYPES, Model, configure_unet, halve_weights
from sidlsg.optim import FullAdam, LeanAdam
from sidlsg.prompts import TextEncoder
from sidlsg.update import NetworkUpdate, Stats


def stored_dtype(config: Config) -> torch.dtype:
    """The dtype of the trained weights: half only in the paper's pure fp16."""
    return DTYPES["fp16"] if config.precision == "fp16" else DTYPES["fp32"]


@dataclass
class Engine:
    """phi, psi and theta with everything that updates them, as the configuration asks."""

    config: Config
    teacher: Model
    fake: nn.Module
    generator: nn.Module
    encode: TextEncoder
    nets: Networks
    psi: NetworkUpdate
    theta: NetworkUpdate
    ema: Ema | None
    attention: str

    @classmethod
    def build(cls, config: Config, teacher: Model, device: torch.device) -> Engine:
        """psi and theta as copies of the teacher's UNet (which is changed to the configuration's layout in place).

        The teacher's VAE goes to the CPU: only drawing needs it.

        Raises SidlsgError when the teacher has fewer timesteps than the configuration uses.
        """
        schedule = teacher.schedule
        if len(schedule) <= max(config.t_max, config.t_init):
            raise SidlsgError(f"the teacher has {len(schedule)} timesteps; t_max and t_init must be smaller")
        teacher.vae.to("cpu")
        attention = configure_unet(teacher.unet, config, device)
        autocast = DTYPES["bf16"] if config.precision == "bf16" else None
        fake = deepcopy(teacher.unet).requires_grad_(True)
        generator = deepcopy(teacher.unet).requires_grad_(True)
        if config.half_teacher and autocast is not None:
            halve_weights(teacher.unet, autocast)
        encode = teacher.encode()
        nets = Networks(
            teacher=Denoiser(teacher.unet, schedule, autocast),
            fake=Denoiser(fake, schedule, autocast),
            generator=OneStepGenerator(Denoiser(generator, schedule, autocast), config.t_init),
            empty=encode.empty,
            guidance=config.guidance,
            alpha=config.alpha,
            two_stage=config.two_stage,
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
        """Compile the three UNets in place, so that names of weights stay as they are; shapes are static."""
        # Every batch size of every kind of pass (trained, frozen, without gradient) is compiled once, and dynamo counts those of
        # the three networks together: an LSG run needs seven, its grids and scores more, and the limit of eight would end it.
        torch._dynamo.config.recompile_limit = 64
        for unet in (self.teacher.unet, self.fake, self.generator):
            unet.compile(dynamic=False)

    def iterate(self, batches: tuple[Batch, Batch], images_seen: int) -> tuple[Stats, Stats]:
        """One iteration of Algorithm 1 and of the average, at ``images_seen`` images."""
        config = self.config
        stats = train_iteration(self.nets, self.psi, self.theta, batches, config.micro_batches)
        if self.ema:
            self.ema.update(ema_decay(images_seen, config.batch, config.ema_half_life, config.ema_ramp_up))
        return stats


def _update(config: Config, net: nn.Module, clip_value: float | None) -> NetworkUpdate:
    options: dict[str, Any] = {"lr": config.lr, "eps": config.adam_eps}
    if config.lean_adam:
        adam: LeanAdam | FullAdam = LeanAdam(net.parameters(), offload=config.offload_optimizer, **options)
    else:
        adam = FullAdam(net.parameters(), **options)
    return NetworkUpdate(net, adam, config.batch, clip_value)
