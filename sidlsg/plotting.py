"""matplotlib with its own settings, whatever the environment and a user's matplotlibrc say: pictures of files, no windows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIABLE = "MPLBACKEND"  # what a notebook sets for its own process, and every command started from it inherits


def load_matplotlib() -> Any:
    """Import matplotlib, also where MPLBACKEND names a backend that is not installed here.

    A backend that is there stays the one of whoever plots in this process.
    """
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    wanted = os.environ.pop(VARIABLE, None)
    try:
        import matplotlib
    finally:
        if wanted is not None:
            os.environ[VARIABLE] = wanted
    if wanted:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = wanted
    return matplotlib


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """Give a figure of ``width`` x ``height`` inches to plot in and save, by matplotlib's own settings and its Agg renderer."""
    library = load_matplotlib()
    defaults = {name: value for name, value in library.rcParamsDefault.items() if name != "backend"}
    with library.rc_context(defaults):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made
