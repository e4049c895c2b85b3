"""The pictures of an evaluation: list them, record the settings they depend on, and draw those that are missing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sidlsg import distributed
from sidlsg.distributed import Processes
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation.picture_file import text_sha256
from sidlsg.evaluation.pictures import Folder
from sidlsg.evaluation.scorer import Tick
from sidlsg.files import PART, write_text
from sidlsg.sampling.draw import check_sampling, draw
from sidlsg.sampling.pictures import save_png
from sidlsg.teachers.family import Model

# Pictures that each process draws before it waits for the others: one that waits for all the rest at the end, on a slower device,
# would wait longer than a process group allows.
ROUND = 128
STALE = 3600.0  # seconds


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


NOISE = "torch CPU generator, seed = caption number"


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
    noise: str = NOISE
    names: tuple[str, ...] = ()  # of the model, by which its pictures may note it: all those it was drawn under here

    def claim(self, folder: Path, model: Model) -> Settings:
        """Write ``generation.json``, of pictures of ``model``; return what it holds: these settings, and all names of the model.

        Raises UsageError when the folder holds pictures made with other settings, SidlsgError when it cannot be written.
        """
        names = [self.model]
        path = folder / "generation.json"
        if path.is_file():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise UsageError(f"{path} is damaged; give another --out") from None
            if isinstance(parts := old.get("parts_sha256"), dict):
                old["parts_sha256"] = model.recognised(parts, self.parts_sha256)
            if differ := differences(_one_by_one(old), identity(self)):
                raise UsageError(f"{folder} holds pictures made with other settings: {differ}. Give another --out")
            names = [*old.get("names", [old.get("model", self.model)]), self.model]
        elif (folder / "images").exists():
            raise UsageError(
                f"{folder / 'images'} exists, but not {path}, which says how they were made; give another --out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            claimed = replace(self, names=tuple(dict.fromkeys(names)))
            write_text(path, json.dumps(asdict(claimed), indent=2) + "\n")
        except OSError as error:
            raise SidlsgError(f"cannot write to {folder}: {error.strerror}; give another --out") from None
        return claimed


def identity(settings: Settings) -> dict[str, Any]:
    """What two pictures of one caption must share to be the same: the settings, each under a name of its own."""
    return _one_by_one(asdict(settings))


def _one_by_one(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that pictures must share, with those of each part and of the scheduler, last, under names of their own."""
    shared = {name: value for name, value in settings.items() if name not in ("pictures", "model", "names")}
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


def check_drawn(jobs: Sequence[Job], folder: Path, names: Collection[str]) -> None:
    """Raise UsageError when a picture that is there is not the one that its job draws, by what ``save_png`` notes in it.

    Args:
        names: of the model that draws.
    """
    lost = set(missing(jobs, folder))
    there = [job for job in jobs if job not in lost]
    headers = Folder(folder, tuple(folder / job.path for job in there), None).headers
    other = [
        (job, header)
        for job, header in zip(there, headers, strict=True)
        if (header.seed, header.prompt_sha256) != (str(job.seed), text_sha256(job.prompt)) or header.model not in names
    ]
    if not other:
        return
    job, header = other[0]
    said = (
        "it does not say how it was drawn"
        if header.seed is None
        else f"it has the seed {header.seed}, not {job.seed}"
        if header.seed != str(job.seed)
        else "it has another prompt"
        if header.prompt_sha256 != text_sha256(job.prompt)
        else f"it was drawn by {header.model}"
    )
    raise UsageError(
        f"{len(other):,} of the {len(there):,} pictures in {folder} are not those that this command draws (first: {job.path}: "
        f"{said}); delete them to have them drawn again, or score the folder as it is with --images"
    )


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs whose picture is not in ``folder`` yet."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} if folder.is_dir() else set()
    return [job for job in jobs if job.path.as_posix() not in names]


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of processes that were killed: none is written for so long as ``STALE``."""
    for path in folder.rglob(f"*{PART}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


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


def settings_of(
    model: Model,
    options: Mapping[str, Any],
    precision: str,
    prompts: str,
    prompts_sha256: str,
    pictures: int,
    noise: str = NOISE,
) -> Settings:
    """The settings of pictures that ``model`` draws with the sampling ``options`` (steps, guidance, sampler; None: the default).

    Raises UsageError as ``check_sampling`` does.
    """
    steps, guidance = check_sampling(model, **options)
    return Settings(
        model=model.source,
        parts_sha256=model.digests(),
        scheduler=model.scheduler_config,
        t_init=model.student["t_init"] if model.student else None,
        one_step=model.student is not None,
        steps=steps,
        guidance=guidance,
        sampler=options.get("sampler") or (None if model.student else model.scheduler_config["_class_name"]),
        precision=precision,
        prompts=prompts,
        prompts_sha256=prompts_sha256,
        pictures=pictures,
        noise=noise,
    )


def draw_missing(
    model: Model,
    jobs: Sequence[Job],
    folder: Path,
    settings: Settings,
    processes: Processes,
    *,
    options: Mapping[str, Any],
    batch: int,
    bar: Callable[[str, int], Tick],
) -> Settings:
    """Draw the pictures that are missing in ``folder``/images, all processes together, and return what ``generation.json`` says.

    Args:
        options: of sampling, as for ``settings_of``.
        bar: starts a progress bar (name, total) and returns the function that advances it.

    Raises UsageError when the folder holds pictures made with other settings, or others than these jobs draw; SidlsgError when
    one cannot be written.
    """
    images = folder / "images"
    if processes.main:
        settings = settings.claim(folder, model)
        check_drawn(jobs, images, settings.names)
        remove_unfinished(images)
    distributed.barrier()
    todo = to_draw(jobs, images, processes)
    shares = -(-len(todo) // processes.world)
    tick = bar(
        f"drawing ({len(jobs) - len(todo):,} of {len(jobs):,} are there)", len(todo[processes.rank :: processes.world])
    )
    for start in range(0, shares, ROUND):
        part = todo[start * processes.world : (start + ROUND) * processes.world]
        generate(model, part[processes.rank :: processes.world], images, batch=batch, tick=tick, **options)
        distributed.barrier()
    if processes.main:
        check_complete(jobs, images)
    return settings


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
