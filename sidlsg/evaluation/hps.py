"""HPSv2: 100 x the cosine similarity of picture and prompt in a CLIP trained on human preferences, over 4 x 800 prompts.

The paper's numbers use checkpoint v2.0 and JPEG pictures of quality 75. HPSv2's preprocessing differs from open_clip's: pictures
are resized as float tensors (long side to 224, bicubic, zero padding). torchvision up to 0.16 did that without antialiasing,
later versions with it, and scores differ by tenths; the setting is recorded with every score.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation.networks import _clear_failure, full_precision, quiet_logging
from sidlsg.evaluation.protocol import HPS_JPEG_QUALITY, HPS_PROMPTS, HPS_STYLES, HPS_VERSIONS
from sidlsg.evaluation.weights import file_sha256, find_weights

SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ARCHITECTURE = "ViT-H-14"
# hpsv2x is the complete build of hpsv2 1.2.0, whose wheel lacks the tokenizer's vocabulary; it pins old versions of pytest and
# protobuf, which it does not need.
INSTALL = "pip install --no-deps hpsv2x==1.2.0 clint==0.5.1 args==0.1.0 webdataset==1.0.2 braceexpand==0.1.7 einops"


@dataclass
class HpsScorer:
    """A preference model that scores pairs of picture and prompt.

    Args:
        model: CLIP with ``encode_image`` and ``encode_text``.
        tokenizer: list of B prompts -> tokens [B, L].
        prepare: picture -> normalised float32 [3, 224, 224].
        facts: settings recorded with the scores: version, JPEG quality, backend, antialiasing.
        weights: SHA-256 of the checkpoint file.
    """

    model: Any
    tokenizer: Any
    prepare: Callable[[Image.Image], Tensor]
    device: torch.device
    facts: dict[str, Any]
    weights: str

    @torch.no_grad()
    @full_precision()
    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Scores of B (picture, prompt) pairs: 100 x cosine similarity, float32 [B] on the CPU."""
        x = torch.stack([self.prepare(picture) for picture in pictures]).to(self.device)
        image = F.normalize(self.model.encode_image(x).float(), dim=1)
        text = F.normalize(self.model.encode_text(self.tokenizer(list(prompts)).to(self.device)).float(), dim=1)
        return 100 * (image * text).sum(1).cpu()


def prepare(picture: Image.Image, antialias: bool = True) -> Tensor:
    """HPSv2's preprocessing: long side to 224 (bicubic, not clamped), padded with zeros, normalised; float32 [3, 224, 224]."""
    x = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
    scale = SIZE / max(x.shape[1:])
    height, width = (round(side * scale) for side in x.shape[1:])
    if (height, width) != tuple(x.shape[1:]):
        x = F.interpolate(x[None], size=(height, width), mode="bicubic", antialias=antialias, align_corners=False)[0]
    left, top = (SIZE - width) // 2, (SIZE - height) // 2
    x = F.pad(x, (left, SIZE - width - left, top, SIZE - height - top))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def as_jpeg(picture: Image.Image) -> Image.Image:
    """The picture after a round trip through JPEG of quality 75: the authors' script scores such files."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=HPS_JPEG_QUALITY)
    return Image.open(buffer).convert("RGB")


def load_hps(
    version: str,
    device: torch.device,
    weights: Path | None = None,
    *,
    antialias: bool = True,
    package: bool = False,
    architecture: str = ARCHITECTURE,
) -> HpsScorer:
    """Load the preference model with open_clip or, with ``package``, with the code of the installed ``hpsv2`` package.

    Args:
        weights: path of the checkpoint; None looks in the cache, then downloads.
        antialias: resize with antialiasing; the package does as torchvision does.

    Raises UsageError for an unknown version or a missing file or package, SidlsgError for weights that cannot be downloaded or
    loaded.
    """
    if version not in HPS_VERSIONS:
        raise UsageError(f'HPS version is "{version}"; use {" or ".join(HPS_VERSIONS)}')
    path = find_weights(f"hps-{version}", weights)
    assert path is not None
    facts = {
        "version": version,
        "jpeg_quality": HPS_JPEG_QUALITY,
        "backend": "hpsv2 package" if package else "open_clip",
    }
    if package:
        facts["antialias"] = "as installed torchvision does"
        return _load_package(path, device, version, facts, architecture)
    import open_clip

    with _clear_failure(path, f"hps-{version}"), quiet_logging():
        model = open_clip.create_model(architecture, pretrained=str(path)).eval().requires_grad_(False).to(device)
    facts["antialias"] = antialias
    tokenizer = open_clip.get_tokenizer(architecture)
    return HpsScorer(model, tokenizer, lambda picture: prepare(picture, antialias), device, facts, file_sha256(path))


def _load_package(
    path: Path, device: torch.device, version: str, facts: dict[str, Any], architecture: str
) -> HpsScorer:
    """``load_hps`` with the package's own model code, tokenizer and preprocessing."""
    try:
        from hpsv2.src.open_clip import create_model_and_transforms, get_tokenizer

        tokenizer = get_tokenizer(architecture)
    except Exception as error:  # its wheels lack a file, and import tkinter and others
        raise UsageError(
            f"the hpsv2 package cannot be used ({type(error).__name__}: {error}); leave out --hps-package (the built-in path "
            f"gives the same scores), or install a complete build beside what is there: {INSTALL}"
        ) from None
    with _clear_failure(path, f"hps-{version}"):
        made = create_model_and_transforms(architecture, "", precision="fp32", device="cpu", output_dict=True)
        model, prepare_validation = made[0], made[2]
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(checkpoint["state_dict"])
        model = model.eval().requires_grad_(False).to(device)
    return HpsScorer(model, tokenizer, prepare_validation, device, facts, file_sha256(path))


def load_prompts(style: str, given: Path | None = None) -> tuple[list[str], str]:
    """The 800 prompts of a style, from ``given``/<style>.json, the cache, or a download; and the SHA-256 of their file.

    Raises UsageError when the given file does not exist, SidlsgError when it cannot be downloaded or is no list of 800 prompts.
    """
    path = find_weights(f"hps-prompts-{style}", given / f"{style}.json" if given else None)
    assert path is not None
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SidlsgError(f"{path} is not a list of prompts: {error}") from None
    if not isinstance(prompts, list) or len(prompts) != HPS_PROMPTS or not all(isinstance(p, str) for p in prompts):
        raise SidlsgError(f"{path} must hold {HPS_PROMPTS} prompts; fetch it again")
    return prompts, file_sha256(path)


def summary(scores: dict[str, Tensor]) -> dict[str, float]:
    """Mean of every style (``hps_<style>``) and, when all four are there, of all prompts (``hps_average``).

    ``hps_<style>_std`` is the standard deviation of the means of ten chunks, as the hpsv2 package prints it.
    """
    found: dict[str, float] = {}
    for style, values in scores.items():
        chunks = np.array([chunk.mean() for chunk in np.array_split(values.double().numpy(), 10) if len(chunk)])
        found[f"hps_{style}"] = float(values.double().mean())
        found[f"hps_{style}_std"] = float(chunks.std())
    if set(scores) == set(HPS_STYLES):
        found["hps_average"] = float(torch.cat(list(scores.values())).double().mean())
    return found
