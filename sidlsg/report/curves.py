"""The plots of a report: which fields of a run they show, and what to hold them against."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

from sidlsg.method.bands import BANDS, band_edges
from sidlsg.report.numbers import short
from sidlsg.report.plot import CIRCLE, DIAMOND, Plot, Reference, Series, thin
from sidlsg.report.reading import Line, Run, number
from sidlsg.report.references import references
from sidlsg.report.verdict import gap_of
from sidlsg.runs import scores


def plots(runs: list[Run]) -> list[Plot]:
    """Every plot that the runs have values for, scores first."""
    found = [
        _distance(runs),
        _clip(runs),
        _trade_off(runs),
        _precision_recall(runs),
        _gap(runs),
        _fake_loss(runs),
        _mean(runs),
        _deviation(runs),
        _gradients(runs),
        _metric(
            runs, "images_per_second", "speed", "Speed", "images/s", "With grids and checkpoints, without scoring."
        ),
        _metric(runs, "peak_gib", "memory", "Peak memory", "GiB", "Of the first process, in the updates alone."),
    ]
    return [plot for plot in found if plot.series]


def generator_loss(runs: list[Run]) -> Plot:
    """θ's loss, which tells nothing (the note with it says so)."""
    return _metric(runs, "loss_generator", "loss-generator", "Loss of θ", "", "Of either sign.", from_zero=False)


def missing(runs: list[Run]) -> list[str]:
    """What a report of these runs cannot show, one sentence each."""
    wanted = {
        "scores (fd or FID, CLIP)": lambda run: bool(run.judged),
        "the gap between the scores (score_gap)": lambda run: any(gap_of(line) is not None for line in run.metrics),
        "the teacher's loss at ψ's place (loss_reference)": lambda run: bool(run.column("loss_reference")[0]),
        "gradient norms (grad_norm_fake, grad_norm_generator)": lambda run: bool(run.column("grad_norm_fake")[0]),
        "sample grids": lambda run: bool(run.grids),
    }
    sentences = []
    for what, has in wanted.items():
        without = [run.name for run in runs if not has(run)]
        if without:
            where = f" in {', '.join(without)}" if len(runs) > 1 else ""
            sentences.append(f"Not on record{where}: {what}.")
    return sentences


def _series(
    run: Run, key: str, name: str, colour: int | None, lines: list[Line] | None = None, dashed: bool = False
) -> list[Series]:
    """One series of a field; none when the run does not have it."""
    found, y = run.column(key, lines)
    if not found:
        return []
    x, y = thin(found, y)
    return [Series(name, x, y, colour, dashed, seconds=run.seconds_at(x))]


def _metric(runs: list[Run], key: str, file: str, title: str, unit: str, how: str, from_zero: bool = True) -> Plot:
    """A single field of ``metrics`` for every run."""
    series = [line for i, run in enumerate(runs) for line in _series(run, key, _named(run, runs, title), i)]
    return Plot(file, title, unit, how, series, from_zero=from_zero)


def _named(run: Run, runs: list[Run], what: str) -> str:
    """What a curve is called: what it shows when there is one run, else which run it is."""
    return what.lower() if len(runs) == 1 else run.name


def comparable(runs: list[Run]) -> bool:
    """Whether all scores were made in the same way."""
    newest = [run.judged[-1] for run in runs if run.judged]
    alike = len({run.distance for run in runs if run.judged}) < 2
    return alike and len(scores.comparable(newest)) == len(newest)


def _score(runs: list[Run], key: str | None, title: str, how: str, y_log: bool) -> Plot:
    """A score over images seen, with the teacher's range and our student's line (``key`` None: the distance)."""
    scored = [run for run in runs if run.judged]
    series = [
        line
        for run in scored
        for line in _series(run, key or run.distance, _named(run, runs, "student"), runs.index(run), run.scores)
    ]
    evaluated = [line for run in runs for line in _evaluated(run, runs, key)]
    series += evaluated
    how += " Diamonds: found by sidlsg eval." if evaluated and len(runs) > 1 else ""
    held: list[Reference] = []
    if scored and comparable(runs):
        known, field = references(scored[0]), key or scored[0].distance
        if span := known.span(field):
            labels = [label for label, row in known.teacher if number(row.get(field)) is not None]
            ends = f", {labels[0]}" if labels[0].startswith("CFG") else ""
            ends += f" to {labels[-1].removeprefix('CFG ')}" if len(labels) > 1 else ""
            held.append(Reference(f"teacher, {known.teacher_what}{ends}", *span))
        if len(known.students) == 1 and (value := number(known.students[0][1].get(field))) is not None:
            held.append(Reference(known.students[0][0], value, value))
    return Plot(key or "distance", title, "", how, series, held, x_log=True, y_log=y_log)


def _evaluated(run: Run, runs: list[Run], key: str | None) -> list[Series]:
    """What `sidlsg eval` found of a run, as marks: what is like its scores, or all where it has none."""
    lines = [line for line in run.evals if run.alike(line)]
    key = key or run.distance
    points = [(float(line["images_seen"]), value) for line in lines if (value := number(line.get(key))) is not None]
    if not points:
        return []
    x, y = [list(part) for part in zip(*points, strict=True)]
    alone = len(runs) == 1
    name = "sidlsg eval" if alone else f"{run.name}, sidlsg eval"
    return [
        Series(name, x, y, runs.index(run), seconds=run.seconds_at(x), mark=DIAMOND, joined=False, listed=alone),
    ]


def _distance(runs: list[Run]) -> Plot:
    names = {run.protocol.distance if run.protocol else run.distance for run in runs if run.judged}
    return _score(runs, None, " / ".join(sorted(names)), "Smaller is better.", y_log=True)


def _clip(runs: list[Run]) -> Plot:
    return _score(runs, "clip", "CLIP score", "Larger is better: pictures that fit their captions.", y_log=False)


def _precision_recall(runs: list[Run]) -> Plot:
    series = []
    for i, run in enumerate(runs):
        for key, dashed in (("precision", False), ("recall", True)):
            name = key if len(runs) == 1 else f"{run.name}, {key}"
            series += _series(run, key, name, i, run.scores, dashed)
    how = "Precision: how real the pictures look; recall: how much of the variety of real pictures they have."
    return Plot("precision-recall", "Precision and recall", "", how, series, x_log=True)


def _trade_off(runs: list[Run]) -> Plot:
    """The paper's Figure 9: the smallest distance of each run and the CLIP score there, beside the teacher's rows."""
    scored = [run for run in runs if (best := run.best()) and number(best.get("clip")) is not None]
    series: list[Series] = []
    if scored and comparable(runs):
        key, known = scored[0].distance, references(scored[0])
        if max(len(scored), len(known.teacher), len(known.students)) < 2:
            return Plot("trade-off", "", "", "", [])
        shipped = len(known.students) == 1
        series = [
            *_published(f"teacher, {known.teacher_what}", known.teacher, key, CIRCLE),
            *_published(known.students[0][0] if shipped else "students of the paper", known.students, key, DIAMOND),
        ]
        for run in scored:
            best = run.best() or {}
            x, y, name = float(best[key]), number(best["clip"]), _named(run, runs, "student")
            series.append(Series(name, [x], [y], runs.index(run), labels=[""]))
    name = scored[0].protocol.distance if scored and scored[0].protocol else "fd"
    how = "Up and to the left is better. Each run at its smallest distance, as in the paper's Figure 9."
    title = f"CLIP score against {name}"
    return Plot("trade-off", title, "CLIP score", how, series, x_label=name, x_log=True, scatter=True)


def _published(name: str, rows: list[tuple[str, dict[str, Any]]], key: str, mark: int) -> list[Series]:
    """Rows of ``published.yaml`` as labelled points of a trade-off; a single one needs no label beside its name."""
    both = [
        (x, y, label)
        for label, row in rows
        if (x := number(row.get(key))) is not None and (y := number(row.get("clip"))) is not None
    ]
    if not both:
        return []
    xs, ys, labels = zip(*both, strict=True)
    prefixes = ("SD1.5, SiD-LSG ", "SD2.1-base, SiD-LSG ")
    texts = [functools.reduce(str.removeprefix, prefixes, label) if len(both) > 1 else "" for label in labels]
    return [Series(name, list(xs), list(ys), None, labels=texts, mark=mark)]


def _gap(runs: list[Run]) -> Plot:
    """One run: a curve for each band of t. Several: one for each run, the root mean square over the bands."""
    series: list[Series] = []
    if len(runs) == 1:
        run = runs[0]
        names = _band_names(run)
        for band in range(BANDS):
            lines = [
                {"images_seen": line["images_seen"], "gap": bands[band]}
                for line in run.metrics
                if isinstance(bands := line.get("score_gap"), list) and len(bands) == BANDS
            ]
            series += _series(run, "gap", names[band], band, lines)
    else:
        for i, run in enumerate(runs):
            lines = [{"images_seen": line["images_seen"], "gap": gap_of(line)} for line in run.metrics]
            series += _series(run, "gap", run.name, i, lines)
    how = (
        "How far the teacher's and ψ's guided predictions are apart on the student's pictures. Where ψ starts as a copy of the "
        "teacher it rises from 0 while ψ learns these pictures, and falls as the pictures become the teacher's."
    )
    return Plot("score-gap", "Gap between the scores", "‖ε_φ − ε_ψ‖, rms per element", how, series, y_log=True)


def _band_names(run: Run) -> list[str]:
    low, high = number(run.settings.get("t_min")), number(run.settings.get("t_max"))
    if low is None or high is None:
        return [f"quarter {i + 1} of t" for i in range(BANDS)]
    return [f"t {a} to {b - 1}" for a, b in pairwise(band_edges((int(low), int(high))))]


def _fake_loss(runs: list[Run]) -> Plot:
    series: list[Series] = []
    for i, run in enumerate(runs):
        name = "ψ" if len(runs) == 1 else f"{run.name}, ψ"
        series += _series(run, "loss_fake", name, i, run.metrics)
        grey = None if len(runs) == 1 else i
        series += _series(run, "loss_reference", name.replace("ψ", "teacher"), grey, run.metrics, dashed=True)
    if not any(line.dashed for line in series):
        return Plot(
            "loss-fake", "Loss of ψ", "squared noise", "Alone it says little about the pictures.", series, y_log=True
        )
    how = "ψ learns the student's pictures, the teacher knows its own: the nearer their losses, the more alike the pictures."
    return Plot("loss-fake", "Loss of ψ beside the teacher's", "squared noise", how, series, y_log=True)


def _mean(runs: list[Run]) -> Plot:
    plot = _metric(runs, "x_mean", "latent-mean", "Latent mean", "scaled", "", from_zero=False)
    allowed = number(runs[0].settings.get("latent_mean"))
    held = [] if allowed is None else [Reference("allowed", -allowed, allowed)]
    how = "Should stay put, inside its band. Outside it the run stops."
    return Plot(plot.key, plot.title, plot.unit, how, plot.series, held)


def _deviation(runs: list[Run]) -> Plot:
    plot = _metric(runs, "x_std", "latent-std", "Latent standard deviation", "scaled", "", from_zero=False)
    held = [Reference("allowed", *limits)] if (limits := runs[0].latent_std) else []
    how = "Should stay put, inside its band. Outside it the run stops."
    return Plot(plot.key, plot.title, plot.unit, how, plot.series, held, y_log=True)


def _gradients(runs: list[Run]) -> Plot:
    series = []
    for i, run in enumerate(runs):
        for key, letter, dashed in (("grad_norm_fake", "ψ", False), ("grad_norm_generator", "θ", True)):
            series += _series(run, key, letter if len(runs) == 1 else f"{run.name}, {letter}", i, run.metrics, dashed)
    how = "Steady is good; a steep rise comes before a divergence."
    return Plot("gradients", "Gradient norms", "", how, series, y_log=True)


def described(plot: Plot) -> str:
    """A plot in words, for those who do not see it."""
    parts = []
    for series in plot.series:
        values = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
        if not values:
            continue
        if plot.scatter:
            parts.append(f"{series.name}: " + "; ".join(f"{short(x)}, {short(y)}" for x, y in values))
            continue
        low, high = min(y for _, y in values), max(y for _, y in values)
        parts.append(
            f"{series.name}: first {short(values[0][1])}, newest {short(values[-1][1])}, {short(low)} to {short(high)}"
        )
    for held in plot.references:
        parts.append(f"{held.name}: {short(held.low)}" + (f" to {short(held.high)}" if held.high > held.low else ""))
    return f"{plot.title} over {plot.x_label}. " + ". ".join(parts) + "."
