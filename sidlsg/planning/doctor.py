"""What ``sidlsg doctor`` finds on a machine: groups of named lines, and what stands in the way with what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from sidlsg.data import cache_folder, in_cache
from sidlsg.errors import UsageError
from sidlsg.paths import existing, writable
from sidlsg.planning import memory
from sidlsg.planning.footprint import footprints
from sidlsg.planning.gpus import Gpu, preset_for
from sidlsg.planning.here import Machine, look
from sidlsg.planning.offers import fit, offers
from sidlsg.planning.plan import disk_needed, to_download
from sidlsg.settings import make_config
from sidlsg.teachers.hub import own_cache
from sidlsg.teachers.prompt_lists import prompt_path
from sidlsg.teachers.registry import locate, registry
from sidlsg.version import __version__

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
ON = ("1", "on", "yes", "true")  # what the hub client takes for set


@dataclass(frozen=True)
class Diagnosis:
    """Named lines in titled groups, and what stands in the way, a sentence each; nothing does when ``problems`` is empty."""

    groups: dict[str, dict[str, str]]
    problems: tuple[str, ...]


def examine(runs: Path = Path("runs")) -> Diagnosis:
    """Look at GPU, driver, compiler, disk, caches and network settings, and foresee the presets. Downloads and writes nothing.

    Args:
        runs: the folder that run folders would be made in.
    """
    machine = look()
    hub, own = own_cache(), cache_folder()
    groups = {
        "This machine": _versions(machine),
        "GPU": _gpu(machine),
        "Disk and caches": {
            f"{runs}/": _room(runs),
            "Hugging Face cache": f"{hub}: {_room(hub)}",
            "cache of sidlsg": f"{own}: {_room(own)}",
        },
        "Models and prompts": _models(),
        "Presets on this GPU (estimates)": _presets(machine.gpu, machine.gpus),
    }
    found = [*gpu_problems(machine), *disk_problems(machine.gpu, runs)]
    if not writable(hub):
        found.append(
            f"the Hugging Face cache {hub} cannot be written to: models go to {in_cache('hub')}. HF_HOME=FOLDER moves it"
        )
    return Diagnosis({title: lines for title, lines in groups.items() if lines}, tuple(found))


def gpu_problems(machine: Machine) -> list[str]:
    """Say what keeps this PyTorch from using the GPU, or from using it well."""
    if machine.gpu is None:
        if machine.driver is None:
            return []  # a machine without a GPU of NVIDIA's
        if machine.cuda is None:
            return [
                f"there is a driver ({machine.driver}), but PyTorch {machine.torch} is a build for the CPU: install one for CUDA "
                "(https://pytorch.org/get-started/locally)"
            ]
        if machine.hidden is not None:
            return [
                f'PyTorch sees no GPU, and CUDA_VISIBLE_DEVICES is "{machine.hidden}": unset it, or name a GPU that is there'
            ]
        return [
            f"there is a driver ({machine.driver}), but PyTorch {machine.torch}, built for CUDA {machine.cuda}, sees no GPU: "
            "update the driver, or install a PyTorch for an older CUDA (https://pytorch.org/get-started/locally)"
        ]
    found = []
    if not machine.runs_here:
        capability = "sm_{}{}".format(*machine.capability or ())
        found.append(
            f"PyTorch {machine.torch} has no code for {machine.gpu.name} ({capability}; it has {', '.join(machine.built_for)}): "
            "install one for another CUDA (https://pytorch.org/get-started/locally)"
        )
    if not machine.gpu.bf16:
        found.append(
            f"{machine.gpu.name} has no bf16 arithmetic, which all presets of ours use: add --precision fp16 (the paper's, at a "
            "loss of quality) or fp32"
        )
    if not machine.compiles:
        what = "Triton (pip install triton)" if machine.compiler else "a C compiler (for instance apt install gcc)"
        found.append(
            f"torch.compile, which some presets use, needs {what}; or give --set compile=false, which is slower"
        )
    return found


def disk_problems(gpu: Gpu | None, runs: Path) -> list[str]:
    """Say where the disk or the CPU's memory is too small for the preset that this GPU would get; writing is not tried."""
    found = [] if writable(runs) else [f"{runs} cannot be written to from here; give --out"]
    if gpu is None:
        return found
    try:
        config, size = make_config(preset_for(gpu.memory), {}), footprints()["sd15"]
    except UsageError:
        return found
    need, free = disk_needed(config, size), _free(runs)
    if free is not None and free < need:
        found.append(
            f"{runs} has {free:.0f} GiB free, and a run of Stable Diffusion needs {need:.0f} for its checkpoints; give --out"
        )
    here, there = sum(memory.on_the_cpu(config, size).values()), psutil.virtual_memory().total / 2**30
    if there < here:
        found.append(f"this run keeps {here:.0f} GiB in the CPU's memory, of which there are {there:.0f}")
    return found


def _versions(machine: Machine) -> dict[str, str]:
    cores, ram = psutil.cpu_count(logical=False) or os.cpu_count(), psutil.virtual_memory().total / 2**30
    return {
        "sidlsg": f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "PyTorch": f"{machine.torch}, {f'for CUDA {machine.cuda}' if machine.cuda else 'for the CPU'}",
        "CPU": f"{cores} cores, {ram:.0f} GiB of memory",
    }


def _gpu(machine: Machine) -> dict[str, str]:
    if machine.gpu is None:
        return {
            "GPU": "none that PyTorch sees; the emoji teacher needs none",
            "driver": machine.driver or "none of NVIDIA's",
        }
    plain = "sm_{}{}".format(*machine.capability or ())
    return {
        "GPU": f"{machine.gpus} x {machine.gpu.name}, {machine.gpu.memory:.1f} GiB, {plain}",
        "driver": machine.driver or "not known",
        "bf16": "yes" if machine.gpu.bf16 else "no",
        "torch.compile": f"C compiler {machine.compiler or 'missing'}, Triton {'there' if machine.triton else 'missing'}",
    }


def _models() -> dict[str, str]:
    offline = next((name for name in OFFLINE if os.environ.get(name, "").lower() in ON), None)
    lines = {
        "network": f"{offline} is set: nothing is downloaded"
        if offline
        else "used when something is to be downloaded (not tried here)"
    }
    for name, entry in registry().items():
        if not entry.folder:
            lines[name] = "to be downloaded" if to_download(locate(name)) else "on this machine"
    lines["aesthetics6plus"] = (
        "to be downloaded" if prompt_path("aesthetics6plus", download=False)[1] else "on this machine"
    )
    return lines


def _presets(gpu: Gpu | None, count: int) -> dict[str, str]:
    if gpu is None:
        return {}
    found = [(offer, fits) for offer in offers() if (fits := fit(offer, gpu, count))]
    fitting = {offer.name: f"{fits.text}, {fits.gib:.1f} GiB" for offer, fits in found if fits.problem is None}
    best = preset_for(gpu.memory)
    if best in fitting:
        fitting[best] += "; chosen for this GPU when no --preset is given"
    return fitting or {"none": "sidlsg presets list says what each needs"}


def _free(folder: Path) -> float | None:
    """GiB that are free where a folder is, or would be made."""
    try:
        return shutil.disk_usage(existing(folder)).free / 2**30
    except OSError:
        return None


def _room(folder: Path) -> str:
    free = _free(folder)
    state = "" if writable(folder) else ", cannot be written to"
    return ("not known" if free is None else f"{free:.0f} GiB free") + state
