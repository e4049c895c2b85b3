"""``sidlsg models``: the short names that ``--teacher`` and ``--model`` accept."""

from __future__ import annotations

from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List the model aliases; a diffusers folder or a hub id (owner/name) works in their place."""
    from rich.table import Table

    from sidlsg import terminal
    from sidlsg.teachers.registry import registry

    if as_json:
        terminal.print_json(
            [
                {"alias": name, "what": e.what, "in_package": e.folder is not None, "repositories": e.repositories}
                for name, e in registry().items()
            ]
        )
        return
    table = Table("alias", "what", box=None, pad_edge=False)
    table.add_column("where", overflow="fold")  # names that are to be copied
    for name, entry in registry().items():
        table.add_row(name, entry.what, "in the package" if entry.folder else ", then ".join(entry.repositories))
    terminal.console().print(table, highlight=False)
