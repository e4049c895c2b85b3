"""A plot as a PNG file, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sidlsg.files import replacing
from sidlsg.plotting import figure
from sidlsg.report.numbers import tick
from sidlsg.report.plot import Plot
from sidlsg.report.plot import axes as scales

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of page.css in its light theme.
COLOURS = ("#1f5f9e", "#a8480f", "#1c7050", "#7a4796", "#8a5a00", "#a33466")
GREY = "#68625a"


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
            axes.axhspan(held.low, held.high, color=GREY, alpha=0.15, label=held.name, linewidth=0)
        else:
            axes.axhline(held.low, color=GREY, linestyle=":", label=held.name)
    for series in plot.series:
        colour = GREY if series.colour is None else COLOURS[series.colour % len(COLOURS)]
        values = [float("nan") if y is None else y for y in series.y]
        (line,) = axes.plot(series.x, values, color=colour, label=series.name, linestyle="--" if series.dashed else "-")
        if plot.scatter or len(values) <= 24:
            line.set(marker="o", markersize=6 if plot.scatter else 3)
        if plot.scatter and series.colour is None:
            line.set(markerfacecolor="none", linewidth=0.8)
        for x, y, label in zip(series.x, values, series.labels, strict=False):
            axes.annotate(label, (x, y), xytext=(6, -3), textcoords="offset points", color=GREY, fontsize=8)
    if plot.x_log:
        positive = [x for series in plot.series for x in series.x if x > 0]
        axes.set_xscale("symlog", linthresh=min(positive, default=1), linscale=0.3)
    if plot.y_log:
        axes.set_yscale("log")
    elif plot.from_zero:
        axes.set_ylim(bottom=0)
    if found := scales(plot):  # the page's ticks
        for axis, scale in ((axes.xaxis, found[0]), (axes.yaxis, found[1])):
            axis.set_ticks(scale.ticks(), [tick(value) for value in scale.ticks()])
        axes.minorticks_off()
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.unit)
    axes.grid(True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    made.legend(loc="outside lower left", ncols=2, fontsize=8, frameon=False)
