"""``sidlsg doctor``: what it finds on machines of other people, and what it says stands in the way."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from sidlsg.planning import doctor
from sidlsg.planning.doctor import disk_problems, gpu_problems
from sidlsg.planning.gpus import device_gpu, get_gpu
from sidlsg.planning.here import Machine, c_compiler

FINE = Machine(
    gpu=device_gpu("NVIDIA GeForce RTX 4090", 23.5, True),
    gpus=1,
    capability=(8, 9),
    driver="580.65.06",
    torch="2.14.1+cu130",
    cuda="13.0",
    built_for=("sm_75", "sm_80", "sm_86", "sm_90", "sm_120"),
    compiler="/usr/bin/gcc",
    triton=True,
    hidden=None,
)
NONE = replace(FINE, gpu=None, gpus=0, capability=None, built_for=())


@pytest.mark.parametrize(
    ("machine", "parts"),
    [
        (FINE, []),
        (replace(NONE, driver=None), []),  # no GPU, nothing wrong
        (replace(NONE, cuda=None), ["build for the CPU", "pytorch.org"]),
        (replace(NONE, hidden="7"), ['CUDA_VISIBLE_DEVICES is "7"']),
        (NONE, ["580.65.06", "built for CUDA 13.0", "update the driver"]),
        (replace(FINE, compiler=None), ["C compiler", "compile=false"]),
        (replace(FINE, triton=False), ["Triton", "compile=false"]),
        (replace(FINE, gpu=get_gpu("v100"), capability=(7, 0)), ["no code for V100-32GB (sm_70", "no bf16"]),
    ],
)
def test_what_stands_in_the_way_of_a_gpu_is_said_with_what_to_do(machine: Machine, parts: list[str]) -> None:
    found = " ".join(gpu_problems(machine))
    assert bool(found) == bool(parts)
    assert [part for part in parts if part not in found] == []


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 9), ("sm_80", "sm_90"), True),  # code of the same generation runs
        ((8, 0), ("sm_86", "sm_90"), False),
        ((12, 0), ("sm_80", "sm_90"), False),
        ((12, 0), ("sm_90", "compute_90"), True),  # the driver translates
        ((12, 0), ("sm_100", "sm_120"), True),
        ((9, 4), ("gfx90a", "gfx942"), True),
        (None, (), True),
    ],
)
def test_whether_pytorch_has_code_for_a_gpu(
    capability: tuple[int, int], built_for: tuple[str, ...], runs: bool
) -> None:
    assert replace(FINE, capability=capability, built_for=built_for).runs_here == runs


def test_disk_and_memory_that_are_too_small_for_the_gpus_preset_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage, size = namedtuple("usage", "total used free"), namedtuple("size", "total")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 20 * 2**30))
    monkeypatch.setattr("psutil.virtual_memory", lambda: size(8 * 2**30))
    disk, ram = disk_problems(get_gpu("4090"), tmp_path / "runs")
    assert "20 GiB free, and a run of Stable Diffusion needs 50" in disk
    assert "this run keeps 14 GiB in the CPU's memory, of which there are 8" in ram
    assert disk_problems(None, tmp_path / "runs") == []


def test_doctor_shows_the_gpu_and_the_presets_that_fit_it(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "look", lambda: replace(FINE, compiler=None))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, shown, err = run("doctor", "--json")
    assert (code, err) == (0, "")
    found = json.loads(shown)
    assert found["groups"]["GPU"]["GPU"] == "1 x NVIDIA GeForce RTX 4090, 23.5 GiB, sm_89"
    presets = found["groups"]["Presets on this GPU (estimates)"]
    assert presets["24gb"] == "fits: 48 days, 17.6 GiB; chosen for this GPU when no --preset is given"
    assert "48gb" not in presets
    assert found["groups"]["Models and prompts"]["network"] == "HF_HUB_OFFLINE is set: nothing is downloaded"
    assert found["groups"]["Models and prompts"]["sd15"] == "to be downloaded"
    (problem,) = [text for text in found["problems"] if "compiler" in text]
    code, shown, _ = run("doctor")
    assert code == 0
    assert f"problem: {problem}" in shown.splitlines()


def test_doctor_on_a_machine_without_a_gpu(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "look", lambda: replace(NONE, driver=None))
    code, shown, err = run("doctor")
    assert (code, err) == (0, "")
    assert "none that PyTorch sees; the emoji teacher needs none" in shown
    assert shown.endswith("Nothing stands in the way.\n")
    assert "Presets on this GPU" not in shown
    assert not list(tmp_path.glob("runs"))


def test_the_compiler_is_the_one_that_triton_would_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "clang").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert c_compiler() == str(tmp_path / "clang")
    monkeypatch.setenv("CC", "nosuch")
    assert c_compiler() is None
