"""File systems that lack an operation, locks that a crash left, names that another host does not see yet."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sidlsg import files as file_system
from sidlsg.config import Config
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.files import flush, fresh, replace_folder, still_missing
from sidlsg.runs.checkpoints import Checkpoints
from sidlsg.runs.disk import Holder, probe
from sidlsg.runs.folder import RunFolder
from support.processes import on_ranks
from support.runs import config_for, trainer

BUSY = "another process is training in"


def refusing(code: int, operation: Callable[..., Any], when: Callable[..., bool] = lambda *_, **__: True) -> Any:
    """The operation on a file system that does not have it."""

    def refuse(*args: Any, **options: Any) -> Any:
        if when(*args, **options):
            raise OSError(code, os.strerror(code))
        return operation(*args, **options)

    return refuse


def of_a_folder(handle: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{handle}")


def without_everything(patch: pytest.MonkeyPatch) -> None:
    """As CIFS, Lustre and gocryptfs answer together."""
    patch.setattr(os, "fsync", refusing(errno.EINVAL, os.fsync, of_a_folder))
    patch.setattr(os, "chmod", refusing(errno.EPERM, os.chmod))
    patch.setattr(fcntl, "flock", refusing(errno.ENOSYS, fcntl.flock))


# -- what a file system lacks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.ENOSYS])
def test_a_folder_without_fsync_is_no_failure_and_a_failing_disk_is(tmp_path: Path, monkeypatch, code: int) -> None:
    assert flush(tmp_path)
    monkeypatch.setattr(os, "fsync", refusing(code, os.fsync))
    assert not flush(tmp_path)
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO, os.fsync))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        flush(tmp_path)


def test_a_whole_file_system_lacks_nothing(tmp_path: Path) -> None:
    assert probe(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_probe_names_what_is_lacking_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_everything(monkeypatch)
    rename = os.rename
    being_read = refusing(errno.EBUSY, rename, lambda source, target: Path(source).name == "renamed")
    monkeypatch.setattr(os, "rename", being_read)
    lacking = ["fsync of folders", "chmod", "locks", "renaming of a folder that is being read"]
    assert probe(tmp_path) == lacking
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rename", "replace", "mkdir"])
def test_what_a_run_cannot_do_without_is_said_before_it_begins(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(os, name, refusing(errno.ENOTSUP, getattr(os, name)))
    with pytest.raises(SidlsgError, match=f"cannot write to .*{os.strerror(errno.ENOTSUP)}; give another --out"):
        RunFolder(tmp_path).claim(Config())
    assert not (tmp_path / "config.yaml").exists()


def test_a_run_ends_with_its_student_where_everything_is_lacking(
    tiny_teacher, prompt_file, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says so once."""
    without_everything(monkeypatch)
    subject = trainer(config_for(tiny_teacher, images=8, grid_images=1), tmp_path / "run", prompt_file)
    subject.console = Console(width=400)
    subject.run()
    assert (tmp_path / "run" / "student" / "sidlsg.json").is_file()
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").complete()] == ["000000000008"]
    notes = [line for line in capsys.readouterr().out.splitlines() if "the file system of" in line]
    assert len(notes) == 1
    assert "has no fsync of folders, no chmod, no locks; the run goes on without" in notes[0]
    assert not (tmp_path / "run" / ".lock").exists()


# -- locks -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "without locks"])
def test_a_second_start_is_refused_and_names_the_first(tmp_path: Path, monkeypatch, locks: bool) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOSYS, fcntl.flock))
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        with pytest.raises(UsageError, match=BUSY) as refused, RunFolder(tmp_path / "run").locked():
            pass
        assert f"process {os.getpid()} on {platform.node()}" in str(refused.value)
        assert f"delete {tmp_path / 'run' / '.lock'} and run the same command again" in str(refused.value)
    with folder.locked():  # left free
        pass


@pytest.mark.parametrize(
    "third", ["started 1764338000.00", "67899631968200576931685295755786807129372327199765911830", ""]
)
def test_a_lock_of_another_host_where_there_are_no_locks_says_how_to_take_over(tmp_path, monkeypatch, third) -> None:
    """As this version wrote it, and as filelock did; with flock, the same file is no obstacle."""
    lock = tmp_path / ".lock"
    lock.write_text(f"4297\nnode17\n{third}\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refusing(errno.ENOSYS, fcntl.flock))
        with (
            pytest.raises(UsageError, match=rf"process 4297 on node17.*crash of node17, delete {lock}"),
            RunFolder(tmp_path).locked(),
        ):
            pass
        lock.unlink()
        with RunFolder(tmp_path).locked():
            pass
    lock.write_text(f"4297\nnode17\n{third}\n", encoding="utf-8")
    with RunFolder(tmp_path).locked():
        assert Holder.of(lock.read_text(encoding="utf-8")).pid == os.getpid()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "holder",
    [
        Holder(2**22 + 1, platform.node()),  # no such process
        Holder(os.getpid(), platform.node(), started=1.0),  # its number is another process's now
    ],
)
def test_a_lock_of_a_process_that_has_ended_here_is_taken_over(tmp_path: Path, monkeypatch, holder: Holder) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOTSUP, fcntl.flock))
    (tmp_path / ".lock").write_text(holder.text, encoding="utf-8")
    with RunFolder(tmp_path).locked():
        assert Holder.of((tmp_path / ".lock").read_text(encoding="utf-8")) != holder
    assert not (tmp_path / ".lock").exists()


def test_a_refused_start_leaves_the_files_of_the_run_as_they_are(
    tiny_teacher, prompt_file, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is loaded; and, where the other began meanwhile, before anything is written."""
    folder = RunFolder(tmp_path / "run")
    late = trainer(config_for(tiny_teacher, images=96, keep_checkpoints=1), folder.path, prompt_file)
    with folder.locked():
        folder.claim(config_for(tiny_teacher))
        before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match=BUSY):
            late.run()
        monkeypatch.setattr("sidlsg.training.trainer.load_model", lambda *args, **options: pytest.fail("loaded"))
        with pytest.raises(UsageError, match=BUSY):
            trainer(config_for(tiny_teacher, images=96), folder.path, prompt_file)
        assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


# -- several hosts ---------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_seen_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NFS client remembers that a name was missing; a name that stays missing is given up after a minute."""
    clock, seen_at = [0.0], 41.0
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "late" and clock[0] >= seen_at)
    assert still_missing([tmp_path / "late"]) == []
    assert clock[0] == pytest.approx(seen_at)
    assert still_missing([tmp_path / "late", tmp_path / "never"]) == [tmp_path / "never"]
    assert clock[0] == pytest.approx(seen_at + 60)


def one_process_is_slow_and_one_differs(rank: int, teacher: Path, out: Path, prompts: Path) -> tuple[bool, str]:
    """Whether the checkpoint was there when this process had saved; and what it says of a teacher that only it has."""
    subject = trainer(config_for(teacher), out, prompts)
    save = subject.checkpoints.save

    def slowly(*args: Any) -> Path:
        time.sleep(1)
        return save(*args)

    subject.checkpoints.save = slowly  # type: ignore[method-assign]
    subject.claim()
    subject.save()
    there = bool(Checkpoints(out / "checkpoints").complete())
    subject.teacher_sha256 = {**subject.teacher_sha256, "unet": f"of rank {rank}"}
    try:
        subject.agree()
    except SidlsgError as error:
        return there, str(error)
    return there, ""


def test_processes_wait_for_a_checkpoint_and_agree_on_the_teacher(tiny_teacher, prompt_file, tmp_path) -> None:
    for there, said in on_ranks(2, one_process_is_slow_and_one_differs, tiny_teacher, tmp_path / "run", prompt_file):
        assert there
        assert "the processes do not agree on: teacher" in said


# -- the trainer's use of checkpoints --------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_or_foreign_one(
    tiny_teacher, prompt_file, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = trainer(config_for(tiny_teacher, keep_checkpoints=9), tmp_path / "run", prompt_file)
    subject.console = Console(width=400)
    subject.claim()
    for seen in (0, 8, 16, 24, 32, 40):
        subject.images_seen = seen
        subject.save()
    engine, config, prompts = subject.engine, subject.config, subject.prompts.sha256
    folder = subject.checkpoints.folder

    def saved_with(number: int, **changes: Any) -> None:
        state = {"adam_steps": engine.adam_steps, "prompts_sha256": prompts, "settings": {}} | changes
        (folder / f"{number:012d}").rename(tmp_path / str(number))
        subject.checkpoints.save(number, engine.state(), state)

    saved_with(8, settings={"lr": 1e-3, "seed": config.seed})
    saved_with(16, prompts_sha256="of another list")
    saved_with(24, settings={"seed": config.seed + 1, "lr": 1e-3})
    data = bytearray((folder / "000000000032" / "ema.safetensors").read_bytes())
    data[-3] ^= 64
    (folder / "000000000032" / "ema.safetensors").write_bytes(data)
    with torch.no_grad():
        weight = next(engine.generator.parameters())
        weight.data = weight.data.double()
    saved_with(40)
    weight.data = weight.data.float()
    assert subject.begin()
    assert subject.images_seen == 8
    said = capsys.readouterr().out
    for number, reason in [
        (40, "torch.float64, not"),
        (32, "the content of ema.safetensors has changed"),
        (24, "another run: it has another seed"),
        (16, "another run: it was trained on other prompts"),
    ]:
        assert f"warning: checkpoint {folder / f'{number:012d}'} is damaged (" in said
        assert reason in said
    left = {f"{number:012d}.damaged" for number in (16, 24, 32, 40)} | {f"{number:012d}" for number in (0, 8)}
    assert {path.name for path in folder.iterdir()} == left


# -- replacing folders -----------------------------------------------------------------------------------------------------------


def folder_with(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content, encoding="utf-8")
    return path


def test_a_folder_is_replaced_though_what_was_there_before_cannot_be_removed(tmp_path: Path, monkeypatch) -> None:
    """On NFS a file that somebody reads stays in its folder, and the folder with it: twice, under names of their own."""
    with monkeypatch.context() as patch:
        patch.setattr(file_system.shutil, "rmtree", lambda *args, **options: None)
        for content in ("one", "two", "three"):
            replace_folder(folder_with(tmp_path / "new", content), tmp_path / "best")
            assert (tmp_path / "best" / "file").read_text(encoding="utf-8") == content
    assert len(list(tmp_path.iterdir())) == 3
    replace_folder(folder_with(tmp_path / "new", "four"), tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_with(tmp_path / "best", "old")
    new = folder_with(tmp_path / "new", "new")
    monkeypatch.setattr(os, "rename", refusing(errno.EBUSY, os.rename, lambda source, target: Path(source) == new))
    with pytest.raises(OSError, match="busy"):
        replace_folder(new, tmp_path / "best")
    assert (tmp_path / "best" / "file").read_text(encoding="utf-8") == "old"


def test_a_fresh_name_is_one_that_nothing_has(tmp_path: Path) -> None:
    assert fresh(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").symlink_to("nowhere")
    assert fresh(tmp_path / "a") == tmp_path / "a.2"
    assert fresh(tmp_path / "a", ".damaged") == tmp_path / "a.damaged"
