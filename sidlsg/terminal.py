"""What is written to the terminal: text as it is, how much of it, in which colours, and JSON instead.

Square brackets in paths, prompts and messages of libraries are no markup here.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

QUIET, VERBOSE = "SIDLSG_QUIET", "SIDLSG_VERBOSE"  # what --quiet and --verbose set, and what may be set instead


def given(variable: str) -> bool:
    """Whether a flag, or the variable that it sets, is on."""
    return os.environ.get(variable, "") not in ("", "0")


def quiet() -> bool:
    return given(QUIET)


def verbose() -> bool:
    return given(VERBOSE)


def options(stream: TextIO) -> dict[str, Any]:
    """Of a rich console on the stream: colours follow NO_COLOR and FORCE_COLOR, but what redraws itself needs a terminal."""
    return {} if stream.isatty() else {"force_interactive": False}


def console(messages: bool = False, quiet: bool = False) -> Console:
    """A rich console on stdout, or, for ``messages``, on stderr, so that stdout holds the result only."""
    return Console(stderr=messages, quiet=quiet, **options(sys.stderr if messages else sys.stdout))


def progress(as_json: bool) -> Console:
    """Where a long command says how far it is: on stdout, or on stderr beside a result in JSON; nowhere with --quiet."""
    return console(messages=as_json, quiet=quiet())


class Paragraph:
    """A text that is broken between words on a terminal, and one line in a pipe; a word that is longer than a line (a path, an
    address) stays whole, so that it can be copied. Print it with ``soft_wrap=True``."""

    def __init__(self, *parts: str | tuple[str, str]) -> None:
        self.text = Text.assemble(*parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.broken(console.width) if console.is_interactive else self.text

    def broken(self, width: int) -> Text:
        """Break the text into lines of at most ``width`` columns where its words allow it."""
        lines = (part for line in self.text.split(allow_blank=True) for part in _parts(line, width))
        return Text("\n").join(lines)


def _parts(line: Text, width: int) -> Iterator[Text]:
    column, breaks = 0, []
    for word in re.finditer(r"\S+\s*", line.plain):
        if column and column + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            column = 0
        column += cell_len(word[0])
    for part in line.divide(breaks):
        part.rstrip()
        yield part


def say(console: Console, text: str, label: str = "") -> None:
    """Print a paragraph, after a label that stands out ("warning: ")."""
    console.print(Paragraph((label, "yellow"), text), highlight=False, soft_wrap=True)


def note(text: str | None, label: str = "note: ") -> None:
    """Print a line, if there is one, on stderr, beside an output that programs may read; nothing with --quiet."""
    if text:
        say(console(messages=True, quiet=quiet()), text, label)


def print_json(content: Any) -> None:
    """The result of a command with --json: one JSON value on stdout, and nothing else there."""
    print(json.dumps(content, indent=2, ensure_ascii=False), flush=True)
