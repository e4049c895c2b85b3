"""Open what ``--model`` names: a run folder (its student or newest checkpoint), a diffusers folder, an alias or a hub id."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

import torch

from sidlsg.errors import UsageError
from sidlsg.files import STUDENT_FILE, read_object
from sidlsg.runs.checkpoints import Checkpoints
from sidlsg.runs.folder import RunFolder, missing_of_student, run_folder
from sidlsg.runs.state import place
from sidlsg.teachers.family import Description, Model
from sidlsg.teachers.hub import missing_part
from sidlsg.teachers.loading import describe, load_model
from sidlsg.teachers.registry import at_hand, locate


def open_model(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """Open a run folder (its student, or the newest checkpoint of an unfinished run), or whatever ``load_model`` takes.

    Raises UsageError when ``name`` is not a model, SidlsgError when its files are missing or damaged.
    """
    folder = run_folder(name)
    if folder is None:
        return load_model(name, device, dtype)
    if student_is_newest(folder):
        return load_model(str(folder.student), device, dtype)
    return student_of_checkpoint(folder, device, dtype)


def describe_model(name: str) -> Description | None:
    """What ``open_model`` would open, from its configuration files; None where they are not on this machine.

    Raises UsageError and SidlsgError as ``open_model`` does, before any weight is read.
    """
    run = run_folder(name)
    if run is None:
        place = locate(name)
        found = at_hand(place)
        whole = found is not None and (place.folder is not None or missing_part(found) is None)
        return describe(found, name) if found is not None and whole else None
    if student_is_newest(run):
        return describe(run.student, name)
    config = run.load_config()
    about = describe_model(config.teacher)
    return about and replace(about, source=name, student={"t_init": config.t_init})


def student_is_newest(folder: RunFolder) -> bool:
    """Whether the run has a student and no later checkpoint (a finished run may have been extended).

    Raises UsageError when the student's folder lacks something.
    """
    if not os.path.lexists(folder.student):
        return False
    if missing := missing_of_student(folder.student):
        raise UsageError(
            f"{folder.student} is not whole: it has no {missing}. Run the same `sidlsg distill` again to write it anew, or move "
            "it away to use the newest checkpoint"
        )
    note = read_object(folder.student / STUDENT_FILE, ("images_seen",), {"images_seen": int})
    return all(place(path)[0] <= note["images_seen"] for path in Checkpoints(folder.checkpoints).complete())


def student_of_checkpoint(folder: RunFolder, device: torch.device, dtype: torch.dtype) -> Model:
    """The generator of an unfinished run, from its newest checkpoint (its EMA weights, when the run keeps them).

    Raises UsageError when there is no checkpoint yet, SidlsgError when all are damaged.
    """
    config = folder.load_config()
    loaded = Checkpoints(folder.checkpoints).load_latest(groups=_student_group)
    if loaded is None:
        raise UsageError(f"the run in {folder.path} has no checkpoint yet; the first grids are in {folder.samples}")
    tensors, state, _ = loaded
    model = load_model(config.teacher, device, dtype)
    (weights,) = tensors.values()
    model.network.load_state_dict(weights, strict=True)
    model.student = {"t_init": config.t_init, "images_seen": state["images_seen"]}
    model.source = f"{folder.path} at {state['images_seen']} images"
    return model


def _student_group(names: Iterable[str]) -> list[str]:
    """Which of a checkpoint's groups is the student: a fifth of what there is to read and check."""
    return ["ema" if "ema" in names else "generator"]
