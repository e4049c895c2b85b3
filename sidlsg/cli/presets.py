"""``sidlsg presets``: list the presets, show one, copy one out to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidlsg.cli import completion
from sidlsg.cli.options import path_argument

app = typer.Typer(help="List, show or copy the presets of `sidlsg distill`.", no_args_is_help=True)


@app.command("list")
def list_presets(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """One line per preset: what it is for, and its main settings."""
    from rich.table import Table

    from sidlsg import terminal
    from sidlsg.settings import make_config, preset_names, preset_path

    # The first line of each file up to the semicolon; numbers follow it.
    purposes = {
        name: preset_path(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ").partition(";")[0]
        for name in preset_names()
    }
    if as_json:
        terminal.print_json(
            [
                {"preset": name, "for": text, "config": make_config(name, {}).as_dict()}
                for name, text in purposes.items()
            ]
        )
        return

    table = Table(box=None, pad_edge=False)
    for heading in ("preset", "precision", "batch", "micro", "processes", "images", "κ"):
        table.add_column(heading, no_wrap=True)
    table.add_column("for")
    for name, purpose in purposes.items():
        config = make_config(name, {})
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
    terminal.console().print(table, highlight=False)


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
