"""Measures one-step sampling as a whole and by part, and the stock diffusers pipeline with the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sidlsg.benchmark.distillation import PROMPT
from sidlsg.benchmark.machine import default_arch
from sidlsg.benchmark.report import write_bench_sample
from sidlsg.benchmark.timing import Timing, timed
from sidlsg.devices import DTYPES, device_facts, pick_precision
from sidlsg.evaluation.generation import caption_jobs, generate
from sidlsg.method.generator import OneStepGenerator
from sidlsg.paths import check_output
from sidlsg.sampling.draw import one_step, seed_noise
from sidlsg.sampling.pictures import to_pil
from sidlsg.teachers.architectures import build_model
from sidlsg.teachers.family import Model


def run(
    device: torch.device,
    arch: str | None = None,
    precision: str | None = None,
    *,
    batch: int = 16,
    images: int = 64,
    repeats: int = 3,
    out: Path | None = None,
    command: str = "",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measure sampling and write ``bench-sample.json`` and ``bench-sample.md``.

    Args:
        precision: of the weights; None is the device's default.
        batch, images: pictures made at once, and in one measurement (rounded up to a multiple of ``batch``).
        arch, repeats, out, command, console: as for ``distillation.run``.

    Returns the rows. Raises UsageError for unknown names, SidlsgError when the files cannot be written.
    """
    if out is not None:
        check_output(out)
    arch, precision = arch or default_arch(device), pick_precision(precision, device)
    model = build_model(arch, device, DTYPES[precision])
    with tempfile.TemporaryDirectory() as folder:
        rows = [row.as_dict() for row in measure_sampling(model, device, batch, images, Path(folder), repeats)]
    facts = device_facts(device) | {"arch": arch, "precision": precision, "batch": batch}
    write_bench_sample(console or Console(quiet=True), out, facts, rows, command)
    return rows


@dataclass
class SampleRow:
    """The timing of one way to sample, or of one part of it, for ``pictures`` pictures."""

    name: str
    pictures: int
    timing: Timing

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / self.timing.median

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pictures": self.pictures,
            "seconds": self.timing.seconds,
            "pictures_per_second": self.pictures_per_second,
            "ms_per_picture": 1e3 / self.pictures_per_second,
            "spread": self.timing.spread,
        }


def measure_sampling(
    model: Model, device: torch.device, batch: int, pictures: int, out: Path, repeats: int = 3
) -> list[SampleRow]:
    """Measure one-step sampling by this package, its parts, and the stock diffusers pipeline with the same weights.

    Sets ``model.student``, so that the model is sampled as a one-step student.

    Args:
        batch: pictures made at once; ``pictures`` is rounded up to a multiple of it.
        out: folder for the PNG files of the row that writes them.
    """
    t_init = (model.student or {}).get("t_init", 625)
    model = replace(model, student={"t_init": t_init})
    rounds = -(-pictures // batch)
    pictures = rounds * batch
    prompts = [PROMPT.format(i) for i in range(batch)]
    seeds = list(range(batch))
    dtype = next(model.network.parameters()).dtype
    generator, encode = OneStepGenerator(model.denoiser(), t_init), model.encoder()
    z = seed_noise(seeds, model.latent_shape).to(device)
    with torch.no_grad():
        c = encode(prompts)
        latents = generator(z, c)
    model.vae.to(dtype)
    pipeline = model.pipeline(model.family.one_step_scheduler(model.schedule, t_init))
    pipeline.set_progress_bar_config(disable=True)
    model.vae.float()

    def everything() -> None:
        for _ in range(rounds):
            to_pil(one_step(model, prompts, seeds, t_init))

    def network() -> None:
        with torch.no_grad():
            for _ in range(rounds):
                generator(z, c)

    def vae() -> None:
        for _ in range(rounds):
            model.decode(latents)

    def text() -> None:
        for _ in range(rounds):
            encode(prompts)

    def stock() -> None:
        for _ in range(rounds):
            pipeline(prompts, num_inference_steps=1, guidance_scale=1.0)

    written = 0

    def with_files() -> None:
        nonlocal written
        folder = out / str(written)
        jobs = caption_jobs([PROMPT.format(i) for i in range(pictures)])
        generate(model, jobs, folder, batch=batch)
        written += 1

    works: Sequence[tuple[str, Callable[[], None]]] = (
        ("one step, in memory", everything),
        ("one step, PNG files written", with_files),
        ("UNet alone", network),
        ("VAE alone (fp32)", vae),
        ("text encoder alone", text),
    )
    rows = [SampleRow(name, pictures, timed(work, device, 1, repeats)) for name, work in works]
    model.vae.to(dtype)  # the stock pipeline needs one dtype for all parts
    rows.append(
        SampleRow(
            f"stock diffusers pipeline ({str(dtype).removeprefix('torch.')} VAE)",
            pictures,
            timed(stock, device, 1, repeats),
        )
    )
    model.vae.float()
    return rows
