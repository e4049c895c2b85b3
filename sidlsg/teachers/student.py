"""Writes models in half precision to folders in diffusers' layout, which stock pipelines run correctly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sidlsg.files import STUDENT_FILE, flush, make_readable, replace_folder
from sidlsg.teachers.family import Family, Model
from sidlsg.teachers.loading import quiet_libraries


def save_folder(
    folder: Path,
    family: Family,
    parts: Mapping[str, Any],
    scheduler: Any,
    *,
    index: Mapping[str, Any] | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder for the family's stock pipeline, with weights in float16; replaces ``folder`` only when all is written.

    The text encoders' configs still say float32, so that a pipeline without an explicit dtype loads all parts in the same one.

    Args:
        index: ``model_index.json`` of the model that the parts come from.
        note: content of ``sidlsg.json``, for a one-step student; None writes no such file.
    """
    quiet_libraries()
    halves = {name: half_copy(part) if isinstance(part, nn.Module) else part for name, part in parts.items()}
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        family.stock_pipeline(halves, index or {}, scheduler).save_pretrained(temporary)
        for name, kind in family.parts.items():
            part = temporary / name
            if kind.endswith("Tokenizer"):
                # transformers 5 writes tokenizer.json only; older releases and other tools read CLIP's own pair of files.
                parts[name].backend_tokenizer.model.save(str(part))
            elif kind.startswith("transformers."):
                tidy_config(part / "config.json", {"dtype": "float32"})
                name_text_weights(part / "model.safetensors")
            else:
                tidy_config(part / "config.json", {})
        if note is not None:
            (temporary / STUDENT_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        for path in temporary.rglob("*"):
            if path.is_file():
                make_readable(path)
                flush(path)
        flush(temporary)
        replace_folder(temporary, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def half_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU in float16, made tensor by tensor, so that the module's device never holds a second copy."""

    def half(tensor: Tensor) -> Tensor:
        dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", dtype, copy=True).contiguous()

    # deepcopy uses what it finds in its memo instead of copying it.
    memo: dict[int, Any] = {id(p): nn.Parameter(half(p), requires_grad=False) for p in module.parameters()}
    memo |= {id(b): half(b) for b in module.buffers()}
    return deepcopy(module, memo)


def tidy_config(path: Path, changes: dict[str, Any]) -> None:
    """Apply ``changes`` to a config file, and remove the path on this machine that diffusers notes in it."""
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def name_text_weights(path: Path) -> None:
    """Prefix the names of a text encoder's weights with ``text_model.``, as in every Stable Diffusion folder.

    Recent transformers 5 releases save without the prefix and read both forms; older releases and other tools need it.
    """
    weights = load_file(path)
    save_file(
        {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in weights.items()},
        path,
        metadata={"format": "pt"},
    )


def save_student(folder: Path, teacher: Model, network: nn.Module, t_init: int, note: dict[str, Any]) -> None:
    """Write the one-step student: the teacher's folder with the generator as its network and a one-step scheduler.

    ``sidlsg.json`` records how to sample it, its licence (a student inherits the teacher's) and the entries of ``note``.
    """
    family = teacher.family
    save_folder(
        folder,
        family,
        {**teacher.parts, family.network: network},
        family.one_step_scheduler(teacher.schedule, t_init),
        index=teacher.index,
        note={
            "t_init": t_init,
            "timesteps": [t_init],
            "prediction_type": teacher.schedule.prediction_type,
            "family": family.name,
            "licence": teacher.licence or "unknown: that of the teacher",
            **note,
        },
    )
