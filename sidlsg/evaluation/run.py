"""An evaluation from end to end: draw pictures (resumable, split over processes), score them, write the report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sidlsg import distributed
from sidlsg.devices import DTYPES, pick_device, pick_precision
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation import hps
from sidlsg.evaluation.captions import assign, captions_of
from sidlsg.evaluation.generation import Job, Settings, caption_jobs, generate, missing, style_jobs
from sidlsg.evaluation.pictures import Folder, find_pictures
from sidlsg.evaluation.progress import Bars
from sidlsg.evaluation.protocol import HPS_STYLES, Protocol, get_protocol
from sidlsg.evaluation.report import markdown
from sidlsg.evaluation.request import Request
from sidlsg.evaluation.scorer import Scorer
from sidlsg.evaluation.scoring import encode_folder, score_pictures, score_styles, use_reference
from sidlsg.files import write_text
from sidlsg.runs.opening import open_model
from sidlsg.sampling.draw import check_sampling
from sidlsg.version import __version__


def run(request: Request, console: Console | None = None) -> dict[str, Any] | None:
    """Draw the pictures that are missing, score them all, and write ``results.json`` and ``results.md``.

    Args:
        console: where progress and warnings go; None is silent.

    Returns the content of ``results.json``, or None in processes other than the main one, which only draw. Raises UsageError or
    SidlsgError, before anything is drawn, when reference, weights or captions are missing or belong to another protocol.
    """
    _check(request)
    device = pick_device(request.device, distributed.launched().local_rank)
    console = console if console is not None and distributed.launched().main else Console(quiet=True)
    with Bars(console) as bars:
        results = _hpsv2(request, device, bars) if request.hpsv2 else _protocol(request, device, bars)
    if results is not None:
        _write(request.folder, results)
    return results


def _protocol(request: Request, device: torch.device, bars: Bars) -> dict[str, Any] | None:
    """Evaluate by a protocol of ``protocols.yaml``: FID (or fd), CLIP score, precision and recall."""
    protocol, folder, main = request.chosen, request.folder, distributed.launched().main
    captions = captions_of(request, protocol, download=True)
    if request.prompts is not None:
        bars.stage(f"captions: {captions.where}")
    if request.reference is None and protocol.prompts != "emoji-bench" and {"fid", "pr"} & set(request.only):
        request = _without_reference(request, protocol)
    warnings: list[str] = []
    seconds: dict[str, float] = {}

    def warn(text: str) -> None:
        warnings.append(text)
        bars.warn(text)

    begun = time.monotonic()
    scorer = reference = None
    if main:  # missing or wrong weights must stop the evaluation before hours of drawing
        files = {"inception": request.inception, "clip": request.clip}
        scorer = Scorer(protocol, device, request.only, batch=request.batch, **files)
        if {"fid", "pr"} & set(request.only):
            reference = use_reference(scorer, request.reference, request.assume_protocol, bars, warn)
        seconds["reference"] = time.monotonic() - begun
    about: dict[str, Any] = {"images": str(request.images)}
    if request.images is None:
        assert captions.lines is not None
        begun = time.monotonic()
        about = draw(request, caption_jobs(captions.lines), protocol.prompts, captions.sha256, bars, device)
        seconds["drawing"] = time.monotonic() - begun
    if not main:
        return None
    assert scorer is not None
    begun = time.monotonic()
    found = assign(find_pictures(request.images or folder / "images"), captions, warn)
    if request.limit and request.images is None:
        warn(f"only the first {request.limit:,} captions: not comparable with published numbers")
        found = _first(found, request.limit)
    scores = score_pictures(scorer, found, captions.lines, reference, folder / "encoded", bars, warn, bars.stage)
    seconds["scoring"] = time.monotonic() - begun
    return {
        "protocol": protocol.name,
        "protocol_sha256": protocol.fingerprint,
        "what": protocol.what,
        "scores": scores,
        "pictures": len(found),
        "reference": None if reference is None else {"source": reference.source, "pictures": reference.moments.count},
        "generation": about,
        "prompts_sha256": captions.sha256,
        "weights_sha256": scorer.weights,
        "device": str(device),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "warnings": warnings,
        "versions": versions(),
    }


def _without_reference(request: Request, protocol: Protocol) -> Request:
    """Fall back to the CLIP score alone, when a folder of pictures is scored and ``only`` has it; else raise UsageError."""
    if request.images is None:
        raise UsageError(
            f"--reference is missing: {protocol.reference} as a folder, or a file of `sidlsg eval stats`. Without one, only "
            "the CLIP score can be computed: --only clip"
        )
    if "clip" not in request.only:
        raise UsageError("--reference is missing: a folder of real pictures, or a file of `sidlsg eval stats`")
    return replace(request, only=("clip",))


def _first(folder: Folder, limit: int) -> Folder:
    """The pictures with numbers below ``limit``: an earlier, larger evaluation may have left more in the folder."""
    assert folder.index is not None  # named by ``caption_jobs``
    kept = [(file, number) for file, number in zip(folder.files, folder.index, strict=True) if number < limit]
    return replace(folder, files=tuple(f for f, _ in kept), index=tuple(n for _, n in kept))


def draw(
    request: Request, jobs: Sequence[Job], prompts: str, digest: str, bars: Bars, device: torch.device
) -> dict[str, Any]:
    """Draw this process's share of the missing pictures and wait for the other processes.

    Args:
        prompts, digest: name and SHA-256 of the list of prompts.

    Returns the fields of ``Settings``. Raises UsageError when the folder holds pictures made with other settings.
    """
    precision = pick_precision(request.precision, device)
    model = open_model(request.drawn, device, DTYPES[precision])
    processes = distributed.start(device)
    steps, guidance = check_sampling(model, **request.generation)
    settings = Settings(
        model=model.source,
        parts_sha256=model.digests(),
        scheduler=model.scheduler_config,
        t_init=model.student["t_init"] if model.student else None,
        one_step=model.student is not None,
        steps=steps,
        guidance=guidance,
        sampler=request.sampler or (None if model.student else model.scheduler_config["_class_name"]),
        precision=precision,
        prompts=prompts,
        prompts_sha256=digest,
        pictures=len(jobs),
    )
    images = request.folder / "images"
    if processes.main:
        settings.claim(request.folder)
    distributed.barrier()
    left = len(missing(jobs, images))
    tick = bars(f"drawing ({len(jobs) - left:,} of {len(jobs):,} are there)", -(-left // processes.world))
    distributed.barrier()  # no process draws before all have counted
    batch = request.batch or (16 if device.type == "cuda" else 32)
    generate(model, jobs, images, processes, batch=batch, tick=tick, **request.generation)
    distributed.barrier()
    distributed.stop()
    return asdict(settings)


def _hpsv2(request: Request, device: torch.device, bars: Bars) -> dict[str, Any] | None:
    """Evaluate by HPSv2: the human preference score over 4 x 800 prompts."""
    main = distributed.launched().main
    prompts = {style: hps.load_prompts(style, request.prompts)[: request.limit] for style in HPS_STYLES}
    digest = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()
    warnings: list[str] = []
    begun = time.monotonic()
    version, scorer = request.hps_version, None
    if main:
        scorer = hps.load_hps(
            version, device, request.hps, antialias=request.hps_antialias, package=request.hps_package
        )
    about: dict[str, Any] = {"images": str(request.images)}
    if request.images is None:
        about = draw(request, style_jobs(prompts), "hpsv2", digest, bars, device)
    if not main:
        return None
    assert scorer is not None
    if request.limit:
        warnings.append(
            f"only the first {request.limit:,} prompts of each style: not comparable with published numbers"
        )
        bars.warn(warnings[-1])
    count = sum(len(texts) for texts in prompts.values())
    scores = score_styles(scorer, prompts, request.images or request.folder / "images", bars("HPSv2", count))
    return {
        "protocol": f"hps-{version}",
        "what": f"HPSv2, checkpoint {version}, 100 x cosine; v2.0 and v2.1 are different scales",
        "scores": scores,
        "pictures": count,
        "hps": scorer.facts,
        "generation": about,
        "prompts_sha256": digest,
        "device": str(device),
        "seconds": {"all": round(time.monotonic() - begun, 1)},
        "warnings": warnings,
        "versions": versions(),
    }


def make_statistics(
    folder: Path,
    out: Path,
    protocol: str = "gigagan",
    *,
    features: bool = True,
    inception: Path | None = None,
    device: str = "auto",
    batch: int | None = None,
    console: Console | None = None,
) -> int:
    """Write a file of reference statistics, so that others need not have the pictures; returns the number of pictures.

    Args:
        features: store the features too, which precision and recall need.

    Raises UsageError for a folder without pictures, an unknown protocol, or a name that does not end in .npz.
    """
    chosen = get_protocol(protocol)
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: the file's name must end in .npz")
    pictures = find_pictures(folder)
    scorer = Scorer(chosen, pick_device(device), ("fid",), inception=inception, batch=batch)
    with Bars(console or Console(quiet=True)) as bars:
        found = encode_folder(scorer, pictures, bars)
    (found if features else replace(found, features=None)).save(out)
    return len(pictures)


def versions() -> dict[str, str]:
    """Versions of all packages that can affect a score."""
    names = (
        "torch",
        "torchvision",
        "torch-fidelity",
        "open_clip_torch",
        "pillow",
        "numpy",
        "diffusers",
        "transformers",
    )
    return {"sidlsg": __version__} | {name: importlib.metadata.version(name) for name in names}


def _check(request: Request) -> None:
    """Raise UsageError, before anything is drawn, when the folder holds results of another protocol."""
    path, protocol = request.folder / "results.json", request.protocol_name
    if not path.is_file():
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8")).get("protocol")
    except (ValueError, AttributeError):
        return  # damaged results are worth nothing
    if old not in (None, protocol):
        raise UsageError(f"{path} holds results of the protocol {old}; give another --out for {protocol}")


def _write(folder: Path, results: dict[str, Any]) -> None:
    """``results.json`` and ``results.md``; raises SidlsgError when they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
        write_text(folder / "results.md", markdown(results))
    except OSError as error:
        raise SidlsgError(f"cannot write to {folder}: {error.strerror}; give another --out") from None
