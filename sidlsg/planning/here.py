"""The GPUs of this machine, and what else of it decides whether a run can work. Imports torch when it is asked."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass

from sidlsg.planning.gpus import Gpu, device_gpu

DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, WSL's, AMD's


def gpu_here(index: int = 0) -> Gpu | None:
    """Describe a GPU that PyTorch sees; None where it sees none."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(index)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return device_gpu(properties.name, properties.total_memory / 2**30, bf16)


def gpu_count() -> int:
    """Count the GPUs that PyTorch sees."""
    import torch

    return torch.cuda.device_count()


def may_have_gpu() -> bool:
    """Say, in no time, whether asking PyTorch for a GPU is worth importing it."""
    on_linux = sys.platform == "linux"
    return not on_linux or any(map(os.path.exists, DEVICES)) or shutil.which("nvidia-smi") is not None


def c_compiler() -> str | None:
    """Find the C compiler that ``torch.compile`` (Triton) would call; None when it would find none."""
    given = os.environ.get("CC")
    return shutil.which(given) if given else shutil.which("gcc") or shutil.which("clang")


@dataclass(frozen=True)
class Machine:
    """What PyTorch and its tools find here.

    Attributes:
        gpu, gpus: the first GPU, and how many there are.
        capability: of the first GPU, (major, minor); None without one.
        driver: version of NVIDIA's driver.
        torch, cuda: versions of PyTorch, and of the CUDA (or ROCm) that it was built for; cuda is None in a build for the CPU.
        built_for: the architectures that PyTorch has code for, such as "sm_90".
        compiler: path of the C compiler. triton: whether Triton can be imported.
        hidden: the value of CUDA_VISIBLE_DEVICES.
    """

    gpu: Gpu | None
    gpus: int
    capability: tuple[int, int] | None
    driver: str | None
    torch: str
    cuda: str | None
    built_for: tuple[str, ...]
    compiler: str | None
    triton: bool
    hidden: str | None

    @property
    def runs_here(self) -> bool:
        """Whether this PyTorch has code for the GPU: for its architecture or an older one of the same generation, or code that
        the driver translates (``compute_``)."""
        if self.capability is None or not self.built_for:
            return True
        major, minor = self.capability
        for name in self.built_for:
            kind, _, digits = name.partition("_")
            number = int(re.sub(r"\D", "", digits) or 0)
            if kind == "sm" and number // 10 == major and number % 10 <= minor:
                return True
            if kind == "compute" and number <= 10 * major + minor:
                return True
        return kind not in ("sm", "compute")  # AMD's names

    @property
    def compiles(self) -> bool:
        """Whether ``torch.compile`` can work on the GPU."""
        return self.compiler is not None and self.triton


def look() -> Machine:
    """Ask PyTorch, the driver and the shell's path."""
    import importlib.util

    import torch

    from sidlsg.devices import driver_version

    gpu = gpu_here()
    return Machine(
        gpu=gpu,
        gpus=gpu_count() if gpu else 0,
        capability=torch.cuda.get_device_capability(0) if gpu else None,
        driver=driver_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or getattr(torch.version, "hip", None),
        built_for=tuple(torch.cuda.get_arch_list()) if gpu else (),
        compiler=c_compiler(),
        triton=importlib.util.find_spec("triton") is not None,
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
