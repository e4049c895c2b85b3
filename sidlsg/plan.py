"""The plan of a run, printed before it starts and by ``--dry-run``: no network, no weights, no torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from sidlsg.config import Config, passes_per_image
from sidlsg.registry import Location

# A backward pass of a trained network costs 2 forward passes, one through a frozen network (input gradient only) 1.16,
# counted on SD1.5's UNet.
FULL_BACKWARD, INPUT_BACKWARD = 2.0, 1.16


def forward_equivalents(passes: dict[str, int]) -> float:
    """The cost of one image in UNet forward passes (one sample of each of the two updates)."""
    return passes["forward"] + FULL_BACKWARD * passes["full backward"] + INPUT_BACKWARD * passes["input backward"]


def plan(
    config: Config, preset: str | None, out: Path, place: Location, prompts: str, processes: int
) -> RenderableType:
    """Tables of what will run, how it is cut up, what it costs, and the effective configuration.

    Args:
        prompts: how the prompt list is described (its count and hash, once it has been read).
        processes: processes the plan is for.
    """
    rounds = config.rounds(processes)
    passes = passes_per_image(config.guidance)
    cost = forward_equivalents(passes)
    entry = place.entry
    work = f"{passes['forward']} forward, {passes['full backward']} full backward, {passes['input backward']} input-only backward"
    work += f" (as much as {cost:.1f} forward passes"
    work += f"; {cost * entry.gflop / 1e3:.1f} TFLOP)" if entry and entry.gflop else ")"
    teacher = place.name
    if entry and entry.parameters:
        teacher += f", UNet {entry.parameters / 1e6:.2f} M parameters"
    where = str(place.folder) if place.folder else "hub: " + ", then ".join(place.repositories)

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "teacher": f"{teacher} ({where})",
        "prompts": prompts,
        "strategy": f"{config.strategy_name}: {config.guidance}",
        "duration": f"{config.images:,} images in {config.iterations:,} iterations of {config.batch}",
        "batch": f"{config.batch} = {processes} process(es) x {rounds} round(s) x {config.micro_batch} images",
        "UNet passes an image": work,
        "precision": _precision(config),
        "EMA": f"half-life {config.ema_half_life:,} images, fp32" if config.ema else "none",
        "run folder": str(out),
        "writes": f"metrics every {config.log_every:,} images, a checkpoint every {config.checkpoint_every:,} "
        f"(the newest {config.keep_checkpoints} are kept), sample grids at Fig. 2's spacing, student/ at the end",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return Group(table, "", *_notes(config, processes), _settings(config, preset))


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
