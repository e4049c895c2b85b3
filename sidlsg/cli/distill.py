"""``sidlsg distill``: a teacher and prompts in, a one-step generator out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli import completion
from sidlsg.cli.options import path_option


def distill(
    preset: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.presets,
            help="Preset name (`sidlsg presets list`) or YAML file; default: `cpu` for emoji, else by --gpu or the GPU here.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(autocompletion=completion.teachers, help="Alias (`sidlsg models`), hub id or diffusers folder."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Text file, one prompt per line, a table, or an alias (aesthetics6plus).")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of a table (CSV, TSV, JSON Lines, Parquet) with the prompts.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(autocompletion=completion.strategies, help="long, short, lsg-simple or lsg.")
    ] = None,
    kappa: Annotated[
        str | None, typer.Option(help="The strategy's scale, or all four: k1,k2,k3,k4. 1 is no guidance.")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Duration in images seen: 10M, 50k, 12800.")] = None,
    batch: Annotated[str | None, typer.Option(help="Images per iteration, over all processes.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Images per forward pass; changes memory, not the result.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of both networks.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.precisions, help="fp32, bf16 (autocast) or fp16 (the paper's pure half)."
        ),
    ] = None,
    ema: Annotated[bool | None, typer.Option("--ema/--no-ema", help="Average the generator's weights.")] = None,
    eval_every: Annotated[
        str | None, typer.Option(help="Score the student every so many images, keep the best, draw curves.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    device: Annotated[
        str | None, typer.Option(autocompletion=completion.devices, help="auto, cpu, cuda or cuda:N.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            autocompletion=completion.settings,
            help="Any other setting of a preset: --set two_stage=true (repeatable).",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.gpus,
            help="Plan for this GPU: 4090, 5090, a6000, a100, h100, ... or its memory (24GB); chooses the preset.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run even if the plan says that memory will not suffice.")
    ] = False,
    out: Annotated[
        Path | None, path_option("Run folder (default: runs/<teacher>-<preset>-<strategy>-<kappa>).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; needs no network.")] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the whole plan and every setting, not only what differs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print plan and settings as JSON.")] = False,
) -> None:
    """Distil a teacher into a one-step generator (Algorithm 1 of the paper).

    Alone, it distils the embedded emoji teacher on the CPU in two to five minutes. Option beats preset beats default; what
    differs from the preset is printed, and the effective configuration is saved as config.yaml beside the run.

    To resume, run the same command again. Several GPUs: `torchrun --nproc_per_node 8 -m sidlsg distill ...`

    The generator loss oscillates around zero by design. Whether a run works is said in report.html in its folder.

    Examples: `sidlsg distill` · `sidlsg distill --teacher sd15 --gpu 4090 --dry-run` ·
    `sidlsg distill --strategy long --kappa 3 --images 50k`
    """
    import sys

    from sidlsg import distributed, terminal
    from sidlsg.config import parse_kappa
    from sidlsg.errors import Stopped, UsageError
    from sidlsg.settings import gather
    from sidlsg.training.launch import launch, prepare, summary
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
    if as_json and not dry_run:
        raise UsageError("--json prints the plan; give --dry-run too")
    job = prepare(preset, gather(setting or [], options), out, dry_run)
    if as_json:
        terminal.print_json(job.as_dict())
        return
    console = RunConsole(
        quiet=not distributed.launched().main or (terminal.quiet() and not dry_run), **terminal.options(sys.stdout)
    )
    console.print(job.plan(show_config or terminal.verbose()), highlight=False, soft_wrap=True)
    if dry_run:
        if job.problem:
            console.print()
            terminal.say(console, job.problem, "does not fit: ")
        return
    ended = "this run is complete" if job.complete else "done"
    try:
        folder = launch(job, console, force)
    except Stopped:
        console.print("", summary(job.folder, job.config.teacher), soft_wrap=True)
        raise
    console.print(f"\n{ended}", summary(folder, job.config.teacher), sep="\n", highlight=False, soft_wrap=True)
    if terminal.quiet() and distributed.launched().main:
        print(folder.student)
