"""``sidlsg eval``: FID-30K, CLIP score, precision/recall and HPSv2 by named protocol; ``sidlsg eval stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli import completion
from sidlsg.cli.options import Device, path_argument, path_option

app = typer.Typer(invoke_without_command=True, subcommand_metavar="[stats ...]")

REFERENCE_HELP = "Real pictures: a folder (encoded once, cached) or a file of `sidlsg eval stats`."
INCEPTION_HELP = "Inception weights file, instead of the cached or downloaded one."


@app.callback()
def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(autocompletion=completion.models, help="Run folder, diffusers folder, alias or hub id."),
    ] = None,
    coco30k: Annotated[
        bool, typer.Option("--coco30k", help="30,000 COCO captions, as the paper's tables 1 and 2.")
    ] = False,
    hpsv2: Annotated[bool, typer.Option("--hpsv2", help="4 x 800 prompts, human preference score.")] = False,
    images: Annotated[Path | None, path_option("Score this folder of pictures, made by anything.")] = None,
    reference: Annotated[Path | None, path_option(REFERENCE_HELP)] = None,
    prompts: Annotated[
        Path | None, path_option("Caption file; line or row i belongs to picture i (a folder with --hpsv2).")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of a table (CSV, TSV, JSON Lines, Parquet) with the captions.")
    ] = None,
    file_column: Annotated[
        str | None,
        typer.Option(help="Column with the file names of the pictures in --images that the captions belong to."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(autocompletion=completion.protocols, help="gigagan, sid-lsg, embedded or teacher.")
    ] = None,
    only: Annotated[str, typer.Option(help="Which scores: fid,clip,pr.")] = "fid,clip,pr",
    limit: Annotated[
        int | None, typer.Option(help="Only the first N captions (of each style); not comparable with tables.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps of a teacher (default 25).")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale of a teacher (default 3).")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(autocompletion=completion.samplers, help="Sampler of a teacher: ddim, dpm++, unipc, ..."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures at once; does not change scores.")] = None,
    precision: Annotated[
        str | None, typer.Option(autocompletion=completion.precisions, help="Of the generator: fp32, bf16 or fp16.")
    ] = None,
    device: Device = "auto",
    inception: Annotated[Path | None, path_option(INCEPTION_HELP)] = None,
    clip: Annotated[Path | None, path_option("CLIP ViT-g-14 weights file.")] = None,
    hps: Annotated[Path | None, path_option("HPS weights file.")] = None,
    hps_version: Annotated[str, typer.Option(help="v2.0 (the paper's) or v2.1; the scales differ.")] = "v2.0",
    hps_antialias: Annotated[
        bool, typer.Option("--hps-antialias/--no-hps-antialias", help="Off: as with torchvision before 0.17.")
    ] = True,
    hps_package: Annotated[
        bool, typer.Option("--hps-package", help="Score with the installed hpsv2 package's code.")
    ] = False,
    assume_protocol: Annotated[
        bool, typer.Option("--assume-protocol", help="Take statistics of another tool as this protocol's.")
    ] = False,
    out: Annotated[Path | None, path_option("Folder for pictures and results (default below evals/).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done, needed and downloaded.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Score a model, or pictures made by anything, by a named protocol.

    Alone, it scores the shipped emoji student on the embedded benchmark. With --coco30k it draws caption i with seed i for all
    30,000 captions, then computes FID, CLIP score, precision and recall as the paper's tables do. An interrupted evaluation
    goes on when the same command is given again. Several GPUs: `torchrun --nproc_per_node 8 -m sidlsg eval ...`

    Examples: `sidlsg eval` · `sidlsg eval --model runs/my-run` · `sidlsg eval --coco30k --model sd15 --dry-run` ·
    `sidlsg eval --hpsv2 --model runs/my-run` · `sidlsg eval --images DIR --reference coco.npz --protocol gigagan`
    """
    if context.invoked_subcommand is not None:
        return
    from sidlsg import terminal
    from sidlsg.evaluation.request import Request, parse_only

    request = Request(
        model=model,
        images=images,
        coco30k=coco30k,
        hpsv2=hpsv2,
        reference=reference,
        prompts=prompts,
        caption_column=caption_column,
        file_column=file_column,
        protocol=protocol,
        only=parse_only(only),
        limit=limit,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        batch=batch,
        precision=precision,
        device=device,
        inception=inception,
        clip=clip,
        hps=hps,
        hps_version=hps_version,
        hps_antialias=hps_antialias,
        hps_package=hps_package,
        assume_protocol=assume_protocol,
        out=out,
    )
    if model is not None:
        from sidlsg.teachers.registry import locate

        terminal.note(locate(model).note)
    if dry_run:
        from sidlsg.evaluation.plan import lines, plan

        if as_json:
            terminal.print_json(dict(lines(request)))
        else:
            terminal.console().print(plan(request), highlight=False, soft_wrap=True)
        return
    from sidlsg.evaluation.report import results_table
    from sidlsg.evaluation.run import run

    results = run(request, terminal.progress(as_json))
    if results is not None and as_json:
        terminal.print_json(results)
    elif results is not None:
        console = terminal.console()
        console.print(results_table(results), highlight=False)
        terminal.say(console, str(request.folder))


@app.command("stats")
def stats(
    folder: Annotated[Path, path_argument("Folder of real pictures.")],
    out: Annotated[Path, path_option("File to write: coco.npz.")],
    protocol: Annotated[
        str, typer.Option(autocompletion=completion.protocols, help="gigagan, sid-lsg or embedded.")
    ] = "gigagan",
    features: Annotated[
        bool, typer.Option("--features/--no-features", help="Keep features, which precision and recall need.")
    ] = True,
    inception: Annotated[Path | None, path_option(INCEPTION_HELP)] = None,
    device: Device = "auto",
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at once.")] = None,
) -> None:
    """Make a file of reference statistics to share, so that others need no pictures.

    Example: `sidlsg eval stats /data/COCO2014/val2014 --out coco.npz`, then `sidlsg eval --coco30k --reference coco.npz`
    """
    from sidlsg import terminal
    from sidlsg.evaluation.run import make_statistics

    console = terminal.progress(as_json=False)
    count = make_statistics(
        folder, out, protocol, features=features, inception=inception, device=device, batch=batch, console=console
    )
    what = "statistics and features" if features else "statistics"
    terminal.say(console, f"{out}: {what} of {count:,} pictures, protocol {protocol}")
