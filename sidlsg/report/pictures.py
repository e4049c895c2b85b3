"""Sample grids made small enough to travel inside a page."""

from __future__ import annotations

import base64
import functools
import io
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from sidlsg.report.reading import Run

SIDE = 1280  # pixels; a larger grid is scaled down
SHARP = 640  # up to this side a picture is kept exactly, and shown with its pixels
MOST = 16  # grids of a run; the paper's Figure 2 has 10
BUDGET = 7_000_000  # bytes of pictures in a page; base64 adds a third
LONG = 700  # letters of prompts
SMALLEST = 320  # side under which a grid shows nothing


@dataclass(frozen=True)
class Picture:
    """One grid: ``uri`` is a data URI; ``prompts`` are those written into the file."""

    seen: int
    uri: str
    width: int
    height: int
    sharp: bool
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grids:
    """A run's pictures, and what was done to them for the page's size (empty: nothing)."""

    pictures: list[Picture]
    teacher: Picture | None
    note: str

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.pictures[-1].prompts if self.pictures else ()

    @property
    def beside(self) -> bool:
        """Whether the prompts are short enough to stand beside the grid."""
        return bool(self.prompts) and sum(map(len, self.prompts)) <= LONG


def load_grids(runs: list[Run]) -> list[Grids]:
    """The grids of each run, thinned and scaled until all runs together stay within ``BUDGET``.

    A file that cannot be read joins the run's problems.
    """
    side, most = SIDE, MOST
    damaged: set[Path] = set()
    while True:
        found = [_load(run, side, most, damaged) for run in runs]
        size = sum(len(p.uri) for grids in found for p in [*grids.pictures, grids.teacher] if p) * 3 // 4
        if size <= BUDGET or (side <= SMALLEST and most <= 3):
            return found
        if side > SMALLEST:
            side = max(SMALLEST, int(side * max(0.5, min(0.9, (BUDGET / size) ** 0.5))))
        else:
            most = max(3, most // 2)


def spread(items: list[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """``most`` of the items at about equal distances, the first and the last among them."""
    if len(items) <= most:
        return items
    places = {round(i * (len(items) - 1) / (most - 1)) for i in range(most)}
    return [item for i, item in enumerate(items) if i in places]


def _load(run: Run, side: int, most: int, damaged: set[Path]) -> Grids:
    chosen = spread([item for item in run.grids if item[1] not in damaged], most)
    pictures = [p for seen, path in chosen if (p := _picture(run, seen, path, side, damaged))]
    teacher = _picture(run, 0, run.teacher_grid, side, damaged) if run.teacher_grid else None
    notes = []
    if len(chosen) < len(run.grids) and len(run.grids) > most:
        notes.append(f"{len(chosen)} of {len(run.grids)} grids are shown")
    if any(max(picture.width, picture.height) >= side and not picture.sharp for picture in pictures):
        notes.append(f"grids are scaled to {side} pixels")
    return Grids(
        pictures, teacher, (_sentence(notes) + " to keep this file small; all are in samples/.") if notes else ""
    )


def _sentence(parts: list[str]) -> str:
    text = " and ".join(parts)
    return text[0].upper() + text[1:]


def _picture(run: Run, seen: int, path: Path, side: int, damaged: set[Path]) -> Picture | None:
    if path in damaged:
        return None
    try:
        return replace(_encoded(path, path.stat().st_mtime_ns, side), seen=seen)
    except Exception as error:  # Pillow raises half a dozen types for a damaged file
        damaged.add(path)
        run.problems.append(f"{path} is not a readable picture and left out ({error})")
        return None


@functools.lru_cache(maxsize=4 * MOST)  # a report that is written anew encodes its new grids only
def _encoded(path: Path, changed: int, side: int) -> Picture:
    """The picture of a file that was written at ``changed``, for a page; raises what Pillow raises."""
    with Image.open(path) as file:
        file.load()
        prompts = str(getattr(file, "text", {}).get("prompts", ""))
        picture = file.convert("RGB")
    sharp = max(picture.size) <= min(SHARP, side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", lossless=sharp, quality=80, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(0, uri, *picture.size, sharp, tuple(filter(None, prompts.split(" | "))))
