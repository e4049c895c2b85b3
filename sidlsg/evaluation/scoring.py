"""Score folders of pictures, with a warning for everything in them that makes the scores doubtful."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation import hps
from sidlsg.evaluation.chunks import encode_files, forget
from sidlsg.evaluation.distance import copies
from sidlsg.evaluation.picture_file import load_rgb
from sidlsg.evaluation.pictures import Folder, common_size, find_pictures, load_sheet, match_captions, name_shape
from sidlsg.evaluation.protocol import Protocol, get_protocol
from sidlsg.evaluation.reference import BENCH, Reference, cache_path, cached, load_reference
from sidlsg.evaluation.scorer import Encoded, Scorer, Tick, bench_reference, keep

FEW = 1000  # pictures, of which precision and recall say little
COPIES = 0.01  # share of the pictures
SAMPLE = 8  # pictures, from which the scale of features is known
FACTOR = 10.0  # between the lengths of features, of any two kinds of pictures
Say = Callable[[str], None]


def open_reference(scorer: Scorer, given: Path | None, assume: bool, warn: Say, say: Say) -> Reference | Folder:
    """The reference of an evaluation: from a statistics file, or a folder of real pictures that is yet to be encoded.

    ``given`` may be None for the embedded benchmark, which has its own. Raises UsageError as ``load_reference`` does, and for
    statistics of another tool that are not on the scale of the protocol's features.
    """
    protocol = scorer.protocol
    if given is None:
        return bench_reference(scorer)
    if protocol.prompts == "emoji-bench":
        warn(f"The reference is {given}, not that of the protocol {protocol.name}.")
    if given.is_dir():
        folder = find_pictures(given)
        tell_of_names(folder, warn, say)
        return folder
    found = load_reference(given, protocol, scorer.feature_weights, assume)
    sample = load_sheet(BENCH / "reference.png", get_protocol("embedded").size, SAMPLE if found.assumed else 1)
    features = scorer.encode(sample, features=True, clip=False).features
    if features.shape[1] != len(found.moments.mu):
        raise UsageError(
            f"{given} was made with another network: it has {len(found.moments.mu):,} features a picture, that of the protocol "
            f"{protocol.name} gives {features.shape[1]:,}"
        )
    if found.assumed:
        theirs = float(np.sqrt(np.square(found.moments.mu, dtype=np.float64).sum() + np.trace(found.moments.sigma)))
        ours = features.double().square().sum(1).mean().sqrt().item()
        if not ours / FACTOR < theirs < ours * FACTOR:
            raise UsageError(
                f"{given} is of another scale: its features have a length of about {theirs:.3g}, those of the protocol "
                f"{protocol.name} of about {ours:.3g}. It is of another network, or of other pixel values, and cannot be assumed"
            )
        warn(f"{given} is taken as statistics of the protocol {protocol.name} because --assume-protocol says so.")
    return found


def encode_folder(scorer: Scorer, folder: Folder, bar: Callable[[str, int], Tick]) -> Reference:
    """Statistics and features of a folder of real pictures, from the cache, or computed and cached."""
    protocol, source = scorer.protocol, folder.path.resolve().name
    tick = bar("reading the reference", len(folder))
    path = cache_path(protocol, scorer.feature_weights, folder)
    tick(len(folder))
    found = cached(path, protocol, scorer.feature_weights)
    if found is None:
        tick = bar("reference features", len(folder))
        parts = path.with_suffix(".parts")
        encoded = encode_files(scorer, folder, True, False, parts, tick)
        found = scorer.reference(encoded.features, source)
        keep(found, path)
        forget(parts)
    return replace(found, source=source, names=name_shape(folder.files))


def pair(folder: Folder, captions: Sequence[str], warn: Say) -> tuple[list[tuple[int, int]], str]:
    """``match_captions``, where ``warn`` is told which pictures and captions are left over, if there are pairs."""
    found, said = match_captions(folder, captions)
    if not found:
        return [], said
    extra, paired = len(folder) - len(found), [(place, number) for place, number in found if captions[number]]
    if blank := [number for number, caption in enumerate(captions) if not caption]:
        warn(
            f"{len(blank):,} captions are blank lines (first: {blank[0]}); pictures of that number are not in the CLIP score."
        )
    there = {number for _, number in paired}
    if absent := [number for number, caption in enumerate(captions) if caption and number not in there]:
        warn(f"{len(absent):,} of {len(captions):,} captions have no picture (first: {absent[0]}).")
    if extra:
        warn(f"{extra:,} pictures have none of the {len(captions):,} captions; they are not in the CLIP score.")
    return paired, said


def examine(folder: Folder, protocol: Protocol, warn: Say, say: Say) -> None:
    """Warn of everything in the files themselves that makes scores of finished pictures doubtful; ``say`` what is unusual.

    Raises UsageError when the pictures differ in size, or when one is damaged or not supported.
    """
    common_size(folder)
    tell_of_names(folder, warn, say)
    if folder.lossy:
        warn(
            f"{len(folder.lossy):,} of the pictures are JPEG or WebP files (first: {folder.lossy[0].name}); lossy compression "
            "alone moves an FID by whole points."
        )
    if folder.transparent:
        warn(
            f"{len(folder.transparent):,} of the pictures have an alpha channel or a transparent colour (first: "
            f"{folder.transparent[0].name}); it is dropped, as the protocols' own code does."
        )
    if folder.index is not None:
        seeds = zip(folder.index, (header.seed for header in folder.headers), strict=True)
        if other := [f"{number} (seed {seed})" for number, seed in seeds if seed not in (None, str(number))]:
            warn(
                f"{len(other):,} pictures say that they were drawn with another seed than their number, which is the seed of the "
                f"protocol {protocol.name} (first: {other[0]})."
            )


def tell_of_names(folder: Folder, warn: Say, say: Say) -> None:
    """Warn of pictures that are left out; say which are counted though their names are not those of pictures."""
    if folder.left_out:
        kinds = ", ".join(sorted({file.suffix.lower() or "no suffix" for file in folder.left_out}))
        warn(
            f"{len(folder.left_out):,} pictures of kinds that are not read ({kinds}) in {folder.path} are left out (first: "
            f"{folder.left_out[0].name}); convert them to PNG."
        )
    if folder.odd:
        say(
            f"{len(folder.odd):,} of the {len(folder):,} files counted in {folder.path} are pictures by their content only "
            f"(first: {folder.odd[0].name})"
        )


def score_pictures(
    scorer: Scorer,
    folder: Folder,
    captions: Sequence[str] | None,
    paired: Sequence[tuple[int, int]],
    reference: Reference | None,
    work: Path,
    bar: Callable[[str, int], Tick],
    warn: Say,
    stage: Say,
) -> dict[str, float]:
    """Scores of a folder of generated pictures, as ``Scorer.score`` gives them.

    Args:
        work: folder in which encoded chunks are saved.
        bar: starts a progress bar (name, total) and returns the function that advances it.
        warn: called when there are fewer pictures than features.
        stage: called with the name of each computation.
    """
    features = reference is not None
    encoded = encode_files(scorer, folder, features, bool(paired), work, bar("features", len(folder)))
    if features and len(folder) < encoded.features.shape[1]:
        warn(
            f"{len(folder):,} pictures are fewer than the {encoded.features.shape[1]:,} features, so that the covariance is "
            f"rank-deficient and the {scorer.protocol.distance} says little; compare only with as many pictures."
        )
    if reference is not None:
        warn_of_few(scorer, encoded, reference, warn)
    return scorer.score(encoded, reference, captions, paired, stage)


def warn_of_few(scorer: Scorer, encoded: Encoded, reference: Reference, warn: Say) -> None:
    """Warn of precision and recall that say nothing: of few pictures, or of copies of the same ones."""
    if "pr" not in scorer.metrics or reference.features is None:
        return
    few = min(len(encoded.features), len(reference.features))
    if few < FEW:
        warn(
            f"Precision and recall of {few:,} pictures say little: the spheres around few pictures are large, and hold nearly "
            f"everything. Use {FEW:,} or more of both kinds."
        )
    if (count := copies(encoded.features)) > COPIES * len(encoded.features):
        warn(
            f"{count:,} of the {len(encoded.features):,} pictures are copies of another one: precision is that of the few that "
            "differ, and recall cannot rise above them."
        )


def find_styles(folder: Path, prompts: dict[str, list[str]]) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """The pictures ``<folder>/<style>/0000i.png`` (or ``.jpg``) of each style, and why a style has none: style -> reason.

    Raises UsageError when a style's pictures are there in part, or when there is none of any style.
    """
    found, absent = {}, {}
    for style, texts in prompts.items():
        names = [folder / style / f"{i:05d}.png" for i in range(len(texts))]
        files = [
            lossy if not path.exists() and (lossy := path.with_suffix(".jpg")).exists() else path for path in names
        ]
        missing = [path for path in files if not path.exists()]
        if len(missing) == len(files):
            absent[style] = f"there are no pictures in {folder / style}"
        elif missing:
            raise UsageError(
                f"{missing[0]} does not exist; {len(missing):,} of the {len(files):,} pictures of the style {style} are missing "
                "(--limit N scores the first N of each style)"
            )
        else:
            found[style] = files
    if not found:
        names_of = ", ".join(f"{style}/00000.png" for style in prompts)
        raise UsageError(f"{folder} holds no pictures of HPSv2; they are named {names_of}, ...")
    return found, absent


def score_styles(
    scorer: hps.HpsScorer, prompts: dict[str, list[str]], styles: dict[str, list[Path]], tick: Tick, batch: int = 20
) -> dict[str, float]:
    """HPSv2 scores of the pictures of each style, after a round trip through JPEG (``.jpg`` files as they are).

    Raises UsageError when a picture is unreadable, SidlsgError when a score is not finite.
    """
    scores: dict[str, torch.Tensor] = {}
    for style, files in styles.items():
        parts = []
        for start in range(0, len(files), batch):
            part = slice(start, start + batch)
            pictures = [
                load_rgb(path) if path.suffix == ".jpg" else hps.as_jpeg(load_rgb(path)) for path in files[part]
            ]
            parts.append(scorer(pictures, prompts[style][part]))
            tick(len(pictures))
        scores[style] = torch.cat(parts)
    if not all(torch.isfinite(values).all() for values in scores.values()):
        raise SidlsgError("some HPSv2 scores are not finite; the weights file may be damaged")
    return hps.summary(scores)
