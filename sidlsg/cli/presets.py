"""``sidlsg presets``: list the presets, show one, copy one out to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli import completion
from sidlsg.cli.options import path_argument

app = typer.Typer(help="List, show or copy the presets of `sidlsg distill`.", no_args_is_help=True)


@app.command("list")
def list_presets(
    gpu: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.gpus, help="Say what fits this GPU (4090, 24GB) instead of the one here."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """The presets by hardware: memory, images per day, how long a full run takes, and what fits the GPU of this machine."""
    from rich.text import Text

    from sidlsg import terminal
    from sidlsg.planning.gpus import get_gpu
    from sidlsg.planning.here import gpu_count, gpu_here, may_have_gpu
    from sidlsg.planning.offers import fit, offers, table

    card, count = (get_gpu(gpu), 1) if gpu else (gpu_here() if may_have_gpu() else None, 1)
    if card is not None and not gpu:
        count = gpu_count()
    if as_json:
        by_name = sorted(offers(), key=lambda offer: offer.name)
        terminal.print_json([offer.as_dict(fit(offer, card, count) if card else None) for offer in by_name])
        return
    console = terminal.console()
    console.print(*map(Text, table(card, count)), "", sep="\n", highlight=False, soft_wrap=True)
    for_what = "--gpu 4090 here says what fits that GPU."
    if card is not None:
        for_what = f"The last column is for {count} x {card.name}, {card.memory:.1f} GiB."
    terminal.say(
        console,
        "GiB per GPU, images per day and times are estimates for LSG; none was measured on a GPU yet. sidlsg distill --preset "
        f"NAME --dry-run is the whole plan, sidlsg presets show NAME the settings. {for_what}",
    )


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(autocompletion=completion.presets, help="Preset name or YAML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print every setting, with the defaults, as JSON.")] = False,
) -> None:
    """Print a preset with its comments, after checking it."""
    from sidlsg import terminal
    from sidlsg.settings import make_config, preset_path

    config = make_config(name, {})
    if as_json:
        terminal.print_json(config.as_dict())
        return
    print(preset_path(name).read_text(encoding="utf-8"), end="")


@app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(autocompletion=completion.presets, help="Preset name.")],
    to: Annotated[Path | None, path_argument("File or folder (default: here).")] = None,
) -> None:
    """Copy a preset out to edit; use it with `sidlsg distill --preset FILE.yaml`."""
    from sidlsg.errors import SidlsgError, UsageError
    from sidlsg.settings import preset_path

    source = preset_path(name)
    if not source.is_file():
        raise UsageError(f"{source} does not exist")
    target = to or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise UsageError(f"{target} exists; give another name")
    try:
        target.write_bytes(source.read_bytes())
    except OSError as error:
        raise SidlsgError(f"cannot write {target}: {error.strerror}") from None
    print(target)
