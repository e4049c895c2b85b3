"""Loading teachers and students: folders in diffusers' layout and hub repositories, described first, then part by part."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import nn

from sidlsg import terminal
from sidlsg.errors import SidlsgError, UsageError, sentence
from sidlsg.files import INDEX_FILE, STUDENT_FILE, read_object
from sidlsg.teachers import hub
from sidlsg.teachers.families import FAMILIES, family_of
from sidlsg.teachers.family import Description, Model
from sidlsg.teachers.foreign import about_folder
from sidlsg.teachers.registry import Location, locate

STUDENT_KINDS = {"t_init": int, "timesteps": list, "teacher": str, "licence": str, "images_seen": int}


def quiet_libraries() -> None:
    """Keep the progress bars and advice of diffusers and transformers out of our output, unless --verbose is given."""
    if terminal.verbose():
        return
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
    family.settle(parts, source)
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
    if not (folder / INDEX_FILE).is_file():
        raise UsageError(about_folder(folder, source))
    index = read_object(folder / INDEX_FILE)
    family = family_of(index, source)
    configs = {
        part: read_object(path, kinds=family.kinds.get(part))
        for part in family.parts
        if (path := folder / part / "config.json").is_file()
    }
    scheduler = folder / "scheduler" / "scheduler_config.json"
    student = folder / STUDENT_FILE
    about = Description(
        source=source,
        folder=folder,
        family=family,
        index=index,
        configs=configs,
        scheduler=read_object(scheduler, kinds=family.kinds.get("scheduler")),
        student=read_object(student, ("t_init",), STUDENT_KINDS) if student.is_file() else None,
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
    """One part by its class, "library.Class"; networks on ``device``, frozen and in eval mode.

    Raises SidlsgError for files that are missing or damaged, UsageError for weights that are not those of this network: what a
    library would fill in at random, or leave out, with a warning.
    """
    library, _, name = kind.rpartition(".")
    cls = getattr(importlib.import_module(library), name)
    network = issubclass(cls, nn.Module)
    if network and not (folder / "config.json").is_file():  # libraries would ask the hub for it
        raise SidlsgError(f"{folder} has no config.json; fetch or copy the model again")
    options: dict[str, Any] = {}
    if network:
        dtype_name = "dtype" if library == "transformers" else "torch_dtype"
        options = {"use_safetensors": True, "output_loading_info": True, dtype_name: dtype}
        if variant := _variant(folder):
            options["variant"] = variant
    try:
        loaded = cls.from_pretrained(str(folder), local_files_only=True, **options)
        if not network:
            return loaded
        module, info = loaded
        _complete(folder, info, name)
        module = module.to(device).eval().requires_grad_(False)
        if device.type == "cpu":
            _detach_from_files(module)
        return module
    except (torch.cuda.OutOfMemoryError, SidlsgError):
        raise
    except ImportError as error:
        raise SidlsgError(
            f"{folder} cannot be loaded without a library that is not installed: {sentence(error)}"
        ) from error
    except Exception as error:  # each library raises its own types; all mean the same to the user
        if network and (missing := _not_there(folder, cls)):
            raise _foreign(folder, missing) from None
        raise SidlsgError(
            f"{folder} cannot be loaded: {sentence(error)} If the file is corrupt or cut short, fetch or copy it again."
        ) from error


def _detach_from_files(module: nn.Module) -> None:
    """Copy each weight: on the CPU safetensors gives maps of files, which other programs may write to while a run goes on."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


# Precisions that model repositories keep beside the plain files, in the order of preference when there are no plain ones.
VARIANTS = ("fp32", "bf16", "fp16", "non_ema")


def _variant(folder: Path) -> str | None:
    """The variant to ask for when a part has no plain weights ("model.fp16.safetensors"); None for plain ones.

    Raises UsageError when the weights are in another format than safetensors.
    """
    names = [path.name for path in folder.glob("*.safetensors")]
    found = {
        variant: [n for n in names if re.search(rf"\.{variant}(-\d+-of-\d+)?\.safetensors$", n)] for variant in VARIANTS
    }
    if len(names) > sum(map(len, found.values())):
        return None
    if not names and (others := sorted(path.name for path in folder.glob("*.bin"))):
        raise UsageError(
            f"{folder} has its weights as {others[0]} only, a pickle that could run code; convert the model to safetensors (in "
            "diffusers: load it and call save_pretrained)"
        )
    return next((variant for variant in VARIANTS if found[variant]), None)


# Weights of the rest of CLIP, beside its text encoder in files of tools that save both, and the numbers 0, 1, 2, ... of the
# positions, which newer code computes.
BESIDE_TEXT = re.compile(r"logit_scale|(text|visual)_projection\.weight|vision_model\..+|(.+\.)?position_ids")


def _complete(folder: Path, info: dict[str, Any], kind: str) -> None:
    """Raise UsageError when a library filled weights in, or had no place for some in a network of class ``kind``."""
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise _foreign(folder, missing)
    known = BESIDE_TEXT if kind.startswith("CLIPText") else None
    unexpected = sorted(key for key in info.get("unexpected_keys", ()) if not (known and known.fullmatch(key)))
    if unexpected:
        raise UsageError(
            f"{folder} holds {len(unexpected)} weights that its network has no place for, for instance {unexpected[0]}"
        )


def _not_there(folder: Path, cls: Any) -> list[str]:
    """Names of weights that the network needs and the files lack, where a library fails without naming them."""
    try:
        held = {key for path in folder.glob("*.safetensors") for key in safe_open(path, "pt").keys()}  # noqa: SIM118
        with torch.device("meta"):
            needed = cls.from_config(cls.load_config(folder)).state_dict()
    except Exception:  # it only explains an error that is raised in any case
        return []
    return sorted(key for key in needed if key not in held) if held else []


def _foreign(folder: Path, missing: list[str]) -> UsageError:
    return UsageError(
        f"{folder} lacks {len(missing)} weights of its network, for instance {missing[0]}; it would run on random ones. Its "
        "files are incomplete, or use the names of another tool"
    )


def fetch(place: Location) -> tuple[Path, str]:
    """(local folder, source) of a model, downloading it when it is on the hub and not yet in the cache.

    Raises SidlsgError when it can be had from none of its repositories.
    """
    if place.folder is not None:
        return place.folder, str(place.folder) if place.entry is None else place.name
    parts = sorted({part for family in FAMILIES for part in family.parts})
    wanted = [INDEX_FILE, "README.md", STUDENT_FILE, "scheduler/*"]
    wanted += [f"{part}/{files}" for part in parts for files in ("*.json", "*.txt", "*.safetensors")]
    unwanted = ["*non_ema*", "*openvino*", "safety_checker/*"]
    failures = []
    for repository in place.repositories:
        try:
            return _download(repository, wanted, unwanted), repository
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


def _download(repository: str, wanted: list[str], unwanted: list[str]) -> Path:
    """The repository's snapshot with one copy of every weight: plain files, or half-precision ones where there are no others.

    A cache that cannot be written to is not brought up to date: a whole snapshot in it is taken as it is.
    """
    there = hub.snapshot(repository)
    if hub.download_cache(repository) != hub.own_cache() and there is not None and hub.missing_part(there) is None:
        return there
    plain = [
        *unwanted,
        *(f"*.{variant}{end}" for variant in ("fp16", "bf16") for end in (".safetensors", "-*.safetensors")),
    ]
    folder = hub.download(repository, allow_patterns=wanted, ignore_patterns=plain)
    parts = {path.parent for path in folder.glob("*/config.json")}
    if any(not list(part.glob("*.safetensors")) for part in parts):
        folder = hub.download(repository, allow_patterns=wanted, ignore_patterns=unwanted)
    return folder
