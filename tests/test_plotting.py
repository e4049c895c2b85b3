"""Figures are drawn by matplotlib's own settings, whatever the environment and a user's matplotlibrc ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidlsg.plotting import figure
from sidlsg.report.plot import Plot, Series
from sidlsg.report.png import save
from sidlsg.training.tracking import draw_curves

PLOT = Plot("fd", "Distance_$x", "fd", "", [Series("a_$b", [1, 2, 3], [3.0, 2.0, 1.0])])
LINES = [{"images_seen": n, "fd": 9.0 - n, "clip": 0.5} for n in (0, 1, 2)]

EVERYWHERE = """
from pathlib import Path
from sidlsg.plotting import figure
from sidlsg.sampling.lettering import font_for
with figure(2, 2) as made:
    made.subplots().set(title="a_$b")
    made.savefig("figure.png")
font_for("text", 12)
font_for("\\u4f60", 12)
"""


def test_a_backend_that_is_not_there_and_a_matplotlibrc_change_nothing(tmp_path: Path) -> None:
    """As in a process started from a notebook, in a folder with settings for papers: matplotlib is imported anew here."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: nonsense\nsavefig.dpi: 7\n", encoding="utf-8")
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline_not_there"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    found = subprocess.run(
        [sys.executable, "-c", EVERYWHERE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "figure.png").stat().st_size > 2000


def test_curves_and_reports_are_the_same_with_a_users_settings(tmp_path: Path) -> None:
    import matplotlib

    mine = {"text.usetex": True, "lines.linewidth": 9, "savefig.dpi": 7, "font.size": 30}
    drawn = []
    for settings in ({}, mine):
        with matplotlib.rc_context(settings):
            save(PLOT, tmp_path / "plot.png")
            draw_curves(LINES, tmp_path / "curves.png", "FD")
            assert all(matplotlib.rcParams[name] == value for name, value in settings.items())
        drawn.append([(tmp_path / name).read_bytes() for name in ("plot.png", "curves.png")])
    assert drawn[0] == drawn[1]


def test_the_settings_of_whoever_calls_come_back_after_an_error() -> None:
    import matplotlib

    def failing() -> None:
        with figure(1, 1):
            assert matplotlib.rcParams["font.size"] == 10
            raise ZeroDivisionError

    with matplotlib.rc_context({"font.size": 30}):
        with pytest.raises(ZeroDivisionError):
            failing()
        assert matplotlib.rcParams["font.size"] == 30
