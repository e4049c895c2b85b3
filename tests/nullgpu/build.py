"""Builds the library that is preloaded in front of libcudart, libcuda, cuBLAS, cuDNN and NCCL, for this interpreter's PyTorch.

What PyTorch and Triton call is read out of their files; what ``api.c`` and ``libraries.c`` do not answer gets a stub that returns
0 (success). Needs gcc, nm and a CUDA build of PyTorch with its wheels of NVIDIA's headers.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = "libnullgpu.so"
CALLED_BY = ("c10_cuda", "torch_cuda", "torch_python", "torch_cuda_linalg", "caffe2_nvrtc", "torch_cpu")
CALLS = re.compile(r"(__cuda|cuda[A-Z]|cu[A-Z](?!File)|cublas|cudnn|nccl)(?!File)")
# The real libraries answer these as well without a device.
REAL = {"ncclGetVersion", "cudnnGetErrorString", "cudnnGetLastErrorString", "cublasLtGetVersion"}
SIZES = re.compile(r"cudnn.*(WorkspaceSize|ReserveSpaceSize|StatesSize|TempSpaceSizes|WeightSpaceSize)")


def missing() -> str | None:
    """Why the library cannot be built here; None when nothing is missing."""
    if not sys.platform.startswith("linux"):
        return "the null GPU is built on Linux only"
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            return f"the null GPU needs {tool}"
    import torch

    if torch.version.cuda is None:
        return f"the null GPU needs a CUDA build of PyTorch; this is {torch.__version__}"
    for module in ("nvidia", "triton"):
        if importlib.util.find_spec(module) is None:
            return f"the null GPU needs the package {module}, which PyTorch's CUDA wheels bring"
    return None


def build(folder: Path) -> Path:
    """Make the library in ``folder``, under the names that PyTorch and Triton load too; returns its path.

    Raises subprocess.CalledProcessError when gcc does not accept the sources, OSError when a header or library is missing.
    """
    import torch
    import triton

    libraries = Path(torch.__file__).parent / "lib"
    nvidia = Path(triton.__file__).parent / "backends" / "nvidia"
    wanted = {name for file in CALLED_BY for name in symbols(libraries / f"lib{file}.so", "-D", "--undefined-only")}
    wanted = {name for name in wanted if CALLS.match(name)}
    wanted |= set(re.findall(r"\bcu[A-Z]\w+", (nvidia / "driver.c").read_text())) - {"cuLaunchKernelExHandle"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "crt").symlink_to(nvidia / "include" / "crt")  # headers that the runtime's wheel lacks
    (header,) = Path(torch.__file__).parents[1].glob("nvidia/*/include/cuda_runtime_api.h")
    objects = []
    for source in ("api.c", "libraries.c"):
        objects.append(folder / source.replace(".c", ".o"))
        gcc("-c", f"-I{header.parent}", f"-I{folder}", HERE / source, "-o", objects[-1])
    answered = {name for file in objects for name in symbols(file, "--defined-only")}
    stubs = folder / "stubs.c"
    stubs.write_text("#include <stddef.h>\n" + "".join(stub(name) for name in sorted(wanted - answered - REAL)))
    gcc("-shared", "-o", folder / LIBRARY, stubs, *objects, "-ldl", "-lpthread")
    for name in ("libcuda.so", "libcuda.so.1"):
        (folder / name).symlink_to(LIBRARY)
    return folder / LIBRARY


def symbols(library: Path, *options: str) -> set[str]:
    done = subprocess.run(["nm", *options, str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}


def gcc(*arguments: str | Path) -> None:
    command = ["gcc", "-O1", "-fPIC", "-w", *map(str, arguments)]
    subprocess.run(command, capture_output=True, text=True, check=True)


def stub(name: str) -> str:
    """A function that succeeds; a question for a size is answered with 0, or with "not supported" where nothing here asks it."""
    if not SIZES.match(name):
        return f"int {name}(void) {{ return 0; }}\n"
    if "Convolution" in name:
        return f"int {name}(void*h,void*a,void*b,void*c,void*d,int e,size_t*n) {{ *n = 0; return 0; }}\n"
    if "Dropout" in name:
        return f"int {name}(void*h,size_t*n) {{ *n = 0; return 0; }}\n"
    return f"int {name}(void) {{ return 3; }}\n"


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
