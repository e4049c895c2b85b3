"""The errors a user sees: one clear line that says what to do, and an exit code. Does not import torch."""

from __future__ import annotations

import difflib
import errno
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


def reason(error: BaseException) -> str:
    """Why something failed, in one line: what the system or a library means where that is known, else what it says first."""
    if isinstance(error, SidlsgError):
        return str(error)
    return known_reason(error) or sentence(error)


def known_reason(error: BaseException) -> str | None:
    """The cause, and what to do, of an error of the system or of PyTorch that users meet; None of any other."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or "No space left on device" in text:  # safetensors wraps it in an error of its own
        where = getattr(error, "filename", None) or "while writing"
        return f"the disk is full ({where}); free some space and run the same command again"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system says'}: {error.strerror}"
    smaller = "use a smaller --micro-batch (or --batch, when sampling), the result is the same"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of GPU memory; {smaller}"
    if isinstance(error, MemoryError) or any(word in text for word in CPU_MEMORY):
        asked = re.search(r"allocate ([0-9]+) bytes", text)
        size = f" ({int(asked[1]) / 2**30:.1f} GiB more were wanted)" if asked else ""
        return f"out of this machine's memory{size}; {smaller}"
    return None


CPU_MEMORY = ("DefaultCPUAllocator", "alloc_cpu", "std::bad_alloc")  # how PyTorch and C++ say it
