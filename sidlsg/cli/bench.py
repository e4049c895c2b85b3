"""``sidlsg bench``: memory, seconds per 1k images and efficiency of distillation; ``sidlsg bench sample`` for sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(invoke_without_command=True, subcommand_metavar="[sample ...]")

ARCH_HELP = "sd15 or sd21-base (random weights at the real size), or emoji."


@app.callback()
def bench(
    context: typer.Context,
    arch: Annotated[str | None, typer.Option(help=f"{ARCH_HELP} Default: sd15 on a GPU, emoji on a CPU.")] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all four.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="Repeatable; default: the preset's.")] = None,
    preset: Annotated[
        list[str] | None, typer.Option(help="Repeatable; default: the newest that is made for this device.")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Images a forward pass.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images a measurement (rounded to micro-batches).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each row.")] = 3,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting of a preset: NAME=VALUE.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also each switch of the engine turned off, one by one.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json and bench.md.")] = None,
) -> None:
    """Measure distillation: peak memory, seconds per 1k images, images/s and MFU, for each strategy, precision and preset.

    Weights are random at the published shapes, so nothing is downloaded. One warm-up iteration is not measured; the median of
    the others is shown, with their spread. Rows of the paper's Table 4 stand beside ours; they are of 8 GPUs, ours of one.

    Examples: `sidlsg bench` · `sidlsg bench --preset h100-bf16 --preset h100-fp16 --out bench-h100` ·
    `sidlsg bench --strategy lsg --baseline`
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from sidlsg import bench as measuring
    from sidlsg.architectures import build_model, known
    from sidlsg.bench_report import write_bench
    from sidlsg.config import make_config, parse_settings
    from sidlsg.errors import UsageError, nearest
    from sidlsg.guidance import STRATEGIES
    from sidlsg.models import pick_device
    from sidlsg.registry import registry

    console = Console()
    where = pick_device(device)
    arch = arch or ("sd15" if where.type == "cuda" else "emoji")
    if arch not in known():
        raise UsageError(f'unknown architecture "{arch}"{nearest(arch, known())}')
    gflop = registry()[arch].gflop
    assert gflop is not None
    chosen = []
    kinds: list[str | None] = list(precision) if precision else [None]
    for name in preset or [default_preset(where)]:
        for kind in kinds:
            for plan in strategy or list(STRATEGIES):
                options: dict[str, Any] = {
                    "strategy": plan,
                    "precision": kind,
                    "micro_batch": micro_batch,
                    "device": str(where),
                }
                if kind not in (None, "bf16"):
                    options["half_teacher"] = False
                options |= parse_settings(setting or [])
                config = make_config(name, options)
                chosen.append((name, fit_batch(config, images or default_images(config))))
    rows: list[dict[str, Any]] = []
    facts = measuring.device_facts(where) | {"arch": arch}
    for name, config in chosen:
        cases = measuring.without_each_switch(config) if baseline else [("", config)]
        for label, case in cases:
            title = f"{case.strategy_name}, {label}" if label else case.strategy_name
            row = measuring.measure(title, case, lambda dtype: build_model(arch, where, dtype), where, gflop, repeats)
            rows.append({"preset": name} | row.as_dict())
            rate = f"{row.images_per_second:.3g} images/s" if row.images_per_second else row.error
            console.print(f"{name}, {title}, {case.precision}: {rate}", highlight=False, soft_wrap=True)
            write_bench(None, out, facts, rows, command_line())  # an interruption keeps what was measured
    write_bench(console, out, facts, rows, command_line())
    if all(row["error"] for row in rows):
        raise typer.Exit(1)


@app.command("sample")
def sample(
    arch: Annotated[str | None, typer.Option(help=f"{ARCH_HELP} Default: sd15 on a GPU, emoji on a CPU.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16 (default: fp16 on a GPU, else fp32).")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures made at once.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="Pictures a measurement.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each row.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for bench-sample.json and bench-sample.md.")] = None,
) -> None:
    """Measure one-step sampling, its parts (UNet, VAE, text encoder, PNG files), and the stock diffusers pipeline."""
    import tempfile

    from rich.console import Console

    from sidlsg import bench as measuring
    from sidlsg.architectures import build_model
    from sidlsg.bench_report import write_bench_sample
    from sidlsg.errors import UsageError
    from sidlsg.models import DTYPES, pick_device

    where = pick_device(device)
    arch = arch or ("sd15" if where.type == "cuda" else "emoji")
    precision = precision or ("fp16" if where.type == "cuda" else "fp32")
    if precision not in DTYPES:
        raise UsageError(f'precision is "{precision}"; use fp32, bf16 or fp16')
    model = build_model(arch, where, DTYPES[precision])
    with tempfile.TemporaryDirectory() as folder:
        rows = measuring.measure_sampling(model, where, batch, images, Path(folder), repeats)
    facts = measuring.device_facts(where) | {"arch": arch, "precision": precision, "batch": batch}
    write_bench_sample(Console(), out, facts, [row.as_dict() for row in rows], command_line())


def command_line() -> str:
    """The command as it was typed, for the report."""
    import sys

    return " ".join(["sidlsg", *sys.argv[1:]])


def default_preset(device: Any) -> str:
    """On a CPU `cpu`; on a GPU the bf16 preset that the memory allows."""
    if device.type != "cuda":
        return "cpu"
    import torch

    from sidlsg.gpus import preset_for

    return preset_for(torch.cuda.get_device_properties(device).total_memory / 2**30)


def default_images(config: Any) -> int:
    """Two rounds of the larger micro-batch, or a whole iteration where that is less."""
    return min(config.batch, 2 * max(config.micro_batches))


def fit_batch(config: Any, images: int) -> Any:
    """The configuration with one iteration of about ``images`` images, a multiple of both micro-batches, in one process."""
    import math
    from dataclasses import replace

    step = math.lcm(*config.micro_batches)
    return replace(config, batch=max(step, images // step * step), processes=1)
