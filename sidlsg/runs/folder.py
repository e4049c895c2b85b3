"""The folder of a run: where its files are, and whether a command may resume the run in it. No torch in here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sidlsg.config import FREE_FIELDS, Config
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.files import STATE_FILE, STUDENT_FILE, write_text
from sidlsg.paths import check_output, full_path, user_path
from sidlsg.runs import disk
from sidlsg.runs.state import numbered, read_state
from sidlsg.settings import load_settings
from sidlsg.teachers.hub import missing_part
from sidlsg.teachers.prompt_lists import is_named_list
from sidlsg.teachers.registry import registry

# Settings that say where something is, and the key of its hash in a checkpoint, with which it may be elsewhere in a resumed run.
MOVABLE = {"teacher": "teacher_sha256", "prompts": "prompts_sha256"}


def default_name(config: Config, preset: str | None) -> str:
    """The name of a run's folder, from teacher, preset, strategy and guidance scales: the same command resumes the same run.

    A local teacher gives the name of its folder; teacher and preset are cut to 80 bytes each, since file systems allow 255.
    """
    scales = "-".join(f"{k:g}" for k in config.kappa) if config.kappa else "default"
    teacher = Path(config.teacher).name if os.path.isabs(config.teacher) else config.teacher
    teacher, made = (text.encode()[:80].decode(errors="ignore") for text in (teacher, Path(preset or "custom").stem))
    return re.sub(r"[^\w.-]+", "-", f"{teacher}-{made}-{config.strategy_name}-{scales}").strip("-.")


def defining(config: Config) -> dict[str, Any]:
    """The settings that make a run what it is, as plain values; all others may change when it is taken up again."""
    return {name: value for name, value in settled(config).as_dict().items() if name not in FREE_FIELDS}


def settled(config: Config) -> Config:
    """The configuration with its local paths in full, so that it means the same in every working directory."""
    return replace(
        config,
        teacher=config.teacher if config.teacher in registry() else full_path(config.teacher),
        prompts=config.prompts if is_named_list(config.prompts) else full_path(config.prompts),
        grid_prompts=config.grid_prompts and full_path(config.grid_prompts),
        eval_reference=config.eval_reference and full_path(config.eval_reference),
    )


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
    def teacher_grid(self) -> Path:
        return self.samples / "teacher.png"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def scores(self) -> Path:
        return self.path / "scores.jsonl"

    @property
    def sessions(self) -> Path:
        return self.path / "sessions.jsonl"

    @property
    def evals(self) -> Path:
        return self.path / "evals"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def states(self) -> list[dict[str, Any]]:
        """What the checkpoints say about their run (``state.json``), oldest first, without damaged ones."""
        found = []
        for path in numbered(self.checkpoints):
            with suppress(SidlsgError):
                found.append(read_state(path))
        return found

    @property
    def configured(self) -> Path | None:
        """The file that says what run this is: ``config.yaml``, or where that is missing or empty (as a crash of the machine may
        leave it) a checkpoint's ``state.json``. None where there is no run."""
        if self.config.is_file() and self.config.read_bytes().strip(b"\0\r\n "):
            return self.config
        files = [path / STATE_FILE for path in numbered(self.checkpoints)]
        return next((path for path in reversed(files) if path.is_file()), None)

    def load_config(self) -> Config:
        """The run's configuration, from ``config.yaml`` or the newest good ``state.json``, which lacks those that may change.

        Raises UsageError when there is none or its settings are not valid, SidlsgError when every ``state.json`` is damaged.
        """
        path = self.configured
        if path is None:
            raise UsageError(f"{self.path} holds no run")
        try:
            if path == self.config:
                return settled(Config(**load_settings(path)))
            good = [state["settings"] for state in self.states if state.get("settings")]
            # Where none is good, reading the newest raises what is wrong with it.
            return settled(Config(**(good[-1] if good else read_state(path.parent, ("settings",))["settings"])))
        except TypeError as error:
            raise UsageError(f"{path} is of another version of sidlsg ({error})") from None
        except UsageError as error:
            raise error if str(path) in str(error) else UsageError(f"{path}: {error}") from None

    def recorded(self) -> dict[str, Any]:
        """What the oldest good checkpoint says about its run; empty when there is none.

        Each says what the run was started with, but a newer one may have come here from another run.
        """
        return next(iter(self.states), {})

    @property
    def begun(self) -> bool:
        """Whether a run has left something here besides its configuration."""
        return self.metrics.is_file() or self.student.is_dir() or any(self.samples.glob("*.png"))

    def complete(self, config: Config) -> bool:
        """Whether the folder holds a finished run (one with a whole student) of exactly this configuration."""
        if not self.configured or missing_of_student(self.student):
            return False
        return self.load_config() == settled(config)

    def check(self, config: Config) -> None:
        """Raise UsageError when the run cannot be in this folder: it cannot be written, belongs to another run (naming what
        differs), holds other files, or would be written through a link.

        A teacher or prompt file in another place is not another one when the run has recorded its hash, which is still to be
        compared.
        """
        check_output(self.path)
        for folder in (self.student, self.best):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise UsageError(
                    f"{folder} is a link or a file, where the run would write a folder; move it away, or give another --out"
                )
        if self.configured:
            old, new = defining(self.load_config()), defining(config)
            moved = {name for name, key in MOVABLE.items() if key in self.recorded()}
            differ = [f"{k} ({old[k]} there, {new[k]} here)" for k in new if k not in moved and old[k] != new[k]]
            if differ:
                raise UsageError(
                    f"{self.path} holds a run with other settings: {', '.join(differ)}. "
                    "Give the same settings to resume it, or another --out."
                )
        elif self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise UsageError(f"{self.path} is not empty and holds no run; give another --out")

    def claim(self, config: Config) -> list[str]:
        """Create the folder and write ``config.yaml``, after ``check``; to be called while it is ``locked``.

        Returns what its file system cannot do and a run can do without, in words. Raises SidlsgError when it cannot be written.
        """
        self.check(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lacking = disk.probe(self.path)
            text = yaml.safe_dump(settled(config).as_dict(), sort_keys=False, default_flow_style=None)
            write_text(self.config, text)
            for folder in (self.checkpoints, self.samples):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise SidlsgError(f"cannot write to {self.path}: {error.strerror}; give another --out") from error
        return lacking

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to the run inside the block; makes the folder.

        Raises UsageError when another process has it, SidlsgError when the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SidlsgError(f"cannot write to {self.path}: {error.strerror}; give another --out") from error
        with disk.locked(self.path / ".lock"):
            yield

    def cut_metrics(self, images_seen: int) -> None:
        """Drop metrics and scores beyond ``images_seen``, from which a run resumes, and damaged lines."""
        for path in (self.metrics, self.scores):
            if not path.exists():
                continue
            kept = [line for line in read_metrics(path) if line["images_seen"] <= images_seen]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def run_folder(name: str) -> RunFolder | None:
    """The run folder that a model's name means; None for an alias, any other folder or a hub id."""
    folder = RunFolder(user_path(name))
    return folder if name not in registry() and folder.configured else None


def owner(name: str) -> RunFolder | None:
    """The run that a model belongs to, named by its folder or that of its ``student`` or ``best``; None for any other model."""
    path = Path(name)
    if path.name in ("student", "best") and run_folder(name) is None:
        return run_folder(str(path.parent))
    return run_folder(name)


def missing_of_student(folder: Path) -> str | None:
    """What is not there of a student's folder (the first of its files or parts), or None when it is whole."""
    return missing_part(folder) if (folder / STUDENT_FILE).is_file() else STUDENT_FILE


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` or ``scores.jsonl``; damaged lines (an interrupted write) are skipped."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("images_seen")) is int:
            lines.append(line)
    return lines
