"""The Python functions do what the commands of their names do, without printing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sidlsg
from sidlsg.errors import UsageError
from sidlsg.runs.folder import RunFolder

SETTINGS = {"images": "8", "batch": 8, "micro_batch": 8, "lr": 1e-3, "grid_images": 1, "device": "cpu"}


@pytest.fixture(autouse=True)
def empty_folder(run) -> None:
    """Every test in an empty folder, offline."""


def test_distill_and_sample_are_the_commands(
    tiny_teacher: Path, prompt_file: Path, run, tmp_path: Path, capsys
) -> None:
    """A second call finds the run finished, and changes nothing in it."""

    def distil() -> RunFolder:
        return sidlsg.distill("cpu", teacher=str(tiny_teacher), prompts=str(prompt_file), out="run", **SETTINGS)

    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.is_file()}

    finished = distil()
    assert capsys.readouterr().out == ""
    before = stamps()
    assert distil().path == finished.path
    assert stamps() == before
    sets = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    code, _, err = run(
        "distill", "--preset", "cpu", "--teacher", tiny_teacher, "--prompts", prompt_file, "--out", "command", *sets
    )
    assert code == 0, err
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (finished.student / weights).read_bytes() == (tmp_path / "command" / "student" / weights).read_bytes()

    pictures = list(sidlsg.sample(["a cat", "a dog"], model=finished.path, seeds=[0, 7], device="cpu"))
    assert [(p.prompt, p.seed) for p in pictures] == [("a cat", 0), ("a cat", 7), ("a dog", 0), ("a dog", 7)]
    pictures[1].save("ours.png")
    code, _, _ = run("sample", "a cat", "--seed", "7", "--model", "run", "--device", "cpu", "--out", "theirs.png")
    assert code == 0
    ours, theirs = Image.open("ours.png"), Image.open("theirs.png")
    assert ours.text == theirs.text
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_evaluate_returns_what_the_command_writes(run, tmp_path: Path, capsys) -> None:
    found = sidlsg.evaluate(limit=4, device="cpu", out="ours", only="clip")
    assert capsys.readouterr().out == ""
    assert run("eval", "--limit", "4", "--device", "cpu", "--out", "theirs", "--only", "clip")[0] == 0
    assert found is not None
    assert (tmp_path / "ours" / "results.md").read_text() == (tmp_path / "theirs" / "results.md").read_text()
    assert set(found["scores"]) == {"clip", "retrieval_top1", "retrieval_top5"}


def test_wrong_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match='unknown setting "microbatch"; did you mean "micro_batch"'):
        sidlsg.distill(microbatch=4)
    with pytest.raises(UsageError, match='unknown option "limits"; did you mean "limit"'):
        sidlsg.evaluate(limits=4)
    with pytest.raises(UsageError, match="leave out --steps"):
        sidlsg.sample("red heart", steps=4, device="cpu")
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        sidlsg.distil  # noqa: B018
