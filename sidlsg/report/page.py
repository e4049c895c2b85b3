"""The page: everything about the runs put into one HTML file that needs no network."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from sidlsg.data import PACKAGE
from sidlsg.evaluation.report import COLUMNS
from sidlsg.files import write_text
from sidlsg.formats import duration
from sidlsg.report import curves, pictures, svg
from sidlsg.report.numbers import count, short
from sidlsg.report.plot import Plot, Series
from sidlsg.report.reading import Line, Run, closest_preset, differing, number, read_run
from sidlsg.report.references import references
from sidlsg.report.verdict import judge
from sidlsg.runs.folder import RunFolder
from sidlsg.runs.sessions import Session
from sidlsg.version import __version__

CLOSE = 1.1  # of the smallest distance; a seed moves a short run's by about as much (docs/claims.md)
TONE_WORDS = {"good": "in favour", "fair": "on the way", "warn": "a warning", "bad": "against", "open": "unknown"}


def write(folder: Path) -> Path:
    """Write ``report.html`` into a run folder; returns its path. Raises UsageError when it is no run folder."""
    path = RunFolder(folder).report
    write_text(path, build([read_run(folder)]))
    return path


def build(runs: Sequence[Run], live: str = "") -> str:
    """The HTML of a report of one run or of several.

    Args:
        live: the version of the page that a server of ``--live`` gives it; "" for a file.
    """
    runs = list(runs)
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    grids = pictures.load_grids(runs)
    seen = sorted({grid.seen for found in grids for grid in found.grids})
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    several = len(runs) > 1
    return (
        _templates()
        .get_template("page.html")
        .render(
            version=__version__,
            title=f"{title} · sidlsg report",
            where=_where(runs),
            css=Markup(style),
            script=Markup(script),
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            live=live,
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            tone_words=TONE_WORDS,
            cards=[_card(run, found, colour) for colour, (run, found) in enumerate(zip(runs, grids, strict=True))],
            comparison=_comparison(runs) if several else "",
            differing=[(name, [_value(v) for v in values]) for name, values in differing(runs)] if several else [],
            problems=[problem for run in runs for problem in run.problems],
            places=[(place, count(place)) for place in seen],
            no_teacher=_no_teacher(runs, grids),
            plots=[_drawn(plot) for plot in curves.plots(runs)],
            generator=_drawn(curves.generator_loss(runs)),
            absent=curves.missing(runs),
            reference_notes=sorted({note for run in runs if (note := references(run).missing)}),
        )
    )


@functools.cache
def _templates() -> Environment:
    """Jinja's environment; everything that is not ours is escaped."""
    environment = Environment(
        loader=PackageLoader("sidlsg", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count, "short": short, "newest": _newest}
    environment.filters |= {"css_class": svg.css_class, "line_class": svg.line_class, "mark_path": svg.mark_path}
    return environment


def _asset(name: str) -> str:
    return (PACKAGE / "report" / name).read_text(encoding="utf-8")


def _newest(series: Series) -> str:
    """The last value of a curve, for the legend."""
    values = [value for value in series.y if value is not None]
    return short(values[-1]) if values else ""


def _drawn(plot: Plot) -> dict[str, Any]:
    return {"plot": plot, "svg": svg.draw(plot, curves.described(plot)), "data": svg.script_data(plot)}


def _where(runs: Sequence[Run]) -> str:
    """What the page is about, above the verdict."""
    if len(runs) > 1:
        return ", ".join(run.name for run in runs)
    run = runs[0]
    parts = [run.name]
    if run.finished:
        parts.append("finished")
    elif run.planned and run.images_seen >= run.planned:
        parts.append("all images seen, the student is not written yet")
    elif run.planned:
        parts.append(f"unfinished: {count(run.images_seen)} of {count(run.planned)} images")
    return " · ".join(parts)


def _card(run: Run, grids: pictures.Grids, colour: int) -> dict[str, Any]:
    """Everything about one run that the page shows outside the plots."""
    preset, changed = closest_preset(run.config) if run.config else ("", [])
    head, rows = _scores(run)
    return {
        "name": run.name,
        "series": Series(run.name, [], [], colour),
        "verdict": judge(run),
        "facts": _facts(run),
        "grids": grids,
        "score_head": head,
        "score_rows": rows,
        "preset": preset,
        "changed": [(name, _value(here), _value(there)) for name, here, there in changed],
        "settings": [(name, _value(value)) for name, value in run.settings.items()],
        "teacher": str(run.settings.get("teacher", "teacher")),
        "sessions": [_session(session) for session in run.sessions],
        "origin": _origin(run),
    }


def _no_teacher(runs: Sequence[Run], grids: Sequence[pictures.Grids]) -> list[str]:
    """Why a teacher's pictures are not beside the student's."""
    without = [run.name for run, found in zip(runs, grids, strict=True) if found.grids and not found.teacher]
    if not without:
        return []
    where = f" of {', '.join(without)}" if len(runs) > 1 else ""
    return [
        f"The pictures of the teacher{where} are not here: a run draws them at its start, where that costs at most a tenth of it."
    ]


def _session(session: Session) -> dict[str, Any]:
    """A session as the page shows it: from when to when, and everything on record of it."""
    begin, end = session.begin, session.end or {}
    until = f" to {_moment(end['time'])}" if "time" in end else ", no end on record"
    seconds, hidden = number(end.get("seconds")), ("event", "time", "images_seen")
    facts = [("images", f"{_value(begin.get('images_seen'))} to {_value(end.get('images_seen'))}")]
    facts += [("time", duration(seconds))] if seconds is not None else []
    facts += [("ended", str(end["how"]))] if "how" in end else []
    facts += [(name.replace("_", " "), _value(value)) for name, value in begin.items() if name not in hidden]
    return {"when": f"{_moment(begin.get('time'))}{until}", "facts": facts}


def _moment(time: object) -> str:
    """An ISO 8601 time to the minute."""
    return str(time)[:16].replace("T", " ")


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """The headline's numbers: (name, value, detail)."""
    _, memory = run.column("peak_gib")
    strategy = run.config.strategy_name if run.config else str(run.settings.get("strategy", "–"))
    if run.config:
        kappas = list(dict.fromkeys(run.config.guidance))
        kappa = f"κ = {kappas[0]:g}" if len(kappas) == 1 else "κ " + ", ".join(f"{k:g}" for k in run.config.guidance)
    else:
        kappa = f"κ = {_value(run.settings.get('kappa'))}"
    planned = f"of {count(run.planned)} planned" if run.planned else ""
    facts = [
        ("teacher", str(run.settings.get("teacher", "–")), ""),
        ("strategy", strategy, kappa),
        ("images seen", count(run.images_seen), planned),
        *_times(run),
        ("trained on", *_device(run)),
        ("peak memory", f"{short(max(v for v in memory if v is not None))} GiB" if memory else "–", ""),
    ]
    best, newest = run.best(), run.judged[-1] if run.judged else None
    for name, line in (("best score", best), ("newest score", newest)):
        if line is None:
            facts.append((name, "–", "not scored"))
            continue
        value, clip = number(line.get(run.distance)), number(line.get("clip"))
        label = run.protocol.distance if run.protocol else run.distance
        detail = [f"CLIP {short(clip)}"] if clip is not None else []
        facts.append(
            (
                name,
                f"{label} {short(value)}" if value is not None else "–",
                ", ".join([*detail, f"at {count(line['images_seen'])}"]),
            )
        )
    return facts


def _times(run: Run) -> list[tuple[str, str, str]]:
    """When the run was trained, how long and how fast: as the terminal says it, of training, without scoring; and in all."""
    seconds, total = run.seconds(), run.spent()
    when, until = "–", ""
    if run.sessions:
        end = run.sessions[-1].end
        when = _moment(run.sessions[0].begin.get("time"))
        until = f"to {_moment(end.get('time'))}" if end else "no end on record"
        until += f", in {len(run.sessions)} parts" if len(run.sessions) > 1 else ""
    return [
        ("began", when, until),
        ("time of training", duration(seconds) if seconds else "–", f"{duration(total)} in all" if total else ""),
        (
            "speed",
            f"{short(run.images_seen / seconds)} images/s" if seconds else "–",
            "without scoring" if seconds else "",
        ),
    ]


def _device(run: Run) -> tuple[str, str]:
    """What the newest session ran on, and in which precision."""
    precision = str(run.settings.get("precision", ""))
    if not run.sessions:
        return "–", precision
    begin = run.sessions[-1].begin
    processes = number(begin.get("processes")) or 1
    return str(begin.get("device", "–")), f"{processes:.0f} processes, {precision}" if processes > 1 else precision


def _scores(run: Run) -> tuple[list[str], list[list[str]]]:
    """Every line of scores as text, the published rows to compare with below."""
    keys = [key for key in COLUMNS if any(key in line for line in [*run.scores, *run.evals])]
    if not keys:
        return [], []

    def row(label: str, line: dict[str, Any]) -> list[str]:
        values = [number(line.get(key)) for key in keys]
        return [label, *("–" if v is None else f"{v:.{COLUMNS[k][1]}f}" for k, v in zip(keys, values, strict=True))]

    known = references(run)
    rows = [row(count(line["images_seen"]), line) for line in run.scores]
    rows += [row(_evaluation(line), line) for line in run.evals]
    rows += [row(f"teacher, {known.teacher_what}, {label}", line) for label, line in known.teacher]
    rows += [row(label, line) for label, line in known.students]
    return ["images seen", *(COLUMNS[key][0] for key in keys)], rows


def _evaluation(line: Line) -> str:
    """What a result of `sidlsg eval` is of."""
    pictures = number(line.get("pictures"))
    many = f", {count(pictures)} pictures" if pictures is not None else ""
    return f"{count(line['images_seen'])}, sidlsg eval, {line.get('protocol')}{many}"


def _origin(run: Run) -> list[tuple[str, str]]:
    """Versions and hashes on record, of the newest checkpoint or the student."""
    facts = run.state or run.note
    found = [("sidlsg", facts.get("sidlsg")), ("prompts, SHA-256", facts.get("prompts_sha256"))]
    parts = facts.get("teacher_sha256")
    if isinstance(parts, dict):
        found += [(f"teacher's {part}, SHA-256", sha) for part, sha in parts.items()]
    found += [
        ("licence of the student", run.note.get("licence")),
        ("protocol of the scores", run.protocol and run.protocol.name),
    ]
    return [(name, str(value)) for name, value in found if value]


def _comparison(runs: Sequence[Run]) -> str:
    """Which run is ahead, when their scores can be compared."""
    scored = [(run, best) for run in runs if (best := run.best())]
    if len(scored) < 2:
        return "Fewer than two of these runs are scored, so the pictures have to be compared by eye."
    if not curves.comparable(list(runs)):
        return "The scores of these runs are of different protocols or numbers of pictures, and cannot be compared."
    scored.sort(key=lambda item: float(item[1][item[0].distance]))
    run, best = scored[0]
    name = run.protocol.distance if run.protocol else run.distance
    text = f"The smallest {name} is that of {run.name}: {short(best[run.distance])} after {count(best['images_seen'])} images"
    if float(scored[1][1][scored[1][0].distance]) < CLOSE * float(best[run.distance]):
        text += f" (that of {scored[1][0].name} is so close that another seed could turn them around)"
    clips = [(other, value) for other, line in scored if (value := number(line.get("clip"))) is not None]
    if not clips:
        return text + "."
    other, value = max(clips, key=lambda item: item[1])
    if other is run:
        return f"{text}; it also has the highest CLIP score there, {short(value)}."
    return f"{text}. The highest CLIP score is that of {other.name}: {short(value)}."


def _value(value: object) -> str:
    """A setting as its preset would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(_value(part) for part in value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
