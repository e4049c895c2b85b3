"""What a run folder holds, read so that a run under way, an older one or a damaged one is shown as far as it goes."""

from __future__ import annotations

import bisect
import functools
import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from sidlsg.config import FIELDS, Config
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation.protocol import Protocol, protocols
from sidlsg.files import STATE_FILE, STUDENT_FILE, read_object
from sidlsg.runs.folder import RunFolder
from sidlsg.runs.scores import DISTANCES, comparable, unlike
from sidlsg.runs.sessions import Session, read_sessions
from sidlsg.runs.state import numbered
from sidlsg.settings import make_config, preset_names
from sidlsg.teachers.registry import registry

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run folder. ``problems`` names what could not be read, one sentence each."""

    path: Path
    name: str
    settings: dict[str, Any]  # config.yaml as it is
    config: Config | None  # the same, when this version knows every setting
    metrics: list[Line]
    scores: list[Line]  # that can be compared with the newest one
    grids: list[tuple[int, Path]]  # images seen, file
    teacher_grid: Path | None
    shipped_grid: Path | None  # the teacher's pictures that come with an embedded teacher
    note: dict[str, Any]  # student/sidlsg.json; {} without a student
    state: dict[str, Any]  # state.json of the newest checkpoint, or {}
    sessions: list[Session]  # when and on what it was trained, oldest first
    open_seconds: float | None  # of a session without an end: from its beginning to the newest line
    evals: list[Line]  # results of `sidlsg eval`, as lines of scores, by images seen
    problems: list[str] = field(default_factory=list)

    @property
    def images_seen(self) -> int:
        """Images seen as far as anything in the folder says."""
        places = [line["images_seen"] for line in self.metrics[-1:] + self.scores[-1:]]
        places += [seen for seen, _ in self.grids[-1:]]
        places += [int(facts["images_seen"]) for facts in (self.note, self.state) if number(facts.get("images_seen"))]
        return max(places, default=0)

    @property
    def planned(self) -> int | None:
        images = number(self.settings.get("images"))
        return None if images is None else int(images)

    @property
    def finished(self) -> bool:
        """Whether the student of the last planned image is written."""
        seen = number(self.note.get("images_seen"))
        return seen is not None and self.planned is not None and seen >= self.planned

    @property
    def judged(self) -> list[Line]:
        """The lines that say how good the run is: its scores, or where it has none what `sidlsg eval` found of it, by the newest
        one's protocol and number of pictures."""
        return self.scores or [line for line in self.evals if self.alike(line)]

    def alike(self, line: Line) -> bool:
        """Whether a line of ``evals`` is of the protocol and the number of pictures of the scores; where there are none, of the
        newest of ``evals`` with a distance."""
        distances = [line for line in self.evals if any(key in line for key in DISTANCES)]
        like = (self.scores or distances or self.evals)[-1]
        return not unlike(line, like)

    @property
    def protocol(self) -> Protocol | None:
        return protocols().get(str(self.judged[-1].get("protocol"))) if self.judged else None

    @property
    def distance(self) -> str:
        """Key of the Fréchet distance in ``judged``: "fid" or "fd"."""
        if self.protocol:
            return self.protocol.distance.lower()
        return "fid" if self.judged and "fid" in self.judged[-1] else "fd"

    @property
    def latent_std(self) -> tuple[float, float] | None:
        """The band of the latents' standard deviation, if the settings have one."""
        band = self.settings.get("latent_std")
        limits = [number(value) for value in band] if isinstance(band, list) else []
        return (limits[0], limits[1]) if len(limits) == 2 and limits[0] is not None and limits[1] is not None else None

    def column(self, key: str, lines: list[Line] | None = None) -> tuple[list[int], list[float | None]]:
        """(images seen, values) of a field of ``metrics``, or of other lines; empty when no line has it."""
        found = self.metrics if lines is None else lines
        values = [number(line.get(key)) for line in found]
        if all(value is None for value in values):
            return [], []
        return [line["images_seen"] for line in found], values

    def best(self) -> Line | None:
        """The scores with the smallest distance after image 0, or None."""
        lines = [
            line for line in self.judged if line["images_seen"] > 0 and number(line.get(self.distance)) is not None
        ]
        return min(lines, key=lambda line: float(line[self.distance]), default=None)

    def seconds(self) -> float | None:
        """Time of the training by the speeds in ``metrics``: with grids and checkpoints, without scoring."""
        clock = self.clock()
        return clock[-1][1] if len(clock) > 1 else None

    def clock(self) -> list[tuple[int, float]]:
        """(images seen, seconds of training until then), from (0, 0) on; empty when a line of ``metrics`` has no speed."""
        found = [(0, 0.0)]
        for line in self.metrics:
            rate, (before, passed) = number(line.get("images_per_second")), found[-1]
            if rate is None or rate <= 0:
                return []
            found.append((line["images_seen"], passed + (line["images_seen"] - before) / rate))
        return found

    def seconds_at(self, places: list[float]) -> list[float] | None:
        """Seconds of training until each number of images seen; None when they are not known so far."""
        clock = self.clock()
        if len(clock) < 2:
            return None
        seen, passed = zip(*clock, strict=True)
        found = []
        for place in places:
            after = min(max(1, bisect.bisect_left(seen, place)), len(seen) - 1)
            share = (place - seen[after - 1]) / (seen[after] - seen[after - 1] or 1)
            found.append(passed[after - 1] + share * (passed[after] - passed[after - 1]))
        return found

    def spent(self) -> float | None:
        """Seconds of all sessions, with scoring and the student's writing; None when one has no end on record."""
        found = [number((session.end or {}).get("seconds")) for session in self.sessions]
        if found and found[-1] is None:
            found[-1] = self.open_seconds
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) if known and len(known) == len(found) else None


def number(value: object) -> float | None:
    """A number as a float; None for anything else, and for what no measurement gives (NaN, 1e100 and beyond)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None


def read_run(path: Path) -> Run:
    """Read a run folder. Raises UsageError when ``path`` is none (it has no ``config.yaml``)."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UsageError(f"{path} is no run folder: it has no config.yaml")
    problems: list[str] = []
    settings, config = _settings(folder, problems)
    every = _lines(folder.scores, problems)
    scores = comparable(every)
    if others := sorted({text for line in every if line not in scores for text in _made_otherwise(line, scores[-1])}):
        problems.append(f"{folder.scores}: scores that cannot be compared are left out ({', '.join(others)})")
    states = [path for path in (at / STATE_FILE for at in numbered(folder.checkpoints)) if path.is_file()]
    sessions = read_sessions(folder.sessions)
    return Run(
        path=path,
        name=path.resolve().name,
        settings=settings,
        config=config,
        metrics=_lines(folder.metrics, problems),
        scores=scores,
        grids=sorted((int(p.stem), p) for p in folder.samples.glob("*.png") if p.stem.isascii() and p.stem.isdigit()),
        teacher_grid=folder.teacher_grid if folder.teacher_grid.is_file() else None,
        shipped_grid=teacher.grid if (teacher := registry().get(str(settings.get("teacher")))) else None,
        note=_object(folder.student / STUDENT_FILE, problems),
        state=_object(states[-1], problems) if states else {},
        sessions=sessions,
        open_seconds=_open_seconds(folder, sessions),
        evals=_evals(folder.evals, problems),
        problems=problems,
    )


def _made_otherwise(line: Line, newest: Line) -> list[str]:
    return [f"{key} {line[key]} instead of {newest[key]}" for key in unlike(line, newest)]


def _settings(folder: RunFolder, problems: list[str]) -> tuple[dict[str, Any], Config | None]:
    """The settings as they are written, and as a configuration if they are one of this version."""
    try:
        config = folder.load_config()
        return config.as_dict(), config
    except SidlsgError as error:
        problems.append(f"not a configuration of this version: {error}")
    try:
        raw = yaml.safe_load(folder.config.read_text(encoding="utf-8", errors="replace"))
    except Exception:  # whatever PyYAML raises was named above
        raw = None
    return ({str(k): v for k, v in raw.items()} if isinstance(raw, dict) else {}), None


def _lines(path: Path, problems: list[str]) -> list[Line]:
    """The lines of a ``metrics.jsonl`` or ``scores.jsonl`` in the order of images seen, the last one of each number.

    A damaged line is left out and named; a last line without its end is a write in progress and left out in silence.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path} cannot be read: {error.strerror}")
        return []
    found: dict[int, Line] = {}
    damaged = []
    rows = text.split("\n")
    for place, row in enumerate(rows, start=1):
        line = _parse(row)
        seen = number(line.get("images_seen")) if line else None
        if line and seen is not None and seen >= 0:
            found[int(seen)] = line | {"images_seen": int(seen)}
        elif row.strip() and place < len(rows):
            damaged.append(str(place))
    if damaged:
        some = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        problems.append(f"{path}: damaged and left out: line{'s' if len(damaged) > 1 else ''} {some}")
    return [found[seen] for seen in sorted(found)]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; {} when there is no such file, or, named, when it is damaged."""
    if not path.is_file():
        return {}
    try:
        return read_object(path)
    except SidlsgError:
        problems.append(f"{path} is damaged and left out")
        return {}


def _open_seconds(folder: RunFolder, sessions: list[Session]) -> float | None:
    """From the beginning of a newest session that has no end until anything was written last; None for any other."""
    if not sessions or sessions[-1].end is not None:
        return None
    try:
        begun = datetime.fromisoformat(str(sessions[-1].begin.get("time"))).timestamp()
        newest = max(path.stat().st_mtime for path in (folder.metrics, folder.scores) if path.is_file())
    except (ValueError, OSError):
        return None
    return newest - begun if newest > begun else None


def _evals(folder: Path, problems: list[str]) -> list[Line]:
    """What `sidlsg eval` found of this run, as lines of scores."""
    found = []
    for path in sorted(folder.glob("*.json")):
        results = _object(path, problems)
        scores, about = results.get("scores"), results.get("generation")
        seen = number(about.get("images_seen")) if isinstance(about, dict) else None
        if not isinstance(scores, dict) or seen is None:
            continue
        line = {"images_seen": int(seen), "warnings": results.get("warnings") or []}
        found.append(line | {key: results.get(key) for key in ("protocol", "pictures")} | scores)
    return sorted(found, key=lambda line: line["images_seen"])


def differing(runs: list[Run]) -> list[tuple[str, list[Any]]]:
    """The settings in which runs differ: (name, the value in each run; None where a run has no such setting)."""
    names = [name for name in FIELDS if any(name in run.settings for run in runs)]
    names += sorted({name for run in runs for name in run.settings} - set(FIELDS))
    rows = [(name, [run.settings.get(name) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


@functools.cache
def _presets() -> dict[str, dict[str, Any]]:
    return {name: make_config(name, {}).as_dict() for name in preset_names()}


def closest_preset(config: Config) -> tuple[str, list[tuple[str, Any, Any]]]:
    """The preset that the fewest settings differ from, and those: (name, value here, value in the preset).

    A run folder does not say which preset it was started with.
    """
    here = config.as_dict()
    differ = {
        name: [(key, here[key], preset[key]) for key in here if here[key] != preset[key]]
        for name, preset in _presets().items()
    }
    name = min(differ, key=lambda preset: len(differ[preset]))
    return name, differ[name]
