"""What a run shows while it goes on, and what it leaves: sample grids, and the student's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidlsg.config import Config
from sidlsg.planning.cost import forward_equivalents
from sidlsg.sampling.draw import DEFAULT_STEPS, draw, seed_noise
from sidlsg.sampling.pictures import make_grid, save_png, to_pil
from sidlsg.teachers.student import save_student
from sidlsg.training.engine import Engine
from sidlsg.version import __version__

# Figure 2 of the paper: 0, 0.02, 0.1, 0.2, 0.5, 1, 2, 3, 4 and 5 million images of a 5M run.
GRID_SHARES = (0, 0.004, 0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1)

TEACHER_GRID_SHARE = 0.02  # of the network passes of a run


def grid_places(images: int, batch: int) -> list[int]:
    """The images seen at which a run of ``images`` draws its grids."""
    return sorted({round(share * images / batch) * batch for share in GRID_SHARES} | {images})


@torch.no_grad()
def draw_pictures(engine: Engine, z: Tensor, prompts: Sequence[str]) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of the generator as it is, from noise z [B, C, H, W]."""
    c = engine.encode(prompts)
    return engine.teacher.decode(engine.nets.generator(z.to(c.device), c))


def draw_grid(engine: Engine, prompts: Sequence[str], images_seen: int, path: Path) -> None:
    """Sample fixed prompts with fixed noise (picture i has seed i) by the averaged generator."""
    micro, pictures = engine.config.micro_batch, []
    z = seed_noise(list(range(len(prompts))), engine.teacher.latent_shape)
    with engine.drawing():
        for first in range(0, len(prompts), micro):
            part = slice(first, first + micro)
            pictures += to_pil(draw_pictures(engine, z[part], prompts[part]))
    save_png(make_grid(pictures), path, prompts=" | ".join(prompts), images_seen=images_seen)


def teacher_grid_is_cheap(config: Config, pictures: int) -> bool:
    """Whether a teacher's grid costs at most ``TEACHER_GRID_SHARE`` of the run's network passes."""
    passes = 2 * DEFAULT_STEPS * pictures
    return passes <= TEACHER_GRID_SHARE * forward_equivalents(config) * config.images


def draw_teacher_grid(engine: Engine, prompts: Sequence[str], path: Path) -> None:
    """The prompts of the sample grids with the same seeds, drawn by the teacher as `sidlsg sample` does by default.

    Guidance doubles a batch, so half as many pictures at once as in training take no more memory.
    """
    model, dtype, batch = engine.teacher, engine.nets.teacher.autocast, max(1, engine.config.micro_batch // 2)
    device = engine.encode.device
    with model.decoding(device), torch.autocast(device.type, dtype, enabled=dtype is not None):
        pictures = list(draw(model, prompts, range(len(prompts)), batch=batch))
    save_png(make_grid(pictures), path, prompts=" | ".join(prompts))


def write_student(
    engine: Engine, folder: Path, images_seen: int, prompts_sha256: str, scores: dict[str, float] | None = None
) -> None:
    """The averaged generator as a diffusers folder, with what it is in ``sidlsg.json``."""
    config = engine.config
    note: dict[str, Any] = {
        "teacher": engine.teacher.source,
        "strategy": config.strategy_name,
        "kappa": list(config.guidance),
        "images_seen": images_seen,
        "weights": "ema" if engine.ema else "last",
        "precision": config.precision,
        "prompts_sha256": prompts_sha256,
        "sidlsg": __version__,
    }
    if scores:
        note["scores"] = scores
    with engine.averaged():
        save_student(folder, engine.teacher, engine.generator, config.t_init, note)
