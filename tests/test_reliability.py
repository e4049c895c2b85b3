"""What docs/reliability.md promises of checkpoints: after damage, kills and full disks the run is the same, or it says why."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sidlsg.errors import SidlsgError
from sidlsg.runs import checkpoints as module
from sidlsg.runs.checkpoints import Checkpoints, Tensors
from sidlsg.runs.folder import RunFolder
from sidlsg.runs.state import numbered, read_state, write_state
from support.processes import fork_server
from support.runs import config_for, files, science, trainer, write_prompts

BATCH, END = 8, 48
GROUPS = ("fake", "generator", "fake_adam", "generator_adam", "ema")
FILES = [*(f"{name}.safetensors" for name in GROUPS), "state.json"]
DTYPES = {"fake": torch.float16, "ema": torch.float64}


def start(seed: int = 0) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: {key: torch.randn(12, 3, generator=rng).to(DTYPES.get(name, torch.float32)) for key in ("a", "b.weight")}
        for name in GROUPS
    }


def train(folder: Path, images: int = END, keep: int = 2, seed: int = 0) -> Tensors:
    """A run in miniature, which uses its checkpoints as the trainer does; what it ends with depends on every step."""
    checkpoints, tensors, seen = Checkpoints(folder, keep), start(seed), 0
    if (loaded := checkpoints.load_latest(("adam_steps",), like=tensors)) is not None:
        tensors, state, _ = loaded
        seen = state["images_seen"]
        assert state["adam_steps"] == {"fake": seen // BATCH}
        checkpoints.set_aside()
        checkpoints.prune()
    while seen < images:
        tensors = {
            name: {key: (x.double() * 1.7 + seen).sin().to(x.dtype) for key, x in group.items()}
            for name, group in tensors.items()
        }
        seen += BATCH
        checkpoints.save(seen, tensors, {"adam_steps": {"fake": seen // BATCH}})
    return tensors


def same(one: Tensors, two: Tensors) -> bool:
    return module.unlike(one, two) is None and all(
        torch.equal(one[name][key], x) for name, group in two.items() for key, x in group.items()
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def end() -> Tensors:
    """What an uninterrupted run ends with, without the disk."""
    tensors = start()
    for seen in range(0, END, BATCH):
        tensors = {
            name: {key: (x.double() * 1.7 + seen).sin().to(x.dtype) for key, x in group.items()}
            for name, group in tensors.items()
        }
    return tensors


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that was left at 24 images: 16 and 24."""
    folder = tmp_path_factory.mktemp("half") / "checkpoints"
    train(folder, 24)
    assert names(folder) == ["000000000016", "000000000024"]
    return folder


@pytest.fixture
def left(half_way: Path, tmp_path: Path) -> Path:
    return shutil.copytree(half_way, tmp_path / "checkpoints")


def change(path: Path, at: int, block: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(block)] = block
    path.write_bytes(data)


def flip(path: Path) -> None:
    """One bit of the last number (in ``state.json`` of the last digit) of the content."""
    data = path.read_bytes()
    at = len(data) - 2 if path.suffix == ".safetensors" else max(i for i, c in enumerate(data) if chr(c).isdigit())
    change(path, at, bytes([data[at] ^ 1]))


def flip_head(path: Path) -> None:
    at = path.read_bytes().index(b"a")  # in the name of a weight, or of an entry
    change(path, at, b"c")


def zeros(path: Path) -> None:
    size = path.stat().st_size
    change(path, size // 2, bytes(size // 4))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_runs(path: Path) -> None:
    """The same file of a run of other draws: whole, of the same names, shapes and size."""
    train(path.parent.parent.parent / "other", 24, seed=1)
    shutil.copy(path.parent.parent.parent / "other" / "000000000024" / path.name, path)


def the_one_before(path: Path) -> None:
    shutil.copy(path.parent.parent / "000000000016" / path.name, path)


DAMAGE = [flip, flip_head, zeros, cut, Path.unlink, another_runs, the_one_before]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_file_costs_one_checkpoint_and_nothing_else(left: Path, end: Tensors, damage, name: str) -> None:
    damage(left / "000000000024" / name)
    found = Checkpoints(left).load_latest(like=start())
    assert found is not None
    assert found[1]["images_seen"] == 16
    assert len(found[2]) == 1
    assert f"{left / '000000000024'} is damaged" in found[2][0]
    if damage is another_runs and name == "state.json":  # whole, but of other files
        name = "fake.safetensors has changed"
    assert name in found[2][0]
    assert same(train(left), end)
    assert names(left) == ["000000000040", "000000000048"]


@pytest.mark.parametrize("damage", [flip, zeros, cut, Path.unlink, another_runs], ids=lambda f: f.__name__)
def test_without_a_good_checkpoint_the_run_is_refused_and_nothing_is_deleted(left: Path, damage) -> None:
    shutil.rmtree(left / "000000000016")
    damage(left / "000000000024" / "ema.safetensors")
    for _ in range(2):
        with pytest.raises(SidlsgError, match=r"000000000024 is damaged \(.*ema.safetensors.*no older one"):
            train(left)
        assert names(left) == ["000000000024"]


def test_no_byte_of_a_state_can_change_what_it_says_unnoticed(left: Path) -> None:
    path, whole = left / "000000000024" / "state.json", read_state(left / "000000000024")
    data = path.read_bytes()
    noticed = 0
    for at in range(len(data)):
        change(path, at, bytes([data[at] ^ 1]))
        try:
            assert read_state(path.parent) == whole  # a blank between two entries
        except SidlsgError:
            noticed += 1
        path.write_bytes(data)
    assert noticed > 0.6 * len(data)
    assert read_state(path.parent) == whole


def test_no_byte_of_a_weights_file_can_change_what_is_loaded(left: Path) -> None:
    path = left / "000000000024" / "generator.safetensors"
    data, whole = path.read_bytes(), load_file(path)
    for at in range(0, len(data), 5):
        change(path, at, bytes([data[at] ^ 16]))
        tensors, state, _ = Checkpoints(left).load_latest()  # type: ignore[misc]
        path.write_bytes(data)
        assert state["images_seen"] == 16 or all(torch.equal(tensors["generator"][key], x) for key, x in whole.items())


def test_what_reaches_the_disk_is_compared_with_what_was_in_memory(left: Path, monkeypatch) -> None:
    """Not with what the file happened to hold when it was read back."""

    def unfaithful(group: dict[str, torch.Tensor], file: Path) -> None:
        save_file({key: x + 1 for key, x in group.items()}, file)

    monkeypatch.setattr(module, "save_file", unfaithful)
    Checkpoints(left).save(32, start(), {})
    assert Checkpoints(left).load_latest()[1]["images_seen"] == 24  # type: ignore[index]


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({**start(), "ema": {"a": torch.zeros(12, 3)}}, "ema.safetensors lacks b.weight"),
        ({**start(), "fake": {**start()["fake"], "more": torch.zeros(1)}}, "fake.safetensors has another weight, more"),
        ({**start(), "fake": {k: x[:1] for k, x in start()["fake"].items()}}, r"a in fake.safetensors is \[1, 3\]"),
        ({**start(), "fake": {k: x.float() for k, x in start()["fake"].items()}}, "float32, not .* of torch.float16"),
        ({k: v for k, v in start().items() if k != "ema"}, "ema.safetensors lacks a"),
    ],
)
def test_a_checkpoint_of_other_tensors_is_passed_over(left: Path, tensors: Tensors, reason: str) -> None:
    Checkpoints(left).save(32, tensors, {})
    found = Checkpoints(left).load_latest(like=start())
    assert found is not None
    assert found[1]["images_seen"] == 24
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found[2][0])


def test_a_checkpoint_under_another_number_is_passed_over(left: Path, end: Tensors) -> None:
    shutil.copytree(left / "000000000016", left / "000000000800")
    assert "000000000800 is damaged (state.json is of 16 images)" in Checkpoints(left).load_latest()[2][0]  # type: ignore[index]
    assert same(train(left), end)


def test_a_checkpoint_of_another_run_is_passed_over(left: Path, tmp_path: Path) -> None:
    write_state(left / "000000000024", read_state(left / "000000000024") | {"prompts_sha256": "other"})
    found = Checkpoints(left).load_latest(foreign=lambda state: state.get("prompts_sha256"))
    assert found is not None
    assert found[1]["images_seen"] == 16
    assert "of another run: other" in found[2][0]


# -- versions --------------------------------------------------------------------------------------------------------------------


def as_before(checkpoint: Path) -> None:
    """``state.json`` as versions without checksums wrote it."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    del state["sha256"]
    state["files"] = {name: about["bytes"] for name, about in state["files"].items()}
    (checkpoint / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def test_checkpoints_without_checksums_are_gone_on_from(left: Path, end: Tensors) -> None:
    for path in numbered(left):
        as_before(path)
    assert Checkpoints(left).load_latest()[1]["images_seen"] == 24  # type: ignore[index]
    cut(left / "000000000024" / "fake.safetensors")
    assert "bytes, not" in Checkpoints(left).load_latest()[2][0]  # type: ignore[index]
    assert same(train(left), end)


def test_a_state_that_lost_its_checksum_is_damaged_not_old(left: Path) -> None:
    path = left / "000000000024" / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    del state["sha256"]
    path.write_text(json.dumps(state), encoding="utf-8")
    assert "does not fit its checksum" in Checkpoints(left).load_latest()[2][0]  # type: ignore[index]


def test_statistics_that_are_not_finite_are_saved_and_read(tmp_path: Path) -> None:
    """A gradient above 1.8e19 squares to infinity, in a sane run too."""
    window = [[{"grad_norm": float("inf"), "sums": [float("-inf"), 1.5]}, {"loss": None}]]
    Checkpoints(tmp_path).save(8, start(), {"window": window, "ahead": {"x": float("nan")}})
    _, state, warnings = Checkpoints(tmp_path).load_latest()  # type: ignore[misc]
    assert state["window"] == window
    assert str(state["ahead"]["x"]) == "nan"
    assert warnings == []
    text = (tmp_path / "000000000008" / "state.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# -- kills -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def snapshots(folder: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The folder as it was after every operation on it in the block, which is what a kill there would leave."""
    taken: list[Path] = []
    with monkeypatch.context() as patch:
        looking = True

        def look() -> None:
            nonlocal looking
            if looking:
                looking = False
                taken.append(shutil.copytree(folder, into / str(len(taken))))
                looking = True

        def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
            def watch(*args: Any, **options: Any) -> Any:
                result = operation(*args, **options)
                look()
                return result

            return watch

        def half_written(group: dict[str, torch.Tensor], file: Path) -> None:
            save_file(group, file)
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            look()
            file.write_bytes(whole)
            look()

        for name in ("mkdir", "rename", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, watched(getattr(os, name)))
        patch.setattr(module, "save_file", half_written)
        yield taken


@pytest.mark.parametrize("again", [False, True], ids=["the next number", "the same number again"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_step_of_a_save_costs_no_more_than_that_save(
    left: Path, end: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, again: bool
) -> None:
    at_24 = Checkpoints(left).load_latest()
    assert at_24 is not None
    with snapshots(left, tmp_path, monkeypatch) as taken:
        if again:
            Checkpoints(left, keep).save(24, at_24[0], {"adam_steps": {"fake": 3}})
        else:
            train(left, 32, keep)
    assert len(taken) > 15
    for folder in taken:
        found = Checkpoints(folder, keep).load_latest(like=start())
        assert found is not None
        assert found[1]["images_seen"] >= 24
        assert not found[2]  # nothing that it could take for a damaged one
    for folder in taken[:: 1 if keep == 1 else 4]:
        assert same(train(folder, 40, keep), train(tmp_path / "whole", 40))
        assert names(folder) == ["000000000032", "000000000040"][-keep:]


def test_the_same_number_written_again_is_the_newer_one(left: Path, end: Tensors) -> None:
    path = Checkpoints(left).save(24, start(), {"adam_steps": {"fake": 99}})
    assert names(left) == ["000000000024", path.name]
    tensors, state, _ = Checkpoints(left).load_latest()  # type: ignore[misc]
    assert state["adam_steps"] == {"fake": 99}
    assert same(tensors, start())
    flip(path / "ema.safetensors")
    assert same(train(left), end)


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_at_random_moments(tmp_path: Path, end: Tensors, kills: int) -> None:
    """SIGKILL within the first three hundredths of a second of a run, again and again in the same folder."""
    folder, rng = tmp_path / "checkpoints", random.Random(0)
    for _ in range(kills):
        if (child := os.fork()) == 0:
            try:
                train(folder)
            finally:
                os._exit(0)
        time.sleep(0.03 * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert same(train(folder), end)
    assert names(folder) == ["000000000040", "000000000048"]


def test_a_checkpoint_takes_its_name_only_when_all_of_it_is_on_the_disk(left: Path, monkeypatch) -> None:
    """As after a power cut: what was not flushed is not there. Files, then their folder, then the new name in the one above."""
    on_disk: set[int] = set()
    fsync, rename = os.fsync, os.rename

    def flushed(handle: int) -> None:
        fsync(handle)
        on_disk.add(os.fstat(handle).st_ino)

    def renamed(source: Path, target: Path) -> None:
        wanted = {path.name for path in (source, *Path(source).iterdir()) if path.stat().st_ino not in on_disk}
        assert not wanted
        assert len(list(Path(source).iterdir())) == len(FILES)
        rename(source, target)
        on_disk.discard(os.stat(left).st_ino)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    Checkpoints(left).save(32, start(), {})
    assert os.stat(left).st_ino in on_disk


# -- full and failing disks ------------------------------------------------------------------------------------------------------


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond so many bytes: a disk that is full, as far as a program can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 7, 100, 300, 600])
def test_a_full_disk_ends_a_save_with_its_reason_and_nothing_is_lost(left: Path, end: Tensors, size: int) -> None:
    assert size < (left / "000000000024" / "ema.safetensors").stat().st_size
    with no_room_beyond(size), pytest.raises(SidlsgError) as caught:
        train(left)
    assert f"cannot write checkpoint {left / '000000000032'}: File too large" in str(caught.value)
    assert f"{left / '000000000024'} is intact: free some space and run the same command again" in str(caught.value)
    assert names(left) == ["000000000016", "000000000024"]
    assert same(train(left), end)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_while_flushing_ends_a_save(left: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """An fsync that fails is no missing hygiene: the data are lost. Only a full disk is to be freed."""

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(SidlsgError, match=os.strerror(code)) as caught:
            train(left)
    assert ("free some space" in str(caught.value)) == (code == errno.ENOSPC)
    assert names(left) == ["000000000016", "000000000024"]


# -- what is kept ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("movable", [True, False])
@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_written_is_never_deleted_for_a_damaged_newer_one(
    left: Path, end: Tensors, monkeypatch: pytest.MonkeyPatch, keep: int, movable: bool
) -> None:
    """Also where the damaged one cannot be moved aside."""
    shutil.copytree(left / "000000000024", left / "000000000040")
    if not movable:
        monkeypatch.setattr(Checkpoints, "set_aside", lambda self: [])
    train(left, 32, keep)
    assert (left / "000000000032" / "state.json").is_file()
    assert same(train(left, END, keep), end)
    at_40 = "000000000040" if movable else "000000000040.2"
    assert names(left) == [at_40, "000000000048"][-keep:]


def test_a_damaged_checkpoint_is_moved_aside_until_newer_ones_are_good(left: Path) -> None:
    flip(left / "000000000024" / "fake.safetensors")
    checkpoints = Checkpoints(left)
    checkpoints.load_latest()
    assert checkpoints.set_aside() == [left / "000000000024.damaged"]
    checkpoints.prune()
    assert names(left) == ["000000000016", "000000000024.damaged"]
    checkpoints.save(24, start(), {})
    assert names(left) == ["000000000016", "000000000024", "000000000024.damaged"]
    assert RunFolder(left.parent).configured == left / "000000000024" / "state.json"
    checkpoints.save(32, start(), {})
    checkpoints.save(40, start(), {})
    assert names(left) == ["000000000032", "000000000040"]


def test_reading_a_run_moves_nothing(left: Path) -> None:
    """`sidlsg sample` reads checkpoints of a run that another process trains."""
    flip(left / "000000000024" / "fake.safetensors")
    shutil.copytree(left / "000000000016", left / ".000000000032.part")
    before = names(left)
    Checkpoints(left).load_latest()
    assert names(left) == before


@pytest.mark.parametrize("file", ["state.json", "ema.safetensors"])
def test_a_folder_that_was_deleted_in_part_and_one_too_many_go(left: Path, file: str) -> None:
    """A process that died while it deleted, or before; they go when the run is taken up, and with the next checkpoint."""
    for number in (8, 12):
        shutil.copytree(left / "000000000016", left / f"{number:012d}")
    (left / "000000000008" / file).unlink()
    checkpoints = Checkpoints(left)
    checkpoints.load_latest()
    checkpoints.prune()
    assert names(left) == ["000000000016", "000000000024"]
    (left / "000000000020").mkdir()
    checkpoints.save(32, start(), {})
    assert names(left) == ["000000000024", "000000000032"]


def test_a_folder_whose_deletion_fails_is_no_checkpoint_any_more(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS the files that somebody reads stay."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)
        Checkpoints(left).save(32, start(), {})
    assert (left / "000000000016" / "ema.safetensors").is_file()
    assert [path.name for path in Checkpoints(left).complete()] == ["000000000024", "000000000032"]
    Checkpoints(left).save(40, start(), {})
    assert names(left) == ["000000000032", "000000000040"]


def test_only_what_a_reader_needs_is_read(left: Path) -> None:
    """A student of an unfinished run needs one file of five, whatever has become of the others."""
    for name in ("fake", "generator_adam"):
        flip(left / "000000000024" / f"{name}.safetensors")
    tensors, state, _ = Checkpoints(left).load_latest(groups=lambda names: ["ema"])  # type: ignore[misc]
    assert (list(tensors), state["images_seen"]) == (["ema"], 24)


def test_every_promise_names_tests_that_exist() -> None:
    tests = Path(__file__).parent
    promised = set(re.findall(r"`(test_\w+)`", (tests.parent / "docs" / "reliability.md").read_text(encoding="utf-8")))
    there = {
        name for path in tests.glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }
    assert len(promised) > 30
    assert promised <= there


# -- real runs -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_32(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real run at 32 of its 48 images, with checkpoints at 16 and 32, and its prompts."""
    folder = tmp_path_factory.mktemp("real")
    prompts = write_prompts(folder / "prompts.txt")
    trainer(config_for(tiny_teacher, images=32), folder / "run", prompts).run()
    return folder / "run", prompts


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, flip_head, zeros, cut, Path.unlink, the_one_before], ids=lambda f: f.__name__)
def test_a_real_run_with_a_damaged_file_ends_with_the_same_student(
    at_32, unbroken, tiny_teacher: Path, tmp_path: Path, damage, name: str
) -> None:
    run, prompts = at_32
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "000000000032" / name)
    trainer(config_for(tiny_teacher), tmp_path / "run", prompts).run()
    for part in ("student", "checkpoints"):
        assert files(tmp_path / "run" / part) == files(unbroken[0] / part)


def run_to_the_end(teacher: Path, out: Path, prompts: Path) -> None:
    torch.set_num_threads(1)
    trainer(config_for(teacher, images=160, checkpoint_every=8, log_every=24), out, prompts).run()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [100])
def test_a_real_run_killed_at_random_moments_ends_with_the_same_student(
    tiny_teacher: Path, prompt_file: Path, tmp_path: Path, kills: int
) -> None:
    """SIGKILL, in a new folder whenever the run has reached its end."""
    rng, context, number = random.Random(0), fork_server(), 0
    for _ in range(kills):
        number += (tmp_path / f"run-{number}" / "student").exists()
        process = context.Process(target=run_to_the_end, args=(tiny_teacher, tmp_path / f"run-{number}", prompt_file))
        process.start()
        process.join(1 + 5 * rng.random())
        process.kill()
        process.join()
    run_to_the_end(tiny_teacher, tmp_path / "whole", prompt_file)
    for which in range(number + 1):
        run_to_the_end(tiny_teacher, tmp_path / f"run-{which}", prompt_file)
        for part in ("student", "checkpoints", "samples"):
            assert files(tmp_path / f"run-{which}" / part) == files(tmp_path / "whole" / part)
        assert science(tmp_path / f"run-{which}") == science(tmp_path / "whole")
