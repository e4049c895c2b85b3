"""The folder of a run: where its files are, and whether a command may resume the run in it. No torch in here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from sidlsg.config import FREE_FIELDS, Config
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.files import write_text
from sidlsg.settings import load_settings


def default_name(config: Config, preset: str | None) -> str:
    """The name of a run's folder, from teacher, preset, strategy and guidance scales: the same command resumes the same run."""
    scales = "-".join(f"{k:g}" for k in config.kappa) if config.kappa else "default"
    name = f"{config.teacher}-{Path(preset).stem if preset else 'custom'}-{config.strategy_name}-{scales}"
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def scores(self) -> Path:
        return self.path / "scores.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def best(self) -> Path:
        return self.path / "best"

    def load_config(self) -> Config:
        """The configuration saved in ``config.yaml``."""
        return Config(**load_settings(self.config))

    def complete(self, config: Config) -> bool:
        """Whether the folder holds a finished run (one with a student) of exactly this configuration."""
        return self.student.is_dir() and self.config.is_file() and self.load_config() == config

    def check(self, config: Config) -> None:
        """Raise UsageError when the folder belongs to another run (naming what differs) or holds other files."""
        if self.config.is_file():
            old, new = self.load_config().as_dict(), config.as_dict()
            differ = [f"{k} ({old[k]} there, {new[k]} here)" for k in new if k not in FREE_FIELDS and old[k] != new[k]]
            if differ:
                raise UsageError(
                    f"{self.path} holds a run with other settings: {', '.join(differ)}. "
                    "Give the same settings to resume it, or another --out."
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(f"{self.path} is not empty and holds no run; give another --out")

    def claim(self, config: Config) -> None:
        """Create the folder and write ``config.yaml``, after ``check``; raises SidlsgError when it cannot be written."""
        self.check(config)
        try:
            for folder in (self.path, self.checkpoints, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(config.as_dict(), sort_keys=False, default_flow_style=None)
            write_text(self.config, text)
        except OSError as error:
            raise SidlsgError(f"cannot write to {self.path}: {error.strerror}; give another --out") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing to the run inside the block; a process that dies leaves no lock behind.

        Raises UsageError when another process has it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UsageError(
                f"another process is training in {self.path}; wait for it, or give another --out"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def cut_metrics(self, images_seen: int) -> None:
        """Drop metrics and scores beyond ``images_seen``, from which a run resumes, and damaged lines."""
        for path in (self.metrics, self.scores):
            if not path.exists():
                continue
            kept = [line for line in read_metrics(path) if line["images_seen"] <= images_seen]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` or ``scores.jsonl``; damaged lines (an interrupted write) are skipped."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
