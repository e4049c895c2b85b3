"""Measures distillation: chooses the configurations and times whole iterations of each."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sidlsg.benchmark.machine import data_sheet_peak, default_arch, default_preset
from sidlsg.benchmark.report import write_bench
from sidlsg.benchmark.timing import Timing, gemm_tflops, timed
from sidlsg.config import Config
from sidlsg.devices import DTYPES, PeakMemory, device_facts
from sidlsg.method import draws
from sidlsg.method.guidance import STRATEGIES
from sidlsg.paths import check_output
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
    """One configuration; when it did not run, ``error`` says why and there are no numbers.

    ``images`` are those of one iteration of a run, in one process; ``measured`` those of the longest iteration that was measured.
    ``timing`` is of iterations of ``images`` images, ``once`` the seconds in it that do not depend on their number (optimisers,
    average, gradients). ``allocated`` and ``reserved`` are peaks in GiB.
    """

    name: str
    config: Config
    images: int
    measured: int
    timing: Timing | None = None
    once: float | None = None
    allocated: float | None = None
    reserved: float | None = None
    gemm: float | None = None  # TFLOP/s of a matrix product, timed between the iterations
    peak: float | None = None  # TFLOP/s that ``mfu`` is a share of
    mfu: float | None = None
    gemm_share: float | None = None
    attention: str | None = None  # with the kernels that computed it
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
            "measured_images": self.measured,
            "error": self.error,
        }
        if self.timing:
            found["attention"] = self.attention
            rate = self.images_per_second or 0
            found |= {
                "seconds": self.timing.seconds,
                "seconds_once_an_iteration": self.once,
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
) -> list[tuple[str, Config]]:
    """(preset, configuration of one of its processes) for every combination; no strategies means all, no precisions each
    preset's own.

    Args:
        settings: fields of ``Config`` that override the presets.
    """
    chosen = []
    for preset in presets:
        for precision in precisions or [""]:
            for strategy in strategies or list(STRATEGIES):
                options: dict[str, Any] = {"strategy": strategy}
                if precision:
                    options["precision"] = precision
                config = make_config(preset, options | settings)
                chosen.append((preset, replace(config, batch=config.batch // config.processes, processes=1)))
    return chosen


def sizes(config: Config, images: int | None) -> list[int]:
    """Images of the iterations to measure, each a multiple of both micro-batches: the whole batch where it is no more than
    ``images`` (None: two rounds of the larger micro-batch), else about ``images`` and about half of them, from which the time of
    the whole batch follows."""
    step = math.lcm(*config.micro_batches)
    images = images or 2 * step
    if images >= config.batch:
        return [config.batch]
    long = max(2, images // step)
    return [long // 2 * step, long * step]


def compose(seconds: list[float], images: list[int], batch: int) -> tuple[float, float]:
    """(seconds of an iteration of ``batch`` images, those of them that do not depend on the number) from the ``seconds`` of an
    iteration of each size in ``images``, which are one or two."""
    if len(images) == 1:
        return seconds[0] * batch / images[0], 0.0
    short, long = seconds
    each = (long - short) / (images[1] - images[0])
    once = short - images[0] * each
    if once < 0:  # the noise is larger than it
        each, once = sum(seconds) / sum(images), 0.0
    return once + batch * each, once


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
        presets, strategies, precisions, settings: as for ``cases``; no presets means the device's default.
        images: as for ``sizes``.
        repeats: measured iterations of each case.
        baseline: measure each case also with every switch that is on turned off, first one by one, then all together.
        out: folder of the files, rewritten after every row, so that an interruption keeps what was measured; None writes none.
        command: the command line, which the report quotes.

    Returns the rows; a row that did not run has an ``error``. Raises UsageError for unknown names, SidlsgError when the files
    cannot be written.
    """
    if out is not None:
        check_output(out)
    arch = arch or default_arch(device)
    family_of_architecture(arch)
    gflop = footprints()[arch].gflop
    console = console or Console(quiet=True)
    chosen = cases(presets or [default_preset(device, arch)], strategies, precisions, settings or {})
    facts = device_facts(device) | {"arch": arch}
    rows: list[dict[str, Any]] = []
    for preset, config in chosen:
        for label, case in without_each_switch(config) if baseline else [("", config)]:
            title = f"{case.strategy_name}, {label}" if label else case.strategy_name
            row = measure(title, case, lambda dtype: build_model(arch, device, dtype), device, gflop, images, repeats)
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
    images: int | None = None,
    repeats: int = 3,
    warmup: int = 1,
) -> Row:
    """Measure whole iterations (draws, text encoding, both updates, average), for one of ``config.batch`` images.

    The draws are part of the time, although a run makes them while the device works on the iteration before.

    Args:
        build: makes a fresh model in a given dtype.
        gflop: GFLOP of one forward pass of the network for one sample, for MFU; passes repeated to save memory do not count.
        images: as for ``sizes``.
    """
    measured = sizes(config, images)
    row = Row(name, config, config.batch, measured[-1])
    memory = PeakMemory(device)
    try:
        found = _iterations(config, build(stored_dtype(config)), device, measured, warmup, repeats)
        row.timing, row.once, row.gemm, row.attention = found.timing, found.once, found.gemm, found.attention
        row.allocated, row.reserved = memory.read()
        # All draws of an iteration wait on the device.
        row.allocated += (row.images - row.measured) * found.drawn / 2**30
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


@dataclass
class _Iterations:
    """timing: of an iteration of the whole batch; once: seconds in it that do not depend on its images; gemm: TFLOP/s of the
    matrix products run in between; drawn: bytes of the draws of one image, for both updates; attention: in use."""

    timing: Timing
    once: float
    gemm: float
    drawn: float
    attention: str


def _iterations(
    config: Config, teacher: Model, device: torch.device, measured: list[int], warmup: int, repeats: int
) -> _Iterations:
    """Time iterations of each size in ``measured``. Frees the engine on return."""
    engine = Engine.build(config, teacher, device)
    if config.compile:
        engine.compile()
    seen, drawn = 0, 0.0

    def iterate(images: int) -> None:
        nonlocal seen, drawn
        prompts = [PROMPT.format(seen + i) for i in range(images)]
        psi, theta = (engine.draw(update, seen, prompts) for update in (draws.FAKE_SCORE, draws.GENERATOR))
        batches = engine.send(psi), engine.send(theta)
        drawn = sum(batch.nbytes for batch in batches) / images
        engine.iterate(batches, seen)
        seen += images

    for _ in range(warmup):
        iterate(measured[-1])
    products, once, timing = [], [], Timing()
    for _ in range(repeats):
        # In turn, so that a slow moment of a shared machine affects all.
        products.append(gemm_tflops(device, DTYPES[config.precision]))
        seconds = [timed(partial(iterate, images), device, 0, 1).median for images in measured]
        whole, fixed = compose(seconds, measured, config.batch)
        timing.seconds.append(whole)
        once.append(fixed)
    return _Iterations(timing, statistics.median(once), statistics.median(products), drawn, engine.attention)


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
