"""``sidlsg bench``: memory, seconds per 1k images and efficiency of distillation; ``sidlsg bench sample`` for sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli import completion
from sidlsg.cli.options import Device, Precision, path_option

app = typer.Typer(invoke_without_command=True, subcommand_metavar="[sample ...]")

ARCH_HELP = "sd15, sd21-base or sdxl (random weights at the real size), or emoji."


@app.callback()
def bench(
    context: typer.Context,
    arch: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.architectures, help=f"{ARCH_HELP} Default: sd15 on a GPU, emoji on a CPU."
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(autocompletion=completion.strategies, help="Repeatable; default: all four.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(autocompletion=completion.precisions, help="Repeatable; default: the preset's.")
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completion.presets, help="Repeatable; default: the newest that is made for this device."
        ),
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Images per forward pass.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images of a measured iteration. Default: two micro-batches.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each row.")] = 3,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", autocompletion=completion.settings, help="Any other setting of a preset: NAME=VALUE."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also each switch of the engine turned off, one by one.")
    ] = False,
    device: Device = "auto",
    out: Annotated[Path | None, path_option("Folder for bench.json and bench.md.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON; the table goes to stderr.")] = False,
) -> None:
    """Measure distillation: peak memory, seconds per 1k images, images/s and MFU, for each strategy, precision and preset.

    Weights are random at the published shapes, so nothing is downloaded. Iterations of two lengths are measured, of which the
    time for the preset's batch is composed; one warm-up iteration is not measured, and the median of the others is shown, with
    their spread. Rows of the paper's Table 4 stand beside ours; they are of 8 GPUs, ours of one.

    Examples: `sidlsg bench` · `sidlsg bench --preset h100-bf16 --preset h100-fp16 --out bench-h100` ·
    `sidlsg bench --strategy lsg --baseline`
    """
    if context.invoked_subcommand is not None:
        return
    from sidlsg import terminal
    from sidlsg.benchmark.distillation import run
    from sidlsg.devices import pick_device
    from sidlsg.settings import gather

    rows = run(
        pick_device(device),
        arch,
        preset or (),
        strategy or (),
        precision or (),
        gather(setting or [], {"micro_batch": micro_batch, "device": device}),
        images=images,
        repeats=repeats,
        baseline=baseline,
        out=out,
        command=command_line(),
        console=terminal.progress(as_json),
    )
    if as_json:
        terminal.print_json({"command": command_line(), "rows": rows})
    if all(row["error"] for row in rows):
        raise typer.Exit(1)


@app.command("sample")
def sample(
    arch: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.architectures, help=f"{ARCH_HELP} Default: sd15 on a GPU, emoji on a CPU."
        ),
    ] = None,
    precision: Precision = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures made at once.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="Images per measurement.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each row.")] = 3,
    device: Device = "auto",
    out: Annotated[Path | None, path_option("Folder for bench-sample.json and bench-sample.md.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON; the table goes to stderr.")] = False,
) -> None:
    """Measure one-step sampling, its parts (UNet, VAE, text encoder, PNG files), and the stock diffusers pipeline."""
    from sidlsg import terminal
    from sidlsg.benchmark.sampling import run
    from sidlsg.devices import pick_device

    rows = run(
        pick_device(device),
        arch,
        precision,
        batch=batch,
        images=images,
        repeats=repeats,
        out=out,
        command=command_line(),
        console=terminal.progress(as_json),
    )
    if as_json:
        terminal.print_json({"command": command_line(), "rows": rows})


def command_line() -> str:
    """The command as it was typed, for the report."""
    import sys

    return " ".join(["sidlsg", *sys.argv[1:]])
