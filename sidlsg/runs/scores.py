"""Which lines of ``scores.jsonl`` may be compared with one another. One place decides for best/, curves, terminal and report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]

# A distance depends on all three, and a run that is taken up again may change them. Lines of older versions lack the last one.
ALIKE = ("protocol", "pictures", "reference")

DISTANCES = ("fid", "fid-t", "fd")  # keys of the Fréchet distances of all protocols


def comparable(lines: Sequence[Line], line: Line | None = None) -> list[Line]:
    """Those of the lines whose scores were made as those of ``line`` were (None: of the last one)."""
    if not lines:
        return []
    like = lines[-1] if line is None else line
    return [other for other in lines if not unlike(other, like)]


def unlike(line: Line, other: Line) -> list[str]:
    """The names of what keeps two lines from being compared; a line that lacks one of them is not held against it."""
    return [key for key in ALIKE if key in line and key in other and line[key] != other[key]]


def is_best(line: Line, earlier: Sequence[Line], key: str) -> bool:
    """Whether the score ``key`` of a line is smaller than that of every earlier line it may be compared with. The untrained
    generator, at 0 images, is never the best, and nobody has to beat it."""
    mine = score(line, key)
    if mine is None or line["images_seen"] == 0:
        return False
    others = [score(other, key) for other in comparable(earlier, line) if other["images_seen"] > 0]
    return all(mine < other for other in others if other is not None)


def score(line: Line, key: str) -> float | None:
    """A score as a float; None where there is none that is a finite number."""
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
