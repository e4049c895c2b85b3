"""``sidlsg sample``: prompts and seeds in, PNG files out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli import completion
from sidlsg.cli.drawing import MOST, make_folder, parse_seeds, say_unwritable
from sidlsg.cli.options import Device, Precision, path_option


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
    grid: Annotated[
        bool,
        typer.Option("--grid", help="One PNG instead of one per image, with the prompts, seeds and model as labels."),
    ] = False,
    columns: Annotated[
        int | None,
        typer.Option(
            min=1, help="Columns of the grid (default: about square; several prompts: one per seed, up to 8)."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(autocompletion=completion.models, help="Run folder, diffusers folder, alias or hub id.")
    ] = "emoji-student",
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps of a teacher (default 25).")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale of a teacher (default 3).")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.samplers,
            help="Sampler of a teacher: ddim, ddpm, pndm, euler, dpm++, unipc (default: its own).",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures made at once; does not change them.")] = 8,
    precision: Precision = None,
    device: Device = "auto",
    out: Annotated[Path, path_option("Folder, or the name of a .png file for a single picture or a grid.")] = Path(
        "samples"
    ),
    show: Annotated[
        bool | None,
        typer.Option(
            "--show/--no-show", help="Show the pictures in the terminal (default: where it can, on a terminal)."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the files, and the seconds from loading to the last file, as JSON.")
    ] = False,
) -> None:
    """Make pictures with a one-step student (or, to compare, with its teacher).

    Every prompt is drawn with every seed. The noise of a picture comes from its own seed, so it does not depend on --batch.
    The PNG carries prompt, seed and model as text entries. Terminals that show pictures (kitty, Ghostty, iTerm2, WezTerm, mintty,
    foot, mlterm) show up to 8 of them below their paths; SIDLSG_PICTURES=kitty, iterm2, sixel or none says what others can.

    Examples: `sidlsg sample "red heart"` · `sidlsg sample "red heart" "sad cat" --seeds 0-15 --grid` ·
    `sidlsg sample "red heart" --model runs/my-run` · `sidlsg sample "red heart" --model emoji --steps 25`
    """
    from sidlsg.cli.display import Display
    from sidlsg.errors import UsageError
    from sidlsg.paths import check_output
    from sidlsg.prompts import PromptFile
    from sidlsg.terminal import note, print_json

    texts = list(prompt or [])
    if prompts is not None:
        listed = PromptFile(prompts, column=caption_column)
        texts += list(listed)
        if listed.column is not None and caption_column is None:
            note(f"prompts: {listed}")
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
    display = Display.of(sys.stdout, False if as_json else show, 1 if grid else count)

    from sidlsg import api
    from sidlsg.runs.opening import describe_model
    from sidlsg.sampling.draw import EMPTY_PROMPT, check_sampling, sampling_text
    from sidlsg.sampling.grid import prompt_grid
    from sidlsg.sampling.pictures import free_path, save_png, slug
    from sidlsg.teachers.registry import locate

    note(locate(model).note)
    if not all(text.strip() for text in texts):
        note(EMPTY_PROMPT)
    begun = time.perf_counter()
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
    make_folder(folder)
    made: list[Path] = []

    def tell(path: Path) -> None:
        if as_json:
            return
        print(path, flush=True)
        display.show(path)

    if grid:
        found = list(pictures)
        made = [out if single else free_path(folder / f"grid-{slug(texts[0])}.png")]
        say_unwritable(texts)
        label = found[0].model
        if (about := describe_model(model)) is not None:
            label += f", {sampling_text(about.student is not None, *check_sampling(about, steps, guidance, sampler))}"
            label += f", {sampler}" if sampler else ""
        drawn = prompt_grid([picture.image for picture in found], texts, numbers, columns, label)
        save_png(drawn, made[0], prompt=" | ".join(texts), seed=",".join(map(str, numbers)), model=found[0].model)
        tell(made[0])
    for picture in () if grid else pictures:
        made.append(out if single else free_path(folder / f"{slug(picture.prompt)}-{picture.seed}.png"))
        picture.save(made[-1])
        tell(made[-1])
    if as_json:
        print_json({"files": list(map(str, made)), "seconds": time.perf_counter() - begun})
