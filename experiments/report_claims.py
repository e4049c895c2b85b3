"""The tables of docs/claims.md and its plots, from the runs of ``run.py claims``; adds to claims/results.json.

python experiments/report_claims.py --work .        # the folder in which run.py was started
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.axes import Axes
from pages import HEAD, HERE, IMAGES, bests, collect, mean, means, numbers, plot, put_tables, read_plan, table
from scipy.stats import spearmanr

from sidlsg.data import ASSETS
from sidlsg.evaluation.pictures import load_sheet
from sidlsg.evaluation.protocol import get_protocol
from sidlsg.evaluation.reference import BENCH
from sidlsg.evaluation.scorer import Scorer
from sidlsg.prompts import PromptFile
from sidlsg.sampling.draw import draw
from sidlsg.sampling.grid import Block, Row, labelled_grid
from sidlsg.settings import make_config
from sidlsg.teachers.loading import load_model

# Family -> colour and marker, as in the paper's Figure 9.
FAMILIES = {
    "no-cfg": ("tab:gray", "x"),
    "long": ("tab:red", "s"),
    "short": ("tab:blue", "o"),
    "lsg-simple": ("black", "D"),
    "lsg": ("tab:orange", "*"),
}


def family(name: str) -> str:
    return name if name == "no-cfg" else name.rsplit("-", 1)[0]


def drawings_themselves() -> dict[str, float]:
    """What the judge says of the real drawings with their own captions: a ceiling for CLIP score and retrieval."""
    protocol = get_protocol("embedded")
    scorer = Scorer(protocol, torch.device("cpu"))
    sheet = load_sheet(BENCH / "reference.png", protocol.size, protocol.reference_images)
    captions = (BENCH / "captions.txt").read_text(encoding="utf-8").splitlines()
    encoded = scorer.encode(sheet, features=True, clip=True)
    return scorer.score(encoded, None, captions, [(i, i) for i in range(len(captions))])


def table3() -> dict[str, dict[str, float]]:
    return yaml.safe_load((HERE / "claims/table3.yaml").read_text(encoding="utf-8"))


def rank_correlations(results: dict[str, Any]) -> dict[str, float]:
    """Spearman's rank correlation of our means with the paper's Table 3, over the strategies."""
    paper = table3()
    ours = {name: mean(bests(seeds)) for name, seeds in results["students"].items()}
    found = {}
    for key, theirs in (("fd", "fid"), ("clip", "clip")):
        pairs = [(ours[name][key], paper[name][theirs]) for name in ours]
        found[key] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return found


def student_table(results: dict[str, Any]) -> str:
    plan = read_plan("claims")["students"]
    rows, paper = [], table3()
    for name, seeds in results["students"].items():
        options = {"strategy": plan[name]["strategy"], "kappa": tuple(map(float, str(plan[name]["kappa"]).split(",")))}
        kappas = ", ".join(f"{k:g}" for k in make_config("cpu", options).guidance)
        each = bests(seeds)
        rows.append([name, kappas, ", ".join(f"{line['fd']:.0f}" for line in each), *numbers(mean(each))])
        rows[-1] += [f"{paper[name]['fid']:.2f}", f"{paper[name]['clip']:.3f}"]
    order = {name: i for i, name in enumerate(FAMILIES)}
    rows.sort(key=lambda row: (order[family(row[0])], float(row[0].rsplit("-", 1)[-1]) if row[0] != "no-cfg" else 0))
    return table(["student", "κ1, κ2, κ3, κ4", "fd of each seed", *HEAD, "paper FID", "paper CLIP"], rows)


def teacher_table(results: dict[str, Any]) -> str:
    plan = read_plan("claims")["teachers"]
    rows = [["the real drawings", "–", *numbers(results["drawings"])]]
    for name, scores in results["teachers"].items():
        guided = plan[name].get("guidance", 1) != 1  # the unguided pass is left out where it has no weight
        rows.append([name, str(plan[name].get("steps", 1) * (1 + guided)), *numbers(scores)])
    return table(["sampler", "UNet passes a picture", *HEAD], rows)


# Where a point's label stands: families lie close together.
LABELS = {"long": (8, -3), "short": (8, 3), "lsg-simple": (8, 4), "lsg": (-7, -10)}


def trade_off(results: dict[str, Any]) -> Callable[[list[Axes]], None]:
    """Figure 9: best distance and the CLIP score there, means over the seeds. Left with each seed (small) and the teacher."""
    unguided = mean(bests(results["students"]["no-cfg"]))["fd"]

    def draw(axes: list[Axes]) -> None:
        for name, seeds in results["students"].items():
            kind = family(name)
            colour, marker = FAMILIES[kind]
            each = bests(seeds)
            line = mean(each)
            axes[0].scatter(
                [x["clip"] for x in each], [x["fd"] for x in each], c=colour, marker=marker, s=10, alpha=0.4, zorder=2
            )
            close = line["fd"] < unguided  # the right panel: what guidance improves
            for panel in axes if close else axes[:1]:
                panel.scatter(line["clip"], line["fd"], c=colour, marker=marker, s=55, zorder=3)
            if not close:
                continue
            place = {
                "textcoords": "offset points",
                "xytext": LABELS[kind],
                "fontsize": 8,
                "color": colour,
                "ha": "right" if LABELS[kind][0] < 0 else "left",
            }
            axes[1].annotate(name.rsplit("-", 1)[-1], (line["clip"], line["fd"]), **place)
        for name, scores in results["teachers"].items():
            if name.startswith("ddim-25"):
                axes[0].scatter(scores["clip"], scores["fd"], facecolors="none", edgecolors="tab:green", s=50, zorder=2)
                above = name.endswith("-3")  # CFG 2 and 3 are neighbours
                place = {"textcoords": "offset points", "xytext": (5, 5 if above else -9), "fontsize": 7}
                place["ha"] = "right" if above else "left"
                axes[0].annotate(f"teacher, CFG {name.rsplit('-', 1)[-1]}", (scores["clip"], scores["fd"]), **place)
        for kind, (colour, marker) in FAMILIES.items():
            axes[0].scatter([], [], c=colour, marker=marker, label=kind)
        axes[0].set(xlabel="CLIP score", ylabel="fd (log)", yscale="log")
        axes[0].margins(x=0.2, y=0.08)
        axes[0].legend(fontsize=7)
        axes[1].set(xlabel="CLIP score: the students closer than no-cfg, by their scale", ylabel="fd")
        axes[1].margins(x=0.15, y=0.1)

    return draw


def precision_recall(results: dict[str, Any]) -> Callable[[list[Axes]], None]:
    """Table 2's right half: precision and recall against the scale, for LSG and for the teacher's CFG."""

    def draw(axes: list[Axes]) -> None:
        lsg = sorted(
            (float(name.rsplit("-", 1)[-1]), mean(bests(seeds)))
            for name, seeds in results["students"].items()
            if family(name) == "lsg"
        )
        cfg = sorted(
            (float(name.rsplit("-", 1)[-1]), scores)
            for name, scores in results["teachers"].items()
            if name.startswith("ddim-25")
        )
        for panel, rows, title in ((axes[0], lsg, "LSG students: κ"), (axes[1], cfg, "teacher, 25 steps: CFG scale")):
            for key, colour in (("precision", "tab:blue"), ("recall", "tab:red")):
                panel.plot([k for k, _ in rows], [line[key] for _, line in rows], marker="o", color=colour, label=key)
            panel.set(xlabel=title, ylim=(0, 1))
            panel.legend()

    return draw


def images_seen(results: dict[str, Any]) -> Callable[[list[Axes]], None]:
    """Figure 2: the distance against images seen, log-log, a line where the fall is a power law; and the CLIP score. Means."""

    def draw(axes: list[Axes]) -> None:
        styles = {}
        for name, seeds in results["students"].items():
            kind = family(name)
            colour, _ = FAMILIES[kind]
            dashes = ("-", "--", ":", "-.")[styles.setdefault(kind, 0)]
            styles[kind] += 1
            after = means(seeds)
            x = [line["images_seen"] for line in after]
            style = {"color": colour, "linestyle": dashes, "linewidth": 1.2, "label": name}
            axes[0].plot(x, [line["fd"] for line in after], **style)
            axes[1].plot(x, [line["clip"] for line in after], **style)
        axes[1].legend(fontsize=7, ncols=2)
        axes[0].set(xscale="log", yscale="log", xlabel="images seen", ylabel="fd")
        axes[1].set(xscale="log", xlabel="images seen", ylabel="CLIP score")

    return draw


# The students of claims-grids.png, and how many prompts of the sample grids it shows.
SHOWN = ("no-cfg", "short-0.5", "lsg-simple-2", "lsg-2", "long-3", "long-7.5")
PROMPTS = 12


def grids(work: Path) -> None:
    """claims-grids.png: the same prompts and noise, a student a row, seed 0; left as it is where a run is not at hand."""
    folders = {name: work / "runs/claims/seed-0" / name / "student" for name in SHOWN}
    if missing := [name for name, folder in folders.items() if not folder.is_dir()]:
        print("left out: claims-grids.png (no run of", ", ".join(missing) + ")")
        return
    prompts = list(PromptFile(ASSETS / "emoji-grid.txt"))[:PROMPTS]
    models = {name: load_model(str(folder), torch.device("cpu")) for name, folder in folders.items()}
    rows = [Row(list(draw(model, prompts, range(PROMPTS), batch=PROMPTS)), name) for name, model in models.items()]
    labelled_grid([Block(rows)], prompts).save(IMAGES / "claims-grids.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(), help="where runs/claims and evals/claims are")
    work = parser.parse_args().work
    results = collect("claims", work, drawings=drawings_themselves())
    grids(work)
    plot("claims-trade-off", trade_off(results), 2)
    plot("claims-precision-recall", precision_recall(results), 2)
    plot("claims-images-seen", images_seen(results), 2)
    tables = {"students": student_table(results), "teachers": teacher_table(results)}
    put_tables(HERE.parent / "docs/claims.md", tables)
    print(*tables.values(), f"rank correlation with Table 3: {rank_correlations(results)}", sep="\n\n")


if __name__ == "__main__":
    main()
