"""The pictures of an evaluation: list them, record the settings they depend on, and draw those that are missing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidlsg import distributed
from sidlsg.distributed import Processes
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation.scorer import Tick
from sidlsg.files import write_text
from sidlsg.sampling.draw import draw
from sidlsg.sampling.pictures import save_png
from sidlsg.teachers.family import Model


@dataclass(frozen=True)
class Job:
    """One picture to draw; ``path`` is relative to the folder of pictures, and the number in its name is the seed."""

    path: Path
    prompt: str
    seed: int


def caption_jobs(captions: Sequence[str]) -> list[Job]:
    """One job per caption: caption i, drawn with seed i, goes to ``00000i.png``."""
    return [Job(Path(f"{i:06d}.png"), caption, i) for i, caption in enumerate(captions) if caption]


def style_jobs(prompts: dict[str, list[str]]) -> list[Job]:
    """One job per prompt, in HPSv2's layout: prompt i of a style, drawn with seed i, goes to ``<style>/0000i.png``."""
    return [
        Job(Path(style) / f"{i:05d}.png", text, i) for style, texts in prompts.items() for i, text in enumerate(texts)
    ]


@dataclass(frozen=True)
class Settings:
    """The settings that the pictures of an evaluation depend on; saved beside them as ``generation.json``."""

    model: str
    parts_sha256: dict[str, str]  # what the model is: ``Model.digests``
    scheduler: dict[str, Any]
    t_init: int | None
    one_step: bool
    steps: int
    guidance: float | None
    sampler: str | None
    precision: str
    prompts: str
    prompts_sha256: str
    pictures: int
    noise: str = "torch CPU generator, seed = caption number"

    def claim(self, folder: Path, model: Model) -> None:
        """Write ``generation.json``, of pictures of ``model``.

        Raises UsageError when the folder holds pictures made with other settings, SidlsgError when it cannot be written.
        """
        path = folder / "generation.json"
        if path.is_file():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise UsageError(f"{path} is damaged; give another --out") from None
            if isinstance(parts := old.get("parts_sha256"), dict):
                old["parts_sha256"] = model.recognised(parts, self.parts_sha256)
            if differ := differences(_one_by_one(old), _one_by_one(asdict(self))):
                raise UsageError(f"{folder} holds pictures made with other settings: {differ}. Give another --out")
        elif (folder / "images").exists():
            raise UsageError(
                f"{folder / 'images'} exists, but not {path}, which says how they were made; give another --out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(asdict(self), indent=2) + "\n")
        except OSError as error:
            raise SidlsgError(f"cannot write to {folder}: {error.strerror}; give another --out") from None


def _one_by_one(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that pictures must share, with those of each part and of the scheduler, last, under names of their own."""
    shared = {name: value for name, value in settings.items() if name not in ("pictures", "model")}
    found = {name: value for name, value in shared.items() if not isinstance(value, dict)}
    for name, values in shared.items():
        if isinstance(values, dict):
            found |= {f"{name} {key}": value for key, value in values.items()}
    return found


NAMED = 8  # differences in one message


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The settings in which two records differ, as "name (value there, value here)" in one line; empty when in none."""
    differ = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    named = [f"{name} ({_short(there.get(name))} there, {_short(here.get(name))} here)" for name in differ[:NAMED]]
    more = len(differ) - len(named)
    return ", ".join(named) + (f", and {more} more" if more else "")


def _short(value: Any) -> str:
    """A value in at most 40 letters."""
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"{len(value)} values"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs whose picture is not in ``folder`` yet."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} if folder.is_dir() else set()
    return [job for job in jobs if job.path.as_posix() not in names]


def to_draw(jobs: Sequence[Job], folder: Path, processes: Processes) -> list[Job]:
    """The jobs whose picture is missing, the same list in every process.

    The main process alone lists the folder: on a shared disk another one may see files earlier or later, and a picture that
    falls between their shares would never be drawn.
    """
    return distributed.gather(missing(jobs, folder) if processes.main else [])[0]


def check_complete(jobs: Sequence[Job], folder: Path) -> None:
    """Raise SidlsgError when the picture of a job is missing, though all processes have drawn theirs."""
    if lost := missing(jobs, folder):
        raise SidlsgError(
            f"{len(lost):,} of {len(jobs):,} pictures are missing after drawing (first: {folder / lost[0].path}); the folder "
            "must be on a disk that all processes share. Give the same command again to draw them"
        )


def generate(
    model: Model,
    jobs: Sequence[Job],
    folder: Path,
    *,
    batch: int,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    tick: Tick | None = None,
) -> None:
    """Draw the picture of every job into ``folder``.

    Threads save the pictures while the next ones are drawn. A file is renamed only when complete, so an interruption leaves
    no half-written picture.
    """
    for parent in {folder / job.path.parent for job in jobs}:
        parent.mkdir(parents=True, exist_ok=True)
    pictures = draw(
        model,
        [j.prompt for j in jobs],
        [j.seed for j in jobs],
        batch=batch,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
    )
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        waiting: list[Future[None]] = []
        for job, picture in zip(jobs, pictures, strict=True):
            # Fast compression, so that saving does not hold up drawing.
            facts: dict[str, Any] = {"prompt": job.prompt, "seed": job.seed, "model": model.source}
            waiting.append(pool.submit(save_png, picture, folder / job.path, compress_level=1, **facts))
            if len(waiting) >= 4 * batch:
                waiting.pop(0).result()
            if tick:
                tick(1)
        for future in waiting:
            future.result()
