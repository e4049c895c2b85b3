"""One picture file: what it says about itself, and its pixels in 8-bit RGB."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sidlsg.errors import UsageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # whatever the suffix says
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF tags
# Texts and colour profiles of a PNG that are read: so many bytes in all; a compressed one becomes at most TEXT // COMPRESSED_TEXT
# times as many. Pixels do not depend on them, and Pillow refuses files with more.
TEXT, COMPRESSED_TEXT = 2**20, 1000


@dataclass(frozen=True)
class Header:
    """What a picture file says about itself, and the SHA-256 of the whole file.

    Attributes:
        kind: Pillow's name of the format, whatever the suffix of the file.
        size: width and height.
        alpha: whether there is an alpha channel or a transparent colour.
        seed, prompt_sha256, model: that ``sidlsg`` notes in the pictures it draws; None in those of other tools.
    """

    sha256: str
    kind: str
    size: tuple[int, int]
    alpha: bool
    seed: str | None = None
    prompt_sha256: str | None = None
    model: str | None = None


@contextmanager
def _open(path: Path) -> Iterator[tuple[bytes, Image.Image]]:
    """The bytes of a file, and the picture in it, whose pixels may be loaded in the block.

    Raises UsageError, naming the file, for one that is missing, cannot be read, is damaged, or is no single picture of 8 bits a
    channel, or of 16.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise UsageError(f"{path} is empty (0 bytes); replace or remove it")
    try:
        with Image.open(io.BytesIO(_without_long_texts(content)), formats=FORMATS) as picture:
            if problem := _unsupported(picture):
                raise UsageError(f"{path} {problem}")
            yield content, picture
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError(
            f"{path} is not a picture of a known kind ({', '.join(FORMATS)}); replace or remove it"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{path} is too large to be decoded safely ({error}); make it smaller or remove it") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for damaged files
        raise UsageError(f"{path} is not a readable picture ({error}); replace or remove it") from None


def _without_long_texts(content: bytes) -> bytes:
    """The bytes of a PNG file without the texts and profiles beyond ``TEXT``; those of anything else as they are."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    kept, room, start, place = [], TEXT, 0, 8
    while place + 12 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        end = place + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            _, _, rest = content[place + 8 : end - 4].partition(b"\0")
            packed = kind in (b"zTXt", b"iCCP") or (kind == b"iTXt" and rest[:1] != b"\0")
            size = length * TEXT // COMPRESSED_TEXT if packed else length  # at most, when it is unpacked
            if size > room:
                kept.append(content[start:place])
                start = end
            else:
                room -= size
        place = end
    return b"".join([*kept, content[start:]]) if kept else content


def _unsupported(picture: Image.Image) -> str:
    """Why a picture cannot be turned into 8-bit RGB without guessing; empty when it can."""
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a photograph with a smaller copy of itself, from some cameras
        return f"holds {frames} frames or pages; keep the one that is meant, in a file of its own"
    if picture.mode in MODES or _sixteen_bits(picture):
        return ""
    what = {"F": "floating-point numbers", "I": "32-bit or signed integers"}.get(
        picture.mode, f"of the mode {picture.mode}"
    )
    return f"has pixels that are {what}, whose range or meaning is not known; convert it to 8 bits a channel"


def _sixteen_bits(picture: Image.Image) -> bool:
    """Whether the levels of a grey picture are 0 to 65535, 0 being black."""
    if isinstance(tags := getattr(picture, "tag_v2", None), Mapping):
        return picture.mode.startswith("I;16") and tags.get(BITS_PER_SAMPLE) == (16,) and tags.get(PHOTOMETRIC) == 1
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture in 8-bit RGB, as torch-fidelity, pytorch-fid and clean-fid take it: an alpha channel is dropped, colour profiles
    and EXIF orientation are not applied. Of 16 bits the upper eight are kept, as Pillow does where there are three channels."""
    if picture.mode not in MODES:
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


def load_rgb(path: Path) -> Image.Image:
    """A picture as ``to_rgb`` gives it; raises UsageError, naming the file, when it is missing, damaged or not supported."""
    with _open(path) as (_, picture):
        return to_rgb(picture)


def read_header(path: Path) -> Header:
    """What a picture file holds; its pixels are not decoded. Raises UsageError as ``load_rgb`` does."""
    with _open(path) as (content, picture):
        alpha = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
        seed, prompt, model = (
            None if (text := picture.info.get(name)) is None else str(text) for name in ("seed", "prompt", "model")
        )
        return Header(
            sha256=hashlib.sha256(content).hexdigest(),
            kind=picture.format or "",
            size=picture.size,
            alpha=alpha,
            seed=seed,
            prompt_sha256=None if prompt is None else text_sha256(prompt),
            model=model,
        )


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
