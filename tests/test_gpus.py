"""The GPUs of the plan: found by what people and CUDA call them, and one that is named chooses the preset."""

from __future__ import annotations

import pytest
import torch

from sidlsg.errors import UsageError
from sidlsg.planning.gpus import device_gpu, get_gpu, gpus, known_gpu
from sidlsg.training.launch import prepare
from support.terminal import one_line


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("4090", "4090"),
        ("RTX 4090", "4090"),
        ("rtx4090", "4090"),
        ("GeForce RTX 5090", "5090"),
        ("5080", "5080"),
        ("RTX 6000 Ada", "6000-ada"),
        ("rtx pro 6000", "pro-6000"),
        ("RTX PRO 6000 Blackwell", "pro-6000"),
        ("A100-80GB", "a100"),
        ("A10", "a10"),
        ("A40", "a40"),
        ("V100", "v100"),
        ("V100-16GB", "v100-16g"),
        ("B200", "b200"),
        ("tesla t4", "t4"),
    ],
)
def test_a_gpu_is_known_by_what_people_call_it(text: str, key: str) -> None:
    assert get_gpu(text).key == key


@pytest.mark.parametrize(("text", "gib"), [("24GB", 23.52), ("24 gb", 23.52), ("24G", 23.52), ("23.5GiB", 23.5)])
def test_memory_stands_for_any_gpu_with_so_much(text: str, gib: float) -> None:
    gpu = get_gpu(text)
    assert (gpu.memory, gpu.mfu) == (pytest.approx(gib), {})  # nothing is known about its speed


@pytest.mark.parametrize("text", ["h10", "x", "", "24", "0GB", "-5GB"])
def test_an_unknown_gpu_lists_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        get_gpu(text)
    assert all(key in str(refused.value) for key in (*gpus(), "24GB"))


@pytest.mark.parametrize(
    ("name", "gib", "key"),
    [
        ("NVIDIA RTX 6000 Ada Generation", 44.4, "6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 94.9, "pro-6000"),
        ("NVIDIA GeForce RTX 5090", 31.4, "5090"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100"),
        ("Tesla V100-SXM2-16GB", 15.8, "v100-16g"),
        ("NVIDIA A100-PG509-200", 39.4, "a100-40g"),
        ("NVIDIA A10", 22.1, "a10"),
        ("NVIDIA A10G", 22.1, None),
        ("Quadro RTX 6000", 22.2, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6, None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 39.5, None),
    ],
)
def test_a_device_is_known_by_its_own_name_and_another_chip_of_that_name_is_not(
    name: str, gib: float, key: str | None
) -> None:
    found = known_gpu(name, gib)
    assert (found and found.key) == key


@pytest.mark.parametrize("key", gpus())
def test_every_row_is_found_by_its_name_and_its_memory(key: str) -> None:
    gpu = gpus()[key]
    assert known_gpu(f"NVIDIA {gpu.name}", gpu.memory) == get_gpu(gpu.name) == gpu


def test_a_device_that_the_table_lacks_is_known_by_its_memory() -> None:
    found = device_gpu("AMD Instinct MI300X", 191.7, True)
    assert (found.key, found.name, found.memory, found.mfu) == ("", "AMD Instinct MI300X", 191.7, {})


@pytest.mark.parametrize(
    ("teacher", "gpu", "preset"),
    [
        ("sd15", "4090", "24gb"),
        ("sd15", "24GB", "24gb"),
        ("sd15", "5080", "16gb"),
        ("sd15", "5090", "24gb"),
        ("sd15", "a40", "48gb"),
        ("sd15", "pro-6000", "h100-bf16"),
        ("sd15", "b200", "h200-bf16"),
        ("sd15", "v100", "24gb"),
        ("sdxl", "a6000", "sdxl-48gb"),
        ("sdxl", "h100", "sdxl-80gb"),
        ("emoji", "4090", "cpu"),
    ],
)
def test_the_gpu_that_is_named_chooses_the_preset(teacher: str, gpu: str, preset: str) -> None:
    job = prepare(None, {"teacher": teacher, "gpu": gpu}, dry_run=True)
    assert job.preset == preset
    assert (job.problem is None) == (gpu != "v100")  # which has no bf16, and is told what to use


def test_where_no_preset_fits_the_memory_is_named() -> None:
    with pytest.raises(UsageError, match=r"no preset distils a model of sdxl's size in 23\.5 GiB"):
        prepare(None, {"teacher": "sdxl", "gpu": "4090"}, dry_run=True)


def test_a_preset_that_is_named_too_is_kept() -> None:
    assert prepare("16gb", {"teacher": "sd15", "gpu": "4090"}, dry_run=True).preset == "16gb"


def test_what_is_wrong_with_a_teacher_is_said_before_a_gpu_is_missed(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for teacher, part in (
        ("nosuch", 'unknown model "nosuch"'),
        ("stabilityai/sdxl-turbo", 'a few-step model by its name ("turbo")'),
        ("sd15", "--gpu 4090 --dry-run"),
    ):
        code, _, err = run("distill", "--teacher", teacher, "--dry-run")
        assert code == 2
        one_line(err, part)
