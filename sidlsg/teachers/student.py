"""Writes models in half precision to folders in diffusers' layout, which stock pipelines run correctly, and reads them back."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sidlsg.errors import SidlsgError
from sidlsg.files import STUDENT_FILE, flush, make_readable, replace_folder, replacing
from sidlsg.teachers.family import Family, Model
from sidlsg.teachers.identity import canonical_weights
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
    """Write a folder for the family's stock pipeline, with weights in float16; replaces ``folder`` only when all is written, and
    what was written has been read back.

    The text encoders' configs still say float32, so that a pipeline without an explicit dtype loads all parts in the same one.

    Args:
        index: ``model_index.json`` of the model that the parts come from.
        note: content of ``sidlsg.json``, for a one-step student; None writes no such file.

    Raises SidlsgError when the files do not hold what was to be written.
    """
    quiet_libraries()
    halves = {name: half_copy(part) if isinstance(part, nn.Module) else part for name, part in parts.items()}
    # A name of its own: what a reader keeps open on NFS cannot be removed, and must not be in the way.
    temporary = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.tmp")
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
        read_back(temporary, halves, folder)
        replace_folder(temporary, folder)
        flush(folder.parent)
        for left in folder.parent.glob(f"{glob.escape(folder.name)}.*tmp"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_back(written: Path, parts: Mapping[str, Any], folder: Path) -> None:
    """Raise SidlsgError when the files in ``written``, which are to be ``folder``, do not hold the weights of ``parts`` bit for
    bit, or one of JSON is damaged."""

    def wrong(path: Path, what: str) -> SidlsgError:
        return SidlsgError(
            f"{path.relative_to(written)}, written for {folder}, does not hold what was written ({what}): the disk, the file "
            f"system or the installed safetensors is at fault. {folder} is as it was before; run the same command again"
        )

    for path in sorted(written.rglob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise wrong(path, "no JSON") from None
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            continue
        meant = canonical_weights(part.state_dict())
        for path in sorted((written / name).glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    found = canonical_weights({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
            except SafetensorError:
                raise wrong(path, "its header") from None
            for key, tensor in found.items():
                if not _same_bits(tensor, meant.pop(key, None)):
                    raise wrong(path, key)
        if meant:
            raise wrong(written / name, next(iter(meant)))


def _same_bits(one: Tensor, other: Tensor | None) -> bool:
    if other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other)))


def half_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU in float16, made tensor by tensor, so that the module's device never holds a second copy.

    In float32 when a weight is beyond float16's range, where it would become infinite.
    """
    weights = [*module.parameters(), *module.buffers()]
    narrow = torch.float16 if all(_in_half(weight) for weight in weights) else torch.float32

    def half(tensor: Tensor) -> Tensor:
        dtype = narrow if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", dtype, copy=True).contiguous()

    # deepcopy uses what it finds in its memo instead of copying it.
    memo: dict[int, Any] = {id(p): nn.Parameter(half(p), requires_grad=False) for p in module.parameters()}
    memo |= {id(b): half(b) for b in module.buffers()}
    return deepcopy(module, memo)


def _in_half(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()
    return not bool(torch.maximum(-low, high) > torch.finfo(torch.float16).max)  # a NaN stays one


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
    named = {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in weights.items()}
    with replacing(path) as renamed:  # the tensors are mapped from ``path``: written to, they would change
        save_file(named, renamed, metadata={"format": "pt"})
        del weights, named  # Windows replaces no mapped file


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
