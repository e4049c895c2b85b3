"""The plan of a run, printed before it starts and by ``--dry-run``. Making it needs no weights, no network access and no torch.

Numbers of passes are exact; memory, images/s and hours are estimates by ``memory.py`` and ``gpus.py``, and are printed as such.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from sidlsg.config import Config
from sidlsg.formats import duration
from sidlsg.planning import memory
from sidlsg.planning.cost import forward_equivalents, passes_per_image
from sidlsg.planning.footprint import Footprint
from sidlsg.planning.gpus import Gpu, images_per_second
from sidlsg.planning.memory import OVERHEAD
from sidlsg.planning.recognise import Recognised
from sidlsg.teachers.registry import Location


def plan(
    config: Config,
    preset: str | None,
    out: Path,
    place: Location,
    found: Recognised | None,
    prompts: str,
    processes: int,
    gpu: Gpu | None = None,
) -> RenderableType:
    """The plan, for printing: what will run, how the batch is divided, what it costs, and the effective configuration.

    Args:
        found: the teacher's footprint; None if it is not known.
        prompts: a description of the prompt list (its length and hash, once it has been read).
        processes: the number of processes that the plan is for.
        gpu: the GPU that the estimates are for; None leaves out what depends on one.
    """
    rounds = config.rounds(processes)
    size = found.footprint if found else None
    gflop = size.gflop if size else None
    teacher = place.name + (
        f", UNet {size.network / 1e6:.2f} M parameters" if found and size and not found.assumed else ""
    )
    where = str(place.folder) if place.folder else "hub: " + ", then ".join(place.repositories)
    rows = {
        "teacher": teacher if place.name == where else f"{teacher} ({where})",
        "prompts": prompts,
        "strategy": f"{config.strategy_name}: {config.guidance}",
        "duration": f"{config.images:,} images in {config.iterations:,} iterations of {config.batch}",
        "batch": f"{config.batch} = {processes} process(es) x {rounds} round(s) x {config.micro_batch} images"
        + (f"; {config.fake_micro_batch} a round in the fake score's update" if config.fake_micro_batch else ""),
        "UNet passes an image": _work(config, gflop),
        "precision": _precision(config),
        "EMA": f"half-life {config.ema_half_life:,} images, fp32"
        + (", on the CPU" if config.ema_device == "cpu" else "")
        if config.ema
        else "none",
        "run folder": str(out),
        "writes": f"metrics every {config.log_every:,} images, a checkpoint every {config.checkpoint_every:,} "
        f"(the newest {config.keep_checkpoints} are kept), sample grids at Fig. 2's spacing, student/ at the end"
        + (f", scores every {config.eval_every:,} ({config.eval_protocol})" if config.eval_every else ""),
    }
    if found and size and size.passes:
        assumed = f" (taking the model for one of {found.assumed}'s size)" if found.assumed else ""
        rows |= {name: text + assumed for name, text in _memory(config, size, gpu, processes).items()}
    if gpu is not None and gpu.mfu and gflop is not None:
        rows["time"] = _time(config, gflop, gpu, processes)
    if config.compile:
        rows["compilation"] = (
            "within the first iteration, and again for the first grid: 5 to 15 minutes on a GPU (estimate)"
        )
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return Group(table, "", *_notes(config, processes), _settings(config, preset))


def _work(config: Config, gflop: float | None) -> str:
    passes, cost = passes_per_image(config), forward_equivalents(config)
    text = f"{passes['forward']} forward, {passes['full backward']} full backward, {passes['input backward']} input-only backward"
    if passes["repeated forward"]:
        text += f", {passes['repeated forward']} forward again to save memory"
    return f"{text} (as much as {cost:.1f} forward passes" + (f"; {cost * gflop / 1e3:.3g} TFLOP)" if gflop else ")")


def _memory(config: Config, size: Footprint, gpu: Gpu | None, processes: int) -> dict[str, str]:
    """Rows on the phase with the highest peak, line by line, on what is kept on the CPU, and on the largest micro-batch."""
    config = replace(config, processes=processes)
    peak, here = memory.predict(config, size), memory.on_the_cpu(config, size)
    rows = {
        "peak memory a GPU": f"{peak.total:.1f} GiB in {peak.name} (estimate): {_sum(peak.lines)}; "
        f"CUDA itself takes about {OVERHEAD:g} more",
        "memory on the CPU": f"{sum(here.values()):.1f} GiB a process (estimate): {_sum(here)}",
    }
    if gpu is not None:
        largest = memory.largest_micro_batch(config, size, gpu.memory, processes)
        rows["largest micro-batch"] = (
            f"{largest} on {gpu.name}, {gpu.memory:.1f} GiB (estimate)" if largest else f"none fits {gpu.name}"
        )
    return rows


def _sum(lines: dict[str, float]) -> str:
    return " + ".join(f"{name} {value:.1f}" for name, value in lines.items() if round(value, 1))


def _time(config: Config, gflop: float, gpu: Gpu, processes: int) -> str:
    rate = images_per_second(config, gflop, gpu, processes)
    seconds = config.images / rate
    return (
        f"{rate:.1f} images/s, {1e3 / rate:.0f} s per 1k images, {duration(seconds)} in all on {processes} x {gpu.name} "
        "(estimate; sidlsg bench measures)"
    )


def misfit(config: Config, size: Footprint | None, gpu: Gpu) -> str | None:
    """Why the run cannot work on the GPU, and which settings would help; None when it fits or its size is not known."""
    if config.precision == "bf16" and not gpu.bf16:
        return f"{gpu.name} has no bf16 arithmetic; use --precision fp16 (with clip_value 1 and adam_eps 1e-6) or fp32"
    if size is None or not size.passes:
        return None
    peak = memory.predict(config, size)
    need = peak.total
    if need + OVERHEAD <= gpu.memory:
        return None
    remedy = memory.make_fit(config, size, gpu.memory)
    start = (
        f"this run needs about {need:.1f} GiB in {peak.name} and CUDA itself {OVERHEAD:g}, but {gpu.name} has "
        f"{gpu.memory:.1f} GiB"
    )
    if remedy is None:
        return f"{start}, and no setting changes that; use a larger GPU"
    settings = " ".join(
        f"--set {key}={'null' if value is None else str(value).lower()}" for key, value in remedy.items()
    )
    then = memory.predict(replace(config, **remedy), size).total  # type: ignore[arg-type]
    half = ", at the quality of pure fp16" if "precision" in remedy else ""
    return f"{start}. With {settings} it needs {then:.1f} GiB{half} (estimate; --force runs it anyway)"


def _precision(config: Config) -> str:
    what = {
        "fp32": "fp32" + (" with TF32" if config.tf32 else ", TF32 off"),
        "bf16": "bf16 autocast, fp32 weights and optimiser",
        "fp16": "pure fp16 (weights, gradients, optimiser), as in the paper: most updates of size lr "
        "round away; for quality prefer bf16",
    }
    return f"{what[config.precision]}; attention {config.attention}"


def _notes(config: Config, processes: int) -> list[str]:
    if config.processes == processes:
        return []
    return [
        f"[yellow]note:[/] the preset is made for {config.processes} processes, this is {processes}: the result is the same, "
        f"the time is not. For {config.processes} GPUs: torchrun --nproc_per_node {config.processes} -m sidlsg distill ...\n"
    ]


def _settings(config: Config, preset: str | None) -> RenderableType:
    """Every setting, in two columns."""
    values = [escape(f"{name}: {'null' if v is None else v}") for name, v in config.as_dict().items()]
    table = Table(
        title=f"effective configuration (preset: {escape(preset or 'none')})",
        title_justify="left",
        box=None,
        show_header=False,
    )
    half = -(-len(values) // 2)
    for left, right in zip(values[:half], [*values[half:], ""], strict=False):
        table.add_row(left, right)
    return table
