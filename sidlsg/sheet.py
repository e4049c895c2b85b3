"""Groups of named lines, as people read them: in columns on a terminal, one whole line each in a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

NARROW = 72  # columns; a terminal with fewer has each name above its text
INDENT = 2


@dataclass(frozen=True)
class Sheet:
    """Named lines in titled groups. Print it with ``soft_wrap=True``, so that a pipe gets every line whole."""

    groups: Mapping[str, Mapping[str, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bold, dim = Style(bold=True), Style(dim=True)
        groups = {title: lines for title, lines in self.groups.items() if lines}
        column = max((len(name) for lines in groups.values() for name in lines), default=0) + INDENT
        for number, (title, lines) in enumerate(groups.items()):
            if number:
                yield Segment("\n")
            yield Segment(title + "\n", bold)
            for name, text in lines.items():
                if not console.is_interactive:
                    yield Segment(f"{' ' * INDENT}{name:<{column}}{text}\n")
                    continue
                narrow = console.width < NARROW
                indent = 2 * INDENT if narrow else INDENT + column
                yield Segment(" " * INDENT + (f"{name}\n" if narrow else f"{name:<{column}}"), dim)
                for at, line in enumerate(_wrapped(text, console.width - indent)):
                    yield Segment(f"{' ' * indent if at or narrow else ''}{line}\n")


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines broken between words; a path that is longer than a line is left whole, so that it can be copied."""
    yield from textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False) or [""]
