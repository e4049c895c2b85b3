"""What the null GPU says it is, for each GPU that a preset is made for."""

from __future__ import annotations

import os
from pathlib import Path

from nullgpu.build import LIBRARY
from sidlsg.planning.gpus import get_gpu

# Compute capability and number of multiprocessors, by key of gpus.yaml.
MAKES = {
    "4080": (89, 76),
    "4090": (89, 128),
    "a5000": (86, 64),
    "a6000": (86, 84),
    "h100": (90, 132),
    "h200": (90, 132),
}

TESTS = Path(__file__).resolve().parents[1]


def environment(folder: Path, gpu: str, memory: float | None = None) -> dict[str, str]:
    """The environment in which Python sees a null GPU.

    Args:
        folder: where ``build`` put the library.
        gpu: the key of gpus.yaml whose name ("null RTX 4080"), memory and generation the device has.
        memory: GiB in place of the GPU's own.
    """
    row, (capability, multiprocessors) = get_gpu(gpu), MAKES[gpu]
    paths = [str(folder), *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)]
    modules = [
        str(TESTS),
        *os.environ.get("PYTHONPATH", "").split(os.pathsep),
    ]  # to run nullgpu from any working directory
    return os.environ | {
        "NULLGPU_NAME": f"null {row.name}",
        "NULLGPU_GIB": str(memory or row.memory),
        "NULLGPU_SM": str(capability),
        "NULLGPU_SMS": str(multiprocessors),
        "PYTHONPATH": os.pathsep.join(filter(None, modules)),
        "LD_PRELOAD": str(folder / LIBRARY),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # generated for a device that is not there
    }
