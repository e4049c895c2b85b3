"""Sample grids cut into their pictures, and made small enough to travel inside a page."""

from __future__ import annotations

import base64
import functools
import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from sidlsg.report.reading import Run

SIDE = 1280  # pixels; a larger grid is scaled down
SHARP = 640  # up to this side a grid is kept exactly, and shown with its pixels
MOST = 16  # grids of a run; the paper's Figure 2 has 10
BUDGET = 7_000_000  # bytes of pictures in a page; base64 adds a third
SMALLEST = 320  # side under which a grid shows nothing
GAP = 2  # pixels between the pictures of a grid (``sampling.pictures.make_grid``)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """One picture of a grid as a data URI."""

    uri: str
    width: int
    height: int
    prompt: str


@dataclass(frozen=True)
class Grid:
    """The pictures of one file, row by row, and the prompts that are written into it.

    ``whole``: the file is no grid of its prompts, and shown as it is. ``scaled``: smaller than in the file.
    """

    seen: int
    pictures: tuple[Picture, ...]
    columns: int
    sharp: bool
    scaled: bool
    whole: bool
    prompts: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in the page, before base64."""
        return sum(len(picture.uri) for picture in self.pictures) * 3 // 4


@dataclass(frozen=True)
class Grids:
    """A run's grids, its teacher's, and what was done to them for the page's size (empty: nothing)."""

    grids: list[Grid]
    teacher: Grid | None
    note: str

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.grids[-1].prompts if self.grids else ()

    @property
    def listed(self) -> tuple[str, ...]:
        """The prompts, where they do not stand below their pictures."""
        return self.prompts if self.grids and self.grids[-1].whole else ()


def load_grids(runs: list[Run]) -> list[Grids]:
    """Read the grids of each run, thinned and scaled until all runs together stay within ``BUDGET``.

    A file that cannot be read joins the run's problems.
    """
    side, most = SIDE, MOST
    damaged: set[Path] = set()
    while True:
        found = [_load(run, side, most, damaged) for run in runs]
        size = sum(grid.size for grids in found for grid in [*grids.grids, grids.teacher] if grid)
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
    grids = [grid for seen, path in chosen if (grid := _grid(run, seen, path, side, damaged))]
    notes = []
    if len(chosen) < len(run.grids) and len(run.grids) > most:
        notes.append(f"{len(chosen)} of {len(run.grids)} grids are shown")
    if any(grid.scaled for grid in grids):
        notes.append(f"grids are scaled to {side} pixels")
    note = (_sentence(notes) + " to keep this file small; all are in samples/.") if notes else ""
    return Grids(grids, _teacher(run, grids, side, damaged), note)


def _teacher(run: Run, grids: list[Grid], side: int, damaged: set[Path]) -> Grid | None:
    """The teacher's pictures of the run's prompts: those that it drew in the run, or those that are shipped with it."""
    if run.teacher_grid is not None:
        return _grid(run, 0, run.teacher_grid, side, damaged)
    shipped = _grid(run, 0, run.shipped_grid, side, damaged) if run.shipped_grid is not None and grids else None
    count = len(grids[-1].prompts) if grids else 0
    if shipped is None or not count or shipped.prompts[:count] != grids[-1].prompts:
        return None
    return replace(
        shipped, pictures=shipped.pictures[:count], prompts=grids[-1].prompts, columns=math.ceil(math.sqrt(count))
    )


def _sentence(parts: list[str]) -> str:
    text = " and ".join(parts)
    return text[0].upper() + text[1:]


def _grid(run: Run, seen: int, path: Path, side: int, damaged: set[Path]) -> Grid | None:
    if path in damaged:
        return None
    try:
        return replace(_encoded(path, path.stat().st_mtime_ns, side), seen=seen)
    except Exception as error:  # Pillow raises half a dozen types for a damaged file
        damaged.add(path)
        run.problems.append(f"{path} is not a readable picture and left out ({error})")
        return None


@functools.lru_cache(maxsize=4 * MOST)  # a report that is written anew encodes its new grids only
def _encoded(path: Path, changed: int, side: int) -> Grid:
    """The grid of a file that was written at ``changed``, for a page; raises what Pillow raises."""
    with Image.open(path) as file:
        file.load()
        prompts = parse_prompts(str(getattr(file, "text", {}).get("prompts", "")))
        whole = file.convert("RGB")
    sharp = max(whole.size) <= min(SHARP, side)
    share = 1.0 if sharp else min(1.0, side / max(whole.size))
    boxes = cut(whole.size, len(prompts))
    named = list(zip(boxes, prompts, strict=True)) if boxes else [((0, 0, *whole.size), "")]
    pictures = tuple(_picture(whole.crop(box), prompt, share, sharp) for box, prompt in named)
    return Grid(0, pictures, math.ceil(math.sqrt(len(named))), sharp, share < 1, not boxes, prompts)


def _picture(picture: Image.Image, prompt: str, share: float, sharp: bool) -> Picture:
    if share < 1:
        width, height = (max(1, round(share * length)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", lossless=sharp, quality=80, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(uri, *picture.size, prompt)


def parse_prompts(text: str) -> tuple[str, ...]:
    """Read the prompts that a grid carries: a list in JSON, or, of older versions, joined by " | "."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list):
        return tuple(map(str, found))
    return tuple(filter(None, text.split(" | ")))


def cut(size: tuple[int, int], count: int) -> list[Box]:
    """The boxes of ``count`` pictures of one size in a grid of ``make_grid``; empty when a grid of that size has no such ones."""
    if count < 1:
        return []
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    width, height = (size[0] + GAP) // columns - GAP, (size[1] + GAP) // rows - GAP
    if min(width, height) < 1 or size != (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP):
        return []
    corners = [(i % columns * (width + GAP), i // columns * (height + GAP)) for i in range(count)]
    return [(x, y, x + width, y + height) for x, y in corners]
