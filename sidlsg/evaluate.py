"""An evaluation from end to end: pictures of a model (resumable, split over processes), their scores, the report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidlsg import __version__
from sidlsg.distributed import Processes
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.metrics import hps
from sidlsg.metrics.chunks import encode_files, forget
from sidlsg.metrics.pictures import Folder, common_size, find_pictures, load_rgb, pairs
from sidlsg.metrics.reference import Reference, cache_path, cached, load_reference
from sidlsg.metrics.scorer import Scorer, Tick, bench_reference, keep
from sidlsg.models import Model
from sidlsg.sampler import sample, save_png


@dataclass(frozen=True)
class Job:
    """One picture to make: ``path`` is relative to the folder of pictures; the seed is the number in its name."""

    path: Path
    prompt: str
    seed: int


def caption_jobs(captions: Sequence[str]) -> list[Job]:
    """Caption i with seed i as 00000i.png."""
    return [Job(Path(f"{i:06d}.png"), caption, i) for i, caption in enumerate(captions)]


def style_jobs(prompts: dict[str, list[str]]) -> list[Job]:
    """HPSv2's layout: <style>/0000i.png; the seeds are the same in every style."""
    return [
        Job(Path(style) / f"{i:05d}.png", text, i) for style, texts in prompts.items() for i, text in enumerate(texts)
    ]


def model_digest(module: nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of all weights: two models with one digest draw the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


@dataclass(frozen=True)
class Settings:
    """What determines the pictures of an evaluation; kept beside them as ``generation.json``."""

    model: str
    unet_sha256: str
    one_step: bool
    steps: int
    guidance: float | None
    sampler: str | None
    precision: str
    prompts: str
    prompts_sha256: str
    pictures: int
    noise: str = "torch CPU generator, seed = caption number"

    def claim(self, folder: Path) -> None:
        """Write ``generation.json``; raises UsageError when the folder holds pictures made in another way."""
        path = folder / "generation.json"
        if path.is_file():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise UsageError(f"{path} is damaged; give another --out") from None
            new = asdict(self)
            free = {"pictures", "model"}
            differ = [f"{k} ({old.get(k)} there, {new[k]} here)" for k in new if k not in free and old.get(k) != new[k]]
            if differ:
                raise UsageError(
                    f"{folder} holds pictures made with other settings: {', '.join(differ)}. Give another --out"
                )
        elif (folder / "images").exists():
            raise UsageError(
                f"{folder / 'images'} exists, but not {path}, which says how they were made; give another --out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(asdict(self), indent=2) + "\n")
        except OSError as error:
            raise SidlsgError(f"cannot write to {folder}: {error.strerror}; give another --out") from None


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name and rename."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Jobs whose picture is not there yet."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} if folder.is_dir() else set()
    return [job for job in jobs if job.path.as_posix() not in names]


def generate(
    model: Model,
    jobs: Sequence[Job],
    folder: Path,
    processes: Processes,
    *,
    batch: int,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    tick: Tick | None = None,
) -> int:
    """Draw the pictures that ``folder`` does not have yet, this process its share; returns how many it drew.

    A picture is written under a temporary name and renamed, by threads, while the next ones are drawn.
    """
    todo = missing(jobs, folder)[processes.rank :: processes.world]
    for parent in {folder / job.path.parent for job in todo}:
        parent.mkdir(parents=True, exist_ok=True)
    pictures = sample(
        model,
        [j.prompt for j in todo],
        [j.seed for j in todo],
        batch=batch,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
    )
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        waiting: list[Future[None]] = []
        for job, picture in zip(todo, pictures, strict=True):
            # Fast compression: writing must not hold up the network.
            facts: dict[str, Any] = {"prompt": job.prompt, "seed": job.seed, "model": model.source}
            waiting.append(pool.submit(save_png, picture, folder / job.path, compress_level=1, **facts))
            if len(waiting) >= 4 * batch:
                waiting.pop(0).result()
            if tick:
                tick(1)
        for future in waiting:
            future.result()
    return len(todo)


def use_reference(
    scorer: Scorer, given: Path | None, assume: bool, bar: Callable[[str, int], Tick], warn: Callable[[str], None]
) -> Reference:
    """The reference of an evaluation: statistics file, folder of real pictures (encoded once), or the embedded one."""
    protocol = scorer.protocol
    if given is None and protocol.prompts == "emoji-bench":
        return bench_reference(scorer)
    assert given is not None
    if not given.is_dir():
        found = load_reference(given, protocol, scorer.feature_weights, assume)
    else:
        found = encode_folder(scorer, find_pictures(given), bar)
    if found.moments.count and found.moments.count != protocol.reference_images:
        warn(
            f"the reference holds {found.moments.count:,} pictures, the protocol's has {protocol.reference_images:,}: "
            "the distance is not comparable with published ones"
        )
    return found


def encode_folder(scorer: Scorer, folder: Folder, bar: Callable[[str, int], Tick]) -> Reference:
    """Features of a folder of real pictures, from the cache or computed and cached."""
    protocol = scorer.protocol
    path = cache_path(protocol, scorer.feature_weights, folder)
    found = cached(path, protocol, scorer.feature_weights)
    if found is None:
        tick = bar("reference features", len(folder))
        parts = path.with_suffix(".parts")
        encoded = encode_files(scorer, folder.files, True, False, parts, tick)
        found = scorer.reference(encoded.features, str(folder.path.resolve().name))
        keep(found, path)
        forget(parts)
    return found


def score_pictures(
    scorer: Scorer,
    folder: Folder,
    captions: Sequence[str] | None,
    reference: Reference | None,
    work: Path,
    bar: Callable[[str, int], Tick],
    warn: Callable[[str], None],
    stage: Callable[[str], None],
) -> dict[str, float]:
    """Scores of a folder of generated pictures; everything doubtful about it is told to ``warn``."""
    protocol = scorer.protocol
    common_size(folder)
    if folder.lossy:
        warn(
            f"{len(folder.lossy)} of the generated pictures are {folder.lossy[0].suffix}: lossy compression alone moves an FID "
            "by whole points; write PNG files"
        )
    paired: list[tuple[int, int]] = []
    if captions is not None and "clip" in scorer.metrics:
        paired = pairs(folder.index, len(folder), len(captions))
        if folder.index is None:
            warn("file names are not numbers, so pictures cannot be paired with captions: no CLIP score")
        else:
            there = {number for _, number in paired}
            absent = [number for number in range(len(captions)) if number not in there]
            if absent:
                warn(f"{len(absent):,} of {len(captions):,} captions have no picture (first: {absent[0]})")
            extra = len(folder) - len(paired)
            if extra:
                warn(f"{extra:,} pictures have numbers beyond the {len(captions):,} captions: not in the CLIP score")
    features = reference is not None
    if not (features or paired):
        raise UsageError(
            "nothing can be computed: give --reference, or pictures named by caption number with --prompts"
        )
    encoded = encode_files(scorer, folder.files, features, bool(paired), work, bar("features", len(folder)))
    if features and len(folder) < encoded.features.shape[1]:
        warn(
            f"{len(folder):,} pictures are fewer than the {encoded.features.shape[1]:,} features: the covariance is "
            f"rank-deficient and the {protocol.distance} says little; compare only with as many pictures"
        )
    if reference is not None and reference.features is None and "pr" in scorer.metrics:
        warn("the reference file holds no features, only statistics: no precision and recall")
    return scorer.score(encoded, reference, captions, paired, stage)


def score_styles(
    scorer: hps.HpsScorer, prompts: dict[str, list[str]], folder: Path, tick: Tick, batch: int = 20
) -> dict[str, float]:
    """HPSv2 of <folder>/<style>/<index>.png (or .jpg, taken as they are)."""
    scores: dict[str, torch.Tensor] = {}
    for style, texts in prompts.items():
        parts = []
        for start in range(0, len(texts), batch):
            pictures = []
            for i in range(start, min(start + batch, len(texts))):
                path = folder / style / f"{i:05d}.png"
                lossy = path.with_suffix(".jpg")
                pictures.append(
                    load_rgb(lossy) if not path.exists() and lossy.exists() else hps.as_jpeg(load_rgb(path))
                )
            parts.append(scorer(pictures, texts[start : start + batch]))
            tick(len(pictures))
        scores[style] = torch.cat(parts)
    if not all(torch.isfinite(values).all() for values in scores.values()):
        raise SidlsgError("some HPSv2 scores are not finite; the weights file may be damaged")
    return hps.summary(scores)


def versions() -> dict[str, str]:
    """Versions of everything that touches a number."""
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


def write_results(folder: Path, results: dict[str, Any], table: str) -> None:
    """``results.json`` and ``results.md``; raises UsageError when the folder holds results of another protocol."""
    path = folder / "results.json"
    if path.is_file():
        try:
            old = json.loads(path.read_text(encoding="utf-8")).get("protocol")
        except (ValueError, AttributeError):
            old = None
        if old not in (None, results["protocol"]):
            raise UsageError(
                f"{path} holds results of the protocol {old}; give another --out for {results['protocol']}"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(results, indent=2) + "\n")
        write_text(folder / "results.md", table)
    except OSError as error:
        raise SidlsgError(f"cannot write to {folder}: {error.strerror}; give another --out") from None
