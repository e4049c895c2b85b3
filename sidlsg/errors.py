"""The errors a user sees: one clear line that says what to do, and an exit code. Does not import torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class SidlsgError(Exception):
    """A run that failed for a reason outside the command line (disk, network, divergence); exit code 1."""

    exit_code = 1


class Stopped(SidlsgError):
    """The user asked a run to stop; everything that it had reached is saved."""


class UsageError(SidlsgError):
    """Something the user can correct in the command, a preset or an input file; exit code 2."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: '; did you mean "x"?' if a known one is close, else all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(known)}"


def sentence(error: BaseException, length: int = 300) -> str:
    """What an error of a library says first, as one sentence with a full stop, to be quoted in a message of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(word[:length] for word in lines[0].split()), maxsplit=1)[0]
    return (first if len(first) <= length else first[: first.rfind(" ", 0, length)]).rstrip(".:;, ") + "."
