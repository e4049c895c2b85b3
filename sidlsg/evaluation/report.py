"""The report of an evaluation: a table of its scores, with published results of the same protocol below. No torch in here."""

from __future__ import annotations

import functools
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from sidlsg.data import read_table

# Key in results -> heading, decimals.
COLUMNS = {
    "fid": ("FID", 2),
    "fd": ("fd", 2),
    "clip": ("CLIP", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "retrieval_top1": ("retrieval@1", 3),
    "retrieval_top5": ("retrieval@5", 3),
    "hps_anime": ("HPS anime", 2),
    "hps_photo": ("HPS photo", 2),
    "hps_concept-art": ("HPS concept-art", 2),
    "hps_paintings": ("HPS paintings", 2),
    "hps_average": ("HPS average", 2),
}


@functools.cache
def published() -> dict[str, list[dict[str, Any]]]:
    """Results to compare with, by protocol: the paper's for gigagan and hps-v2.0, our own measurements for embedded."""
    return read_table("evaluation/published.yaml")


def table_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and rows of text: this result first, then the published ones of the same protocol."""
    scores = results["scores"]
    keys = [key for key in COLUMNS if key in scores]
    head = ["", *(COLUMNS[key][0] for key in keys)]
    rows = [[describe(results), *(f"{scores[key]:.{COLUMNS[key][1]}f}" for key in keys)]]
    for row in published().get(results["protocol"], []):
        if any(row.get(key) is not None for key in keys):
            rows.append([row["method"], *(_as_published(key, row.get(key), results["protocol"]) for key in keys)])
    return head, rows


def _as_published(key: str, value: float | None, protocol: str) -> str:
    """Format with as many decimals as the paper gives (two or three for CLIP); our own rows like the result itself."""
    if value is None:
        return "–"
    if protocol == "embedded":
        return f"{value:.{COLUMNS[key][1]}f}"
    return f"{value:g}" if key == "clip" else f"{value:.2f}"


def describe(results: dict[str, Any]) -> str:
    """This result in a few words: model, steps, guidance, sampler; or the folder of pictures."""
    about = results["generation"]
    if "model" not in about:
        return f"pictures in {about['images']}"
    if about["one_step"]:
        return f"{about['model']}, 1 step"
    return f"{about['model']}, {about['steps']} steps, CFG {about['guidance']:g}, {about['sampler']}"


def markdown(results: dict[str, Any]) -> str:
    """The text of ``results.md``: the table, where its other rows come from, warnings and package versions."""
    head, rows = table_rows(results)
    lines = [f"# {results['protocol']}: {results['what']}", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join([f"**{row[0]}**", *row[1:]] if i == 0 else row) + " |" for i, row in enumerate(rows)]
    lines += ["", f"{results['pictures']:,} pictures. " + SOURCE.get(results["protocol"], "")]
    lines += [f"Warning: {text}" for text in results["warnings"]]
    lines += ["", "Versions: " + ", ".join(f"{name} {value}" for name, value in results["versions"].items())]
    return "\n".join(lines) + "\n"


SOURCE = {
    "gigagan": "The other rows are the paper's tables 1 and 2; its precision and recall are of unstated preprocessing.",
    "hps-v2.0": "The other rows are the paper's Table 2.",
    "embedded": "The other rows were measured with this protocol (docs/claims.md): the shipped student, the teacher `emoji` with "
    "so many steps (DDIM, DPM++, UniPC) and CFG scales, the reference drawings themselves.",
}


def results_table(results: dict[str, Any]) -> RenderableType:
    """The same table for the terminal."""
    head, rows = table_rows(results)
    table = Table(box=None, pad_edge=False, title=f"{results['protocol']}: {results['what']}", title_justify="left")
    for place, heading in enumerate(head):
        table.add_column(heading, justify="left" if place == 0 else "right")
    for place, row in enumerate(rows):
        table.add_row(*(escape(cell) for cell in row), style="bold" if place == 0 else None)
    return Group(table, SOURCE.get(results["protocol"], ""))
