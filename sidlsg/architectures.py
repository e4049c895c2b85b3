"""Networks by architecture with random weights: to count operations on the meta device, and to benchmark without a download."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import torch
import yaml

from sidlsg.data import ASSETS, PACKAGE
from sidlsg.errors import UsageError, nearest
from sidlsg.models import Model, load_model, quiet_libraries
from sidlsg.schedule import NoiseSchedule

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
} | BETAS
TOKENS = 77


@functools.cache
def architectures() -> dict[str, dict[str, dict[str, Any]]]:
    return yaml.safe_load((PACKAGE / "architectures.yaml").read_text(encoding="utf-8"))


def known() -> list[str]:
    return [*architectures(), "emoji"]


def build_unet(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A UNet2DConditionModel of this architecture with random weights; raises UsageError for an unknown one."""
    from diffusers import UNet2DConditionModel

    quiet_libraries()
    if name not in known():
        raise UsageError(f'unknown architecture "{name}"{nearest(name, known())}')
    config = (
        UNet2DConditionModel.load_config(ASSETS / "emoji" / "unet")
        if name == "emoji"
        else architectures()[name]["unet"]
    )
    with torch.device(device):
        return UNet2DConditionModel.from_config(config).to(dtype)


def build_model(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Model:
    """A whole model: random weights at the real shape for sd15 and sd21-base, the embedded teacher itself for emoji.

    The VAE is float32, as everywhere. Raises UsageError for an unknown architecture.
    """
    if name == "emoji":
        return load_model("emoji", device, dtype)
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = build_unet(name, device, dtype)
    parts = architectures()[name]
    with torch.device(device):
        text_encoder = CLIPTextModel(
            CLIPTextConfig(vocab_size=49408, max_position_embeddings=TOKENS, **parts["text_encoder"])
        )
        vae = AutoencoderKL.from_config(parts["vae"])
    return Model(
        source=f"{name} with random weights",
        tokenizer=clip_tokenizer(),
        text_encoder=text_encoder.to(dtype).eval().requires_grad_(False),
        vae=vae.eval().requires_grad_(False),
        unet=unet.eval().requires_grad_(False),
        scheduler_config=dict(SCHEDULER),
        schedule=NoiseSchedule.from_config(SCHEDULER),
    )


def clip_tokenizer() -> Any:
    """CLIP's tokenizer, out of the vocabulary that open_clip carries."""
    import open_clip
    from transformers import CLIPTokenizer

    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)
