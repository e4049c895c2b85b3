"""Images, weights files and results for the tests of evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def hps_file(model: torch.nn.Module, folder: Path) -> Path:
    """The format of HPS_v2_compressed.pt: half precision under the key state_dict."""
    torch.save({"state_dict": {k: v.half() for k, v in model.state_dict().items()}}, folder / "HPS_v2_compressed.pt")
    return folder / "HPS_v2_compressed.pt"


def folder_of(path: Path, count: int, size: int = 64, suffix: str = ".png") -> Path:
    """``count`` numbered noise pictures."""
    path.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i:06d}{suffix}")
    return path


def results(folder: Path) -> dict:
    """What an evaluation wrote."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
