"""Recognises what is not a diffusers folder, by its files' names and the names of its weights, to say what to do with it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sidlsg.errors import UsageError

# What the pictures of these would be compared with has few steps already. Words in names: of hub ids, folders, `_name_or_path`.
FEW_STEP = re.compile(r"(?<![a-z])(turbo|lcm|lightning|hyper|dmd2?|schnell|pcm)(?![a-z])", re.IGNORECASE)

# Ends of names that mean one file with a whole model.
WHOLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LORA_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
LORA = (
    "a LoRA, which changes a model and is none. Load its model in diffusers, then load_lora_weights, fuse_lora, "
    "unload_lora_weights and save_pretrained give a folder to use here"
)


def about_file(path: Path) -> str:
    """Why a file cannot be used as a model, and what to do."""
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return f"{path} is a GGUF file, whose weights are quantised; give the original model as a diffusers folder"
    if suffix not in WHOLE:
        return f"{path} is a file and not a folder; give a diffusers folder, a hub id (owner/name) or an alias"
    names = _weights(path)
    if any("lora" in name.lower() for name in names):
        return f"{path} is {LORA}"
    kind = "StableDiffusionXLPipeline" if any("conditioner." in name for name in names) else "StableDiffusionPipeline"
    return (
        f"{path} is a single file; sidlsg reads diffusers folders. Convert it, in Python: from diffusers import {kind}; "
        f'{kind}.from_single_file("{path.name}").save_pretrained("{path.stem}")'
    )


def about_folder(folder: Path, source: str) -> str:
    """Why a folder without ``model_index.json`` cannot be used as a model, and what to do."""
    names = set(os.listdir(folder))
    if {"config.yaml", "checkpoints"} <= names:
        return f"{source} is the folder of a run of sidlsg; its student is no teacher. Give the model it was distilled from"
    if names & set(LORA_FILES):
        return f"{source} is {LORA}"
    start = f"{source} is not a diffusers folder: it has no model_index.json"
    if "config.json" in names and (folder.parent / "model_index.json").is_file():
        return f"{start}. It is one part of a model; give the folder above it, {folder.parent}"
    if "config.json" in names:
        return f"{start}. It holds one network (a UNet, a ControlNet, a VAE...); give the folder of a whole model"
    inside = sorted(p.name for p in folder.iterdir() if (p / "model_index.json").is_file())
    if inside:
        return f"{start}, but {inside[0]} in it has one; give {folder / inside[0]}"
    whole = sorted(name for name in names if name.lower().endswith((*WHOLE, ".gguf")))
    return f"{start}. {about_file(folder / whole[0])}" if whole else f"{start}; give the folder of a whole model"


def _weights(path: Path) -> list[str]:
    """The names of the weights in a safetensors file; empty for anything else."""
    from safetensors import safe_open

    try:
        with safe_open(path, "np") as file:
            return list(file.keys())
    except Exception:  # pickles and damaged files: what they are is not looked into
        return []


def few_step_word(name: str) -> str | None:
    """The word in a model's name (of a hub id, the part behind the owner) that says that it was distilled already."""
    found = FEW_STEP.search(name.rstrip("/").rpartition("/")[2])
    return found[0] if found else None


def refuse_few_step_name(name: str) -> None:
    """Raise UsageError for a model of the hub that by its name was distilled already, before it is downloaded."""
    if (word := few_step_word(name)) is not None:
        raise UsageError(
            f'{name} is a few-step model by its name ("{word}"): it was distilled already and is no teacher. Give the model it '
            "was distilled from; if it is none, download it, and give it as a folder of another name"
        )
