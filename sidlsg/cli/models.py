"""``sidlsg models``: the short names that ``--teacher`` and ``--model`` accept."""

from __future__ import annotations

from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List the model aliases; a diffusers folder or a hub id (owner/name) works in their place."""
    from sidlsg import terminal
    from sidlsg.sheet import Sheet
    from sidlsg.teachers.registry import registry

    if as_json:
        terminal.print_json(
            [
                {"alias": name, "what": e.what, "in_package": e.folder is not None, "repositories": e.repositories}
                for name, e in registry().items()
            ]
        )
        return
    lines = {
        name: f"{entry.what} ({'in the package' if entry.folder else ', then '.join(entry.repositories)})"
        for name, entry in registry().items()
    }
    terminal.console().print(Sheet({"Models": lines}), highlight=False, soft_wrap=True)
