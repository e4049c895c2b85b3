"""``sidlsg models``: the short names that ``--teacher`` and ``--model`` accept."""

from __future__ import annotations


def models() -> None:
    """List the model aliases; a diffusers folder or a hub id (owner/name) works in their place."""
    from rich.console import Console
    from rich.table import Table

    from sidlsg.teachers.registry import registry

    table = Table("alias", "what", "where", box=None, pad_edge=False)
    for name, entry in registry().items():
        table.add_row(name, entry.what, "in the package" if entry.folder else ", then ".join(entry.repositories))
    Console().print(table, highlight=False)
