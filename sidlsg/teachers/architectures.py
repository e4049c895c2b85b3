"""Models of known architectures with random weights: for counts on the meta device, and for benchmarks without a download."""

from __future__ import annotations

import functools
import gzip
import importlib
from pathlib import Path
from typing import Any

import torch

from sidlsg.data import ASSETS, read_table
from sidlsg.errors import UsageError, nearest
from sidlsg.files import read_object
from sidlsg.teachers.families import get_family
from sidlsg.teachers.family import Family, Model
from sidlsg.teachers.loading import load_model, quiet_libraries
from sidlsg.teachers.schedules import PUBLISHED

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
} | PUBLISHED
TOKENS = 77


@functools.cache
def architectures() -> dict[str, dict[str, Any]]:
    """The rows of ``architectures.yaml`` by name: the family, and the configuration of each part."""
    return read_table("teachers/architectures.yaml")


def known() -> list[str]:
    return [*architectures(), "emoji"]


def family_of_architecture(name: str) -> Family:
    """The family of an architecture; raises UsageError for an unknown one."""
    if name not in known():
        raise UsageError(f'unknown architecture "{name}"{nearest(name, known())}')
    return get_family("stable-diffusion" if name == "emoji" else architectures()[name]["family"])


def build_network(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The network that would be distilled, with random weights; raises UsageError for an unknown architecture."""
    family = family_of_architecture(name)
    part = family.network
    config = read_object(ASSETS / "emoji" / part / "config.json") if name == "emoji" else architectures()[name][part]
    return build_part(family.parts[part], config, device).to(dtype)


def build_model(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Model:
    """A whole model with random weights in the published shapes; for emoji, the embedded teacher with its trained weights.

    The VAE is float32 whatever ``dtype`` is. Raises UsageError for an unknown architecture.
    """
    if name == "emoji":
        return load_model("emoji", device, dtype)
    family = family_of_architecture(name)
    torch.manual_seed(0)
    parts = {part: build_part(kind, architectures()[name].get(part, {}), device) for part, kind in family.parts.items()}
    for part, module in parts.items():
        if isinstance(module, torch.nn.Module):
            module.to(torch.float32 if part == "vae" else dtype).eval().requires_grad_(False)
    return Model(
        source=f"{name} with random weights",
        family=family,
        parts=parts,
        scheduler_config=dict(SCHEDULER),
        schedule=family.schedule(SCHEDULER),
    )


def build_part(kind: str, config: dict[str, Any], device: str | torch.device) -> Any:
    """A tokenizer, or a network of class ``kind`` ("library.Class") with random weights."""
    quiet_libraries()
    library, _, name = kind.rpartition(".")
    if name == "CLIPTokenizer":
        return clip_tokenizer(**config)
    cls = getattr(importlib.import_module(library), name)
    with torch.device(device):
        if library == "diffusers":
            return cls.from_config(config)
        return cls(cls.config_class(**{"vocab_size": 49408, "max_position_embeddings": TOKENS, **config}))


def clip_tokenizer(**options: Any) -> Any:
    """CLIP's tokenizer, built from the vocabulary file in the open_clip package."""
    import open_clip
    from transformers import CLIPTokenizer

    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS, **options)
