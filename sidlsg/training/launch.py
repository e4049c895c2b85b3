"""A distillation in three steps: ``prepare`` it (settings, files, what it will cost), show the plan, ``launch`` it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation.protocol import RUN, get_protocol
from sidlsg.evaluation.weights import file_sha256
from sidlsg.formats import duration
from sidlsg.paths import user_path
from sidlsg.planning.gpus import Gpu, get_gpu, preset_for
from sidlsg.planning.here import gpu_here
from sidlsg.planning.plan import long_run_note, misfit, plan, processes_note, room_note, sheet, speed
from sidlsg.planning.recognise import Recognised, recognise
from sidlsg.prompts import PromptFile
from sidlsg.runs.folder import RunFolder, default_name, settled
from sidlsg.settings import make_config
from sidlsg.sheet import Sheet
from sidlsg.teachers.foreign import refuse_few_step_name
from sidlsg.teachers.prompt_lists import prompt_path
from sidlsg.teachers.registry import Location, at_hand, locate, registry
from sidlsg.terminal import Paragraph

if TYPE_CHECKING:
    from sidlsg.teachers.family import Description

DEFAULT_PRESET, DEFAULT_TEACHER = "cpu", "emoji"


@dataclass(frozen=True)
class Job:
    """A run that is ready to start.

    Attributes:
        prompts: None when the list is still to be downloaded, to ``prompts_path``.
        processes: how many the plan is for.
        gpu: the device it is for, when it is a GPU. footprint: of the teacher, as far as it is known.
        problem: why it cannot fit that GPU's memory, and which settings would; None when it does, or nothing is known.
        notes: what is unusual about it, a sentence each.
    """

    config: Config
    preset: str
    folder: RunFolder
    teacher: Location
    prompts: PromptFile | None
    prompts_path: Path
    processes: int
    gpu: Gpu | None
    footprint: Recognised | None
    problem: str | None
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> dict[str, str]:
        """What will run, how it is cut up and what it will cost: named lines of text."""
        listed = f"{self.config.prompts} (to be downloaded to {self.prompts_path})"
        if self.prompts is not None:
            listed = repr(self.prompts)
        return plan(
            self.config, self.preset, self.folder.path, self.teacher, self.footprint, listed, self.processes, self.gpu
        )

    def plan(self, whole: bool = False) -> RenderableType:
        """The lines that matter, in groups, or the ``whole`` plan with every setting; to be printed with ``soft_wrap=True``."""
        notes = [Paragraph(("note: ", "yellow"), note) for note in self.notes]
        return Group(sheet(self.lines, self.config, whole), *([""] if notes else []), *notes)

    def as_dict(self) -> dict[str, Any]:
        """The plan for programs: the lines, the effective configuration, the notes, and why it does not fit, if so."""
        return {
            "plan": self.lines,
            "config": self.config.as_dict(),
            "notes": list(self.notes),
            "problem": self.problem,
        }

    @property
    def complete(self) -> bool:
        """Whether this run has ended already, with its student written."""
        return self.folder.complete(self.config)


def prepare(
    preset: str | None = None, settings: Mapping[str, Any] | None = None, out: Path | None = None, dry_run: bool = False
) -> Job:
    """Settle the configuration, find teacher and prompts, and foresee the cost. Loads no network.

    Args:
        preset: name or file; None is ``cpu`` for the embedded teacher, else the bf16 preset of the GPU that ``settings`` names,
            or of this machine's.
        settings: fields of ``Config`` that beat the preset.
        out: run folder; None is one below ``runs/``, the same for the same settings.
        dry_run: nothing is downloaded, and the plan is for the preset's hardware instead of this machine.

    Raises UsageError for settings, names or files that are wrong.
    """
    settings = settings or {}
    if preset is None:
        preset = chosen_preset(settings.get("teacher", DEFAULT_TEACHER), settings.get("gpu"))
    config = settled(make_config(preset, settings))
    place = locate(config.teacher)
    folder = RunFolder(user_path(out) if out is not None else Path("runs") / default_name(config, preset))
    if not dry_run:
        folder.check(config)
    get_protocol(config.eval_protocol)
    launched = distributed.launched()
    check_scores(place, config)
    notes: tuple[str | None, ...] = (place.note, about_teacher(place, config), about_scores(config))
    path, to_download = prompt_path(config.prompts, download=not dry_run)
    gpu = plan_gpu(config, dry_run)
    found = recognise(place, config.attention if gpu is not None else None)
    processes = launched.world if launched.by_torchrun or not dry_run else config.processes
    planned, size = replace(config, processes=processes), found.footprint if found else None
    notes += (
        processes_note(config, processes),
        long_run_note(config, speed(config, size, gpu, processes)),
        None if dry_run else room_note(config, size, folder.path),
    )
    return Job(
        config=config,
        preset=preset,
        folder=folder,
        teacher=place,
        prompts=None if to_download else PromptFile(path, column=config.caption_column),
        prompts_path=path,
        processes=processes,
        gpu=gpu,
        footprint=found,
        problem=None if gpu is None else misfit(planned, size, gpu),
        notes=tuple(filter(None, notes)),
    )


def about_teacher(place: Location, config: Config) -> str | None:
    """Check what the configurations of a teacher that is at hand say, better before anything is planned than when it is loaded.

    Returns what is unusual about its schedule. Raises UsageError for what is no teacher, or has no such timesteps.
    """
    if place.entry is not None and place.entry.folder is not None:
        return None
    about = described(place)
    if about is None:
        return None
    schedule, last = about.family.schedule(about.scheduler), max(config.t_init, config.t_max)
    if last >= len(schedule):
        raise UsageError(
            f"the schedule of {about.source} has {len(schedule)} timesteps, of which t_init is {config.t_init} and t_max "
            f"{config.t_max}: give both below {len(schedule)} in the preset"
        )
    return about.family.unusual_schedule(schedule, config.t_init)


def check_scores(place: Location, config: Config) -> None:
    """Raise UsageError for scores that say nothing about this teacher: those of the embedded benchmark, of any but ``emoji``."""
    embedded = get_protocol(config.eval_protocol).prompts == "emoji-bench"
    if config.eval_every is None or not embedded or is_emoji(place):
        return
    raise UsageError(
        f"eval_every scores by the protocol {config.eval_protocol}, whose captions and pictures are emoji, which says nothing "
        f"about {place.name}. Compare with images that the teacher itself draws: --set eval_protocol=teacher (needs no real "
        "pictures); or with real ones: --set eval_protocol=gigagan --set eval_reference=FILE of `sidlsg eval stats`; or leave "
        "--eval-every out (--set eval_every=null, where the preset has it)"
    )


def is_emoji(place: Location) -> bool:
    """Whether a teacher is the embedded one, or a copy of it with the same network."""
    home, folder = registry()[DEFAULT_TEACHER].folder, at_hand(place)
    if home is None or folder is None or folder == home:
        return folder == home
    network = "unet/diffusion_pytorch_model.safetensors"
    mine, theirs = folder / network, home / network
    same = mine.is_file() and mine.stat().st_size == theirs.stat().st_size
    return same and file_sha256(mine) == file_sha256(theirs)


def described(place: Location) -> Description | None:
    """What the configurations of a teacher say, checked; None when it is not on this machine.

    Raises UsageError for what is no teacher, which the name of a model of the hub may say already.
    """
    folder = at_hand(place)
    if folder is None:
        refuse_few_step_name(place.name)
        return None
    from sidlsg.teachers.loading import check_teacher, describe

    try:
        about = describe(folder, place.name)
    except UsageError:
        raise
    except SidlsgError:
        if place.folder is None:  # a snapshot in part; what it lacks is still to be downloaded
            return None
        raise
    check_teacher(about)
    return about


def about_scores(config: Config) -> str | None:
    """What scoring does before the run begins; None when that is nothing."""
    if config.eval_every is None or get_protocol(config.eval_protocol).prompts != RUN:
        return None
    return (
        f"before the run the teacher draws {config.eval_images:,} images of its prompts, with which the student's are compared; "
        "they are kept in the cache, for every run of this teacher and these prompts"
    )


def launch(job: Job, console: Console | None = None, force: bool = False) -> RunFolder:
    """Start or resume the run, and return its folder when the student is written. A run that is complete returns at once.

    Args:
        console: where progress goes; None is silent.
        force: also when the plan says that memory will not suffice.

    Raises UsageError for a run that cannot fit or a folder of another run, SidlsgError for one that failed or was stopped
    (what it had written is kept, and the same call goes on from there).
    """
    if job.problem is not None and not force:
        raise UsageError(job.problem)
    if job.complete:
        return job.folder
    if job.prompts is None:
        raise UsageError(
            f"the prompt list {job.config.prompts} has not been downloaded; prepare the run without dry_run"
        )
    from sidlsg.training.trainer import Trainer

    entry, config = job.teacher.entry, job.config
    grid_file = config.grid_prompts or (entry and entry.grid_prompts)
    grid = (PromptFile(grid_file) if grid_file else job.prompts)[: config.grid_images]
    try:
        Trainer(config, job.folder, job.prompts, grid, console or Console(quiet=True)).run()
    finally:
        distributed.stop()
    return job.folder


def summary(folder: RunFolder, teacher: str) -> RenderableType:
    """Where everything is that a run has left so far, what to do with it, and last the page that shows it."""
    drawn = sorted(folder.samples.glob("[0-9]*.png"))
    places = {
        "student": folder.student if folder.student.is_dir() else None,
        "best by score": folder.best if folder.best.is_dir() else None,
        "latest pictures": drawn[-1] if drawn else None,
        "checkpoints": folder.checkpoints if not folder.student.is_dir() else None,
    }
    name = shlex.quote(str(folder.path))
    commands = {
        "draw": f'sidlsg sample "..." --model {name}',
        "compare": f'sidlsg compare "..." --models {name},{shlex.quote(teacher)}',
        "score": f"sidlsg eval --model {name}",
    }
    shown = Sheet(
        {
            "How it went": outcome(folder),
            "Where it is": {key: str(path) for key, path in places.items() if path},
            "What to do with it": commands,
        }
    )
    if not folder.report.is_file():
        return shown
    return Group(
        shown, Paragraph("\nOpen ", (str(folder.report), "bold"), " in a browser: it shows whether this works.")
    )


def outcome(folder: RunFolder) -> dict[str, str]:
    """The report's verdict on a run so far, its distance from start to end beside the teacher's range, and its time of training;
    without what the run's files do not say."""
    from sidlsg.report.numbers import short
    from sidlsg.report.reading import number, read_run
    from sidlsg.report.references import references
    from sidlsg.report.verdict import judge

    found: dict[str, str] = {}
    with suppress(Exception):  # a run has ended well, whatever its report thinks of a damaged file
        run = read_run(folder.path)
        verdict = judge(run)
        found["verdict"] = verdict.word if verdict.tone in ("good", "open") else f"{verdict.word}. {verdict.sentence}"
        values = [value for line in run.scores if (value := number(line.get(run.distance))) is not None]
        if len(values) > 1:
            known = references(run)
            span = known.span(run.distance)
            teacher = f" (the teacher's {known.teacher_what}: {short(span[0])} to {short(span[1])})" if span else ""
            found[run.distance] = f"{short(values[0])} → {short(values[-1])}{teacher}"
        if seconds := run.seconds():
            found["time"] = f"{duration(seconds)} of training for {run.images_seen:,} images"
    return found


def chosen_preset(teacher: str, gpu: str | None) -> str:
    """Choose the preset of a run that names none: ``cpu`` for the embedded teacher, else by memory of the GPU named, or here.

    Raises UsageError for a teacher that is none, an unknown GPU, where there is no GPU, and where no preset fits.
    """
    place = locate(teacher)
    if teacher == DEFAULT_TEACHER:
        return DEFAULT_PRESET
    if place.entry is None or place.entry.folder is None:
        described(place)
    card = get_gpu(gpu) if gpu else gpu_here()
    if card is None:
        raise UsageError(
            f"--teacher {teacher} needs a --preset or a --gpu, for PyTorch sees no GPU here (sidlsg doctor says why): for "
            "instance --gpu 4090 --dry-run. What there is: sidlsg presets list"
        )
    found = recognise(place)
    return preset_for(card.memory, found.footprint.name if found else "sd15")


def plan_gpu(config: Config, dry_run: bool) -> Gpu | None:
    """The GPU to plan for: the one the run would use; in a dry run, --gpu or the preset's. None on a CPU.

    A GPU that the table lacks is known by its memory only: no estimate of time.
    """
    planned = get_gpu(config.gpu) if config.gpu else None
    if dry_run:
        return planned
    from sidlsg.devices import pick_device

    device = pick_device(config.device, distributed.launched().local_rank)
    if device.type != "cuda":
        return None
    return gpu_here(device.index or 0)
