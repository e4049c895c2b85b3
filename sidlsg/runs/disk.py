"""What the file system of a run's folder can do, tried before a run depends on it, and the lock that keeps a second run out."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.files import flush, make_readable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def probe(folder: Path) -> list[str]:
    """What the file system of ``folder`` cannot do and a run can do without, in words. Leaves nothing behind.

    Raises OSError when it cannot do what a run needs: write, replace a file, rename a folder.
    """
    place = folder / f".probe.{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        inner = place / "inner"
        inner.mkdir(parents=True)
        file, second = inner / "file", inner / "second"
        for path in (file, second):
            path.write_bytes(b"written to see whether this folder can be written to\n")
        can = {"fsync of files": flush(file), "fsync of folders": flush(inner), "chmod": make_readable(file)}
        second.replace(file)
        inner.rename(place / "renamed")
        with (place / "renamed" / "file").open("rb+") as held:
            can["locks"] = _flock(held.fileno()) is not None
            try:
                (place / "renamed").rename(place / "read meanwhile")
                can["renaming of a folder that is being read"] = True
            except OSError:
                can["renaming of a folder that is being read"] = False
        return [operation for operation, there in can.items() if not there]
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True)
class Holder:
    """The process that a lock's file names. ``started``: seconds since 1970, 0 where it does not say."""

    pid: int
    host: str
    started: float = 0.0

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        return cls(os.getpid(), platform.node(), psutil.Process().create_time())

    @classmethod
    def of(cls, text: str) -> Holder | None:
        """The holder that the file's text names; None when it names none."""
        lines = [*text.splitlines(), "", "", ""]
        if not (lines[0].isascii() and lines[0].isdigit() and lines[1]):
            return None
        with suppress(ValueError):
            return cls(int(lines[0]), lines[1], float(lines[2].removeprefix("started ")))
        return cls(int(lines[0]), lines[1])

    @property
    def text(self) -> str:
        return f"{self.pid}\n{self.host}\nstarted {self.started:.2f}\n"

    @property
    def gone(self) -> bool:
        """Whether that process has certainly ended; of another host's that is not known."""
        if self.host != platform.node():
            return False
        try:
            started = psutil.Process(self.pid).create_time()
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False
        return self.started > 0 and abs(started - self.started) > 1


@contextmanager
def locked(path: Path, doing: str = "training") -> Iterator[None]:
    """Keep other processes out of the folder of the file ``path`` inside the block; the file names the process that does.

    Where the file system has locks, the system ends them with their process. Elsewhere the file itself is the lock, until its
    process has ended on this host, or somebody deletes it.

    Args:
        doing: for the message, what the other process does there.

    Raises UsageError when another process has it, SidlsgError when the file cannot be written.
    """
    try:
        handle = _open(path)
    except OSError as error:
        raise SidlsgError(f"cannot write to {path.parent}: {error.strerror}; give another --out") from error
    ours, found = False, _flock(handle)
    try:
        holder = Holder.of(os.read(handle, 1000).decode(errors="replace"))
        if found is False or (found is None and holder is not None and not holder.gone):
            raise UsageError(_busy(path, doing, holder))
        ours = True
        _name(handle, Holder.here().text)
        yield
    finally:
        if ours:
            _name(handle, "")
        os.close(handle)
        if ours and found is None:
            path.unlink(missing_ok=True)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user's, in a folder that both may write to
        return os.open(path, os.O_RDONLY)


def _name(handle: int, text: str) -> None:
    """Write who holds a lock into its file, if that may be written."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, text.encode())


def _flock(handle: int) -> bool | None:
    """Whether this process has the lock of an open file now; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


def _busy(path: Path, doing: str, holder: Holder | None) -> str:
    who = f" (process {holder.pid} on {holder.host})" if holder else ""
    end = "it has ended" if holder is None else f"it has ended, in a crash of {holder.host}"
    return (
        f"another process is {doing} in {path.parent}{who}; wait for it, or give another --out (for several GPUs: torchrun). If "
        f"{end}, delete {path} and run the same command again"
    )
