"""What an evaluation shows: the plan before it, the table after it, published rows beside it. No torch in here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from sidlsg.data import PACKAGE, cache_folder
from sidlsg.metrics.protocol import HPS_JPEG_QUALITY, HPS_PROMPTS, HPS_STYLES, Protocol
from sidlsg.metrics.weights import cached_path, weight_files
from sidlsg.registry import locate

if TYPE_CHECKING:
    from sidlsg.cli.eval import Request

# Key in results -> heading, digits.
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
    """Rows of other results by protocol: the paper's for gigagan and hps-v2.0, measured ones for embedded."""
    return yaml.safe_load((PACKAGE / "metrics" / "published.yaml").read_text(encoding="utf-8"))


def table_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and rows of text: this result first, then the published ones of the same protocol only."""
    scores = results["scores"]
    keys = [key for key in COLUMNS if key in scores]
    head = ["", *(COLUMNS[key][0] for key in keys)]
    rows = [[describe(results), *(f"{scores[key]:.{COLUMNS[key][1]}f}" for key in keys)]]
    for row in published().get(results["protocol"], []):
        if any(row.get(key) is not None for key in keys):
            rows.append([row["method"], *(_as_published(key, row.get(key), results["protocol"]) for key in keys)])
    return head, rows


def _as_published(key: str, value: float | None, protocol: str) -> str:
    """With as many digits as the paper gives (CLIP scores have two or three); our own rows as the result itself."""
    if value is None:
        return "–"
    if protocol == "embedded":
        return f"{value:.{COLUMNS[key][1]}f}"
    return f"{value:g}" if key == "clip" else f"{value:.2f}"


def describe(results: dict[str, Any]) -> str:
    """This result in a few words: model, steps, guidance."""
    about = results["generation"]
    if "model" not in about:
        return f"pictures in {about['images']}"
    if about["one_step"]:
        return f"{about['model']}, 1 step"
    return f"{about['model']}, {about['steps']} steps, CFG {about['guidance']:g}, {about['sampler']}"


def markdown(results: dict[str, Any]) -> str:
    """``results.md``: the table, and what the numbers are."""
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


def _lines(rows: list[tuple[str, str]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def weights_line(name: str, given: Path | None) -> str:
    """Where a weight file is, or from where it would come."""
    row = weight_files()[name]
    if given is not None:
        return f"{given}" + ("" if given.is_file() else " (there is no such file)")
    found = cached_path(row)
    if found is not None:
        return f"{found} (there)"
    size = f", {row.bytes / 2**20:,.1f} MiB" if row.bytes else ""
    check = f", SHA-256 {row.sha256[:12]}..." if row.sha256 else ", checked against the hash the hub announces"
    return f"to be downloaded{size}{check}: {row.url} -> {cache_folder() / 'weights' / row.file}; or {row.option} FILE"


def plan_table(
    request: Request,
    protocol: Protocol,
    weights: dict[str, Path | None],
    folder: Path,
    captions: list[str] | None,
    where: str,
) -> RenderableType:
    """What ``sidlsg eval`` would do, need and download."""
    count = len(captions) if captions is not None else min(protocol.images, request.limit or protocol.images)
    rows = [("protocol", f"{protocol.name}: {protocol.what}")]
    if request.images is None:
        rows += _drawing_lines(request, folder, [Path(f"{i:06d}.png") for i in range(count)])
    else:
        rows.append(("pictures", f"{request.images}, as they are there"))
    rows.append(
        ("captions", where + ("" if captions is None or request.images is not None else f" (there, {count:,})"))
    )
    real = request.reference
    if {"fid", "pr"} & set(request.only):
        if real is None:
            text = (
                "in the package"
                if protocol.prompts == "emoji-bench"
                else f"MISSING, give --reference: {protocol.reference}"
            )
        else:
            text = f"{real}" + ("" if real.exists() else " (there is no such folder or file)")
        rows.append(("reference", text))
        network = "Inception-2015" if protocol.features == "inception" else "the embedded judge"
        size = (
            f"centre crop and Lanczos to {protocol.size}x{protocol.size}"
            if protocol.crop
            else f"{protocol.size}x{protocol.size} as they are"
        )
        resize = f", {protocol.features_resize} to 299x299" if protocol.features_resize else ""
        rows.append(("features", f"{network}; {size}{resize}; precision and recall with k = {protocol.neighbours}"))
        if protocol.features == "inception":
            rows.append(("", weights_line("inception", weights["inception"])))
    if "clip" in request.only:
        prefix = f', prefix "{protocol.clip_prefix}"' if protocol.clip_prefix else ", no prefix"
        rows.append(("CLIP", f"{protocol.clip_model}{prefix}, mean cosine"))
        if protocol.clip_weights != "judge":
            rows.append(("", weights_line(protocol.clip_weights, weights["clip"])))
    rows.append(("results", f"{folder / 'results.json'}, {folder / 'results.md'}"))
    return _lines(rows)


def _drawing_lines(request: Request, folder: Path, paths: list[Path]) -> list[tuple[str, str]]:
    """Which pictures, by which model, and how many are there already."""
    there = sum((folder / "images" / path).exists() for path in paths)
    rows = [
        ("model", f"{request.model}" + "".join(f", {k} {v}" for k, v in request.generation.items() if v is not None))
    ]
    state = f" ({there:,} are there already)" if there else ""
    rows.append(("pictures", f"{len(paths):,} PNG files in {folder / 'images'}, seed = number of the caption{state}"))
    return rows


def _place(model: str) -> str:
    """Where a model is, or from where it would be downloaded; raises UsageError for one that nobody knows."""
    if (Path(model) / "config.yaml").is_file():
        return "a run folder"
    place = locate(model)
    if place.entry and place.folder:
        return "in the package"
    return (
        str(place.folder) if place.folder else f"hub (downloaded if not cached): {', then '.join(place.repositories)}"
    )


def hps_plan_table(request: Request, options: dict[str, Any], folder: Path) -> RenderableType:
    """What ``sidlsg eval --hpsv2`` would do, need and download."""
    count = min(HPS_PROMPTS, request.limit or HPS_PROMPTS)
    rows = [
        (
            "protocol",
            f"HPSv2 {options['version']}: 4 x {count} prompts, 100 x cosine, on JPEG of quality {HPS_JPEG_QUALITY}",
        )
    ]
    if request.images is None:
        rows += _drawing_lines(request, folder, [Path(s) / f"{i:05d}.png" for s in HPS_STYLES for i in range(count)])
    else:
        rows.append(("pictures", f"{request.images}/<style>/<number>.png"))
    for style in HPS_STYLES:
        given = request.prompts / f"{style}.json" if request.prompts else None
        rows.append((f"prompts {style}", weights_line(f"hps-prompts-{style}", given)))
    backend = "the hpsv2 package" if options["package"] else "open_clip ViT-H-14"
    rows.append(("scores", f"{backend}, antialiased resize: {'yes' if options['antialias'] else 'no'}"))
    rows.append(("", weights_line(f"hps-{options['version']}", options["weights"])))
    rows.append(("results", f"{folder / 'results.json'}, {folder / 'results.md'}"))
    return _lines(rows)
