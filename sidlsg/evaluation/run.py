"""An evaluation from end to end: draw pictures (resumable, split over processes), score them, write the report."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sidlsg import distributed
from sidlsg.devices import DTYPES, pick_device, pick_precision
from sidlsg.errors import UsageError
from sidlsg.evaluation import hps
from sidlsg.evaluation.captions import assign, captions_of
from sidlsg.evaluation.comparable import Made, deviations, fixed_by_hps, said_of
from sidlsg.evaluation.generation import Job, caption_jobs, draw_missing, settings_of, style_jobs
from sidlsg.evaluation.pictures import Folder, common_size, find_pictures, name_shape
from sidlsg.evaluation.progress import Bars
from sidlsg.evaluation.protocol import HPS_STYLES, PRECISION, RUN, get_protocol
from sidlsg.evaluation.reference import BENCH, Reference
from sidlsg.evaluation.request import Request
from sidlsg.evaluation.results import check_conditions, check_folder, store
from sidlsg.evaluation.scorer import Scorer, obstacles, scores_of
from sidlsg.evaluation.scoring import (
    encode_folder,
    examine,
    find_styles,
    open_reference,
    pair,
    score_pictures,
    score_styles,
    tell_of_names,
)
from sidlsg.evaluation.teacher_images import draw_teacher, run_config, run_prompts
from sidlsg.files import write_text
from sidlsg.paths import check_output
from sidlsg.runs.folder import RunFolder, owner
from sidlsg.runs.opening import open_model
from sidlsg.terminal import say
from sidlsg.version import __version__

# A process waits for others that draw on slower devices, or read the model from a slower disk. One that fails ends all of them.
PATIENCE = timedelta(days=2)


def run(request: Request, console: Console | None = None) -> dict[str, Any] | None:
    """Draw the pictures that are missing, score them all, and write ``results.json`` and ``results.md``.

    Args:
        console: where progress and warnings go; None is silent.

    Returns the content of ``results.json``, or None in processes other than the main one, which only draw. Raises UsageError or
    SidlsgError, before anything is drawn, when reference, weights or captions are missing or belong to another protocol.
    """
    check_folder(request)
    main = distributed.launched().main
    device = pick_device(request.device, distributed.launched().local_rank)
    console = console if console is not None and main else Console(quiet=True)
    with _alone(request.folder) if main else contextlib.nullcontext(), Bars(console) as bars:
        results = _hpsv2(request, device, bars) if request.hpsv2 else _protocol(request, device, bars)
        if results is None:
            return None
        results = store(request.folder, results, bars.stage)
    keep_in_run(request, results, console)
    return results


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other evaluations out of the folder inside the block; folders that are made for it and stay empty are removed."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with RunFolder(folder).locked():
            yield
    finally:
        for place in made:
            if {path.name for path in place.iterdir()} <= {".lock"}:
                shutil.rmtree(place, ignore_errors=True)


def _protocol(request: Request, device: torch.device, bars: Bars) -> dict[str, Any] | None:
    """Evaluate by a protocol of ``protocols.yaml``: FID (or fd), CLIP score, precision and recall."""
    protocol, folder, main = request.chosen, request.folder, distributed.launched().main
    own_reference = protocol.prompts in ("emoji-bench", RUN)
    captions = captions_of(request, protocol, download=True)
    lines = captions.lines
    if request.prompts is not None:
        bars.stage(f"captions: {captions.where}")
    warnings: list[str] = []
    seconds: dict[str, float] = {}

    def warn(text: str) -> None:
        warnings.append(text)
        bars.warn(text)

    pairing = ""
    paired: list[tuple[int, int]] = []
    if request.images is not None:
        found = assign(find_pictures(request.images), captions, warn)
        bars.stage(f"reading {len(found):,} pictures")
        examine(found, protocol, warn, bars.stage)
        if lines is not None and "clip" in request.only:
            paired, pairing = pair(found, lines, warn)
    else:
        assert lines is not None
        if request.reference is None and not own_reference and {"fid", "pr"} & set(request.only):
            raise UsageError(
                f"--reference is missing: {protocol.reference} as a folder, or a file of `sidlsg eval stats`. Without one, "
                "only the CLIP score can be computed: --only clip"
            )
        jobs = caption_jobs(lines[: request.limit])
        images = folder / "images"
        found = Folder(images, tuple(images / job.path for job in jobs), tuple(job.seed for job in jobs))
        paired, pairing = pair(found, lines[: request.limit], warn)
    counts: dict[str, Any] = {"pictures": len(found), "captions": lines is not None, "paired": len(paired)}
    given = request.reference is not None or own_reference
    impossible = obstacles(protocol, request.only, real=0 if given else None, **counts)
    if "clip" in impossible and pairing:
        impossible["clip"], pairing = pairing, ""
    _check_possible(impossible, request.only)
    scorer = reference = None
    real: Reference | Folder | None = None
    if main:  # missing or wrong weights must stop the evaluation before hours of drawing
        files = {"inception": request.inception, "clip": request.clip}
        metrics = [metric for metric in request.only if metric not in impossible]
        scorer = Scorer(protocol, device, metrics, batch=request.batch, **files)
        if {"fid", "pr"} & set(metrics) and protocol.prompts == RUN:
            counts |= {"real": len(found), "real_features": True}
        elif {"fid", "pr"} & set(metrics):
            real = open_reference(scorer, request.reference, request.assume_protocol, warn, bars.stage)
            counts["real"] = len(real) if isinstance(real, Folder) else real.moments.count
            counts["real_features"] = isinstance(real, Folder) or real.features is not None
            impossible |= obstacles(protocol, metrics, **counts)
            _check_possible(impossible, request.only)
        names = None if real is None else name_shape(real.files) if isinstance(real, Folder) else real.names
        made = Made(len(found), {protocol.prompts: captions.sha256}, counts.get("real"), scorer.weights, names)
        for text in said_of(protocol, made):
            warn(text)
        facts = {
            "protocol_sha256": protocol.fingerprint,
            "prompts_sha256": captions.sha256,
            "weights_sha256": scorer.weights,
            "reference": _about_reference(real) if isinstance(real, Reference) else None,
            "images": request.images,
        }
        check_conditions(folder, facts)
    about: dict[str, Any] = {"images": str(request.images and request.images.resolve())}
    if request.images is None:
        begun = time.monotonic()
        if protocol.prompts == RUN and {"fid", "pr"} & (set(request.only) - set(impossible)):
            real = _draw_teacher(request, len(found), device, bars)
        about = draw(request, jobs, protocol.prompts, captions.sha256, bars, device)
        seconds["drawing"] = time.monotonic() - begun
    if not main:
        return None
    assert scorer is not None
    if {"fid", "pr"} & (set(request.only) - set(impossible)):  # after drawing, so that no process waits for this one
        begun = time.monotonic()
        reference = encode_folder(scorer, real, bars) if isinstance(real, Folder) else real
        seconds["reference"] = time.monotonic() - begun
    begun = time.monotonic()
    common_size(found)
    scores = score_pictures(scorer, found, lines, paired, reference, folder / "encoded", bars, warn, bars.stage)
    seconds["scoring"] = time.monotonic() - begun
    return {
        "protocol": protocol.name,
        "protocol_sha256": protocol.fingerprint,
        "what": protocol.what,
        "scores": {name: scores.get(name) for name in scores_of(protocol, request.only)},
        "not_given": {name: why for metric, why in impossible.items() for name in scores_of(protocol, [metric])},
        "pictures": len(found),
        "pictures_sha256": _content(found),
        "pairing": pairing,
        "reference": None if reference is None else _about_reference(reference, real),
        "generation": about,
        "prompts_sha256": captions.sha256,
        "weights_sha256": scorer.weights,
        **_circumstances(device),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "warnings": warnings,
        "versions": versions(),
    }


def _check_possible(impossible: dict[str, str], asked: Sequence[str]) -> None:
    """Raise UsageError, with the reasons, when all metrics that were asked for are impossible (metric -> reason)."""
    if set(asked) <= set(impossible):
        reasons = "; ".join(f"{metric}: {reason}" for metric, reason in impossible.items())
        raise UsageError(f"no score can be computed ({reasons})")


def _about_reference(reference: Reference, folder: object = None) -> dict[str, Any]:
    """Source, number of pictures, and hashes of the statistics and of what they were made from, for the results."""
    moments = reference.moments
    digest = hashlib.sha256(moments.mu.tobytes() + moments.sigma.tobytes()).hexdigest()
    made_from = _content(folder) if isinstance(folder, Folder) else digest
    return {
        "source": reference.source,
        "pictures": moments.count or None,
        "statistics_sha256": digest,
        # Features of one picture differ in their last digits with the device and the batch.
        "sha256": reference.source if reference.source == BENCH.name else made_from,
    }


def _content(folder: Folder) -> str:
    """A hash of the pictures of a folder, in their order."""
    return hashlib.sha256("".join(folder.digests).encode()).hexdigest()


def _circumstances(device: torch.device) -> dict[str, str]:
    """Where and how precisely the scores were computed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(device), "device_name": name, "precision": PRECISION}


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
    settings = settings_of(model, request.generation, precision, prompts, digest, len(jobs))
    processes = distributed.start(device, patience=PATIENCE)
    settings = draw_missing(
        model,
        jobs,
        request.folder,
        settings,
        processes,
        options=request.generation,
        batch=request.batch or (16 if device.type == "cuda" else 32),
        bar=bars,
    )
    distributed.stop()
    return asdict(settings) | {"images_seen": model.student.get("images_seen") if model.student else None}


def _draw_teacher(request: Request, count: int, device: torch.device, bars: Bars) -> Folder:
    """The images of the teacher of the run that ``request`` scores, drawn now or before."""
    config = run_config(request.drawn)
    prompts = run_prompts(config)
    assert prompts is not None
    processes = distributed.start(device, patience=PATIENCE)
    return draw_teacher(config, prompts, count, device, processes, request.batch or config.micro_batch, bars)


def _hpsv2(request: Request, device: torch.device, bars: Bars) -> dict[str, Any] | None:
    """Evaluate by HPSv2: the human preference score over 4 x 800 prompts."""
    main = distributed.launched().main
    lists = {style: hps.load_prompts(style, request.prompts) for style in HPS_STYLES}
    digest = hashlib.sha256(json.dumps({style: texts for style, (texts, _) in lists.items()}, sort_keys=True).encode())
    prompts = {style: texts[: request.limit] for style, (texts, _) in lists.items()}
    warnings: list[str] = []
    begun = time.monotonic()
    version, scorer = request.hps_version, None
    absent: dict[str, str] = {}
    if request.images is not None:
        styles, absent = find_styles(request.images, prompts)
    if main:
        scorer = hps.load_hps(
            version, device, request.hps, antialias=request.hps_antialias, package=request.hps_package
        )
        name = f"hps-{version}"
        pictures = sum(len(texts) for style, texts in prompts.items() if style not in absent)
        hashes = {style: sha256 for style, (_, sha256) in lists.items()}
        warnings = deviations(Made(pictures, hashes, weights={name: scorer.weights}), fixed_by_hps(), name)
        if not request.hps_antialias:
            warnings.append("The pictures are resized without antialiasing, which moves the scores by tenths.")
        for text in warnings:
            bars.warn(text)
        facts = {"prompts_sha256": digest.hexdigest(), "weights_sha256": {name: scorer.weights}, "hps": scorer.facts}
        check_conditions(request.folder, facts | {"images": request.images})
    about: dict[str, Any] = {"images": str(request.images and request.images.resolve())}
    if request.images is None:
        about = draw(request, style_jobs(prompts), "hpsv2", digest.hexdigest(), bars, device)
    if not main:
        return None
    assert scorer is not None
    if request.images is None:
        styles, absent = find_styles(request.folder / "images", prompts)
    batch = {} if request.batch is None else {"batch": request.batch}
    scores = score_styles(scorer, prompts, styles, bars("HPSv2", pictures), **batch)
    asked = [f"hps_{style}" for style in HPS_STYLES] + ["hps_average"]
    reasons = {f"hps_{style}": why for style, why in absent.items()}
    if absent:
        reasons["hps_average"] = "it is over all four styles"
    return {
        "protocol": f"hps-{version}",
        "what": f"HPSv2, checkpoint {version}, 100 x cosine; v2.0 and v2.1 are different scales",
        "scores": scores | dict.fromkeys(key for key in asked if key not in scores),
        "not_given": reasons,
        "pictures": pictures,
        "pictures_sha256": _content(Folder(request.folder, tuple(itertools.chain(*styles.values())), None)),
        "hps": scorer.facts,
        "generation": about,
        "prompts_sha256": digest.hexdigest(),
        "weights_sha256": {f"hps-{version}": scorer.weights},
        **_circumstances(device),
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

    Raises UsageError for a folder without pictures, an unknown protocol, a name that does not end in .npz, or a place that cannot
    be written to.
    """
    chosen = get_protocol(protocol)
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: the file's name must end in .npz")
    check_output(out.parent)
    pictures = find_pictures(folder)
    shown = Bars(console or Console(quiet=True))
    tell_of_names(pictures, shown.warn, shown.stage)
    scorer = Scorer(chosen, pick_device(device), ("fid",), inception=inception, batch=batch)
    with shown as bars:
        found = encode_folder(scorer, pictures, bars)
    if not found.moments.sigma.trace() > 0:
        raise UsageError(
            f"all {len(pictures):,} pictures in {folder} are the same to the network; they make no statistics"
        )
    (found if features else replace(found, features=None)).save(out)
    return len(pictures)


def versions() -> dict[str, str]:
    """Versions of all packages that can affect a score; the optional ones where they are installed."""
    names = [
        "torch",
        "torchvision",
        "torch-fidelity",
        "open_clip_torch",
        "pillow",
        "numpy",
        "diffusers",
        "transformers",
        "hpsv2",
        "hpsv2x",
    ]
    found = {"python": platform.python_version(), "sidlsg": __version__}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def keep_in_run(request: Request, results: dict[str, Any], console: Console) -> None:
    """Copy the results into the folder of the run whose student drew the pictures, so that its report shows them."""
    run = owner(request.drawn) if request.images is None else None
    seen = results["generation"].get("images_seen")
    if run is None or seen is None:
        return
    path = run.evals / f"{seen:012d}-{request.folder.resolve().name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(results, indent=2) + "\n")
    except OSError as error:
        text = f"the report of {run.path} will not show these results: {path} cannot be written ({error.strerror})"
        say(console, text, "warning: ")
