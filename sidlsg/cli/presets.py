"""``sidlsg presets``: list the presets, show one, copy one out to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli.options import path_argument

app = typer.Typer(help="List, show or copy the presets of `sidlsg distill`.", no_args_is_help=True)


@app.command("list")
def list_presets() -> None:
    """One line per preset: what it is for, and its main settings."""
    from rich.console import Console
    from rich.table import Table

    from sidlsg.settings import make_config, preset_names, preset_path

    table = Table(box=None, pad_edge=False)
    for heading in ("preset", "precision", "batch", "micro", "processes", "images", "κ"):
        table.add_column(heading, no_wrap=True)
    table.add_column("for")
    for name in preset_names():
        config = make_config(name, {})
        # The first line of the file up to the semicolon; numbers follow it.
        purpose = preset_path(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ").partition(";")[0]
        kappas = ", ".join(f"{k:g}" for k in dict.fromkeys(config.guidance))
        images = f"{config.images / 1e6:g}M" if config.images >= 1e6 else f"{config.images:,}"
        table.add_row(
            name,
            config.precision,
            str(config.batch),
            str(config.micro_batch),
            str(config.processes),
            images,
            kappas,
            purpose,
        )
    Console().print(table, highlight=False)


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Preset name or YAML file.")]) -> None:
    """Print a preset with its comments, after checking it."""
    from sidlsg.settings import make_config, preset_path

    make_config(name, {})
    print(preset_path(name).read_text(encoding="utf-8"), end="")


@app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="Preset name.")],
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
