"""How far a distillation has come, in one sentence, and what that is believed from."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

from sidlsg.report.numbers import count, percent, short, times
from sidlsg.report.reading import Run, number
from sidlsg.report.references import references

Tone = Literal["good", "fair", "warn", "bad", "open"]  # fair: on the way; open: nothing can be said

BETTER = 0.9  # of the distance at the start; a distance below it is not noise
RISEN = 1.1  # of the smallest distance; above it the student has become worse again
EQUAL = 1.1  # of the teacher's smallest distance; up to it the student is as good
NEAR = 1.25  # of the teacher's largest distance; up to it the student is close
ALIKE = 0.3  # of the teacher's diversity over seeds; below it one prompt has nearly one picture
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
    """``word``: a grade in a few words; ``sentence``: the whole judgement; ``evidence``: what it rests on."""

    tone: Tone
    word: str
    sentence: str
    evidence: list[Evidence]


@dataclass(frozen=True)
class Grade:
    """How far a student has come, by its scores: ``word`` is what a verdict begins with."""

    tone: Tone
    word: str
    evidence: Evidence


def judge(run: Run) -> Verdict:
    """Grade a run. Scores alone can say how good its student is; everything else can only speak against it."""
    seeds, latents, skipped, gap = _seeds(run), _latents(run), _skipped(run), _gap(run)
    grade = _grade(run, seeds)
    evidence = [grade.evidence, *([seeds] if seeds else []), latents, skipped, gap]
    if not run.metrics and len(run.judged) < 2:
        return Verdict("open", "Nothing to judge yet", "The run has not written a line of metrics yet.", evidence)
    tone, word, text = grade.tone, grade.word, grade.evidence.text
    if grade.word != UNKNOWN and not run.finished:
        word += " so far"
    if grade.word == AS_GOOD and seeds and seeds.tone == "open":
        text += f" {seeds.text}"
    against = [found for found in (seeds, latents, skipped) if found and found.tone in ("bad", "warn")]
    if against:
        worst: list[Tone] = [grade.tone, *(found.tone for found in against)]
        tone = "bad" if "bad" in worst else "warn"
        word += "" if grade.tone == "bad" else ", with a warning"
        text += " But: " + " ".join(found.text for found in against)
    elif latents.tone == skipped.tone == "good":
        also = ["The latents stayed inside their band", "no sample was skipped"]
        also += ["the gap between the scores shrinks"] if gap.tone == "good" else []
        text += f" {', '.join(also[:-1])} and {also[-1]}."
    return Verdict(tone, word, text, evidence)


UNKNOWN, NOT, FAR, LEARNING, CLOSE, AS_GOOD = (
    "Not scored",
    "Not learning",
    "Far from its teacher",
    "Learning",
    "Close",
    "As good as its teacher",
)


def _grade(run: Run, seeds: Evidence | None) -> Grade:
    """The newest distance against the teacher's, and against that at image 0.

    As good as its teacher: up to ``EQUAL`` times its smallest distance, and not with one picture for all seeds.
    Close: up to ``NEAR`` times its largest distance. Learning: up to ``BETTER`` of the distance at image 0; far from
    its teacher: where that is not known. Not learning: all else.
    """
    key, what = run.distance, "Score"
    name = run.protocol.distance if run.protocol else key
    points = [(line["images_seen"], value) for line in run.judged if (value := number(line.get(key))) is not None]
    start = points[0][1] if points and points[0][0] == 0 else None
    later, known = points[start is not None :], references(run)
    span = known.span(key)
    if not later or (start is None and span is None):
        why = "--eval-every was not given" if run.settings.get("eval_every") is None else "none is written yet"
        fact, text = "none", f"There are no scores ({why}): look at the pictures below."
        if run.judged:
            fact, text = "too few", f"There is no {name} of image 0 and of a later place to compare yet."
        return Grade("open", UNKNOWN, Evidence("open", what, fact, f"{CANNOT} {text}"))
    (seen, newest), (at, best) = later[-1], min(later, key=lambda point: point[1])
    fact = f"{name} {short(newest)}" if start is None else f"{name} {short(start)} → {short(newest)}"
    fact += f" (teacher {_reach(span).partition(',')[0]})" if span else ""
    course = f"{name} is " if start is None else f"{name} went from {short(start)} before the first update to "
    reach = f" (the teacher's {known.teacher_what} reach {_reach(span)})" if span else ""
    tone, word, held = _place(newest, start, span)
    if word == AS_GOOD and seeds and seeds.tone == "warn":
        word = CLOSE
    text = f"{course}{short(newest)} after {count(seen)} images{held}{reach}."
    if newest > RISEN * best and word != NOT:
        text += f" It has become worse since {count(at)} images, where {name} was {short(best)}."
        text += " That student is in best/." if run.scores else ""
        return Grade("warn", word, Evidence("warn", what, f"{fact}, but {short(best)} at {count(at)}", text))
    return Grade(tone, word, Evidence(tone, what, fact, text))


CANNOT = "How good the student is cannot be said from numbers."


def _place(newest: float, start: float | None, span: tuple[float, float] | None) -> tuple[Tone, str, str]:
    """Tone and grade of the newest distance, and how it stands to the teacher's ``span`` and the one at the ``start``."""
    worst = f", {times(newest / span[1])} the teacher's worst" if span and span[1] > 0 else ""
    if start is not None and newest > start:
        return "bad", NOT, ", which is worse than at the start"
    if span and newest <= EQUAL * span[0]:
        return "good", AS_GOOD, ", which is the teacher's best" if newest >= span[0] else ", less than the teacher's"
    if span and newest <= NEAR * span[1]:
        return "good", CLOSE, f", {times(newest / span[0])} the teacher's best" if span[0] > 0 else worst
    if start is None:
        return "open", FAR, worst
    if newest > BETTER * start:
        return "warn", NOT, ", which is hardly better than at the start"
    return "fair", LEARNING, worst or "; there are no scores of its teacher that say how far it is from it"


def _reach(span: tuple[float, float]) -> str:
    low, high = map(short, span)
    return f"{low} to {high}, depending on its guidance" if high != low else low


def _seeds(run: Run) -> Evidence | None:
    """How much one prompt's pictures differ between seeds, as a share of the teacher's; None where nothing is scored."""
    if not run.judged:
        return None
    values = [value for line in run.judged if (value := number(line.get("diversity"))) is not None]
    if not values:
        text = "Whether different seeds give different pictures is not scored."
        return Evidence("open", "Seeds", "diversity is not scored", text)
    text = f"Between seeds, one prompt's pictures differ {short(values[-1])} times as much as the teacher's."
    tone: Tone = "warn" if values[-1] < ALIKE else "good"
    return Evidence(tone, "Seeds", f"{short(values[-1])} of the teacher's diversity", text)


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
