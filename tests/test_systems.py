"""What is not there on every operating system is not needed."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from sidlsg.data import PACKAGE
from sidlsg.devices import peak_resident
from sidlsg.files import write_text

POSIX = {"curses", "fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}


def test_no_module_needs_what_windows_lacks_to_be_imported() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX & {name.partition(".")[0] for name in names}, path


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux only")
def test_the_peak_of_memory_is_that_of_the_process() -> None:
    before = psutil.Process().memory_info().rss
    assert before <= peak_resident()
    block = torch.ones(2**26 + max(0, peak_resident() - before) // 4)
    assert peak_resident() - before >= 4 * block.numel()
    del block


def test_the_peak_of_memory_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: object, **options: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    info = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1, peak_wset=3 * 2**30))
    monkeypatch.setattr(psutil, "Process", lambda: info)
    assert peak_resident() == 3 * 2**30


def test_files_are_flushed_where_folders_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, which also flushes only what is opened for writing."""
    from sidlsg.files import flush

    synced, allowed, opened = [], os.open, {}

    def open_file(path: str | Path, flags: int, *more: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        handle = allowed(path, flags, *more)
        opened[handle] = flags
        return handle

    def sync(handle: int) -> None:
        if not opened[handle] & os.O_RDWR:
            raise OSError(9, "Bad file descriptor")
        synced.append(handle)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(sys, "platform", "win32")
    flush(tmp_path)
    assert synced == []
    write_text(tmp_path / "a.txt", "a")
    assert len(synced) == 1
    assert (tmp_path / "a.txt").read_text() == "a"
