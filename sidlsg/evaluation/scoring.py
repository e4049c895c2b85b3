"""Score a folder of pictures against a reference, with a warning for everything that makes the scores doubtful."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation import hps
from sidlsg.evaluation.chunks import encode_files, forget
from sidlsg.evaluation.pictures import Folder, common_size, find_pictures, load_rgb, pairs
from sidlsg.evaluation.reference import Reference, cache_path, cached, load_reference
from sidlsg.evaluation.scorer import Scorer, Tick, bench_reference, keep


def use_reference(
    scorer: Scorer, given: Path | None, assume: bool, bar: Callable[[str, int], Tick], warn: Callable[[str], None]
) -> Reference:
    """The reference of an evaluation, from a statistics file or a folder of real pictures (encoded once, then cached).

    ``given`` may be None for the embedded benchmark, which has its own. Raises UsageError as ``load_reference`` does.
    """
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
    """Statistics and features of a folder of real pictures, from the cache, or computed and cached."""
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
    """Scores of a folder of generated pictures; ``warn`` is called with everything that makes them doubtful.

    Args:
        work: folder in which encoded chunks are saved.
        bar: starts a progress bar (name, total) and returns the function that advances it.
        stage: called with the name of each computation.

    Raises UsageError when the pictures differ in size, or when there is nothing to compute.
    """
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
        if blank := [number for number, caption in enumerate(captions) if not caption]:
            warn(
                f"{len(blank):,} captions are blank lines (first: {blank[0]}): pictures of that number are not in the CLIP score"
            )
            paired = [(position, number) for position, number in paired if captions[number]]
        if folder.index is None:
            warn("file names are not numbers, so pictures cannot be paired with captions: no CLIP score")
        else:
            there = {number for _, number in paired}
            absent = [number for number, caption in enumerate(captions) if caption and number not in there]
            if absent:
                warn(f"{len(absent):,} of {len(captions):,} captions have no picture (first: {absent[0]})")
            extra = sum(number >= len(captions) for number in folder.index)
            if extra:
                warn(f"{extra:,} pictures have none of the {len(captions):,} captions: not in the CLIP score")
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
    """HPSv2 scores of ``<folder>/<style>/0000i.png``, after a round trip through JPEG (``.jpg`` files as they are).

    Raises UsageError when a picture is missing or unreadable, SidlsgError when a score is not finite.
    """
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
