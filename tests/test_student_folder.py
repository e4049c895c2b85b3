"""A folder that is written is read back before it takes its name, and holds every weight as it was meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sidlsg.errors import SidlsgError
from sidlsg.teachers import student
from sidlsg.teachers.family import Model
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.student import half_copy, save_student

CPU = torch.device("cpu")
TEXT = Path("text_encoder") / "model.safetensors"


@pytest.fixture(scope="module")
def model(tiny_teacher: Path) -> Model:
    return load_model(str(tiny_teacher), CPU)


def save(model: Model, folder: Path) -> None:
    save_student(folder, model, model.network, 625, {})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoil_zeros(path: Path) -> None:
    """What one release of safetensors made of a file that was written while it was mapped."""
    weights = {name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}
    save_file(weights, path.with_name("new"), metadata={"format": "pt"})
    path.with_name("new").replace(path)


def spoil_one_missing(path: Path) -> None:
    weights = load_file(path)
    save_file({name: weights[name] for name in sorted(weights)[1:]}, path.with_name("new"), metadata={"format": "pt"})
    path.with_name("new").replace(path)


def spoil_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def spoil_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil_json(path: Path) -> None:
    (path.parent / "config.json").write_bytes(b"\0" * 100)


@pytest.mark.parametrize("spoil", [spoil_zeros, spoil_one_missing, spoil_bit, spoil_cut, spoil_json])
def test_what_is_not_written_as_it_was_meant_replaces_nothing(
    model: Model, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "student")
    before, named = content(tmp_path / "student"), student.name_text_weights

    def name_and_spoil(path: Path) -> None:
        named(path)
        spoil(path)

    monkeypatch.setattr(student, "name_text_weights", name_and_spoil)
    with pytest.raises(SidlsgError, match=r"^text_encoder.*does not hold what was written.*run the same command again"):
        save(model, tmp_path / "student")
    assert content(tmp_path / "student") == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_nothing_is_written_to_a_file_that_is_mapped(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were read from a path are mapped from it, as long as they are used."""
    mapped: list[Path] = []

    def load(path: Path, *rest: Any) -> Any:
        mapped.append(Path(path))
        return load_file(path, *rest)

    def write(tensors: Any, path: Path, **options: Any) -> None:
        assert Path(path) not in mapped
        save_file(tensors, path, **options)

    monkeypatch.setattr(student, "load_file", load)
    monkeypatch.setattr(student, "save_file", write)
    save(model, tmp_path / "student")
    assert mapped


def test_a_student_is_written_over_itself(model: Model, tmp_path: Path) -> None:
    save(model, tmp_path / "student")
    before = content(tmp_path / "student")
    own = load_model(str(tmp_path / "student"), CPU)
    save(own, tmp_path / "student")
    after = content(tmp_path / "student")
    assert before.keys() == after.keys()
    assert [name for name in before if name.endswith(".safetensors") and before[name] != after[name]] == []
    assert load_model(str(tmp_path / "student"), CPU).digests() == own.digests()


def test_weights_beyond_half_precision_are_kept_in_single(tiny_teacher: Path, tmp_path: Path) -> None:
    """One matrix a million times larger and the one behind it smaller: the same function, in float32."""
    large = load_model(str(tiny_teacher), CPU)
    mlp = large.parts["text_encoder"].state_dict()
    name = next(n for n in mlp if n.endswith("token_embedding.weight"))
    with torch.no_grad():
        mlp[name].mul_(1e6)
    save(large, tmp_path / "student")
    written = load_file(tmp_path / "student" / TEXT)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in written.values())
    unet = load_file(tmp_path / "student" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in unet.values()} == {torch.float16}
    read = load_model(str(tmp_path / "student"), CPU)
    assert torch.equal(read.parts["text_encoder"].state_dict()[name], mlp[name])


@pytest.mark.parametrize(
    ("value", "dtype"), [(65504.0, torch.float16), (-65504.0, torch.float16), (-7e4, torch.float32)]
)
def test_half_precision_is_taken_where_it_holds_every_weight(value: float, dtype: torch.dtype) -> None:
    module = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(module.bias, value)
    copied = half_copy(module)
    assert {p.dtype for p in copied.parameters()} == {dtype}
    assert bool((copied.bias == value).all())


def test_what_cannot_be_removed_or_has_no_permissions_is_in_nobodys_way(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps files that a reader has open; CIFS has no chmod."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    save(model, tmp_path / "best")
    with monkeypatch.context() as strange:
        strange.setattr(shutil, "rmtree", lambda *_, **__: None)
        strange.setattr(Path, "chmod", refuse)
        for t_init in (600, 601):
            save_student(tmp_path / "best", model, model.network, t_init, {})
            note = json.loads((tmp_path / "best" / "sidlsg.json").read_text(encoding="utf-8"))
            assert note["t_init"] == t_init
    assert len(list(tmp_path.iterdir())) == 3
    save(model, tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
