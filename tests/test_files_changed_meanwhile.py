"""A run uses what the user's files held at its start, whatever is written to them while it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from sidlsg import prompts
from sidlsg.prompts import PromptFile
from sidlsg.teachers.loading import load_model

LINES = [f"{word} heart" for word in ("red", "blue", "green")] * 1000


@pytest.mark.parametrize("in_memory", [0, 1 << 26])
@pytest.mark.parametrize("after", ["one line\n" + "\n".join(LINES), "x\n", ""])
def test_prompts_are_those_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int, after: str
) -> None:
    """Saved in place (the same inode, as ``cp`` and editors do) with a line more, shorter, and empty."""
    monkeypatch.setattr(prompts, "IN_MEMORY", in_memory)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    read = PromptFile(path)
    inode = path.stat().st_ino
    with path.open("r+", encoding="utf-8") as file:
        file.truncate(0)
        file.write(after)
    assert path.stat().st_ino == inode
    assert list(read) == LINES


def test_a_teacher_on_the_cpu_keeps_its_weights_when_their_files_are_written_to(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    cpu, stored = torch.device("cpu"), torch.float16  # in another precision every weight is a copy anyway
    model, expected = (load_model(str(place), cpu, stored) for place in (folder, tiny_teacher))
    for path in folder.rglob("*.safetensors"):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    for name in ("unet", "vae", "text_encoder"):
        weights, others = (m.parts[name].state_dict() for m in (model, expected))
        assert all(torch.equal(weights[key], others[key]) for key in others), name
