"""What the pages of the experiments share: collecting the runs of ``run.py``, picking from their scores, tables, plots."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidlsg.runs.folder import read_metrics

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs/images"
SCORES = ("fd", "clip", "precision", "recall", "retrieval_top1", "retrieval_top5")
HEAD = ["fd ↓", "CLIP ↑", "precision ↑", "recall ↑", "retrieval@1 ↑", "retrieval@5 ↑"]

# A run's scores, a line a scoring; and the runs of a student, by seed.
Lines = list[dict[str, Any]]
Seeds = dict[str, Lines]


def read_plan(plan: str) -> dict[str, Any]:
    return yaml.safe_load((HERE / plan / "plan.yaml").read_text(encoding="utf-8"))


def read_results(plan: str) -> dict[str, Any]:
    """What ``<plan>/results.json`` holds; nothing where it does not exist yet."""
    path = HERE / plan / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def collect(plan: str, work: Path, **more: Any) -> dict[str, Any]:
    """What ``<plan>/results.json`` holds, and the work folder beside it: per student and seed its scores against images seen, per
    sampler its scores; and ``more``. Runs that the plan no longer has are left out. The file is written anew."""
    planned, known = read_plan(plan), read_results(plan)
    students, teachers = known.get("students", {}), known.get("teachers", {})
    for name in planned["students"]:
        for seed in planned["seeds"]:
            folder = work / f"runs/{plan}/seed-{seed}" / name
            if (folder / "student").is_dir():
                students.setdefault(name, {})[str(seed)] = read_metrics(folder / "scores.jsonl")
    for name in planned.get("teachers", {}):
        found = work / "evals" / plan / name / "results.json"
        if found.is_file():
            teachers[name] = json.loads(found.read_text(encoding="utf-8"))["scores"]
    results = {
        "students": {name: students[name] for name in planned["students"] if name in students},
        "teachers": {name: teachers[name] for name in planned.get("teachers", {}) if name in teachers},
        **more,
    }
    (HERE / plan / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def best(lines: Lines) -> dict[str, Any]:
    """The line with the smallest distance after the start, as the paper's Table 3 picks it."""
    return min((line for line in lines if line["images_seen"] > 0), key=lambda line: line["fd"])


def bests(seeds: Seeds) -> Lines:
    """Each seed's best line."""
    return [best(seeds[seed]) for seed in sorted(seeds)]


def mean(lines: Lines) -> dict[str, float]:
    return {key: sum(line[key] for line in lines) / len(lines) for key in ("images_seen", *SCORES)}


def means(seeds: Seeds) -> list[dict[str, float]]:
    """The scores against images seen, means over the seeds, without the start."""
    return [mean(list(lines)) for lines in zip(*seeds.values(), strict=True) if lines[0]["images_seen"] > 0]


def numbers(scores: dict[str, Any]) -> list[str]:
    """A table's cells of ``SCORES``."""
    formats = ("{:.1f}", "{:.3f}", "{:.3f}", "{:.3f}", "{:.3f}", "{:.3f}")
    return [
        form.format(scores[key]) if scores.get(key) is not None else "–"
        for key, form in zip(SCORES, formats, strict=True)
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def put_tables(path: Path, tables: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end -->``."""
    text = path.read_text(encoding="utf-8")
    for name, content in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, c=content: m[1] + c + "\n" + m[2], text, flags=re.DOTALL)
        assert count == 1, name
    path.write_text(text, encoding="utf-8")


def plot(name: str, draw: Callable[[list[Axes]], None], panels: int) -> None:
    """Write a row of panels to ``docs/images/<name>.png``."""
    figure = Figure(figsize=(4.8 * panels, 4.4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    draw(list(axes))
    for panel in axes:
        panel.grid(True, which="both", alpha=0.25)
    figure.savefig(IMAGES / f"{name}.png", dpi=120)
