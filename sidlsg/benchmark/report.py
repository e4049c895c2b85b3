"""Tables of ``sidlsg bench`` for terminal, JSON and Markdown, with the paper's Table 4 beside them. Does not import torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sidlsg.data import read_table
from sidlsg.errors import SidlsgError
from sidlsg.planning.gpus import known_gpu
from sidlsg.terminal import say

# A SHARED column moves into the title if all its cells are the same; GPU_ONLY columns are left out on a CPU.
SHARED = ("preset", "precision", "micro-batch")
GPU_ONLY = ("reserved", "MFU", "paper GiB", "paper GPU-s per 1k")
SAMPLE_HEAD = ("sampling", "pictures/s", "ms per picture", "spread")


@functools.cache
def table4() -> list[dict[str, Any]]:
    return read_table("planning/table4.yaml")


def paper_row(row: dict[str, Any], facts: dict[str, Any]) -> tuple[float, float] | None:
    """(GiB, GPU-seconds per 1k images) of Table 4 for the nearest platform; None where there is none: on a CPU, for models
    other than sd15, for custom scales.

    Takes the rows of the same GPU and precision (fp16's for bf16) if the paper has them, else those of the H100; of these the row
    with the same attention, else the last.
    """
    if "memory_gib" not in facts or facts["arch"] != "sd15":
        return None
    gpu = known_gpu(facts["device"], facts["memory_gib"])
    family = gpu.key if gpu and any(line["gpu"] == gpu.key for line in table4()) else "h100"
    kind = "fp32" if row["precision"] == "fp32" else "fp16"
    lines = [line for line in table4() if line["gpu"] == family and line["precision"] == kind] or [
        line for line in table4() if line["gpu"] == "h100" and line["precision"] == kind
    ]
    attention = row["switches"]["attention"]
    line = next((line for line in lines if line["attention"] == attention), lines[-1])
    cell = line.get(row["strategy"])
    return (cell[0], 8 * cell[1]) if cell else None


def cells(row: dict[str, Any], facts: dict[str, Any]) -> dict[str, str]:
    """One line of the table, by column; a row that failed has its error in the column GiB."""
    micro, fake = row["micro_batch"], row["fake_micro_batch"]
    line = {
        "configuration": row["name"],
        "preset": row["preset"],
        "precision": row["precision"],
        "micro-batch": str(micro) if fake == micro else f"{micro} / {fake}",
    }
    paper = paper_row(row, facts)
    columns = ("GiB", "reserved", "s per 1k", "images/s", "spread", "MFU", "of GEMM", "paper GiB", "paper GPU-s per 1k")
    line |= dict.fromkeys(columns, "")
    if row["error"]:
        line["GiB"] = row["error"]
    else:
        line["GiB"] = f"{row['allocated_gib']:.2f}"
        line["reserved"] = f"{row['reserved_gib']:.2f}" if row["reserved_gib"] else ""
        line["s per 1k"] = f"{row['seconds_per_1k_images']:.4g}"
        line["images/s"] = f"{row['images_per_second']:.4g}"
        line["spread"] = f"±{row['spread'] / 2:.1%}"
        line["MFU"], line["of GEMM"] = f"{row['mfu']:.1%}", f"{row['share_of_gemm']:.1%}"
    line["paper GiB"], line["paper GPU-s per 1k"] = (f"{paper[0]:.1f}", f"{paper[1]:.0f}") if paper else ("–", "–")
    return line


def arrange(rows: list[dict[str, Any]], facts: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """The table as (title, headings, lines)."""
    lines = [cells(row, facts) for row in rows]
    shared = [name for name in SHARED if len({line[name] for line in lines}) == 1]
    gone = {*shared, *(() if "memory_gib" in facts else GPU_ONLY)}
    common = ", ".join(f"{name} {lines[0][name]}" for name in shared)
    head = [name for name in lines[0] if name not in gone]
    title = f"Distillation: {describe(facts)}" + (f"; {common}" if common else "")
    return title, head, [[line[name] for name in head] for line in lines]


def describe(facts: dict[str, Any]) -> str:
    where = facts["device"] + (
        f", {facts['memory_gib']:.0f} GiB" if "memory_gib" in facts else f", {facts['threads']} threads"
    )
    more = "".join(f", {name} {facts[name]}" for name in ("precision", "batch") if name in facts)
    return (
        f"{facts['arch']}{more} on {where}; torch {facts['torch']}, Python {facts['python']}, sidlsg {facts['sidlsg']}"
    )


def markdown(title: str, head: list[str], lines: list[list[str]], notes: list[str]) -> str:
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([f"# {title}", "", *rows, "", *notes, ""])


def show(console: Console, title: str, head: list[str], lines: list[list[str]], notes: list[str]) -> None:
    table = Table(box=None, pad_edge=False, title=escape(title), title_justify="left")
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place == 0 else "right", no_wrap=place == 0)
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table, highlight=False)
    for note in notes:
        say(console, note)


def save(folder: Path | None, name: str, content: dict[str, Any], text: str) -> None:
    """Write ``<name>.json`` and ``<name>.md``, unless ``folder`` is None; raises SidlsgError when they cannot be written."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise SidlsgError(f"cannot write to {folder}: {error.strerror}") from None


def write_bench(
    console: Console | None, folder: Path | None, facts: dict[str, Any], rows: list[dict[str, Any]], command: str
) -> None:
    """Save the rows of ``sidlsg bench`` and, given a console, print them."""
    title, head, lines = arrange(rows, facts)
    measured = [row for row in rows if not row["error"]]
    repeats = len(measured[0]["seconds"]) if measured else 0
    gemms = [row["gemm_tflops"] for row in measured] or [0.0]
    images, longest = rows[0]["images"], rows[0]["measured_images"]
    composed = (
        f" Their time is composed of that of {longest} images and that of fewer: what is done once an iteration, and what is "
        f"done for each image. Draws of the {images - longest} images more are counted into the GiB."
    )
    notes = [
        f"`{command}`: whole iterations of {images} images, the first not measured, median of {repeats}; spread is "
        "half of largest - smallest. Operations are Algorithm 1's, none counted twice." + composed * (longest < images),
        "GiB: peak allocated by PyTorch." if "memory_gib" in facts else "GiB: peak resident size of the process.",
        "Of GEMM: as a share of a large matrix product measured between the iterations, "
        f"{min(gemms):.3g} to {max(gemms):.3g} TFLOP/s.",
        f"Attention where gradients are recorded: {'; or '.join(sorted({row['attention'] for row in measured})) or 'none'}.",
    ]
    if "memory_gib" in facts:
        peaks = sorted({f"{row['precision']} {row['peak_tflops']:.4g}" for row in measured})
        notes.append(
            f"MFU: as a share of the data sheet's TFLOP/s ({', '.join(peaks)}), or of the product for an unknown GPU."
        )
        notes.append("paper: Table 4 of the nearest platform, its seconds of 8 GPUs times 8.")
    if console is not None:
        show(console, title, head, lines, notes)
    save(folder, "bench", {"command": command, "facts": facts, "rows": rows}, markdown(title, head, lines, notes))


def write_bench_sample(
    console: Console, folder: Path | None, facts: dict[str, Any], rows: list[dict[str, Any]], command: str
) -> None:
    """Print and save the rows of ``sidlsg bench sample``."""
    title = f"Sampling: {describe(facts)}"
    lines = [
        [row["name"], f"{row['pictures_per_second']:.3g}", f"{row['ms_per_picture']:.3g}", f"±{row['spread'] / 2:.1%}"]
        for row in rows
    ]
    whole = rows[0]["ms_per_picture"]
    share = {row["name"].split()[0]: row["ms_per_picture"] / whole for row in rows if "alone" in row["name"]}
    notes = [
        f"`{command}`: {rows[0]['pictures']} pictures, the first round not measured, median of {len(rows[0]['seconds'])}.",
        f"Of the time in memory: UNet {share['UNet']:.0%}, VAE {share['VAE']:.0%}, text encoder {share['text']:.0%}. 30,000 "
        f"pictures with files would take {30_000 * rows[1]['ms_per_picture'] / 6e4:.1f} minutes.",
    ]
    show(console, title, list(SAMPLE_HEAD), lines, notes)
    save(
        folder,
        "bench-sample",
        {"command": command, "facts": facts, "rows": rows},
        markdown(title, list(SAMPLE_HEAD), lines, notes),
    )
