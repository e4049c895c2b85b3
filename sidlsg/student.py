"""Folders in Stable Diffusion's layout that stock diffusers pipelines run correctly, written in half precision."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sidlsg.checkpoint import Checkpoints
from sidlsg.errors import UsageError
from sidlsg.models import STUDENT_FILE, Model, load_model, quiet_libraries, read_object
from sidlsg.run_folder import RunFolder
from sidlsg.schedule import NoiseSchedule


def one_step_scheduler(schedule: NoiseSchedule, t_init: int) -> Any:
    """A scheduler whose single Euler step is the generator (Eq. 9), without any special argument in the pipeline.

    With only the first t_init + 1 betas and trailing spacing, one step runs at t_init; Euler's initial sigma_t / a_t and its
    input scaling together make the network's input sigma_{t_init} z.
    """
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        num_train_timesteps=t_init + 1,
        trained_betas=[float(beta) for beta in schedule.betas[: t_init + 1]],
        prediction_type=schedule.prediction_type,
        timestep_spacing="trailing",
        steps_offset=1,  # unused by trailing spacing; diffusers warns about 0
    )


def save_folder(
    folder: Path,
    *,
    tokenizer: Any,
    text_encoder: Any,
    vae: Any,
    unet: Any,
    scheduler: Any,
    note: dict[str, Any] | None = None,
) -> None:
    """Write a ``StableDiffusionPipeline`` folder with half-precision weights, under a temporary name and renamed.

    The configs ask for float32, so that pipelines load one dtype for all parts unless told otherwise.

    Args:
        note: content of ``sidlsg.json``, for a one-step student.
    """
    from diffusers import StableDiffusionPipeline

    quiet_libraries()

    def half(module: Any) -> Any:
        return deepcopy(module).to(device="cpu", dtype=torch.float16, memory_format=torch.contiguous_format)

    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        StableDiffusionPipeline(
            tokenizer=tokenizer,
            text_encoder=half(text_encoder),
            vae=half(vae),
            unet=half(unet),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(temporary)
        # transformers 5 writes tokenizer.json only; older releases and other tools read CLIP's own two files.
        tokenizer.backend_tokenizer.model.save(str(temporary / "tokenizer"))
        for part in ("text_encoder", "unet", "vae"):
            tidy_config(temporary / part / "config.json", {"dtype": "float32"} if part == "text_encoder" else {})
        name_text_weights(temporary / "text_encoder" / "model.safetensors")
        if note is not None:
            (temporary / STUDENT_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def tidy_config(path: Path, changes: dict[str, Any]) -> None:
    """Change a config, and take out the path on this machine that diffusers notes in it."""
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def name_text_weights(path: Path) -> None:
    """Put ``text_model.`` in front of the weights' names, as in every Stable Diffusion folder.

    Late transformers 5 releases leave it out when they save, and read both; older ones and other tools need it.
    """
    weights = load_file(path)
    save_file(
        {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in weights.items()},
        path,
        metadata={"format": "pt"},
    )


def save_student(folder: Path, teacher: Model, unet: Any, t_init: int, note: dict[str, Any]) -> None:
    """Write the one-step student: the teacher's folder with the generator as UNet and a one-step scheduler."""
    save_folder(
        folder,
        tokenizer=teacher.tokenizer,
        text_encoder=teacher.text_encoder,
        vae=teacher.vae,
        unet=unet,
        scheduler=one_step_scheduler(teacher.schedule, t_init),
        note={"t_init": t_init, **note},
    )


def student_is_newest(folder: RunFolder) -> bool:
    """Whether the run has a student, and no checkpoint beyond it (a finished run may have been extended)."""
    if not (folder.student / STUDENT_FILE).is_file():
        return False
    note = read_object(folder.student / STUDENT_FILE, ("images_seen",))
    return all(int(path.name) <= note["images_seen"] for path in Checkpoints(folder.checkpoints).complete())


def student_of_checkpoint(folder: RunFolder, device: torch.device, dtype: torch.dtype) -> Model:
    """The generator of a run that is not finished, from its newest checkpoint (averaged, when the run averages).

    Raises UsageError when there is no checkpoint yet.
    """
    config = folder.load_config()
    loaded = Checkpoints(folder.checkpoints).load_latest()
    if loaded is None:
        raise UsageError(f"the run in {folder.path} has no checkpoint yet; the first grids are in {folder.samples}")
    tensors, state, _ = loaded
    model = load_model(config.teacher, device, dtype)
    model.unet.load_state_dict(tensors["ema"] if "ema" in tensors else tensors["generator"], strict=True)
    model.student = {"t_init": config.t_init, "images_seen": state["images_seen"]}
    model.source = f"{folder.path} at {state['images_seen']} images"
    return model
