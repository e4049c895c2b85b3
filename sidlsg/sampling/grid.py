"""Labelled grids, as in the paper's Figures 6 to 8: rows of pictures with what made them beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from sidlsg.sampling.lettering import height, write
from sidlsg.sampling.pictures import make_grid

INK, GREY = "#1a1a1a", "#5c5c5c"
SMALLEST_CELL, SMALLEST_TEXT = 96, 13  # pixels
LONGEST_ROW = 8  # pictures of one of several prompts
EMPTY = '"" (no prompt)'
MOST_LINES = {"title": 4, "name": 6, "detail": 2, "head": 2, "note": 4}


@dataclass(frozen=True)
class Row:
    """Pictures side by side, and what they are: ``name`` in bold, ``details`` below it, a line each or more."""

    pictures: Sequence[Image.Image]
    name: str
    details: Sequence[str] = ()


@dataclass(frozen=True)
class Block:
    """Rows under one title; "" is no title."""

    rows: Sequence[Row]
    title: str = ""


def labelled_grid(
    blocks: Sequence[Block], heads: Sequence[str], note: str = "", columns: int | None = None
) -> Image.Image:
    """Draw the blocks below each other on white.

    All pictures are shown at the size of the largest; small ones are enlarged by a whole factor, pixel by pixel, so that there
    is room for labels. The text grows with the grid, and stays readable when the whole grid is looked at.

    Args:
        heads: what stands over each column; left out when a row is broken into several.
        note: small text at the bottom.
        columns: pictures side by side; longer rows are broken. None is as many as there are.
    """
    rows = [row for block in blocks for row in block.rows]
    longest = max(len(row.pictures) for row in rows)
    columns = min(columns or longest, longest)
    pictures = [picture for row in rows for picture in row.pictures]
    wide, high = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    factor = max(1, math.ceil(SMALLEST_CELL / max(wide, high)))
    cell = wide * factor, high * factor
    gap = max(2, cell[0] // 64)
    strip = columns * (cell[0] + gap) - gap
    size = max(SMALLEST_TEXT, min(strip // 75, cell[0] // 6))
    label = max(10 * size, min(16 * size, strip // 2))
    left = size + label + size
    width = left + strip + size
    if broken := columns < longest:
        heads = ()
    text = width - 2 * size
    head = max((height(h, size, cell[0], most=MOST_LINES["head"]) for h in heads), default=0)

    def room(row: Row) -> tuple[int, int]:
        """Heights of the row's label and of its pictures."""
        lines = height(row.name, size, label, most=MOST_LINES["name"], bold=True)
        lines += sum(height(detail, size, label, most=MOST_LINES["detail"]) for detail in row.details)
        return lines, math.ceil(len(row.pictures) / columns) * (cell[1] + gap) - gap

    titles = [height(block.title, size, text, most=MOST_LINES["title"], bold=True) for block in blocks]
    end = height(note, size, text, most=MOST_LINES["note"])
    between = gap + (size if broken else 0)
    total = size + sum(
        (title and title + size // 2)
        + (head and head + size // 3)
        + sum(max(room(row)) + between for row in block.rows)
        + size
        for title, block in zip(titles, blocks, strict=True)
    )
    sheet = Image.new("RGB", (width, total + (end and end + size // 2)), "white")
    top = size
    for title, block in zip(titles, blocks, strict=True):
        if block.title:
            write(sheet, (size, top), block.title, size, text, most=MOST_LINES["title"], bold=True, colour=INK)
            top += title + size // 2
        for number, words in enumerate(heads):
            place = left + number * (cell[0] + gap), top
            write(sheet, place, words, size, cell[0], most=MOST_LINES["head"], colour=GREY, centred=True)
        top += head and head + size // 3
        for row in block.rows:
            lines, tall = room(row)
            whole = max(lines, tall)
            sheet.paste(
                make_grid([_fit(p, cell) for p in row.pictures], columns, gap), (left, top + (whole - tall) // 2)
            )
            at = top + (whole - lines) // 2
            write(sheet, (size, at), row.name, size, label, most=MOST_LINES["name"], bold=True, colour=INK)
            at += height(row.name, size, label, most=MOST_LINES["name"], bold=True)
            for detail in row.details:
                write(sheet, (size, at), detail, size, label, most=MOST_LINES["detail"], colour=GREY)
                at += height(detail, size, label, most=MOST_LINES["detail"])
            top += whole + between
        top += size
    if note:
        write(sheet, (size, top - size // 2), note, size, text, most=MOST_LINES["note"], colour=GREY)
    return sheet


def prompt_grid(
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    seeds: Sequence[int],
    columns: int | None = None,
    note: str = "",
) -> Image.Image:
    """Draw the pictures of every prompt with every seed: a labelled row per prompt, broken into several where it is long.

    Args:
        pictures: prompt by prompt.
        columns: of the grid; None is about square for one prompt, and for several at most 8, rows of one length.
        note: small text at the bottom.
    """
    if columns is None and len(prompts) == 1:
        columns = math.ceil(math.sqrt(len(seeds)))
    elif columns is None:
        columns = math.ceil(len(seeds) / math.ceil(len(seeds) / LONGEST_ROW))
    details = [f"seeds {seed_ranges(seeds)}"] if len(seeds) > columns else []
    rows = [
        Row(pictures[at * len(seeds) : (at + 1) * len(seeds)], prompt or EMPTY, details)
        for at, prompt in enumerate(prompts)
    ]
    return labelled_grid([Block(rows)], [f"seed {seed}" for seed in seeds], note, columns)


def seed_ranges(seeds: Sequence[int]) -> str:
    """ "0 to 7", "1, 5, 8 to 10": seeds that follow each other as a range."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1][1:] = [seed]
        else:
            parts.append([seed])
    return ", ".join(" to ".join(map(str, part)) for part in parts)


def _fit(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """The picture as large as fits the cell, in its middle: by a whole factor if that fills it, else resampled."""
    if picture.size == cell:
        return picture
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    method = Image.Resampling.NEAREST if scale == int(scale) else Image.Resampling.LANCZOS
    shown = picture.resize((round(picture.width * scale), round(picture.height * scale)), method)
    framed = Image.new("RGB", cell, "white")
    framed.paste(shown, ((cell[0] - shown.width) // 2, (cell[1] - shown.height) // 2))
    return framed
