"""Run folders as `sidlsg distill` leaves them, made without training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from sidlsg.evaluation.report import published
from sidlsg.runs.folder import RunFolder
from sidlsg.sampling.pictures import save_grid
from sidlsg.settings import make_config

EVERY = 64


def metrics_line(seen: int, **changes: Any) -> dict[str, Any]:
    share = seen / 1280
    line = {
        "images_seen": seen,
        "loss_fake": 60 - 20 * share,
        "loss_generator": 30 * math.sin(seen),
        "loss_reference": 70 - 10 * share,
        "score_gap": [0.4 - 0.2 * share, 0.3 - 0.1 * share, 0.2 - 0.05 * share, None],
        "grad_norm_fake": 20.0,
        "grad_norm_generator": 200.0,
        "skipped_samples": 0,
        "x_mean": 0.2,
        "x_std": 1.0,
        "images_per_second": 32.0,
        "peak_gib": 1.5,
    }
    return {key: value for key, value in (line | changes).items() if value != "absent"}


def score_line(seen: int, fd: float, **changes: Any) -> dict[str, Any]:
    return {
        "images_seen": seen,
        "protocol": "embedded",
        "pictures": 1024,
        "warnings": [],
        "fd": fd,
        "clip": 0.6 - fd / 2000,
        "precision": 0.9,
        "recall": 0.5,
    } | changes


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_run(
    path: Path, fd: list[float] | None = None, change: dict[str, Any] | None = None, grids: int = 3, **given: Any
) -> Path:
    """A run of 1,280 images as `sidlsg distill` leaves it: twenty lines of metrics, scores at equal distances, grids.

    ``change`` goes into every line of metrics ("absent" takes a field out), ``given`` into the configuration.
    """
    fd = [800.0, 300.0, 120.0] if fd is None else fd
    folder = RunFolder(path)
    folder.claim(make_config("cpu", {"images": 1280, "eval_every": 640, "log_every": EVERY} | given))
    write_lines(folder.metrics, [metrics_line(seen, **change or {}) for seen in range(EVERY, 1281, EVERY)])
    if fd:
        step = 1280 // max(1, len(fd) - 1)
        write_lines(folder.scores, [score_line(i * step, value) for i, value in enumerate(fd)])
    for i in range(grids):
        seen = i * 1280 // max(1, grids - 1)
        picture = Image.new("RGB", (40, 40), (80 * i, 120, 200 - 60 * i))
        file = folder.samples / f"{seen:012d}.png"
        save_grid([picture, picture], ["red heart", "cat face"], file, images_seen=seen)
    folder.student.mkdir()
    (folder.student / "sidlsg.json").write_text(
        json.dumps({"images_seen": 1280, "sidlsg": "0.1.0", "licence": "Apache-2.0"})
    )
    return path


def published_span(protocol: str, method: str, key: str) -> tuple[float, float]:
    """The smallest and the largest published value of the methods whose names begin so."""
    values = [row[key] for row in published()[protocol][0]["rows"] if row["method"].startswith(method)]
    return min(values), max(values)
