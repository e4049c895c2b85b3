"""Text for a terminal as it is: square brackets in paths, prompts and messages of libraries are no markup."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def say(console: Console, text: str, label: str = "") -> None:
    """Print one line, after a label that stands out ("warning: ")."""
    console.print(Text.assemble((label, "yellow"), text), highlight=False, soft_wrap=True)
