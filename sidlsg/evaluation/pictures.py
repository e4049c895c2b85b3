"""Folders of pictures: which files count, which caption each shows; and the protocol's crop and resize."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
from PIL import Image

from sidlsg.errors import UsageError
from sidlsg.evaluation.picture_file import Header, read_header
from sidlsg.evaluation.protocol import Protocol
from sidlsg.files import PART

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
# Pictures too, but not read; that they are left out is said.
OTHER_SUFFIXES = {
    ".gif",
    ".apng",
    ".avif",
    ".heic",
    ".heif",
    ".jp2",
    ".jxl",
    ".jpe",
    ".npy",
    ".tga",
    ".exr",
    ".hdr",
    ".svg",
}
LOSSY = ("JPEG", "MPO", "WEBP")
# Folders of thumbnails and side files that systems add; names that start with a dot are left out as well.
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
# The suffix of a picture inside a name, as downloads and copies leave it: 7.png?size=64, 7.png.1, 7.png_orig.
NAMED = re.compile(
    rf"({'|'.join(map(re.escape, sorted(SUFFIXES, reverse=True)))})(?![a-z0-9]).*", re.DOTALL | re.IGNORECASE
)
COCO_DIGITS = 12  # of the picture ids in COCO's file names
# What a file begins with, by kind: those that are read, then those that are not. A BMP is known by its empty fields too, and a
# PPM by its size, because texts may begin with their letters.
READ = (
    rb"\x89PNG\r\n\x1a\n",
    rb"\xff\xd8\xff",  # JPEG
    rb"GIF8[79]a",
    rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}",
    rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s",
    rb"II\*\0|MM\0\*",  # TIFF
    rb"RIFF.{4}WEBP",
)
NOT_READ = (
    rb".{4}ftyp(avif|avis|heic|heix|heim|mif1|msf1)",
    rb"\0{3}\x0cjP  ",  # JPEG 2000
    rb"\0{3}\x0cJXL |\xff\x0a",
)
BEGINNING = 256  # bytes


# -- which files a folder holds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """The pictures below a folder, in natural order.

    Attributes:
        index: the number that each file is named by; None unless all names are one prefix (or none) and a number, each number
            once. Numbers pair pictures with captions, see ``match_captions``.
        left_out: pictures of kinds that are not read, and unfinished files.
        assigned: ``index`` says which caption each picture shows, whatever its name.
    """

    path: Path
    files: tuple[Path, ...]
    index: tuple[int, ...] | None
    left_out: tuple[Path, ...] = ()
    assigned: bool = False

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def headers(self) -> tuple[Header, ...]:
        """What each file holds; every file is read once, whole. Raises UsageError as ``load_rgb`` does."""
        with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return tuple(pool.map(read_header, self.files))

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each file."""
        return tuple(header.sha256 for header in self.headers)

    @property
    def odd(self) -> list[Path]:
        """The files that are pictures by what they begin with only, not by their names."""
        return [file for file in self.files if file.suffix.lower() not in SUFFIXES]

    @property
    def lossy(self) -> list[Path]:
        """The files that are JPEG or WebP."""
        return [file for file, header in zip(self.files, self.headers, strict=True) if header.kind in LOSSY]

    @property
    def transparent(self) -> list[Path]:
        """The files with an alpha channel or a transparent colour."""
        return [file for file, header in zip(self.files, self.headers, strict=True) if header.alpha]


def natural(path: Path) -> tuple[list[list[tuple[int, int | str]]], bytes]:
    """A sorting key that puts 9.png before 10.png, the same for every locale and file system."""
    names = [re.split(r"([0-9]+)", unicodedata.normalize("NFC", name)) for name in path.parts]
    return [[(0, int(t)) if i % 2 else (1, t) for i, t in enumerate(name)] for name in names], os.fsencode(path)


def walk(root: Path) -> list[Path]:
    """Every file below a folder that is not hidden, in no particular order; links are followed.

    Left out are names that start with a dot and ``SYSTEM_FOLDERS``. A folder is read once, however many links lead to it, and a
    link back to a folder above ``root`` is not followed. Raises UsageError, naming it, for a folder that cannot be read, a link
    to nothing, and what is neither a file nor a folder but has the name of a picture.
    """
    files: list[Path] = []
    folders: list[Path] = [root]
    linked: list[Path] = []  # read after those that lie below, which may be the same
    seen = {str(parent) for parent in Path(os.path.realpath(root)).parents}
    while folders or linked:
        folder = folders.pop() if folders else linked.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise UsageError(f"the folder {folder} cannot be read: {error.strerror}") from None
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                continue
            path, link = folder / entry.name, entry.is_symlink()
            if os.path.isdir(path) if link else entry.is_dir():
                (linked if link else folders).append(path)
            elif os.path.isfile(path) if link else entry.is_file():
                files.append(path)
            elif link:
                raise UsageError(f"{path} is a link that leads nowhere; mend or remove it")
            elif path.suffix.lower() in SUFFIXES:
                raise UsageError(f"{path} is neither a file nor a folder; remove it")
    return files


def find_pictures(path: Path) -> Folder:
    """All pictures below ``path``, found by ``walk``: files with the suffix of a kind that is read, and others that begin as one.

    Raises UsageError as ``walk`` does, and when there are none.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder of pictures")
    found = sorted(walk(path), key=lambda file: natural(file.relative_to(path)))
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        kinds = list(pool.map(_kind, found))
    files = tuple(file for file, kind in zip(found, kinds, strict=True) if kind == "read")
    left_out = tuple(file for file, kind in zip(found, kinds, strict=True) if kind == "left out")
    if not files:
        raise UsageError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return Folder(path, files, _numbers(files), left_out)


def _kind(file: Path) -> Literal["read", "left out", ""]:
    """Whether a file is a picture of a kind that is read, one that is left out, or none."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        return "read"
    if suffix in OTHER_SUFFIXES:
        return "left out"
    try:
        with file.open("rb") as opened:
            beginning = opened.read(BEGINNING)
    except OSError:
        return ""
    if any(re.match(kind, beginning, re.DOTALL) for kind in READ):
        return "left out" if suffix == PART else "read"  # what is still being written, or was not finished
    return "left out" if any(re.match(kind, beginning, re.DOTALL) for kind in NOT_READ) else ""


def bare_name(name: str) -> str:
    """A file name without what follows from the suffix of a picture on: "7" of "7.png", "7.png?size=64", "7.png.1" and "7"."""
    path = PurePath(name)
    return path.stem if path.suffix.lower() in SUFFIXES else NAMED.sub("", name)


def name_shape(files: Sequence[Path]) -> str:
    """What all files are named, with # for each digit: "COCO_val####_############.jpg"; "" when names are of several shapes."""
    shapes = {re.sub(r"[0-9]", "#", file.name) for file in files}
    return shapes.pop() if len(shapes) == 1 else ""


def _numbers(files: Sequence[Path]) -> tuple[int, ...] | None:
    """The numbers at the end of the names; None when one has none, prefixes differ, or a number is there twice."""
    names = [re.fullmatch(r"(.*?)([0-9]+)", bare_name(file.name), re.DOTALL) for file in files]
    if not all(names) or len({name[1] for name in names if name}) > 1:
        return None
    numbers = tuple(int(name[2]) for name in names if name)
    return numbers if len(set(numbers)) == len(numbers) else None


# -- sizes and captions ----------------------------------------------------------------------------------------------------


def common_size(folder: Folder) -> tuple[int, int]:
    """The (width, height) of all pictures; raises UsageError when they differ."""
    sizes = {header.size: file for file, header in zip(folder.files[::-1], folder.headers[::-1], strict=True)}
    if len(sizes) > 1:
        (b, second), (a, first) = list(sizes.items())[-2:]
        raise UsageError(
            f"{folder.path} mixes sizes: {first.name} is {a[0]}x{a[1]}, {second.name} is {b[0]}x{b[1]}; "
            "generated pictures must have one size"
        )
    return next(iter(sizes))


def match_captions(folder: Folder, captions: Sequence[str]) -> tuple[list[tuple[int, int]], str]:
    """Which caption each picture shows: (position of the picture, number of its caption).

    A picture named 17 shows line 17, counted from 0. Where the names cannot be meant so, they are either understood without
    doubt or not at all, since the CLIP score of shifted captions looks like that of a bad generator:

    - every caption has its picture, counted from 0 or from 1: paired, whatever stands in front of the numbers;
    - plain numbers from 1 to the number of captions, some missing: counted from 1;
    - plain numbers below the number of captions, some missing: counted from 0, if 0 is among them, if 1 is not, or if ``sidlsg``
      drew the pictures (it notes the number as the seed);
    - plain numbers from 0 without a gap, more than there are captions: counted from 0, and the last ones have no caption;
    - everything else is not paired: ids such as COCO's, numbers beyond the list, the same number twice, other names.

    Returns the pairs and a text: why there are none, or that the pictures are numbered from 1; else empty.
    """
    wanted = {number for number, caption in enumerate(captions) if caption}
    start = 0 if folder.assigned else _counted_from(folder, wanted, len(captions))
    if isinstance(start, str) or folder.index is None:
        return [], str(start)
    pairs = [(place, number - start) for place, number in enumerate(folder.index) if number - start < len(captions)]
    return pairs, "The pictures are numbered from 1: picture 1 shows the first caption." if start else ""


def _counted_from(folder: Folder, wanted: set[int], count: int) -> int | str:
    """The number of the first caption's picture, 0 or 1, or why there is no telling. ``wanted`` of ``count`` are not blank."""
    if not folder.index:
        return (
            "the names of the pictures are not numbers of captions (one number each, none twice, after the same prefix)"
        )
    there, least, most = set(folder.index), min(folder.index), max(folder.index)
    if most < count and wanted <= there:
        return 0
    if least >= 1 and most <= count and {number + 1 for number in wanted} <= there:
        return 1
    named = f"the pictures are named {bare_name(folder.files[0].name)}, ..."
    stems = [bare_name(file.name) for file in folder.files]
    if not all(stem.isascii() and stem.isdecimal() for stem in stems):
        return f"{named}: with a prefix, numbers stand for captions only if all {count:,} captions have their picture"
    if all(len(stem) == COCO_DIGITS for stem in stems):
        return f"{named}: numbers of {COCO_DIGITS} digits are ids of COCO, not of captions"
    if least == 1 and most == count:
        return 1
    if least == 0 and most == len(there) - 1:
        return 0
    if most >= count:
        return f"the numbers of the pictures go to {most:,}, but there are {count:,} captions, which count from 0"
    if least == 1 and folder.headers[folder.index.index(1)].seed != "1":
        return (
            f"the pictures are numbered from 1 to {most:,}, the {count:,} captions from 0, and whether 1 is the first caption or "
            "the second cannot be told; number the pictures from 0, or give as many captions as pictures"
        )
    return 0


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
