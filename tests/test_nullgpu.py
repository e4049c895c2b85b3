"""Presets on a GPU that computes nothing (tests/nullgpu): the plan against PyTorch's own allocator, and what makes the host wait.

No number here is a measurement of a GPU. Without gcc, nm or a CUDA build of PyTorch everything is skipped. More presets and a
compiled pass take minutes (``pytest -m slow``), the whole matrix hours (``pytest -m nullgpu_full tests/test_nullgpu.py``).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from nullgpu import build, matrix, small
from nullgpu.matrix import SCORING, STRATEGIES, Cell
from sidlsg.planning.counting import count_compiled_pass
from sidlsg.planning.gpus import get_gpu
from sidlsg.planning.memory import OVERHEAD
from sidlsg.settings import make_config, preset_names

WITHIN = 0.02
BOUND = 0.07  # how far above what is allocated the plan may be where it is an upper bound: compiled, checkpointed SDXL
GPU_PRESETS = [name for name in preset_names() if make_config(name, {}).gpu]
# The fastest in the default tier; the tightest and the paper's in the slow one.
FIRST_TO_BREAK = ("h100-bf16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("16gb", "h100-fp16")))


@pytest.fixture(scope="session")
def null_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the library to preload."""
    if why := build.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("nullgpu")
    try:
        build.build(folder)
        matrix.python(folder, "h100", "-c", "import torch; torch.zeros(1, device='cuda') + 1")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["?"])[-1]
        pytest.skip(f"no null GPU for PyTorch {torch.__version__}: {last}")
    except OSError as error:
        pytest.skip(f"no null GPU for PyTorch {torch.__version__}: {error}")
    return folder


def check(cells: list[Cell], above: float = WITHIN) -> None:
    assert all(cell.gpu.startswith("null ") for cell in cells)
    off = [cell for cell in cells if not -WITHIN <= cell.off <= above]
    assert not off, "\n".join(map(str, off))


@pytest.mark.parametrize("preset", FIRST_TO_BREAK)
def test_a_preset_runs_on_its_gpu_as_planned(preset: str, null_gpu: Path) -> None:
    """Eager, on a card of its own size: every phase fits and needs what the plan says; no update waits for the device."""
    settings: dict[str, Any] = {"compile": False} | SCORING
    found = matrix.run(null_gpu, preset, ["lsg"], settings, on_its_own_gpu=True)
    assert not found["strategies"]["lsg"]["refused"]
    assert not found["strategies"]["lsg"]["waits"]
    everywhere = "FlashAttention for heads of 40, 80, 160"
    shown = {"16gb": f"sdpa ({everywhere})", "h100-fp16": f"flash ({everywhere})"}
    assert found["attention"] == shown.get(
        preset, found["attention"]
    )  # with sdpa on an H100, releases of PyTorch differ
    cells = matrix.cells(found)
    teacher = found["strategies"]["lsg"]["allocated"]["teacher's grid"]
    assert teacher <= max(cell.plan for cell in cells)  # so it is no phase of the plan
    check(cells)
    assert max(cell.allocated for cell in cells) + OVERHEAD <= get_gpu(make_config(preset, {}).gpu).memory


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_pass_keeps_what_is_counted(null_gpu: Path) -> None:
    """A small network: torch's partitioner, asked on the CPU, against inductor's own buffers on the null GPU."""
    samples = 4
    shown = matrix.python(null_gpu, "a6000", "-m", "nullgpu.small", str(samples))
    found = json.loads(shown.splitlines()[-1])
    counted = count_compiled_pass(small.build, small.FAMILY, "trained", "bf16", "sdpa", False).kept.gib(samples)
    assert found["kept"] == pytest.approx(counted, rel=WITHIN)
    assert found["peak"] - found["kept"] < found["gradients"]  # no more than the gradients that it returns


@pytest.mark.nullgpu_full
@pytest.mark.timeout(0)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_every_preset_and_strategy_needs_what_the_plan_says(preset: str, compiled: bool, null_gpu: Path) -> None:
    settings: dict[str, Any] = {"compile": compiled} | SCORING
    found = matrix.run(null_gpu, preset, STRATEGIES, settings)
    assert not any(row["refused"] or row["waits"] for row in found["strategies"].values())
    check(matrix.cells(found), above=BOUND if compiled and preset.startswith("sdxl") else WITHIN)
