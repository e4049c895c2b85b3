"""Measures distillation: chooses the configurations and times whole iterations of each."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sidlsg.benchmark.machine import data_sheet_peak, default_arch, default_preset, device_facts
from sidlsg.benchmark.report import write_bench
from sidlsg.benchmark.timing import PeakMemory, Timing, gemm_tflops, timed
from sidlsg.config import Config
from sidlsg.devices import DTYPES
from sidlsg.method import draws
from sidlsg.method.guidance import STRATEGIES
from sidlsg.planning.cost import forward_equivalents
from sidlsg.planning.footprint import footprints
from sidlsg.settings import make_config
from sidlsg.teachers.architectures import build_model, family_of_architecture
from sidlsg.teachers.family import Model
from sidlsg.terminal import say
from sidlsg.training.engine import Engine, stored_dtype

PROMPT = "a photo of a cat, number {}"
# The engine's switches with their "off" values, those of the authors' code, in the order in which a baseline turns them off.
SWITCHES: dict[str, Any] = {
    "compile": False,
    "channels_last": False,
    "attention": "eager",
    "lean_adam": False,
    "half_teacher": False,
    "fake_micro_batch": None,
    "tf32": False,
    "two_stage": False,
    "gradient_checkpointing": False,
    "offload_optimizer": False,
    "ema_device": "same",
}


@dataclass
class Row:
    """One measured configuration; when it did not run, ``error`` says why and there are no numbers.

    ``images`` are those of one iteration; ``allocated`` and ``reserved`` are peaks in GiB.
    """

    name: str
    config: Config
    images: int
    timing: Timing | None = None
    allocated: float | None = None
    reserved: float | None = None
    gemm: float | None = None  # TFLOP/s of a matrix product, timed between the iterations
    peak: float | None = None  # TFLOP/s that ``mfu`` is a share of
    mfu: float | None = None
    gemm_share: float | None = None
    error: str | None = None

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.timing.median if self.timing else None

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "strategy": self.config.strategy_name,
            "kappa": list(self.config.guidance),
            "precision": self.config.precision,
            "micro_batch": self.config.micro_batch,
            "fake_micro_batch": self.config.micro_batches[0],
            "switches": {name: getattr(self.config, name) for name in SWITCHES},
            "ema": self.config.ema,
            "images": self.images,
            "error": self.error,
        }
        if self.timing:
            rate = self.images_per_second or 0
            found |= {
                "seconds": self.timing.seconds,
                "images_per_second": rate,
                "seconds_per_1k_images": 1e3 / rate,
                "spread": self.timing.spread,
                "allocated_gib": self.allocated,
                "reserved_gib": self.reserved,
                "gemm_tflops": self.gemm,
                "peak_tflops": self.peak,
                "mfu": self.mfu,
                "share_of_gemm": self.gemm_share,
            }
        return found


def cases(
    presets: Sequence[str],
    strategies: Sequence[str],
    precisions: Sequence[str],
    settings: dict[str, Any],
    images: int | None = None,
) -> list[tuple[str, Config]]:
    """(preset, configuration) for every combination; no strategies means all, no precisions each preset's own.

    Args:
        settings: fields of ``Config`` that override the presets.
        images: the size of a measured iteration, fitted to the micro-batches by ``fit_batch``; None takes ``default_images``.
    """
    chosen = []
    for preset in presets:
        for precision in precisions or [""]:
            for strategy in strategies or list(STRATEGIES):
                options: dict[str, Any] = {"strategy": strategy}
                if precision:
                    options["precision"] = precision
                config = make_config(preset, options | settings)
                chosen.append((preset, fit_batch(config, images or default_images(config))))
    return chosen


def default_images(config: Config) -> int:
    """Two rounds of the larger micro-batch, or the preset's whole batch where that is less."""
    return min(config.batch, 2 * max(config.micro_batches))


def fit_batch(config: Config, images: int) -> Config:
    """The configuration for one process, with a batch of about ``images`` images that is a multiple of both micro-batches."""
    step = math.lcm(*config.micro_batches)
    return replace(config, batch=max(step, images // step * step), processes=1)


def run(
    device: torch.device,
    arch: str | None = None,
    presets: Sequence[str] = (),
    strategies: Sequence[str] = (),
    precisions: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    *,
    images: int | None = None,
    repeats: int = 3,
    baseline: bool = False,
    out: Path | None = None,
    command: str = "",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measure every combination, print each result as soon as it is known, and write ``bench.json`` and ``bench.md``.

    Args:
        arch: the architecture to build; None is the device's default.
        presets, strategies, precisions, settings, images: as for ``cases``; no presets means the device's default.
        repeats: measured iterations of each case.
        baseline: measure each case also with every switch that is on turned off, first one by one, then all together.
        out: folder of the files, rewritten after every row, so that an interruption keeps what was measured; None writes none.
        command: the command line, which the report quotes.

    Returns the rows; a row that did not run has an ``error``. Raises UsageError for unknown names, SidlsgError when the files
    cannot be written.
    """
    arch = arch or default_arch(device)
    family_of_architecture(arch)
    gflop = footprints()[arch].gflop
    console = console or Console(quiet=True)
    chosen = cases(presets or [default_preset(device, arch)], strategies, precisions, settings or {}, images)
    facts = device_facts(device) | {"arch": arch}
    rows: list[dict[str, Any]] = []
    for preset, config in chosen:
        for label, case in without_each_switch(config) if baseline else [("", config)]:
            title = f"{case.strategy_name}, {label}" if label else case.strategy_name
            row = measure(title, case, lambda dtype: build_model(arch, device, dtype), device, gflop, repeats)
            rows.append({"preset": preset} | row.as_dict())
            rate = f"{row.images_per_second:.3g} images/s" if row.images_per_second else row.error
            say(console, f"{preset}, {title}, {case.precision}: {rate}")
            write_bench(None, out, facts, rows, command)
    write_bench(console, out, facts, rows, command)
    return rows


def measure(
    name: str,
    config: Config,
    build: Callable[[torch.dtype], Model],
    device: torch.device,
    gflop: float,
    repeats: int = 3,
    warmup: int = 1,
) -> Row:
    """Measure whole iterations (draws, text encoding, both updates, average) of ``config.batch`` images each.

    Args:
        build: makes a fresh model in a given dtype.
        gflop: GFLOP of one forward pass of the network for one sample, for MFU; passes repeated to save memory do not count.
    """
    row = Row(name, config, config.batch)
    memory = PeakMemory(device)
    try:
        row.timing, row.gemm = _iterations(config, build(stored_dtype(config)), device, warmup, repeats)
        row.allocated, row.reserved = memory.read()
        useful = forward_equivalents(replace(config, two_stage=False, gradient_checkpointing=False)) * gflop / 1e3
        rate = row.images / row.timing.median
        row.peak = data_sheet_peak(config, device) or row.gemm
        row.mfu, row.gemm_share = rate * useful / row.peak, rate * useful / row.gemm
    except torch.cuda.OutOfMemoryError:
        row.error = "out of memory"
    except Exception as error:  # a row that fails must not lose the others
        row.error = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return row


def _iterations(
    config: Config, teacher: Model, device: torch.device, warmup: int, repeats: int
) -> tuple[Timing, float]:
    """Times of whole iterations, and the median TFLOP/s of matrix products run between them. Frees the engine on return."""
    engine = Engine.build(config, teacher, device)
    if config.compile:
        engine.compile()
    seen = 0

    def iterate() -> None:
        nonlocal seen
        prompts = [PROMPT.format(seen + i) for i in range(config.batch)]
        batches = engine.draw(draws.FAKE_SCORE, seen, prompts), engine.draw(draws.GENERATOR, seen, prompts)
        engine.iterate(batches, seen)
        seen += config.batch

    iterations = timed(iterate, device, warmup, 0)
    products = []
    for _ in range(repeats):
        # In turn, so that a slow moment of a shared machine affects both.
        products.append(gemm_tflops(device, DTYPES[config.precision]))
        iterations.seconds += timed(iterate, device, 0, 1).seconds
    return iterations, statistics.median(products)


def without_each_switch(config: Config) -> list[tuple[str, Config]]:
    """(label, configuration): the given one, then each switch that is on turned off alone, then all of them off."""
    on = {name: off for name, off in SWITCHES.items() if getattr(config, name) != off}
    rows = [("all switches", config)]
    for name, off in on.items():
        if name == "lean_adam" and config.offload_optimizer:
            continue  # only the lean optimiser can wait on the CPU; "none of them" has neither
        rows.append((f"without {name}", replace(config, **{name: off})))
    if on:
        rows.append(("none of them", replace(config, **on)))
    return rows
