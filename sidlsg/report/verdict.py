"""Whether a distillation works, in one sentence, and what that is believed from."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

from sidlsg.report.numbers import count, percent, short
from sidlsg.report.reading import Run, number
from sidlsg.report.references import references

Tone = Literal["good", "warn", "bad", "open"]  # open: nothing can be said

BETTER = 0.9  # of the distance at the start; a distance below it is not noise
RISEN = 1.1  # of the smallest distance; above it the student has become worse again
SHRUNK = 0.95  # of the gap's median over the first half of the run
LINES = 8  # fewer lines of metrics say nothing about a trend
MANY = 0.01  # of all samples; more skipped ones are a fault


@dataclass(frozen=True)
class Evidence:
    """One thing that a verdict rests on: ``what`` names it, ``fact`` says it in a few words, ``text`` in a whole sentence."""

    tone: Tone
    what: str
    fact: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """``word``: a few words; ``sentence``: the whole judgement; ``evidence``: what it rests on."""

    tone: Tone
    word: str
    sentence: str
    evidence: list[Evidence]


def judge(run: Run) -> Verdict:
    """The verdict on a run. Scores alone can say that it works; everything else can only speak against it."""
    score, latents, skipped, gap = _score(run), _latents(run), _skipped(run), _gap(run)
    evidence = [score, latents, skipped, gap]
    if not run.metrics and len(run.scores) < 2:
        return Verdict("open", "Nothing to judge yet", "The run has not written a line of metrics yet.", evidence)
    tone, word, text = score.tone, WORDS[score.tone], score.text
    if tone == "good":
        text = f"This distillation works: {text}"
    elif tone == "open":
        text = f"Whether this distillation works cannot be said from numbers. {text}"
    against = [found for found in (latents, skipped) if found.tone in ("bad", "warn")]
    if against:
        tone = "bad" if any(found.tone == "bad" for found in [score, *against]) else "warn"
        word += "" if score.tone == "bad" else ", with a warning"
        text += " But: " + " ".join(found.text for found in against)
    elif latents.tone == skipped.tone == "good":
        also = ["The latents stayed inside their band", "no sample was skipped"]
        also += ["the gap between the scores shrinks"] if gap.tone == "good" else []
        text += f" {', '.join(also[:-1])} and {also[-1]}."
    return Verdict(tone, word, text, evidence)


WORDS: dict[Tone, str] = {"good": "It works", "warn": "In doubt", "bad": "It does not work", "open": "Not scored"}


def _score(run: Run) -> Evidence:
    """The newest distance against that at the start, and against the teacher's rows."""
    key, what = run.distance, "Score"
    name = run.protocol.distance if run.protocol else key
    points = [(line["images_seen"], value) for line in run.scores if (value := number(line.get(key))) is not None]
    if not run.scores:
        why = "--eval-every was not given" if run.settings.get("eval_every") is None else "none is written yet"
        return Evidence("open", what, "none", f"There are no scores ({why}): look at the pictures below.")
    if len(points) < 2 or points[0][0] > 0:
        return Evidence("open", what, "too few", f"There is no {name} of image 0 and of a later place to compare yet.")
    start, (seen, newest) = points[0][1], points[-1]
    at, best = min(points[1:], key=lambda point: point[1])
    known = references(run)
    span, rows = known.span(key), ""
    if span:
        rows = f"; the teacher's {known.teacher_what} reach {short(span[0])}"
        rows += f" to {short(span[1])}, depending on its guidance" if span[1] > span[0] else ""
    fact = f"{name} {short(start)} → {short(newest)}"
    path = f"from {short(start)} before the first update to {short(newest)} after {count(seen)} images{rows}"
    if newest > start:
        return Evidence("bad", what, fact, f"The student is worse than at the start: {name} went {path}.")
    if newest > BETTER * start:
        return Evidence("warn", what, fact, f"The student has hardly improved: {name} went {path}.")
    if newest > RISEN * best:
        text = f"The student has become worse since {count(at)} images, where {name} was {short(best)}: it went {path}."
        return Evidence("warn", what, f"{fact}, but {short(best)} at {count(at)}", text + " The best one is in best/.")
    return Evidence("good", what, fact, f"{name} fell {path}.")


def _latents(run: Run) -> Evidence:
    """Mean and standard deviation of x_g against the band outside which a run stops."""
    what = "Latents"
    lines = [line for line in run.metrics if "x_mean" in line and "x_std" in line]
    allowed, limits = number(run.settings.get("latent_mean")), run.latent_std
    if not lines or allowed is None or limits is None:
        return Evidence("open", what, "not on record", "Whether the latents stayed inside their band is not on record.")
    low, high = limits
    outside = [
        line["images_seen"]
        for line in lines
        if (mean := number(line["x_mean"])) is None
        or (deviation := number(line["x_std"])) is None
        or abs(mean) > allowed
        or not low <= deviation <= high
    ]
    if outside:
        text = f"The latents left their band (mean ±{allowed:g}, standard deviation {low:g} to {high:g})"
        return Evidence("bad", what, "left their band", f"{text} at {count(outside[0])} images.")
    return Evidence("good", what, "inside their band", "The latents stayed inside their band.")


def _skipped(run: Run) -> Evidence:
    """Samples left out for values that are not finite."""
    what = "Skipped samples"
    _, values = run.column("skipped_samples")
    if not values:
        return Evidence("open", what, "not on record", "Whether samples were skipped is not on record.")
    skipped = sum(value for value in values if value is not None)
    if skipped == 0:
        return Evidence("good", what, "none", "No sample was skipped.")
    share = skipped / max(1, 2 * run.images_seen)  # one image is a sample of each of the two updates
    text = f"{skipped:,.0f} samples were skipped for values that are not finite ({percent(share)})."
    return Evidence("bad" if share > MANY else "warn", what, f"{skipped:,.0f} ({percent(share)})", text)


def gap_of(line: dict[str, object]) -> float | None:
    """Root mean square over the bands of ``score_gap`` that have a value."""
    bands = line.get("score_gap")
    values = [v for v in map(number, bands) if v is not None] if isinstance(bands, list) else []
    return (sum(v * v for v in values) / len(values)) ** 0.5 if values else None


def _gap(run: Run) -> Evidence:
    """Whether ε_φ and ε_ψ come closer. The gap starts at 0 where κ2 = κ4 (ψ is a copy of φ), so the start is no measure."""
    what = "Gap between the scores"
    values = [value for line in run.metrics if (value := gap_of(line)) is not None]
    if not values:
        return Evidence("open", what, "not on record", "The gap between the scores is not on record.")
    if len(values) < LINES:
        return Evidence(
            "open", what, "too few lines", "There are too few lines of metrics to say whether the gap shrinks."
        )
    first, second = median(values[: len(values) // 2]), median(values[len(values) // 2 :])
    fact = f"{short(first)} → {short(second)}, medians of both halves"
    if second < SHRUNK * first:
        return Evidence("good", what, fact, "The gap between the scores shrinks.")
    return Evidence("open", what, fact, "The gap between the scores does not shrink.")
