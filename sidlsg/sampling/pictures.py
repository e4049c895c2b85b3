"""Pictures as PIL images, PNG files and grids."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sidlsg.files import replacing


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images [B, 3, H, W] in [0, 1] -> PIL pictures, rounded to the nearest of 256 levels (as diffusers does)."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def make_grid(pictures: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Pictures of one size in a grid on white, row by row; about square unless ``columns`` is given."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return grid


def png_facts(facts: Mapping[str, str | int]) -> PngInfo:
    """Text entries of a PNG file."""
    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, str(value))
    return info


def save_png(picture: Image.Image, path: Path, compress_level: int = 6, **facts: str | int) -> None:
    """Write a PNG under a temporary name and rename it; ``facts`` become its text entries (prompt, seed, model)."""
    info = png_facts(facts)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info, compress_level=compress_level)


def save_grid(
    pictures: Sequence[Image.Image], prompts: Sequence[str], path: Path, images_seen: int | None = None
) -> None:
    """Write pictures of one size, one for each prompt, as one PNG that carries the prompts (a list in JSON)."""
    facts = {} if images_seen is None else {"images_seen": str(images_seen)}
    save_png(
        make_grid(pictures), path, compress_level=6, prompts=json.dumps(list(prompts), ensure_ascii=False), **facts
    )


def slug(prompt: str, length: int = 60) -> str:
    """A prompt as part of a file name: letters, digits and "-" that every system takes, at most ``length`` of them.

    It has 180 bytes at most, because a whole name, with its seed and suffix, may have 255.
    """
    text = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:length]
    return text.encode()[:180].decode(errors="ignore").rstrip("-") or "empty"


def free_path(path: Path) -> Path:
    """The path itself, or with -2, -3, ... when it is taken: earlier pictures are never overwritten."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate
