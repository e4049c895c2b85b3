"""The dry run of an evaluation: what it would do, need and download."""

from __future__ import annotations

from pathlib import Path

from sidlsg.data import in_cache
from sidlsg.evaluation.captions import captions_of
from sidlsg.evaluation.protocol import HPS_JPEG_QUALITY, HPS_PROMPTS, HPS_STYLES, RUN
from sidlsg.evaluation.request import Request
from sidlsg.evaluation.weights import cached_path, weight_files
from sidlsg.runs.folder import run_folder
from sidlsg.sheet import Sheet
from sidlsg.teachers.registry import locate


def plan(request: Request) -> Sheet:
    """Lines of what ``run`` would do, need and download for this request; downloads nothing."""
    return Sheet({"What will be scored": dict(lines(request))})


def lines(request: Request) -> list[tuple[str, str]]:
    """The rows of the plan: name and text."""
    return _hps_rows(request) if request.hpsv2 else _protocol_rows(request)


def weights_line(name: str, given: Path | None) -> str:
    """Where a weights file is, or where it would be downloaded from."""
    row = weight_files()[name]
    if given is not None:
        return f"{given}" + ("" if given.is_file() else " (there is no such file)")
    found = cached_path(row)
    if found is not None:
        return f"{found} (there)"
    size = f", {row.bytes / 2**20:,.1f} MiB" if row.bytes else ""
    check = f", SHA-256 {row.sha256[:12]}..." if row.sha256 else ", checked against the hash the hub announces"
    return f"to be downloaded{size}{check}: {row.url} -> {in_cache(f'weights/{row.file}')}; or {row.option} FILE"


def _protocol_rows(request: Request) -> list[tuple[str, str]]:
    protocol, folder = request.chosen, request.folder
    found = captions_of(request, protocol, download=False)
    captions, where = found.lines, found.where
    total = len(captions) if captions is not None else protocol.images
    count = min(total, request.limit or total)
    rows = [("protocol", f"{protocol.name}: {protocol.what}")]
    if request.images is None:
        rows += _drawing_lines(request, folder, [Path(f"{i:06d}.png") for i in range(count)])
    else:
        rows.append(("pictures", f"{request.images}, as they are there"))
    rows.append(
        ("captions", where + ("" if captions is None or request.images is not None else f" (there, {total:,})"))
    )
    real = request.reference
    if {"fid", "pr"} & set(request.only):
        if real is None:
            text = (
                "in the package"
                if protocol.prompts == "emoji-bench"
                else protocol.reference
                if protocol.prompts == RUN
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
            rows.append(("Inception weights", weights_line("inception", request.inception)))
    if "clip" in request.only:
        prefix = f', prefix "{protocol.clip_prefix}"' if protocol.clip_prefix else ", no prefix"
        rows.append(("CLIP", f"{protocol.clip_model}{prefix}, mean cosine"))
        if protocol.clip_weights != "judge":
            rows.append(("CLIP weights", weights_line(protocol.clip_weights, request.clip)))
    rows.append(("results", f"{folder / 'results.json'}, {folder / 'results.md'}"))
    return rows


def _drawing_lines(request: Request, folder: Path, paths: list[Path]) -> list[tuple[str, str]]:
    """The model, the pictures it would draw, and how many of them exist already."""
    there = sum((folder / "images" / path).exists() for path in paths)
    how = "".join(f", {k} {v}" for k, v in request.generation.items() if v is not None)
    rows = [("model", f"{request.drawn}{how} ({_place(request.drawn)})")]
    state = f" ({there:,} are there already)" if there else ""
    rows.append(("pictures", f"{len(paths):,} PNG files in {folder / 'images'}, seed = number of the caption{state}"))
    return rows


def _place(model: str) -> str:
    """Where a model is, or where it would be downloaded from; raises UsageError for an unknown one."""
    if run_folder(model) is not None:
        return "a run folder"
    place = locate(model)
    if place.entry and place.folder:
        return "in the package"
    return str(place.folder) if place.folder else f"hub, downloaded if not cached: {', then '.join(place.repositories)}"


def _hps_rows(request: Request) -> list[tuple[str, str]]:
    folder = request.folder
    count = min(HPS_PROMPTS, request.limit or HPS_PROMPTS)
    rows = [
        (
            "protocol",
            f"HPSv2 {request.hps_version}: 4 x {count} prompts, 100 x cosine, on JPEG of quality {HPS_JPEG_QUALITY}",
        )
    ]
    if request.images is None:
        rows += _drawing_lines(request, folder, [Path(s) / f"{i:05d}.png" for s in HPS_STYLES for i in range(count)])
    else:
        rows.append(("pictures", f"{request.images}/<style>/<number>.png"))
    for style in HPS_STYLES:
        given = request.prompts / f"{style}.json" if request.prompts else None
        rows.append((f"prompts {style}", weights_line(f"hps-prompts-{style}", given)))
    backend = "the hpsv2 package" if request.hps_package else "open_clip ViT-H-14"
    rows.append(("scores", f"{backend}, antialiased resize: {'yes' if request.hps_antialias else 'no'}"))
    rows.append(("HPS weights", weights_line(f"hps-{request.hps_version}", request.hps)))
    rows.append(("results", f"{folder / 'results.json'}, {folder / 'results.md'}"))
    return rows
