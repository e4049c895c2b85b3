"""Text on pictures: in DejaVu Sans, which matplotlib brings, or in a font of this machine that has what DejaVu lacks."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sidlsg.plotting import load_matplotlib

Font = ImageFont.FreeTypeFont
INVISIBLE = {0xFE0E, 0xFE0F, 0x200C, 0x200D}  # variation selectors and joiners, which need no glyph of their own


def write(
    image: Image.Image,
    place: tuple[float, float],
    text: str,
    size: int,
    width: float,
    *,
    most: int,
    bold: bool = False,
    colour: str = "black",
    centred: bool = False,
) -> None:
    """Write text into the column of ``width`` pixels that begins at ``place`` (left, top), in at most ``most`` lines."""
    font, pen = font_for(text, size, bold), ImageDraw.Draw(image)
    left, top = place
    for number, line in enumerate(wrap(text, font, width, most)):
        free = width - font.getlength(line) if centred else 0
        pen.text((left + free / 2, top + number * line_height(size)), line, font=font, fill=colour)


def height(text: str, size: int, width: float, *, most: int, bold: bool = False) -> int:
    """Pixels that ``write`` needs for the text, from top to bottom; 0 for no text."""
    return line_height(size) * len(wrap(text, font_for(text, size, bold), width, most)) if text else 0


def line_height(size: int) -> int:
    return round(1.25 * size)


def wrap(text: str, font: Font, width: float, most: int) -> list[str]:
    """Lines no wider than ``width`` pixels, broken between words, or inside one that is wider (there after / - _).

    What is beyond line number ``most`` becomes an ellipsis; the full text of a label stands in the PNG's text entries.
    """
    lines = list(_lines(text, font, width))
    if len(lines) <= most:
        return lines
    last = lines[most - 1].rstrip()
    while last and font.getlength(last + "…") > width:
        last = last[:-1].rstrip()
    return [*lines[: most - 1], last + "…"]


def _lines(text: str, font: Font, width: float) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            yield line
        while font.getlength(word) > width and len(word) > 1:
            fits = next((n for n in range(len(word) - 1, 1, -1) if font.getlength(word[:n]) <= width), 1)
            joint = max(word.rfind(sign, 0, fits) + 1 for sign in "/\\-_")
            fits = joint if joint > fits / 2 else fits
            yield word[:fits]
            word = word[fits:]
        line = word
    yield line


def font_for(text: str, size: int, bold: bool = False) -> Font:
    """The font for a text: DejaVu Sans, unless it lacks a character that an installed font has with all the others."""
    own = _dejavu(bold)
    if _lacking(text, own):
        for path in _installed():
            if not _lacking(text, path):
                return ImageFont.truetype(path, size)
    return ImageFont.truetype(own, size)


def unwritable(texts: Iterable[str]) -> str:
    """The characters that no font here can write; in a picture they are empty boxes."""
    lacking = {text: _lacking(text, _dejavu(False)) for text in texts}
    found = "".join(
        missing for text, missing in lacking.items() if missing and all(_lacking(text, path) for path in _installed())
    )
    return "".join(dict.fromkeys(found))


def _lacking(text: str, path: Path) -> str:
    """The characters of a text that a font file has no glyph for."""
    return "".join(c for c in text if not c.isspace() and ord(c) not in _glyphs(path) | INVISIBLE)


def _dejavu(bold: bool) -> Path:
    return Path(load_matplotlib().get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Font files of this machine that can be drawn at any size, by name, so that the choice does not change from run to run."""
    load_matplotlib()
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(path for path in map(Path, findSystemFonts()) if _glyphs(path)))


@functools.cache
def _glyphs(path: Path) -> frozenset[int]:
    """Code points that a font has glyphs for; none for a file that is no scalable font."""
    load_matplotlib()
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 13)  # colour emoji fonts, of one size only, are refused here
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
