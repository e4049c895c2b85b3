"""The tables of docs/student.md and its plots, from the runs of ``run.py student``; adds to student/results.json.

python experiments/report_student.py --work .        # the folder in which run.py was started
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from pages import HEAD, HERE, collect, mean, means, numbers, plot, put_tables, read_plan, table
from student.diversity import diversities

# What one figure's panels compare with the base.
PANELS = {
    "Adam's steps and their average": ("constant-3e-4", "lr-3e-4", "lr-1e-3", "ema-1k", "batch-16"),
    "fake score, timesteps": (
        "fake-updates-3",
        "alpha-1.2",
        "t-init-250",
        "t-init-400",
        "t-init-800",
        "t-min-250",
        "t-max-700",
    ),
    "guidance": ("kappa-1.5", "kappa-3", "long-2"),
}

LONG = "cpu-long"  # the run whose student is shipped
# The teacher's samplers that the long run is held against, as claims/plan.yaml names them.
SAMPLERS = {
    "ddim-25-cfg-3": ("teacher, 25 steps, CFG 3", "--"),
    "dpm++-4-cfg-3": ("teacher, 4 steps of DPM++, CFG 3", ":"),
    "ddim-25-cfg-1": ("teacher, 25 steps, CFG 1", "-."),
}


def changes(name: str) -> str:
    """What a student of the plan has that the base has not."""
    students = read_plan("student")["students"]
    base, mine = students["base"], students[name]
    if "preset" in mine:
        return f"`--preset {mine['preset']}`"
    if name == "base":
        return ", ".join(f"`{key}` {value:g}" for key, value in base.items())
    differing = {key: mine.get(key, "the preset's") for key in {**base, **mine} if mine.get(key) != base.get(key)}
    return ", ".join(f"`{key}` {'off' if value is None else value}" for key, value in differing.items())


def student_table(results: dict[str, Any]) -> str:
    """The scores of each student at its end, means over its seeds."""
    rows = []
    for name, seeds in results["students"].items():
        ends = [seeds[seed][-1] for seed in sorted(seeds)]
        spread = results["diversity"].get(name)
        shown = "–" if spread is None else f"{spread:.2f}"
        rows.append([name, changes(name), f"{ends[0]['images_seen']:,}", *numbers(mean(ends)), shown])
    return table(["student", "differs in", "images", *HEAD, "diversity ↑"], rows)


def measured(work: Path) -> dict[str, float]:
    """The diversity of the students of the plan whose runs are in the work folder, and of those that the results have already."""
    known = json.loads((HERE / "student/results.json").read_text(encoding="utf-8")).get("diversity", {})
    runs = {name: work / "runs/student/seed-0" / name for name in read_plan("student")["students"]}
    finished = {str(path): name for name, path in runs.items() if (path / "student").is_dir()}
    finished["emoji-student"] = LONG
    found = diversities(list(finished))
    return known | {finished.get(name, name): value for name, value in found.items()}


def length_table(results: dict[str, Any]) -> str:
    """The scores of the long run while it went on."""
    lines = [line for line in means(results["students"][LONG]) if line["images_seen"] >= 1024]
    return table(["images seen", *HEAD], [[f"{line['images_seen']:,.0f}", *numbers(line)] for line in lines])


def curves(results: dict[str, Any], key: str) -> Callable[[list[Axes]], None]:
    """A score against images seen, a panel for each group of changes."""

    def draw(axes: list[Axes]) -> None:
        for panel, (title, names) in zip(axes, PANELS.items(), strict=True):
            for name in ("base", *names):
                if name in results["students"]:
                    lines = means(results["students"][name])
                    style = {"color": "black", "linewidth": 2} if name == "base" else {"linewidth": 1.2}
                    panel.plot([x["images_seen"] for x in lines], [x[key] for x in lines], label=name, **style)
            panel.set(xscale="log", xlabel="images seen", title=title)
            if key == "fd":
                panel.set(yscale="log", ylim=(60, 1000))
            panel.legend(fontsize=7)
        axes[0].set_ylabel({"fd": "fd", "clip": "CLIP score"}[key])

    return draw


def length(results: dict[str, Any]) -> Callable[[list[Axes]], None]:
    """Distance and CLIP score of the long run and of the base against images seen, with the teacher's own."""
    teachers = json.loads((HERE / "claims/results.json").read_text(encoding="utf-8"))["teachers"]

    def draw(axes: list[Axes]) -> None:
        for panel, key, title in zip(axes, ("fd", "clip"), ("fd", "CLIP score"), strict=True):
            for name, colour in ((LONG, "tab:orange"), ("base", "black")):
                lines = means(results["students"][name])
                panel.plot(
                    [x["images_seen"] for x in lines], [x[key] for x in lines], color=colour, label=name, marker="."
                )
            for name, (label, dashes) in SAMPLERS.items():
                panel.axhline(teachers[name][key], color="tab:green", linestyle=dashes, linewidth=1, label=label)
            panel.set(xscale="log", xlabel="images seen", ylabel=title, **({"yscale": "log"} if key == "fd" else {}))
        axes[1].legend(fontsize=7)

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(), help="where runs/student is")
    work = parser.parse_args().work
    results = collect("student", work, diversity=measured(work))
    plot("student-fd", curves(results, "fd"), len(PANELS))
    plot("student-clip", curves(results, "clip"), len(PANELS))
    plot("student-length", length(results), 2)
    tables = {"students": student_table(results), "length": length_table(results)}
    put_tables(HERE.parent / "docs/student.md", tables)
    print(*tables.values(), sep="\n\n")


if __name__ == "__main__":
    main()
