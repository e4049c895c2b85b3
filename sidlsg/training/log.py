"""``log.txt`` of a run: its starts and ends, and what was said on the way, with the time. What its errors looked like, too."""

from __future__ import annotations

import platform
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sidlsg.errors import SidlsgError, reason
from sidlsg.runs.sessions import now
from sidlsg.version import __version__


class RunLog:
    """Appends lines to a file; None: writes nothing. A line that cannot be written is lost: the run does not need it.

    A call writes one text, each of its lines after the time.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __call__(self, text: str) -> None:
        if self.path is None:
            return
        time = now()
        with suppress(OSError), self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{time} {line}\n" for line in text.splitlines())

    @contextmanager
    def session(self, machine: dict[str, str], processes: int) -> Iterator[None]:
        """Write what is started where (version, command, what computes), and how it ended: done, stopped, or with what error, and
        the traceback of one that is not foreseen."""
        about = ", ".join(f"{name} {value}" for name, value in machine.items() if value)
        python, host = platform.python_version(), platform.node()
        self(f"start: sidlsg {__version__}, python {python}, {about}, processes {processes}, host {host}")
        self(f"command: {shlex.join(sys.argv)}")
        try:
            yield
        except SidlsgError as error:
            self(f"end: {error}")
            raise
        except BaseException as error:
            self("".join(traceback.format_exception(error)))
            self(f"end: {type(error).__name__}: {reason(error)}")
            raise
        self("end: done")
