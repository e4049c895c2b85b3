"""A plot as data: what ``svg`` draws into the page, its script enlarges, and ``png`` draws into files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sidlsg.report.numbers import tick

POINTS = 300  # of a series; more are averaged
SPAN = 1e-12  # of the largest value; smaller ones are at the lower end of a logarithmic axis
TINY = 1e-60  # what is smaller is no span
PALETTE = 6  # colours in page.css and png.py
SHAPES = 4  # of marks: circle, square, triangle, diamond
CIRCLE, DIAMOND = 0, 3


@dataclass(frozen=True)
class Series:
    """A line through points of increasing x, with gaps where y is None; or, in a scatter plot, marked points with labels.

    ``colour`` numbers the palette; from the seventh run on the colours come again, with marks of another shape. None is the grey
    of what is not a run. ``seconds``: of training at each point, where known. ``joined``: whether a line joins the points.
    ``listed``: whether it stands in the legend.
    """

    name: str
    x: list[float]
    y: list[float | None]
    colour: int | None = 0
    dashed: bool = False
    labels: list[str] = field(default_factory=list)
    seconds: list[float] | None = None
    mark: int | None = None
    joined: bool = True
    listed: bool = True

    @property
    def shape(self) -> int:
        """Number of the shape of its marks."""
        return self.mark if self.mark is not None else (self.colour or 0) // PALETTE % SHAPES

    @property
    def marked(self) -> range:
        """The points that have a mark: all of a few; of many some, if the shape tells runs apart; else none."""
        count = len(self.x)
        if count <= 24 or not self.joined:
            return range(count)
        return range(0, count, -(-count // 8)) if self.shape else range(0)


@dataclass(frozen=True)
class Reference:
    """A value, or a range of values, to hold the series against."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Plot:
    """``key`` names files and page anchors; ``how`` says in a sentence how to read the plot."""

    key: str
    title: str
    unit: str
    how: str
    series: list[Series]
    references: list[Reference] = field(default_factory=list)
    x_label: str = "images seen"
    x_log: bool = False  # zero has a place of its own, left of the smallest other value
    y_log: bool = False
    from_zero: bool = False
    scatter: bool = False


@dataclass(frozen=True)
class Axis:
    """Maps values to [0, 1]. With ``log`` and values at zero, zero is at 0 and the smallest positive value at ``FIRST``."""

    low: float
    high: float
    log: bool = False
    zero: bool = False

    FIRST = 0.09

    @classmethod
    def over(cls, values: list[float], log: bool = False, from_zero: bool = False, tight: bool = False) -> Axis:
        """An axis that shows all the values; ``tight``: without room beyond them."""
        low, high = min(values), max(values)
        if log and low >= 0 and high > TINY:
            positive = max(min(value for value in values if value > 0), high * SPAN)
            zero = tight and low == 0
            room = 1.0 if tight and high > positive else max(1.05, (high / positive) ** 0.06)
            return cls(positive if zero else positive / room, high * room, True, zero)
        if from_zero:
            low = min(low, 0.0)
        room = 0.0 if tight else 0.07 * (high - low)
        if high - low < max(TINY, 1e-9 * max(abs(low), abs(high))):  # all alike
            room = 0.05 * abs(high) if abs(high) > TINY else 1.0
        return cls(low if from_zero and low == 0 else low - room, high + room)

    def at(self, value: float) -> float:
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        first = self.FIRST if self.zero else 0.0
        if value < self.low:
            return 0.0
        return first + (1 - first) * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis."""
        if self.log:
            found = _log_ticks(self.low, self.high, most)
            return ([0.0] if self.zero else []) + found
        raw = (self.high - self.low) / most
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
        start = math.ceil(self.low / step - 1e-9)
        return [float(f"{i * step:.9g}") for i in range(start, math.floor(self.high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Values 1, 2, 5 x 10^n, or as coarse or fine as gives a few."""
    found: list[float] = []
    for digits, every in (((1,), 3), ((1,), 2), ((1,), 1), ((1, 3), 1), ((1, 2, 5), 1), ((1, 1.5, 2, 3, 5, 7), 1)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [d * 10.0**n for n in decades if n % every == 0 for d in digits]
        inside = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(inside) > most:
            break
        found = inside
    return found if len(found) >= 3 else Axis(low, high).ticks(most)


def axes(plot: Plot) -> tuple[Axis, Axis] | None:
    """The axes of a plot; None when there is nothing to show."""
    points = [(x, y) for series in plot.series for x, y in zip(series.x, series.y, strict=True) if y is not None]
    if not points:
        return None
    return _x_axis(plot, [x for x, _ in points], plot.x_log), _y_axis(plot, [y for _, y in points], plot.y_log)


def _x_axis(plot: Plot, values: list[float], log: bool) -> Axis:
    return Axis.over(values, log, tight=not plot.scatter)


def _y_axis(plot: Plot, values: list[float], log: bool) -> Axis:
    limits = [value for reference in plot.references for value in (reference.low, reference.high)]
    return Axis.over(values + limits, log, plot.from_zero and not log)


@dataclass(frozen=True)
class Scale:
    """A plot along one axis, everything in [0, 1] of its length.

    Attributes:
        ticks: place and text of each.
        at: for each series, the place of each point; None where it has none.
        held: for each reference, the places of its ends (of a vertical axis).
    """

    label: str
    ticks: list[tuple[float, str]]
    at: list[list[float | None]]
    held: list[tuple[float, float]] = field(default_factory=list)


def across(plot: Plot) -> dict[str, Scale]:
    """The horizontal axes that a reader may choose, by name, the plot's own first; empty when there is nothing to show."""
    shown = [[x for x, y in zip(s.x, s.y, strict=True) if y is not None] for s in plot.series]
    values = [x for xs in shown for x in xs]
    if not values:
        return {}
    names = ("linear", "log") if plot.scatter else ("images", "images, log")
    found: dict[str, Scale] = {}
    for name, log in sorted(zip(names, (False, True), strict=True), key=lambda item: item[1] != plot.x_log):
        axis = _x_axis(plot, values, log)
        if axis.log == log or not found:
            found[name] = _scale(plot.x_label, axis, [s.x for s in plot.series])
    if not plot.scatter and all(series.seconds for series in plot.series):
        longest = max(second for series in plot.series for second in series.seconds or [])
        size, unit = next((size, unit) for size, unit in UNITS if longest >= 2 * size or size == 1)
        spans = [[second / size for second in series.seconds or []] for series in plot.series]
        axis = _x_axis(plot, [value for span in spans for value in span], False)
        found["time"] = _scale(f"{unit} of training", axis, spans)
    return found


UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def down(plot: Plot) -> dict[str, Scale]:
    """The vertical axes that a reader may choose, by name, the plot's own first; empty when there is nothing to show."""
    values = [y for series in plot.series for y in series.y if y is not None]
    if not values:
        return {}
    found: dict[str, Scale] = {}
    for name, log in sorted((("linear", False), ("log", True)), key=lambda item: item[1] != plot.y_log):
        axis = _y_axis(plot, values, log)
        if axis.log == log or not found:
            held = [(axis.at(reference.low), axis.at(reference.high)) for reference in plot.references]
            found[name] = _scale(plot.unit, axis, [series.y for series in plot.series], held)
    return found


def _scale(
    label: str, axis: Axis, values: Sequence[Sequence[float | None]], held: Sequence[tuple[float, float]] = ()
) -> Scale:
    def place(value: float | None) -> float | None:
        hidden = value is None or (axis.log and not axis.zero and value <= 0)
        return None if hidden else round(axis.at(value), 4)  # type: ignore[arg-type]

    ticks = [(round(axis.at(value), 4), tick(value)) for value in axis.ticks(5)]
    ends = [(round(low, 4), round(high, 4)) for low, high in held]
    return Scale(label, ticks, [[place(value) for value in series] for series in values], ends)


def thin(x: list[int], y: list[float | None]) -> tuple[list[float], list[float | None]]:
    """At most ``POINTS`` points: means of equally many neighbours, at the last one's x."""
    size = -(-len(x) // POINTS) or 1
    if size == 1:
        return [float(value) for value in x], list(y)
    places, means = [], []
    for first in range(0, len(x), size):
        values = [value for value in y[first : first + size] if value is not None]
        places.append(float(x[min(first + size, len(x)) - 1]))
        means.append(sum(values) / len(values) if values else None)
    return places, means
