"""Measuring distillation and sampling on the device at hand: seconds, memory, share of the arithmetic it could do."""

from __future__ import annotations

import contextlib
import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sidlsg import __version__, rng
from sidlsg.config import Config, forward_equivalents
from sidlsg.data import PACKAGE
from sidlsg.distill import Batch
from sidlsg.engine import Engine, stored_dtype
from sidlsg.gpus import arithmetic, known_gpu
from sidlsg.models import Model

PROMPT = "a photo of a cat, number {}"
# The engine's switches as the paper's code has them, in the order in which a baseline turns them off.
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


GEMM_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Timing:
    """Seconds of repeated measurements of the same work."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, warmup: int, repeats: int) -> Timing:
    """Run ``work`` ``warmup`` times unmeasured (compilation, caches), then ``repeats`` times measured."""
    for _ in range(warmup):
        work()
    found = Timing()
    for _ in range(repeats):
        synchronise(device)
        begun = time.perf_counter()
        work()
        synchronise(device)
        found.seconds.append(time.perf_counter() - begun)
    return found


def gemm_tflops(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5) -> float:
    """TFLOP/s of one large square matrix product: what the device's arithmetic gives in practice."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, device, 2, repeats).median / 1e12


class PeakMemory:
    """GiB at the peak since the object was made: allocated and reserved on a GPU, resident on a CPU (Linux can start afresh)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # elsewhere the peak is the process's
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> tuple[float, float | None]:
        if self.device.type == "cuda":
            found = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
            return found[0] / 2**30, found[1] / 2**30
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20, None
        except (OSError, StopIteration):
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, None


@dataclass
class Row:
    """One measured configuration. ``error`` instead of numbers when it did not run."""

    name: str
    config: Config
    images: int
    timing: Timing | None = None
    allocated: float | None = None
    reserved: float | None = None
    gemm: float | None = None  # TFLOP/s of a matrix product, timed between the iterations
    peak: float | None = None  # what MFU is a share of
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


def draw_batch(engine: Engine, update: int, first: int, device: torch.device) -> Batch:
    """Draws of one update, as a run makes them; captions are made up."""
    config = engine.config
    draws = rng.draw(config.seed, update, first, config.batch, engine.teacher.latent_shape, config.t_min, config.t_max)
    c = engine.encode([PROMPT.format(first + i) for i in range(config.batch)])
    z, eps, t = (x.to(device, non_blocking=True) for x in (draws.z, draws.eps, draws.t))
    return Batch(z, c, t, eps)


def measure(
    name: str,
    config: Config,
    build: Callable[[torch.dtype], Model],
    device: torch.device,
    gflop: float,
    repeats: int = 3,
    warmup: int = 1,
) -> Row:
    """Whole iterations (draws, text encoding, both updates, average) of ``config.batch`` images each.

    Args:
        build: makes a fresh model in a dtype.
        gflop: one UNet forward pass of one sample. Operations that are repeated to save memory do not count as useful.
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
    except Exception as error:  # one row that fails must not lose the others
        row.error = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return row


def _iterations(
    config: Config, teacher: Model, device: torch.device, warmup: int, repeats: int
) -> tuple[Timing, float]:
    """Seconds of whole iterations, and TFLOP/s of matrix products between them (median); the engine is gone when this returns."""
    engine = Engine.build(config, teacher, device)
    if config.compile:
        engine.compile()
    seen = 0

    def iterate() -> None:
        nonlocal seen
        batches = draw_batch(engine, rng.FAKE_SCORE, seen, device), draw_batch(engine, rng.GENERATOR, seen, device)
        engine.iterate(batches, seen)
        seen += config.batch

    iterations = timed(iterate, device, warmup, 0)
    products = []
    for _ in range(repeats):
        # Side by side, so that a slow moment of a shared machine meets both.
        products.append(gemm_tflops(device, GEMM_DTYPES[config.precision]))
        iterations.seconds += timed(iterate, device, 0, 1).seconds
    return iterations, statistics.median(products)


def without_each_switch(config: Config) -> list[tuple[str, Config]]:
    """The configuration, then with each switch that is on turned off alone, then with all of them off."""
    on = {name: off for name, off in SWITCHES.items() if getattr(config, name) != off}
    rows = [("all switches", config)]
    rows += [(f"without {name}", replace(config, **{name: off})) for name, off in on.items()]
    if on:
        bare = dict(on)
        rows.append(("none of them", replace(config, **bare)))
    return rows


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, memory, threads and software of the device that is measured."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "sidlsg": source_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    else:
        facts |= {"device": cpu_name(), "threads": torch.get_num_threads()}
    return facts


def source_version() -> str:
    """The package's version, and the commit it was run from where that is known (with + when files differ from it)."""
    if not (PACKAGE.parent / ".git").exists():
        return __version__
    git = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} at {commit}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


def data_sheet_peak(config: Config, device: torch.device) -> float | None:
    """The maker's TFLOP/s for the configuration's arithmetic on a GPU of gpus.yaml."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    row = known_gpu(properties.name, properties.total_memory / 2**30)
    return row.peaks[arithmetic(config)[0]] if row else None


# -- sampling ----------------------------------------------------------------------------------------------------------------


@dataclass
class SampleRow:
    """Seconds a picture of one way to sample, and of its parts."""

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
    """One-step sampling by this package, its parts, and the stock diffusers pipeline on the same weights and scheduler.

    Args:
        batch: pictures made at once; ``pictures`` is rounded up to a multiple of it.
        out: folder for the PNG files of the row that writes them.
    """
    from diffusers import StableDiffusionPipeline

    from sidlsg.denoiser import Denoiser, OneStepGenerator
    from sidlsg.distributed import Processes
    from sidlsg.evaluate import caption_jobs, generate
    from sidlsg.sampler import one_step, seed_noise, to_pil
    from sidlsg.student import one_step_scheduler

    t_init = (model.student or {}).get("t_init", 625)
    model.student = {"t_init": t_init}
    rounds = -(-pictures // batch)
    pictures = rounds * batch
    prompts = [PROMPT.format(i) for i in range(batch)]
    seeds = list(range(batch))
    dtype = next(model.unet.parameters()).dtype
    generator, encode = OneStepGenerator(Denoiser(model.unet, model.schedule), t_init), model.encode()
    z = seed_noise(seeds, model.latent_shape).to(device)
    with torch.no_grad():
        c = encode(prompts)
        latents = generator(z, c)
    pipeline = StableDiffusionPipeline(
        tokenizer=model.tokenizer,
        text_encoder=model.text_encoder,
        vae=model.vae if dtype == torch.float32 else model.vae.to(dtype),
        unet=model.unet,
        scheduler=one_step_scheduler(model.schedule, t_init),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    model.vae.float()

    def everything() -> None:
        for _ in range(rounds):
            to_pil(one_step(model, prompts, seeds, t_init))

    def unet() -> None:
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
        generate(model, jobs, folder, Processes(), batch=batch)
        written += 1

    works: Sequence[tuple[str, Callable[[], None]]] = (
        ("one step, in memory", everything),
        ("one step, PNG files written", with_files),
        ("UNet alone", unet),
        ("VAE alone (fp32)", vae),
        ("text encoder alone", text),
    )
    rows = [SampleRow(name, pictures, timed(work, device, 1, repeats)) for name, work in works]
    model.vae.to(dtype)  # the stock pipeline has one dtype for all parts
    rows.append(
        SampleRow(
            f"stock diffusers pipeline ({str(dtype).removeprefix('torch.')} VAE)",
            pictures,
            timed(stock, device, 1, repeats),
        )
    )
    model.vae.float()
    return rows
