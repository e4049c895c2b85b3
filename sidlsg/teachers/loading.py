"""Loading teachers and students: folders in diffusers' layout and hub repositories, described first, then part by part."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.teachers.families import FAMILIES, family_of
from sidlsg.teachers.family import Description, Model
from sidlsg.teachers.registry import Location, locate

STUDENT_FILE = "sidlsg.json"  # beside model_index.json, in folders that this tool wrote


def quiet_libraries() -> None:
    """Keep the progress bars and advice of diffusers and transformers out of our output."""
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def load_model(name: str, device: torch.device, dtype: torch.dtype = torch.float32, teacher: bool = False) -> Model:
    """Load an alias, folder or hub id.

    Args:
        dtype: of network and text encoders; the VAE is always float32, since some overflow in half.
        teacher: refuse what can be sampled but not distilled.

    Raises UsageError for what no family handles, SidlsgError for a missing network, a missing or a corrupt file, naming it.
    """
    place = locate(name)
    quiet_libraries()
    folder, source = fetch(place)
    about = describe(folder, source, place.entry.licence if place.entry else None)
    if teacher:
        check_teacher(about)
    family = about.family
    parts = {
        part: _load_part(folder / part, kind, device, torch.float32 if part == "vae" else dtype)
        for part, kind in family.parts.items()
    }
    return Model(
        source=source,
        family=family,
        parts=parts,
        index=about.index,
        scheduler_config=about.scheduler,
        schedule=family.schedule(about.scheduler),
        student=about.student,
        licence=about.licence,
    )


def describe(folder: Path, source: str, licence: str | None = None) -> Description:
    """Read a folder's configurations and check them, before any weight is read.

    Raises UsageError when the folder is not one of a known family, or of a kind that the family cannot run; SidlsgError for
    a file that is missing or unreadable.
    """
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"{folder} is not a diffusers folder: it has no model_index.json")
    index = read_object(folder / "model_index.json")
    family = family_of(index, source)
    configs = {part: read_object(path) for part in family.parts if (path := folder / part / "config.json").is_file()}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    student = folder / STUDENT_FILE
    about = Description(
        source=source,
        folder=folder,
        family=family,
        index=index,
        configs=configs,
        scheduler=read_object(scheduler),
        student=read_object(student, ("t_init",)) if student.is_file() else None,
        licence=licence or licence_of(folder),
    )
    family.check(about)
    return about


def check_teacher(about: Description) -> None:
    """Raise UsageError when the model cannot be a teacher: a student of ours, or one that was distilled by other means."""
    if about.student is not None:
        teacher = about.student.get("teacher", "the model it was distilled from")
        raise UsageError(f"{about.source} is a one-step student and no teacher; give {teacher}")
    about.family.check_teacher(about)


def licence_of(folder: Path) -> str | None:
    """What the folder's note or the head of its README.md (the model card) names as licence; None when neither does."""
    try:
        if (folder / STUDENT_FILE).is_file():
            return read_object(folder / STUDENT_FILE).get("licence")
        head = (folder / "README.md").read_text(encoding="utf-8").split("---", 2)
        card = yaml.safe_load(head[1]) if len(head) == 3 and not head[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, SidlsgError):
        return None
    found = card.get("license") if isinstance(card, dict) else None
    return found if isinstance(found, str) else None


def _load_part(folder: Path, kind: str, device: torch.device, dtype: torch.dtype) -> Any:
    """One part by its class, "library.Class"; networks on ``device``, frozen and in eval mode."""
    library, _, name = kind.rpartition(".")
    cls = getattr(importlib.import_module(library), name)
    options: dict[str, Any] = {}
    if issubclass(cls, nn.Module):
        options = {"use_safetensors": True, "dtype" if library == "transformers" else "torch_dtype": dtype}
    try:
        loaded = cls.from_pretrained(str(folder), local_files_only=True, **options)
        return loaded.to(device).eval().requires_grad_(False) if isinstance(loaded, nn.Module) else loaded
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # each library raises its own types; all mean the same to the user
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise SidlsgError(
            f"{folder} cannot be loaded: {first}. If the file is corrupt or cut short, fetch or copy it again."
        ) from error


def read_object(path: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON object that has the keys ``needed``; raises SidlsgError, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SidlsgError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or any(key not in content for key in needed):
        wanted = f" with {', '.join(needed)}" if needed else ""
        raise SidlsgError(f"{path} is not a JSON object{wanted}; fetch or copy it again")
    return content


def fetch(place: Location) -> tuple[Path, str]:
    """(local folder, source) of a model, downloading it when it is on the hub and not yet in the cache.

    Raises SidlsgError when it can be had from none of its repositories.
    """
    if place.folder is not None:
        return place.folder, str(place.folder) if place.entry is None else place.name
    from huggingface_hub import snapshot_download

    parts = sorted({part for family in FAMILIES for part in family.parts})
    wanted = ["model_index.json", "README.md", STUDENT_FILE, "scheduler/*"]
    wanted += [f"{part}/{files}" for part in parts for files in ("*.json", "*.txt", "*.safetensors")]
    unwanted = ["*.fp16.safetensors", "*non_ema*", "*openvino*", "safety_checker/*"]
    failures = []
    for repository in place.repositories:
        try:
            return Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=unwanted)), repository
        except OSError as error:
            if getattr(error, "errno", None) == 28:
                raise
            failures.append(f"{repository} ({type(error).__name__})")
        except Exception as error:
            failures.append(f"{repository} ({type(error).__name__})")
    raise SidlsgError(
        f"{place.name} is not in the local cache and could not be downloaded: {'; '.join(failures)}. Without a network, "
        "copy the model's diffusers folder to this machine and give its path instead of the name."
    )
