"""``sidlsg distill``: a teacher and prompts in, a one-step generator out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli.options import path_option


def distill(
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset name (`sidlsg presets list`) or YAML file; default: `cpu` for emoji, else the one for this GPU."
        ),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Alias (`sidlsg models`), hub id or diffusers folder.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Text file, one prompt a line, a table, or an alias (aesthetics6plus).")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of a table (CSV, TSV, JSON Lines, Parquet) with the prompts.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="long, short, lsg-simple or lsg.")] = None,
    kappa: Annotated[
        str | None, typer.Option(help="The strategy's scale, or all four: k1,k2,k3,k4. 1 is no guidance.")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Duration in images seen: 10M, 50k, 12800.")] = None,
    batch: Annotated[str | None, typer.Option(help="Images an iteration, over all processes.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Images a forward pass; changes memory, not the result.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of both networks.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 (autocast) or fp16 (the paper's pure half).")
    ] = None,
    ema: Annotated[bool | None, typer.Option("--ema/--no-ema", help="Average the generator's weights.")] = None,
    eval_every: Annotated[
        str | None, typer.Option(help="Score the student every so many images, keep the best, draw curves.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of a preset: --set two_stage=true (repeatable)."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Plan for this GPU: a5000, a6000, a100, h100, h200, 4090, ...")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run even if the plan says that memory will not suffice.")
    ] = False,
    out: Annotated[
        Path | None, path_option("Run folder (default: runs/<teacher>-<preset>-<strategy>-<kappa>).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; needs no network.")] = False,
) -> None:
    """Distil a teacher into a one-step generator (Algorithm 1 of the paper).

    Alone, it distils the embedded emoji teacher on the CPU in a few minutes. Option beats preset beats default; the
    effective configuration is printed and saved as config.yaml beside the run.

    To resume, run the same command again. Several GPUs: `torchrun --nproc_per_node 8 -m sidlsg distill ...`

    The generator loss oscillates around zero by design. To see whether a run works, look at the grids in samples/.

    Examples: `sidlsg distill` · `sidlsg distill --preset h100-fp16 --teacher sd15 --dry-run` ·
    `sidlsg distill --strategy long --kappa 3 --images 50k`
    """
    from sidlsg import distributed
    from sidlsg.config import parse_kappa
    from sidlsg.settings import gather
    from sidlsg.terminal import say
    from sidlsg.training.launch import launch, prepare
    from sidlsg.training.progress import RunConsole

    options = {
        "teacher": teacher,
        "prompts": prompts,
        "caption_column": caption_column,
        "strategy": strategy,
        "kappa": None if kappa is None else parse_kappa(kappa),
        "images": images,
        "batch": batch,
        "micro_batch": micro_batch,
        "lr": lr,
        "precision": precision,
        "ema": ema,
        "eval_every": eval_every,
        "seed": seed,
        "device": device,
        "gpu": gpu,
    }
    job = prepare(preset, gather(setting or [], options), out, dry_run)
    console = RunConsole(quiet=not distributed.launched().main)
    console.print(job.plan(), highlight=False)
    if dry_run:
        if job.problem:
            say(console, job.problem, "does not fit: ")
        return
    ended = "this run is complete" if job.complete else "done"
    folder = launch(job, console, force)
    say(console, f'{ended}: {folder.student}\nsidlsg sample --model {folder.path} "..."')
