"""Checkpoints are complete or absent, and a damaged one costs no more than itself; whose folder a run's folder is."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sidlsg.config import Config
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.runs import checkpoints
from sidlsg.runs.checkpoints import Checkpoints, Tensors
from sidlsg.runs.folder import RunFolder, read_metrics


def tensors(seed: int) -> Tensors:
    """Two groups in several types, with the values that are easily lost."""
    rng = torch.Generator().manual_seed(seed)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, seed])
    return {
        "generator": {"a.weight": torch.randn(3, 4, generator=rng), "special": special},
        "adam": {"a.weight": torch.rand(3, 4, generator=rng).half(), "b": torch.rand(5, generator=rng).bfloat16()},
    }


def bits(groups: Tensors) -> dict[str, dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]]:
    return {
        name: {k: (t.dtype, tuple(t.shape), t.contiguous().view(torch.uint8).numpy().tobytes()) for k, t in g.items()}
        for name, g in groups.items()
    }


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Checkpoints at 100, 200 and 300 images; the two newest are kept."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for images in (100, 200, 300):
        checkpoints.save(images, tensors(images), {"adam_steps": {"fake": images}})
    return checkpoints


def newest(checkpoints: Checkpoints) -> int:
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert bits(loaded[0]) == bits(tensors(loaded[1]["images_seen"]))
    return loaded[1]["images_seen"]


def test_what_is_loaded_is_what_was_saved_bit_for_bit(saved: Checkpoints) -> None:
    loaded, state, warnings = saved.load_latest()
    assert bits(loaded) == bits(tensors(300))
    assert (state["images_seen"], state["adam_steps"], warnings) == (300, {"fake": 300}, [])


def test_tensors_that_are_not_contiguous_are_saved_as_they_look(tmp_path: Path) -> None:
    checkpoints, x = Checkpoints(tmp_path), torch.arange(48.0).view(2, 2, 3, 4)
    checkpoints.save(1, {"g": {"t": x[0, 0].t(), "last": x.to(memory_format=torch.channels_last)}}, {})
    loaded = checkpoints.load_latest()[0]["g"]
    assert torch.equal(loaded["t"], x[0, 0].t())
    assert torch.equal(loaded["last"], x)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for images in (8, 16, 1000, 2_000_000):
        checkpoints.save(images, tensors(1), {})
    assert [int(p.name) for p in checkpoints.complete()] == [8, 16, 1000, 2_000_000][-keep:]
    assert len(list(tmp_path.iterdir())) == keep


def test_the_same_checkpoint_can_be_written_again(saved: Checkpoints) -> None:
    saved.save(300, tensors(300), {"adam_steps": {"fake": 7}})
    assert saved.load_latest()[1]["adam_steps"] == {"fake": 7}
    assert newest(saved) == 300


def test_without_checkpoints_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").load_latest() is None
    (tmp_path / "notes").mkdir()
    assert Checkpoints(tmp_path).load_latest() is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_head(path: Path) -> None:
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def flip_a_bit_of_the_head(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(bytes(data))


def swap_for_another_file(path: Path) -> None:
    save_file({"a.weight": torch.zeros(1)}, path)


DAMAGE = [swap_for_another_file, truncate, half, empty, spoil_head, flip_a_bit_of_the_head, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["generator.safetensors", "adam.safetensors"])
def test_a_damaged_checkpoint_costs_no_more_than_itself(saved: Checkpoints, name: str, damage) -> None:
    damage(saved.complete()[-1] / name)
    _, _, warnings = saved.load_latest()
    assert newest(saved) == 200
    assert len(warnings) == 1
    assert str(saved.complete()[-1]) in warnings[0]
    assert "damaged" in warnings[0]


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"images_seen": 300',
        "[]",
        "3",
        "{}",
        '{"files": 3}',
        '{"files": {"a": null}}',
        '{"files": {}, "images_seen": "300"}',
        '{"files": {}, "images_seen": NaN}',
        '{"files": {}, "images_seen": 300, "window": 5}',
        '{"files": {}, "images_seen": 300, "adam_steps": [1]}',
        "\ufeff{}",
        "[" * 100_000,
    ],
)
def test_a_damaged_state_costs_no_more_than_itself(saved: Checkpoints, content: str) -> None:
    (saved.complete()[-1] / "state.json").write_text(content, encoding="utf-8")
    assert "damaged" in saved.load_latest()[2][0]
    assert newest(saved) == 200


def test_a_checkpoint_without_its_state_is_a_damaged_one(saved: Checkpoints) -> None:
    """Whoever deleted it is told that some work is repeated, or that there is no checkpoint left."""
    (saved.folder / "000000000300" / "state.json").unlink()
    assert newest(saved) == 200
    assert "state.json" in saved.load_latest()[2][0]
    (saved.folder / "000000000200" / "state.json").unlink()
    with pytest.raises(SidlsgError, match="no older one"):
        saved.load_latest()


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_when_all_are_damaged_the_run_does_not_start_anew_by_itself(saved: Checkpoints, damage) -> None:
    for path in saved.complete():
        damage(path / "generator.safetensors")
    with pytest.raises(SidlsgError, match=rf"{saved.complete()[-1]} is damaged.*no older one.*Delete") as caught:
        saved.load_latest()
    assert caught.value.exit_code == 1


def full_disk(after: int):
    """``save_file`` on a disk that is full after so many files: the last one is cut short."""
    written, save = [], checkpoints.save_file

    def save_file(group, file: Path) -> None:
        if len(written) == after:
            Path(file).write_bytes(b"half of")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        written.append(file)
        save(group, file)

    return save_file


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("images", [300, 400])
def test_a_full_disk_leaves_the_older_checkpoints_as_they_were(saved, monkeypatch, after: int, images: int) -> None:
    monkeypatch.setattr(checkpoints, "save_file", full_disk(after))
    with pytest.raises(SidlsgError, match=rf"No space left.*{saved.folder / '000000000300'} is intact.*same command"):
        saved.save(images, tensors(1), {})
    assert sorted(p.name for p in saved.folder.iterdir()) == ["000000000200", "000000000300"]
    assert newest(saved) == 300


def test_a_full_disk_at_the_first_checkpoint_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "save_file", full_disk(0))
    with pytest.raises(SidlsgError, match="free some space and run the same command again") as caught:
        Checkpoints(tmp_path).save(1, tensors(1), {})
    assert "intact" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleared(saved: Checkpoints) -> None:
    shutil.copytree(saved.complete()[-1], saved.folder / ".000000000400.part")
    assert newest(saved) == 300
    saved.save(500, tensors(500), {})
    assert sorted(p.name for p in saved.folder.iterdir()) == ["000000000300", "000000000500"]


# -- the run's folder ----------------------------------------------------------------------------------------------------


def test_a_run_may_be_taken_up_with_the_same_settings(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path / "a" / "run"), Config(kappa=(1.0, 0.5, 0.5, 2.0), clip_value=1.0)
    folder.claim(config)
    assert folder.load_config() == config
    folder.claim(config)
    assert folder.load_config() == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 2e-6}, "lr (1e-06 there, 2e-06 here)"),
        ({"kappa": (3.0,)}, "kappa (None there, [3.0] here)"),
        ({"batch": 256}, "batch (512 there, 256 here)"),
        ({"seed": 1}, "seed (0 there, 1 here)"),
        ({"prompts": "others.txt"}, "prompts (emoji there, others.txt here)"),
    ],
)
def test_a_run_is_not_taken_up_with_other_science(tmp_path: Path, change, named: str) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(Config())
    before = folder.config.read_bytes()
    with pytest.raises(UsageError) as caught:
        folder.claim(Config(**change, images=20_000))
    assert named in str(caught.value)
    assert "images" not in str(caught.value).replace(named, "")  # free to change, so not blamed
    assert folder.config.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [{"images": 20_000_000}, {"micro_batch": 8}, {"device": "cuda:1"}, {"processes": 8}, {"keep_checkpoints": 9}],
)
def test_where_how_fast_and_how_long_may_change(tmp_path: Path, change) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(Config())
    folder.claim(Config(**change))
    assert folder.load_config() == Config(**change)


def test_a_folder_with_other_files_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        RunFolder(tmp_path).claim(Config())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "new").mkdir()
    RunFolder(tmp_path / "new").claim(Config())  # an empty folder is fine
    with pytest.raises(SidlsgError, match="cannot write to"):
        RunFolder(tmp_path / "thesis.tex" / "run").claim(Config())


def test_metrics_after_the_checkpoint_and_half_lines_are_cut(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.cut_metrics(0)  # nothing there yet
    lines = [{"images_seen": n, "loss": n / 7} for n in (8, 16, 24, 32)]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"images_seen": 4')
    with folder.metrics.open("a") as file:
        file.write('\n5\n{}\n[1]\n{"images_seen": "8"}\n' + "[" * 100_000)
    assert read_metrics(folder.metrics) == lines
    folder.cut_metrics(24)
    assert folder.metrics.read_text() == "".join(json.dumps(line) + "\n" for line in lines[:3])
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
