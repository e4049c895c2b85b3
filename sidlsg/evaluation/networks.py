"""The networks behind the scores: feature extractors for torch-fidelity, and CLIP models through open_clip.

The judge is the embedded benchmark's own small CLIP and serves as both. All networks take uint8 pictures that the protocol has
already cropped and resized.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import create_feature_extractor

from sidlsg.data import ASSETS
from sidlsg.errors import SidlsgError
from sidlsg.evaluation.protocol import Protocol
from sidlsg.evaluation.weights import weight_files

JUDGE = ASSETS / "emoji-judge"
INCEPTION_SIZE = 299


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute as ``PRECISION`` says, with reproducible cuDNN kernels, whatever the process has set; its settings are restored."""
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    parts = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)
    fields = [*((part, "fp32_precision", "ieee") for part in parts), (cudnn, "allow_tf32", False)]
    fields += [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    settings: list[tuple[Callable[[], Any], Callable[[Any], None], Any]] = [
        (partial(getattr, owner, name), partial(setattr, owner, name), value) for owner, name, value in fields
    ]
    settings.append((torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"))
    with contextlib.ExitStack() as restoring:
        for read, write, _ in settings:
            # torch has two interfaces to TF32; allow_tf32 and float32_matmul_precision are the older one, which cannot be read,
            # and need not be restored, in a process that has used the other.
            with contextlib.suppress(RuntimeError):
                restoring.callback(write, read())
        for _, write, value in reversed(settings):
            write(value)
        for kind in ("cuda", "cpu"):
            restoring.enter_context(torch.autocast(kind, enabled=False))
        yield


class InceptionBicubic(FeatureExtractorInceptionV3):
    """Inception-2015 after clean-fid's resize: antialiased bicubic in float, clamped, not rounded to 8 bits again."""

    TRUNK = (
        *(
            "Conv2d_1a_3x3",
            "Conv2d_2a_3x3",
            "Conv2d_2b_3x3",
            "MaxPool_1",
            "Conv2d_3b_1x1",
            "Conv2d_4a_3x3",
            "MaxPool_2",
        ),
        *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
    )

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("2048",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "2048"

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, 3, H, W] -> (float32 [B, 2048],)."""
        x = (resize_bicubic(x.float()) - 128) / 128
        for name in self.TRUNK:
            x = getattr(self, name)(x)
        return (x.flatten(1),)


def resize_bicubic(x: Tensor) -> Tensor:
    """Float [B, C, H, W] with levels 0 to 255 -> [B, C, 299, 299], as Pillow's bicubic on float channels, clamped."""
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    return F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)


class JudgeFeatures(FeatureExtractorBase):
    """The judge's image embedding, not normalised, as a feature extractor."""

    def __init__(self, name: str, features_list: Sequence[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.clip = load_judge()
        self.network = self.clip.model  # registered, so that ``to`` moves it

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("embedding",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "embedding"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, 3, 64, 64] -> (float32 [B, D],)."""
        return (self.clip.image_features(x),)


BICUBIC, BILINEAR, JUDGE_NAME = "sidlsg-inception-bicubic", "inception-v3-compat", "sidlsg-judge"
register_feature_extractor(BICUBIC, InceptionBicubic)
register_feature_extractor(JUDGE_NAME, JudgeFeatures)


def feature_extractor(protocol: Protocol, weights: Path | None, device: torch.device) -> FeatureExtractorBase:
    """The protocol's feature extractor with its weights, created through torch-fidelity's registry.

    Args:
        weights: Inception's weights file; None for the judge.

    Raises SidlsgError when ``weights`` is not a state dict of this network.
    """
    if protocol.features == "judge":
        name, layer, path = JUDGE_NAME, "embedding", None
    else:
        name, layer, path = BICUBIC if protocol.features_resize == "bicubic" else BILINEAR, "2048", str(weights)
        assert weights is not None
        # torch-fidelity unpickles with weights_only=False: make sure first that the file holds nothing but tensors.
        with _clear_failure(weights, "inception"):
            torch.load(weights, map_location="cpu", weights_only=True)
    with _clear_failure(weights or JUDGE, protocol.features):
        options = {"feature_extractor_weights_path": path, "verbose": False}
        extractor = create_feature_extractor(name, [layer], cuda=False, **options)
    return extractor.to(device)


class Clip:
    """An open_clip model with its tokenizer, to embed pictures and captions.

    Args:
        model: an open_clip CLIP model, in eval mode.
        tokenizer: list of B captions -> tokens [B, L].
        size: side of the square pictures that the image encoder takes.
        mean, std: of the normalisation, for values in [0, 1].
        prefix: prepended to every caption.
        resize: how pictures are brought to ``size``: pil (open_clip's validation preprocessing: shortest side, bicubic on
            8 bits, centre crop), tensor (bicubic without antialiasing), or None (they have that size).
        truncates: first lower the levels 1 to 63 by one, as GigaGAN's script does by truncation.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        prefix: str = "",
        resize: str | None = None,
        truncates: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.size = model, tokenizer, size
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
        self.prefix, self.resize, self.truncates = prefix, resize, truncates
        self.transform = image_transform_v2(PreprocessCfg(size=size, mean=tuple(mean), std=tuple(std)), is_train=False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prepare(self, picture: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> normalised float32 [3, size, size]."""
        if self.truncates:
            picture = TRUNCATED[picture]
        if self.resize == "pil":
            return self.transform(Image.fromarray(picture))
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        if self.resize == "tensor":
            x = F.interpolate(x[None], size=(self.size, self.size), mode="bicubic", align_corners=False)[0]
        return (x - self.mean) / self.std

    @torch.no_grad()
    def encode_prepared(self, x: Tensor) -> Tensor:
        """Normalised pictures [B, 3, size, size] -> embeddings [B, D], float32, not normalised."""
        return self.model.encode_image(x.to(self.device)).float()

    def image_features(self, x: Tensor) -> Tensor:
        """uint8 [B, 3, size, size] -> embeddings [B, D], for pictures that need no resize."""
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        return self.encode_prepared((x.float() / 255 - mean) / std)

    @torch.no_grad()
    @full_precision()
    def encode_captions(self, captions: Sequence[str], batch: int = 128) -> Tensor:
        """Captions -> unit vectors [N, D], float32 on the CPU; the prefix is prepended to each."""
        parts = []
        for start in range(0, len(captions), batch):
            tokens = self.tokenizer([self.prefix + caption for caption in captions[start : start + batch]])
            parts.append(F.normalize(self.model.encode_text(tokens.to(self.device)).float(), dim=1).cpu())
        return torch.cat(parts)


def _truncated() -> np.ndarray:
    """What GigaGAN's CLIP script makes of each uint8 level, [256]: v/255, to [-1, 1] and back in float32, then truncated."""
    level = torch.arange(256, dtype=torch.float32) / 255
    back = ((level - 0.5) / 0.5 + 1) / 2
    return (back * 255).to(torch.uint8).numpy()


TRUNCATED = _truncated()


def load_judge() -> Clip:
    """The judge, the embedded benchmark's CLIP, on the CPU."""
    from open_clip.tokenizer import SimpleTokenizer

    config = json.loads((JUDGE / "open_clip_config.json").read_text(encoding="utf-8"))
    text, preprocess = config["model_cfg"]["text_cfg"], config["preprocess_cfg"]
    model = _open_clip(f"local-dir:{JUDGE}", None, JUDGE, "clip")
    tokenizer = SimpleTokenizer(str(JUDGE / "bpe.txt.gz"), context_length=text["context_length"])
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    return Clip(model, tokenizer, size, preprocess["mean"], preprocess["std"])


def load_clip(protocol: Protocol, weights: Path | None, device: torch.device) -> Clip:
    """The protocol's CLIP model, in float32; raises SidlsgError when ``weights`` belong to another model."""
    import open_clip

    if protocol.clip_weights == "judge":
        clip = load_judge()
        clip.model.to(device)
        return clip
    assert weights is not None
    model = _open_clip(protocol.clip_model, weights, weights, protocol.clip_weights).to(device)
    preprocess = open_clip.get_model_preprocess_cfg(model)
    return Clip(
        model,
        open_clip.get_tokenizer(protocol.clip_model),
        _side(preprocess["size"]),
        preprocess["mean"],
        preprocess["std"],
        protocol.clip_prefix,
        protocol.clip_resize,
        protocol.clip_truncates,
    )


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _open_clip(name: str, weights: Path | None, path: Path, option: str) -> Any:
    """An open_clip model in eval mode, loaded without its log messages."""
    import open_clip

    with _clear_failure(path, option), quiet_logging():
        return open_clip.create_model(name, pretrained=str(weights) if weights else None).eval().requires_grad_(False)


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Switch logging off: open_clip logs errors that it also raises."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _clear_failure(path: Path, name: str) -> Iterator[None]:
    """Turn whatever a library raises for a wrong or damaged file into a SidlsgError that says what to do."""
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        row = weight_files().get(name)
        what, option = (row.what, row.option) if row else ("the embedded judge", "")
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        advice = f"give the right file with {option}" if option else "install the package again"
        raise SidlsgError(
            f"{path} cannot be loaded as {what}: {first}. If it is another model or damaged, {advice}"
        ) from error
