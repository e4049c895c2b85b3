"""What a command writes to its terminal: how much of it, in which colours, and as JSON instead."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

QUIET, NORMAL, VERBOSE = 0, 1, 2
level = NORMAL  # set once by `sidlsg.cli.main` from --quiet and --verbose


def console(messages: bool = False) -> Console:
    """Where a command prints for people.

    Colours follow NO_COLOR and FORCE_COLOR, and bars that redraw themselves need a real terminal whatever those say.

    Args:
        messages: for progress and notes, which --quiet leaves out; they go to stderr, so that stdout holds results only.
    """
    from rich.console import Console

    stream = sys.stderr if messages else sys.stdout
    return Console(stderr=messages, quiet=messages and level == QUIET, force_interactive=stream.isatty())


def note(text: str) -> None:
    """One line to stderr, unless --quiet is given."""
    console(messages=True).print(text, highlight=False, markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """The result of a command with --json: one JSON value on stdout, and nothing else there."""
    print(json.dumps(content, indent=2, ensure_ascii=False), flush=True)
