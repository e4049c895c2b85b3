"""A plot as a PNG file, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sidlsg.files import replacing
from sidlsg.plotting import figure
from sidlsg.report.numbers import tick
from sidlsg.report.plot import Plot, across, down
from sidlsg.report.plot import axes as scales
from sidlsg.report.svg import Spot, label_spots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of page.css in its light theme.
COLOURS = ("#1f5f9e", "#a8480f", "#1c7050", "#7a4796", "#8a5a00", "#a33466")
GREY = "#68625a"
MARKERS = ("o", "s", "^", "D")  # the shapes of svg.MARKS


def save(plot: Plot, path: Path) -> None:
    """Write the plot, under a temporary name first."""
    with figure(6, 4.2) as made:
        _draw(plot, made)
        with replacing(path) as temporary:
            made.savefig(temporary, dpi=150, format="png")


def _draw(plot: Plot, made: Figure) -> None:
    axes = made.subplots()
    for held in plot.references:
        if held.high > held.low:
            axes.axhspan(held.low, held.high, color=GREY, alpha=0.15, label=_literal(held.name), linewidth=0)
        else:
            axes.axhline(held.low, color=GREY, linestyle=":", label=_literal(held.name))
    for series, spots in zip(plot.series, _spots(plot), strict=True):
        colour = GREY if series.colour is None else COLOURS[series.colour % len(COLOURS)]
        values = [float("nan") if y is None else y for y in series.y]
        style = ("--" if series.dashed else "-") if series.joined else "none"
        (line,) = axes.plot(series.x, values, color=colour, linestyle=style)
        line.set_label(_literal(series.name) if series.listed else "_nolegend_")
        if series.marked:
            line.set(marker=MARKERS[series.shape], markersize=6 if plot.scatter else 3, markevery=list(series.marked))
        if plot.scatter and series.colour is None:
            line.set(markerfacecolor="none", linewidth=0.8)
        for x, y, label, spot in zip(series.x, values, series.labels, spots, strict=False):
            if spot:
                anchor = {"start": "left", "middle": "center", "end": "right"}[spot[2]]
                place = 0.8 * spot[0], -0.8 * spot[1]  # letters are smaller here than in the page
                text = axes.annotate(_literal(label), (x, y), place, textcoords="offset points", ha=anchor)
                text.set(color=GREY, fontsize=8)
    if plot.x_log and plot.scatter:
        axes.set_xscale("log")
    elif plot.x_log:  # with a place for zero
        positive = [x for series in plot.series for x in series.x if x > 0]
        axes.set_xscale("symlog", linthresh=min(positive, default=1), linscale=0.3)
    if plot.y_log:
        axes.set_yscale("log")
    if found := scales(plot):  # the page's limits and ticks
        axes.set_ylim(found[1].low, found[1].high)
        for axis, scale in ((axes.xaxis, found[0]), (axes.yaxis, found[1])):
            axis.set_ticks(scale.ticks(), [tick(value) for value in scale.ticks()])
        axes.minorticks_off()
    axes.set(title=_literal(plot.title), xlabel=plot.x_label, ylabel=plot.unit)
    axes.grid(True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    made.legend(loc="outside lower left", ncols=2, fontsize=8, frameon=False)


def _spots(plot: Plot) -> list[list[Spot]]:
    horizontal, vertical = across(plot), down(plot)
    if not horizontal:
        return [[] for _ in plot.series]
    return label_spots(plot, next(iter(horizontal.values())), next(iter(vertical.values())))


def _literal(text: str) -> str:
    """Text that matplotlib shows as it is: no formula between dollar signs, no name left out of a legend for its underscore."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
