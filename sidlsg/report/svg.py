"""A plot as SVG whose colours are the page's, so that it follows the theme."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from sidlsg.report.numbers import count, short, tick
from sidlsg.report.plot import Plot, Series, axes

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 40
PALETTE = 6  # colours in page.css


def draw(plot: Plot, description: str) -> Markup:
    """The plot as an ``<svg>`` element; the legend is the page's."""
    found = axes(plot)
    if found is None:
        return Markup("")
    x_axis, y_axis = found

    def across(value: float) -> float:
        return LEFT + x_axis.at(value) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - y_axis.at(value) * (HEIGHT - TOP - BOTTOM)

    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts: list[Any] = []
    for reference in plot.references:
        top, low = down(reference.high), down(reference.low)
        if reference.high > reference.low:
            parts.append(_tag("rect", "span", x=LEFT, y=top, width=right - LEFT, height=low - top))
        else:
            parts.append(_tag("line", "held", x1=LEFT, x2=right, y1=top, y2=top))
    for value in y_axis.ticks(5):
        y = down(value)
        parts.append(_tag("line", "grid", x1=LEFT, x2=right, y1=y, y2=y))
        parts.append(_text(LEFT - 6, y + 4, tick(value), "end"))
    for value in x_axis.ticks(5):
        x = across(value)
        parts.append(_tag("line", "tick", x1=x, x2=x, y1=bottom, y2=bottom + 4))
        parts.append(_text(x, bottom + 17, tick(value), "middle"))
    parts.append(_tag("line", "axis", x1=LEFT, x2=right, y1=bottom, y2=bottom))
    parts.append(_text(right, HEIGHT - 6, plot.x_label, "end"))
    for series in plot.series:
        points = [
            None if y is None or (y_axis.log and y <= 0) else (across(x), down(y))
            for x, y in zip(series.x, series.y, strict=True)
        ]
        parts += _marks(series, points) if plot.scatter else _line(series, points)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, description, Markup("").join(parts)
    )


def tooltip_data(plot: Plot) -> dict[str, Any]:
    """What the page's script needs to show values: for each series points as [x in the drawing, y, text]."""
    found = axes(plot)
    if found is None:
        return {"series": []}
    x_axis, y_axis = found
    series = []
    for line in plot.series:
        points = []
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            if y is None:
                continue
            place = LEFT + x_axis.at(x) * (WIDTH - LEFT - RIGHT)
            height = HEIGHT - BOTTOM - y_axis.at(y) * (HEIGHT - TOP - BOTTOM)
            if plot.scatter:
                label = f"{line.labels[i]}: " if line.labels and line.labels[i] else ""
                at, text = f"{line.name}", f"{label}{plot.x_label} {short(x)}, CLIP {short(y)}"
            else:
                at, text = f"{count(x)} images", f"{line.name} {short(y)}"
            points.append([round(place, 1), round(height, 1), at, text])
        series.append(points)
    return {"series": series, "scatter": plot.scatter}


def css_class(colour: int | None) -> str:
    """The class that gives a series its colour."""
    return "c-none" if colour is None else f"c{colour % PALETTE}"


def _line(series: Series, points: list[tuple[float, float] | None]) -> list[Markup]:
    """A path with gaps; a lone point is a dot."""
    steps, drawing, alone = [], False, []
    for i, point in enumerate(points):
        if point is None:
            drawing = False
            continue
        steps.append(f"{'L' if drawing else 'M'}{point[0]:.1f} {point[1]:.1f}")
        following = points[i + 1] if i + 1 < len(points) else None
        if not drawing and following is None:
            alone.append(point)
        drawing = True
    name = f"line {css_class(series.colour)}{' dashed' if series.dashed else ''}"
    dots = [point for point in points if point] if len(points) <= 24 else alone
    return [_tag("path", name, d="".join(steps))] + [
        _tag("circle", f"dot {css_class(series.colour)}", cx=x, cy=y, r=2.4) for x, y in dots
    ]


def _marks(series: Series, points: list[tuple[float, float] | None]) -> list[Markup]:
    """Marked points with labels; grey ones, which are no runs, are hollow and joined."""
    parts = []
    known = [point for point in points if point]
    if series.colour is None and len(known) > 1:
        steps = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(known))
        parts.append(_tag("path", "line c-none thin", d=steps))
    kind = "hollow" if series.colour is None else "dot"
    for i, point in enumerate(points):
        if point is None:
            continue
        parts.append(_tag("circle", f"{kind} {css_class(series.colour)}", cx=point[0], cy=point[1], r=4.5))
        if i < len(series.labels) and series.labels[i]:
            end = point[0] > WIDTH - 80
            parts.append(
                _text(point[0] + (-8 if end else 8), point[1] + 4, series.labels[i], "end" if end else "start")
            )
    return parts


def _tag(name: str, css: str, **attributes: float | str) -> Markup:
    pairs = Markup("").join(
        Markup(' {}="{}"').format(key, value if isinstance(value, str) else f"{value:.4g}")
        for key, value in attributes.items()
    )
    return Markup('<{} class="{}"{}/>').format(Markup(name), css, pairs)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(f"{x:.1f}", f"{y:.1f}", anchor, text)
