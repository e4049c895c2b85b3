"""What the subcommands' options share."""

from __future__ import annotations

import sys
from typing import Any

import typer

from sidlsg.paths import user_path


def path_option(help: str, *names: str) -> Any:
    """An option that is a path, with ``~`` as in a shell also where the shell leaves it alone (``--out=~/x``)."""
    return typer.Option(*names, parser=user_path, metavar="PATH", help=help)


def path_argument(help: str) -> Any:
    """As ``path_option``, without a name."""
    return typer.Argument(parser=user_path, metavar="PATH", help=help)


def tell(note: str | None) -> None:
    """Print a note, if there is one, on stderr, beside an output that programs may read."""
    if note:
        print(f"note: {note}", file=sys.stderr, flush=True)
