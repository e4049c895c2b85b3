"""The report of an evaluation: its scores, and the published results of its protocol, by who measured them. No torch in here."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from sidlsg.data import read_table

# Key in results -> heading, decimals.
COLUMNS = {
    "fid": ("FID", 2),
    "fid-t": ("FID-T", 2),
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


@dataclass(frozen=True)
class Section:
    """A table of the report: rows of text under a title, and where they come from; the first is the result itself."""

    title: str
    source: str
    rows: list[list[str]]


@functools.cache
def published() -> dict[str, list[dict[str, Any]]]:
    """Results to compare with, by protocol: groups of rows that were measured by the same code."""
    return read_table("evaluation/published.yaml")


def sections(results: dict[str, Any]) -> tuple[list[str], list[Section]]:
    """Headings, and tables: the result, then, unless there is a warning, the published ones of its protocol."""
    scores = results["scores"]
    keys = [key for key in COLUMNS if key in scores]
    head = ["", *(COLUMNS[key][0] for key in keys)]
    own = [describe(results), *("–" if scores[key] is None else f"{scores[key]:.{COLUMNS[key][1]}f}" for key in keys)]
    found = [Section("", "", [own])]
    for group in [] if results["warnings"] else published().get(results["protocol"], []):
        rows = [
            [row["method"], *(_as_published(key, row.get(key), results["protocol"]) for key in keys)]
            for row in group["rows"]
            if any(row.get(key) is not None for key in keys)
        ]
        if rows:
            found.append(Section(group["title"], group["source"], rows))
    return head, found


def _as_published(key: str, value: float | str | None, protocol: str) -> str:
    """Format with as many decimals as the paper gives (two or three for CLIP); our own rows like the result itself."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if protocol == "embedded":
        return f"{value:.{COLUMNS[key][1]}f}"
    return f"{value:.3f}" if key == "clip" and round(value, 2) != value else f"{value:.2f}"


def remarks(results: dict[str, Any]) -> list[str]:
    """What a reader of the result must know: warnings, what that means for comparisons, and which scores are not given."""
    said = [f"Warning: {text}" for text in results["warnings"]]
    if said and results["protocol"] in published():
        said.append("Because of this, published results are not shown beside it.")
    if results.get("pairing"):
        said.append(results["pairing"])
    names: dict[str, list[str]] = {}
    for key, reason in results["not_given"].items():
        names.setdefault(reason, []).append(COLUMNS[key][0])
    absent = "; ".join(f"{', '.join(those)} ({reason})" for reason, those in names.items())
    return [*said, f"Not given: {absent}."] if absent else said


def describe(results: dict[str, Any]) -> str:
    """This result in a few words: model, steps, guidance, sampler; or the folder of pictures."""
    about = results["generation"]
    if "model" not in about:
        return f"pictures in {about['images']}"
    if about["one_step"]:
        return f"{about['model']}, 1 step"
    return f"{about['model']}, {about['steps']} steps, CFG {about['guidance']:g}, {about['sampler']}"


def markdown(results: dict[str, Any]) -> str:
    """The text of ``results.md``: the tables and where their rows come from, warnings, and what the scores were computed with."""
    head, tables = sections(results)
    lines = [f"# {results['protocol']}: {results['what']}"]
    for section in tables:
        lines += ["", f"## {section.title}", "", section.source] * bool(section.title)
        lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in section.rows]
        if not section.title:
            lines += [
                "",
                f"{results['pictures']:,} pictures.",
                *(line for text in remarks(results) for line in ("", text)),
            ]
    lines += [
        "",
        "## Computed with",
        "",
        f"{results['precision']}, on {results['device']} ({results['device_name']})",
        "",
    ]
    lines += [f"- {name}: SHA-256 {sha256}" for name, sha256 in results["weights_sha256"].items()]
    lines += [f"- prompts: SHA-256 {results['prompts_sha256'] or 'unknown'}"]
    lines += [f"- {name} {value}" for name, value in results["versions"].items()]
    return "\n".join(lines) + "\n"


def results_table(results: dict[str, Any]) -> RenderableType:
    """The same tables for the terminal."""
    head, tables = sections(results)
    shown: list[RenderableType] = []
    for section in tables:
        title = section.title or f"{results['protocol']}: {results['what']}"
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), title=escape(title), title_justify="left")
        for place, heading in enumerate(head):
            table.add_column(heading, justify="left" if place == 0 else "right")
        for row in section.rows:
            table.add_row(*map(escape, row), style=None if section.title else "bold")
        shown += [table, *(escape(text) for text in ([section.source] if section.title else remarks(results))), ""]
    return Group(*shown[:-1])
