"""Folders of pictures, and the crop and resize that a protocol applies before any network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sidlsg.errors import UsageError
from sidlsg.evaluation.protocol import Protocol

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
LOSSY = {".jpg", ".jpeg", ".webp"}


def load_rgb(path: Path) -> Image.Image:
    """A picture as RGB; raises UsageError, naming the file, when it is missing, unreadable or truncated."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for damaged files
        raise UsageError(f"{path} is not a readable picture ({error}); replace or remove it") from None


@dataclass(frozen=True)
class Folder:
    """The pictures below a folder, in natural order.

    ``index[i]`` is the number that file i is named by; ``index`` is None when any name is not a number. Numbers pair pictures
    with captions: ``000017.png`` shows caption 17, even when other pictures are missing.
    """

    path: Path
    files: tuple[Path, ...]
    index: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def lossy(self) -> list[Path]:
        return [file for file in self.files if file.suffix.lower() in LOSSY]


def natural(path: Path) -> list[tuple[int, int | str]]:
    """A sorting key that puts 9.png before 10.png."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(path))]


def find_pictures(path: Path) -> Folder:
    """All pictures below ``path``; raises UsageError when there are none, or when two have the same number."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder of pictures")
    files = [f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()]
    if not files:
        raise UsageError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    files.sort(key=lambda file: natural(file.relative_to(path)))
    if not all(file.stem.isdecimal() for file in files):
        return Folder(path, tuple(files), None)
    numbers = [int(file.stem) for file in files]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        same = " and ".join(str(f) for f in files if int(f.stem) == twice)
        raise UsageError(f"{same} carry the same number; captions could not be told apart")
    return Folder(path, tuple(files), tuple(numbers))


def common_size(folder: Folder) -> tuple[int, int]:
    """The (width, height) of all pictures, read from their headers; raises UsageError when they differ."""
    sizes: dict[tuple[int, int], Path] = {}
    for file in folder.files:
        try:
            with Image.open(file) as picture:
                sizes.setdefault(picture.size, file)
        except Exception as error:
            raise UsageError(f"{file} is not a readable picture ({error}); replace or remove it") from None
        if len(sizes) > 1:
            (a, first), (b, second) = sizes.items()
            raise UsageError(
                f"{folder.path} mixes sizes: {first.name} is {a[0]}x{a[1]}, {second.name} is {b[0]}x{b[1]}; "
                "generated pictures must have one size"
            )
    return next(iter(sizes))


def centre_square(picture: Image.Image, rounding: str) -> Image.Image:
    """The largest centred square. ``round`` rounds a half-pixel offset half to even (as torchvision), ``floor`` down."""
    width, height = picture.size
    side = min(width, height)
    offset = {"round": lambda d: round(d / 2), "floor": lambda d: d // 2}[rounding]
    left, top = offset(width - side), offset(height - side)
    return picture.crop((left, top, left + side, top + side))


def to_protocol(picture: Image.Image, protocol: Protocol, name: object = "a picture") -> np.ndarray:
    """Crop and resize an RGB picture as the protocol says: uint8 [size, size, 3].

    Raises UsageError, naming the picture by ``name``, when the protocol does not resize and the picture has another size.
    """
    size = (protocol.size, protocol.size)
    if protocol.crop is None:
        if picture.size != size:
            raise UsageError(
                f"{name} is {picture.width}x{picture.height}; the protocol {protocol.name} compares "
                f"{protocol.size}x{protocol.size} pictures as they are"
            )
        return np.asarray(picture)
    square = centre_square(picture, protocol.crop)
    return np.asarray(square.resize(size, Image.Resampling.LANCZOS))


def load_sheet(path: Path, size: int, count: int) -> list[Image.Image]:
    """The first ``count`` pictures, ``size`` pixels square, of a contact sheet, row by row."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    tiles = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    return [Image.fromarray(np.ascontiguousarray(tile)) for tile in tiles[:count]]


def pairs(index: Sequence[int] | None, count: int, captions: int) -> list[tuple[int, int]]:
    """(position, number of its caption) of each picture among the first ``count`` that has one of ``captions`` captions."""
    if index is None:
        return []
    return [(position, number) for position, number in enumerate(index[:count]) if number < captions]
