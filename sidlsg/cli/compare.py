"""``sidlsg compare``: models side by side in one labelled picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli import completion
from sidlsg.cli.drawing import make_folder, parse_seeds, say_unwritable
from sidlsg.cli.options import Device, Precision, path_option
from sidlsg.paths import check_output, user_path


def compare(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="One or several prompts; each gets a block of rows.")
    ] = None,
    prompts: Annotated[Path | None, path_option("Text file, one prompt a line, or a table.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completion.models,
            help="Runs, diffusers folders, aliases or hub ids, with commas between; a teacher may have its own steps and "
            "guidance: emoji@25, sd15@50:7.5. Repeatable. Default: emoji-student,emoji.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="One column a seed: 0-7 or 1,5,8-10.")] = "0-7",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the teachers without @STEPS (default 25).")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance of the teachers without @STEPS:GUIDANCE (default 3).")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(autocompletion=completion.samplers, help="Sampler of the teachers (default: each one's own)."),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Pictures made at once; changes the seconds, not the pictures.")
    ] = 8,
    precision: Precision = None,
    device: Device = "auto",
    out: Annotated[Path, path_option("The .png file to write.")] = Path("compare.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the file and the seconds as JSON.")] = False,
) -> None:
    """Draw the same prompts from the same noise with several models: a row a model, a column a seed.

    Beside each row stand the model's name, its steps and guidance, and the seconds a picture took in this run, on this device,
    when warm. Models are loaded one after the other. Models with latents of one shape start from the same noise.

    Examples: `sidlsg compare "red heart" "cat face"` ·
    `sidlsg compare "red heart" --models runs/a,runs/b,emoji@25 --seeds 0-7 --out grid.png`
    """
    from sidlsg.errors import UsageError
    from sidlsg.prompts import PromptFile
    from sidlsg.terminal import note, print_json

    texts = [*(prompt or []), *(PromptFile(prompts) if prompts else [])]
    if not texts:
        raise UsageError('nothing to draw; give a prompt (sidlsg compare "red heart") or --prompts FILE')
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the grid is written as one .png file; give such a name")
    check_output(out.parent)
    numbers = parse_seeds(seeds)
    names = [name for given in models or ["emoji-student,emoji"] for name in split(given)]

    from sidlsg.benchmark import comparison
    from sidlsg.sampling.pictures import free_path, save_png
    from sidlsg.teachers.registry import locate

    contenders = [comparison.Contender.parse(name) for name in names]
    for contender in contenders:
        note(locate(contender.model).note)
    found = comparison.compare(
        texts,
        contenders,
        numbers,
        options=comparison.Options(steps, guidance, sampler),
        batch=batch,
        precision=precision,
        device=device,
        tell=lambda model: note(f"{model.name}: {', '.join(model.details)}", label=""),
    )
    say_unwritable([*texts, *names])
    make_folder(out.parent)
    path = free_path(out)
    seeds_text = ",".join(map(str, numbers))
    save_png(found.grid(), path, prompt=" | ".join(texts), seed=seeds_text, model=",".join(names))
    if as_json:
        print_json({"files": [str(path)], **found.as_dict()})
    else:
        print(path)


def split(text: str) -> list[str]:
    """Names with commas between; a folder with a comma in its name is one name."""
    return [text] if user_path(text).exists() else [name.strip() for name in text.split(",") if name.strip()]
