"""Where and when a run was trained: a line of ``sessions.jsonl`` when a process begins and when it ends. No torch in here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sidlsg.errors import Stopped, sentence
from sidlsg.runs.folder import read_metrics


@dataclass(frozen=True)
class Session:
    """The lines that one process wrote; ``end`` is None while it trains, and of one that was killed."""

    begin: dict[str, Any]
    end: dict[str, Any] | None = None


@contextmanager
def recorded(
    path: Path, images_seen: Callable[[], int], facts: Callable[[], dict[str, Any]], warn: Callable[[str], object]
) -> Iterator[None]:
    """Write a line with ``facts`` now, and after the block one with how it ended. ``warn`` is told what cannot be written."""

    def write(event: str, more: Callable[[], dict[str, Any]]) -> None:
        try:
            line = {"event": event, "time": now(), "images_seen": images_seen()} | more()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except Exception as error:
            warn(f"the run goes on without a line in {path.name}: {sentence(error)}")

    write("begin", facts)
    begun, how = time.monotonic(), "ended"
    try:
        yield
        how = "complete"
    except (Stopped, KeyboardInterrupt):
        how = "stopped"
        raise
    except BaseException as error:
        how = f"failed: {sentence(error)}"
        raise
    finally:
        write("end", lambda: {"seconds": round(time.monotonic() - begun, 1), "how": how})


def now() -> str:
    """The local time with its offset, to the second, in ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def read_sessions(path: Path) -> list[Session]:
    """Read the sessions of a run, oldest first; damaged lines, and ends without a beginning, are skipped."""
    found: list[Session] = []
    for line in read_metrics(path) if path.is_file() else []:
        if line.get("event") == "begin":
            found.append(Session(line))
        elif found and found[-1].end is None:
            found[-1] = Session(found[-1].begin, line)
    return found
