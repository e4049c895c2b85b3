"""Pictures in the terminal, by the escape sequences of kitty, iTerm2 and sixel."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sidlsg.errors import UsageError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

VARIABLE = "SIDLSG_PICTURES"
SMALLEST, LARGEST = 128, 1024  # pixels, of the longer side
AT_ONCE = 8  # pictures shown without being asked to


def protocol(environment: Mapping[str, str] = os.environ) -> str | None:
    """The protocol that this terminal is known to understand; None when it is not known to understand any.

    The variable ``SIDLSG_PICTURES`` (kitty, iterm2, sixel or none) overrides what is known; raises UsageError for another value.
    """
    if given := environment.get(VARIABLE):
        if given not in (*PROTOCOLS, "none"):
            raise UsageError(f'{VARIABLE} is "{given}"{nearest(given, (*PROTOCOLS, "none"))}')
        return None if given == "none" else given
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None  # they swallow the sequences
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "sixel" if term.startswith(("foot", "mlterm")) or "sixel" in term else None


@dataclass(frozen=True)
class Display:
    """Shows picture files on a terminal; one without an encoder shows none."""

    stream: TextIO
    encode: Callable[[Image], str] | None = None

    @classmethod
    def of(cls, stream: TextIO, wanted: bool | None, pictures: int) -> Display:
        """The display for a number of pictures on ``stream``.

        Args:
            wanted: --show, --no-show, or None: a few pictures, where the terminal can.

        Raises UsageError when pictures are wanted from a terminal that is not known to show them.
        """
        if wanted is False or not stream.isatty() or (wanted is None and pictures > AT_ONCE):
            return cls(stream)
        found = protocol()
        if found is None and wanted:
            raise UsageError(
                f"--show: this terminal is not known to show pictures; if it can, set {VARIABLE} to kitty, iterm2 or sixel"
            )
        return cls(stream, PROTOCOLS[found] if found else None)

    def show(self, path: Path) -> None:
        """Draw the picture of a file below the last line."""
        if self.encode is None:
            return
        from PIL import Image

        with Image.open(path) as picture:
            self.stream.write(self.encode(sized(picture.convert("RGB"))) + "\n")
        self.stream.flush()


def sized(picture: Image) -> Image:
    """A small picture enlarged by a whole factor, a large one made smaller."""
    from PIL import Image

    longer = max(picture.size)
    if longer < SMALLEST:
        factor = -(-SMALLEST // longer)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    small = picture.copy()
    small.thumbnail((LARGEST, LARGEST))
    return small


def _png(picture: Image) -> bytes:
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def kitty(picture: Image) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol: PNG in base64, in pieces of 4096 characters; no answer is asked for."""
    data = base64.b64encode(_png(picture)).decode()
    pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    heads = ["a=T,f=100,q=2,", *[""] * (len(pieces) - 1)]
    last = len(pieces) - 1
    return "".join(
        f"\033_G{head}m={int(n < last)};{piece}\033\\"
        for n, (head, piece) in enumerate(zip(heads, pieces, strict=True))
    )


def iterm2(picture: Image) -> str:
    """https://iterm2.com/documentation-images.html: PNG in base64, at its own size in pixels."""
    data = _png(picture)
    shape = f"width={picture.width}px;height={picture.height}px"
    return f"\033]1337;File=inline=1;size={len(data)};{shape}:{base64.b64encode(data).decode()}\a"


def sixel(picture: Image) -> str:
    """DEC's sixels: a palette of 255 colours, and bands of six rows, one colour after the other, with run lengths."""
    import numpy as np

    palette = picture.quantize(255)
    colours = np.array(palette.getpalette(), dtype=int).reshape(-1, 3) * 100 // 255
    pixels = np.asarray(palette)
    pixels = np.pad(pixels.astype(int), ((0, -len(pixels) % 6), (0, 0)), constant_values=-1)
    parts = [f'\033Pq"1;1;{picture.width};{picture.height}']
    parts += [f"#{n};2;{r};{g};{b}" for n, (r, g, b) in enumerate(colours)]
    for band in pixels.reshape(-1, 6, picture.width):
        lines = []
        for colour in np.unique(band[band >= 0]):
            bits = ((band == colour) << np.arange(6)[:, None]).sum(axis=0)
            starts = np.flatnonzero(np.diff(bits, prepend=-1))
            runs = np.diff(starts, append=picture.width)
            lines.append(
                f"#{colour}"
                + "".join(f"!{run}{chr(63 + bits[start])}" for start, run in zip(starts, runs, strict=True))
            )
        parts.append("$".join(lines) + "-")
    return "".join([*parts, "\033\\"])


PROTOCOLS: dict[str, Callable[[Image], str]] = {"kitty": kitty, "iterm2": iterm2, "sixel": sixel}
