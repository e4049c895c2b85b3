"""``sidlsg sample``: prompts and seeds in, PNG files out."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli.options import path_option, tell

MOST = 1_000_000  # seeds a prompt


def sample(
    prompt: Annotated[list[str] | None, typer.Argument(help="One or several prompts.")] = None,
    prompts: Annotated[Path | None, path_option("Text file, one prompt a line, or a table.")] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of a table (CSV, TSV, JSON Lines, Parquet) with the prompts.")
    ] = None,
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, max=MOST, help="Pictures a prompt, with consecutive seeds.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="First seed.")] = 0,
    seeds: Annotated[str | None, typer.Option(help="Seeds instead of -n and --seed: 0-63 or 1,5,8-10.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="One PNG with all pictures instead of one each.")] = False,
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of the grid (default: about square).")] = None,
    model: Annotated[str, typer.Option(help="Run folder, diffusers folder, alias or hub id.")] = "emoji-student",
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps of a teacher (default 25).")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale of a teacher (default 3).")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler of a teacher: ddim, ddpm, pndm, euler, dpm++, unipc (default: its own).")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures made at once; does not change them.")] = 8,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16 (default: fp16 on a GPU, else fp32).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path, path_option("Folder, or the name of a .png file for a single picture or a grid.")] = Path(
        "samples"
    ),
) -> None:
    """Make pictures with a one-step student (or, to compare, with its teacher).

    Every prompt is drawn with every seed. The noise of a picture comes from its own seed, so it does not depend on --batch.
    The PNG carries prompt, seed and model as text entries.

    Examples: `sidlsg sample "red heart"` · `sidlsg sample "red heart" "sad cat" --seeds 0-15 --grid` ·
    `sidlsg sample "red heart" --model runs/my-run` · `sidlsg sample "red heart" --model emoji --steps 25`
    """
    from sidlsg.errors import SidlsgError, UsageError
    from sidlsg.paths import check_output
    from sidlsg.prompts import PromptFile

    texts = list(prompt or [])
    if prompts is not None:
        listed = PromptFile(prompts, column=caption_column)
        texts += list(listed)
        if listed.column is not None and caption_column is None:
            print(f"prompts: {listed}", file=sys.stderr)
    elif caption_column is not None:
        raise UsageError("--caption-column is a column of --prompts FILE; give both")
    if not texts:
        raise UsageError('nothing to draw; give a prompt (sidlsg sample "red heart") or --prompts FILE')
    numbers = parse_seeds(seeds) if seeds is not None else range(seed, seed + number)
    count = len(texts) * len(numbers)
    single = out.suffix.lower() == ".png"
    if single and not grid and count > 1:
        raise UsageError(f"--out {out} names one file, but there are {count} pictures; give a folder, or --grid")
    if out.suffix.lower() in {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}:
        raise UsageError(f"--out {out}: pictures are written as .png; give a .png name or a folder")
    folder = out.parent if single else out
    check_output(folder)

    from sidlsg import api
    from sidlsg.sampling.pictures import free_path, make_grid, save_png, slug
    from sidlsg.teachers.registry import locate

    tell(locate(model).note)
    pictures = api.sample(
        texts,
        model=model,
        seeds=numbers,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        batch=batch,
        precision=precision,
        device=device,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SidlsgError(f"cannot write to {folder}: {error.strerror}; give another --out") from None
    if grid:
        found = list(pictures)
        path = out if single else free_path(folder / f"grid-{slug(texts[0])}.png")
        save_png(
            make_grid([picture.image for picture in found], columns),
            path,
            prompt=" | ".join(texts),
            seed=",".join(map(str, numbers)),
            model=found[0].model,
        )
        print(path)
        return
    for picture in pictures:
        path = out if single else free_path(folder / f"{slug(picture.prompt)}-{picture.seed}.png")
        picture.save(path)
        print(path, flush=True)


def parse_seeds(text: str) -> list[int]:
    """ "0-63" or "1,5,8-10"; raises UsageError for anything else."""
    from sidlsg.errors import UsageError

    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(f'seeds are "{text}"; write a range (0-63), a list (1,5,9) or both (0-3,8)')
        new = range(int(match[1]), int(match[2] or match[1]) + 1)
        if len(new) > MOST:
            raise UsageError(f'seeds are "{text}"; that is more than {MOST:,} pictures')
        numbers += new
    return numbers
