"""A plot as SVG whose colours are the page's, so that it follows the theme, and as data for the page's script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from sidlsg.report.plot import PALETTE, Plot, Scale, Series, across, down

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 40
LETTER = 6.6  # width of a letter of a label, at most
# Where a label may stand beside its point: offset and text-anchor, the best first.
SPOTS = (
    (8, 4, "start"),
    (-8, 4, "end"),
    (0, -9, "middle"),
    (0, 18, "middle"),
    (8, -8, "start"),
    (8, 16, "start"),
    (-8, -8, "end"),
    (-8, 16, "end"),
)
# Marks around (0, 0), by shape.
MARKS = (
    "M-{0} 0a{0} {0} 0 1 0 {1} 0a{0} {0} 0 1 0 -{1} 0z",
    "M-{0} -{0}h{1}v{1}h-{1}z",
    "M0 -{0}L{0} {0}H-{0}z",
    "M0 -{2}L{2} 0L0 {2}L-{2} 0z",
)

Spot = tuple[int, int, str] | None
Point = tuple[float, float] | None


def draw(plot: Plot, description: str) -> Markup:
    """The plot as an ``<svg>`` element; the legend is the page's."""
    horizontal, vertical = across(plot), down(plot)
    if not horizontal:
        return Markup("")
    x_scale, y_scale = next(iter(horizontal.values())), next(iter(vertical.values()))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts: list[Any] = []
    for low, high in y_scale.held:
        if high > low:
            parts.append(
                _tag("rect", "span", x=LEFT, y=_y(high), width=right - LEFT, height=max(1.0, _y(low) - _y(high)))
            )
        else:
            parts.append(_tag("line", "held", x1=LEFT, x2=right, y1=_y(high), y2=_y(high)))
    for place, text in y_scale.ticks:
        parts.append(_tag("line", "grid", x1=LEFT, x2=right, y1=_y(place), y2=_y(place)))
        parts.append(_text(LEFT - 6, _y(place) + 4, text, "end"))
    for place, text in x_scale.ticks:
        parts.append(_tag("line", "tick", x1=_x(place), x2=_x(place), y1=bottom, y2=bottom + 4))
        parts.append(_text(_x(place), bottom + 17, text, "middle"))
    parts.append(_tag("line", "axis", x1=LEFT, x2=right, y1=bottom, y2=bottom))
    parts.append(_text(right, HEIGHT - 6, x_scale.label, "end"))
    points = _points(x_scale, y_scale)
    for series, found, spots in zip(plot.series, points, label_spots(plot, x_scale, y_scale), strict=True):
        parts += _line(series, found)
        for point, spot, label in zip(found, spots, series.labels, strict=False):
            if point and spot:
                parts.append(_text(point[0] + spot[0], point[1] + spot[1], label, spot[2]))
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, description, Markup("").join(parts)
    )


def script_data(plot: Plot) -> dict[str, Any]:
    """What the page's script needs to draw the plot at any size on any of its axes, to show values and to make a CSV of them."""
    horizontal, vertical = across(plot), down(plot)
    first = next(iter(vertical.values()), None)
    return {
        "frame": [LEFT, RIGHT, TOP, BOTTOM],
        "shown": [next(iter(axis), None) for axis in (horizontal, vertical)],
        "scatter": plot.scatter,
        "x": plot.x_label,
        "y": plot.unit or plot.title,
        "across": {name: vars(scale) for name, scale in horizontal.items()},
        "down": {name: vars(scale) for name, scale in vertical.items()},
        "spots": {
            name: label_spots(plot, scale, first) for name, scale in horizontal.items() if first and plot.scatter
        },
        "series": [
            {
                "name": series.name,
                "css": line_class(series),
                "joined": series.joined,
                "mark": mark_path(series),
                "marked": list(series.marked),
                "hollow": series.colour is None,
                "labels": series.labels,
                "x": series.x,
                "y": [None if y is None else float(f"{y:.6g}") for y in series.y],
                "seconds": series.seconds and [round(value, 1) for value in series.seconds],
            }
            for series in plot.series
        ],
    }


def label_spots(plot: Plot, x_scale: Scale, y_scale: Scale) -> list[list[Spot]]:
    """Where the labels of each series stand: beside their points, over no mark and no other label; None: nowhere.

    A drawing that is larger than ``WIDTH`` times ``HEIGHT`` has the same places, with more room.
    """
    points = _points(x_scale, y_scale)
    taken = [_box(x, y, 5, 5, "middle") for found in points for point in found if point for x, y in [point]]
    frame = (LEFT, 0, WIDTH, HEIGHT - BOTTOM)
    spots: list[list[Spot]] = []
    for series, found in zip(plot.series, points, strict=True):
        chosen: list[Spot] = []
        for point, label in zip(found, series.labels, strict=False):
            spot = None
            if point and label:
                boxes = {s: _box(point[0] + s[0], point[1] + s[1] - 4, LETTER * len(label) / 2, 7, s[2]) for s in SPOTS}
                free = (s for s, box in boxes.items() if _inside(box, frame) and not any(_meet(box, t) for t in taken))
                spot = next(free, None)
                if spot:
                    taken.append(boxes[spot])
            chosen.append(spot)
        spots.append(chosen)
    return spots


Box = tuple[float, float, float, float]


def _box(x: float, y: float, half_width: float, half_height: float, anchor: str) -> Box:
    """Left, top, right and bottom of a text around (x, y), or of a mark (anchor "middle")."""
    middle = x + {"start": half_width, "middle": 0.0, "end": -half_width}[anchor]
    return middle - half_width, y - half_height, middle + half_width, y + half_height


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(a: Box, frame: Box) -> bool:
    return a[0] >= frame[0] and a[1] >= frame[1] and a[2] <= frame[2] and a[3] <= frame[3]


def css_class(colour: int | None) -> str:
    """The class that gives a series its colour."""
    return "c-none" if colour is None else f"c{colour % PALETTE}"


def line_class(series: Series) -> str:
    """The classes of a series' line and marks."""
    return css_class(series.colour) + (" dashed" if series.dashed else "") + (" thin" if series.labels else "")


def mark_path(series: Series, size: float = 3.0) -> str:
    """The outline of a series' mark around (0, 0); of a scatter plot's 4.5 units in radius, else ``size``."""
    size = 4.5 if series.labels else size
    return MARKS[series.shape].format(f"{size:g}", f"{2 * size:g}", f"{1.3 * size:g}")


def _x(place: float) -> float:
    return LEFT + place * (WIDTH - LEFT - RIGHT)


def _y(place: float) -> float:
    return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)


def _points(x_scale: Scale, y_scale: Scale) -> list[list[Point]]:
    """The points of each series in the drawing; None for a gap."""
    return [
        [None if x is None or y is None else (_x(x), _y(y)) for x, y in zip(xs, ys, strict=True)]
        for xs, ys in zip(x_scale.at, y_scale.at, strict=True)
    ]


def _line(series: Series, points: Sequence[Point]) -> list[Markup]:
    """A path with gaps, and marks; a lone point has one too. What is no run is hollow."""
    steps, drawing, marked = [], False, set(series.marked)
    for i, point in enumerate(points):
        if point is None:
            drawing = False
            continue
        steps.append(f"{'L' if drawing else 'M'}{point[0]:.1f} {point[1]:.1f}")
        if not drawing and (i + 1 == len(points) or points[i + 1] is None):
            marked.add(i)
        drawing = True
    name = line_class(series)
    parts = [_tag("path", f"line {name}", d="".join(steps))] if series.joined and len(steps) > 1 else []
    kind = "hollow" if series.colour is None else "dot"
    for i in sorted(marked):
        if point := points[i]:
            place = f"translate({point[0]:.1f} {point[1]:.1f})"
            parts.append(_tag("path", f"{kind} {css_class(series.colour)}", transform=place, d=mark_path(series)))
    return parts


def _tag(name: str, css: str, **attributes: float | str) -> Markup:
    pairs = Markup("").join(
        Markup(' {}="{}"').format(key, value if isinstance(value, str) else f"{value:.4g}")
        for key, value in attributes.items()
    )
    return Markup('<{} class="{}"{}/>').format(Markup(name), css, pairs)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(f"{x:.1f}", f"{y:.1f}", anchor, text)
