"""The options of an evaluation: one dataclass with their defaults, and the check for conflicts. No torch in here."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sidlsg.errors import UsageError, nearest
from sidlsg.evaluation.protocol import HPS_VERSIONS, Protocol, get_protocol
from sidlsg.paths import user_path

METRICS = ("fid", "clip", "pr")


@dataclass(frozen=True)
class Request:
    """The options of ``sidlsg eval`` and ``sidlsg.evaluate``.

    The defaults score the shipped emoji student by the protocol ``embedded``. Raises UsageError for options that conflict.

    Attributes:
        model: run folder, diffusers folder, alias or hub id.
        images: score this folder of pictures instead of drawing with a model.
        coco30k: draw the 30,000 COCO captions, as in the paper's tables 1 and 2.
        hpsv2: compute the human preference score over 4 x 800 prompts.
        reference: real pictures: a folder, or a file made by ``sidlsg eval stats``.
        prompts: caption file, line i for picture i; with ``hpsv2``, a folder of ``<style>.json`` files.
        protocol: gigagan, sid-lsg or embedded; None chooses by the other options.
        only: which of fid, clip and pr (precision and recall) to compute.
        limit: use only the first captions; the scores are then not comparable with published ones.
        steps, guidance, sampler: of a teacher.
        batch: pictures per forward pass.
        precision: of the generator: fp32, bf16 or fp16.
        inception, clip, hps: weights files to use instead of the cached or downloaded ones.
        hps_version, hps_antialias, hps_package: see ``sidlsg.evaluation.hps.load_hps``.
        assume_protocol: accept statistics made by another tool as this protocol's.
        out: folder for pictures and results; None chooses one below ``evals/``.
    """

    model: str | None = None
    images: Path | None = None
    coco30k: bool = False
    hpsv2: bool = False
    reference: Path | None = None
    prompts: Path | None = None
    protocol: str | None = None
    only: tuple[str, ...] = METRICS
    limit: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    batch: int | None = None
    precision: str | None = None
    device: str = "auto"
    inception: Path | None = None
    clip: Path | None = None
    hps: Path | None = None
    hps_version: str = "v2.0"
    hps_antialias: bool = True
    hps_package: bool = False
    assume_protocol: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.coco30k and self.hpsv2:
            raise UsageError("give one of --coco30k and --hpsv2; they draw different pictures")
        if not self.only or not set(self.only) <= set(METRICS):
            raise UsageError(f'--only is "{",".join(self.only)}"; write some of {",".join(METRICS)}')
        if self.images is not None and self.model is not None:
            raise UsageError("give --model to draw pictures, or --images to score those in a folder, not both")
        alone = self.reference is None and self.prompts is None and self.protocol != "embedded"
        if self.images is not None and not self.hpsv2 and alone:
            raise UsageError(
                "--images needs --reference (a folder of real pictures, or statistics) or --prompts, or both"
            )
        if self.images is not None:  # pictures that are there are scored as they are, all of them
            given = [*(name for name, value in self.generation.items() if value is not None)]
            given += ["precision"] if self.precision is not None else []
            given += ["limit"] if self.limit is not None and not self.hpsv2 else []
            if given:
                raise UsageError(f"--{given[0]} is for pictures that are drawn; with --images leave it out")
        if self.hpsv2:
            if self.hps_version not in HPS_VERSIONS:
                raise UsageError(f'--hps-version is "{self.hps_version}"; use {" or ".join(HPS_VERSIONS)}')
            if self.reference is not None:
                raise UsageError("--hpsv2 compares with no reference; leave out --reference")
            return
        chosen = self.chosen
        if self.coco30k and chosen.prompts != "coco30k":
            raise UsageError(f"--coco30k does not go with the protocol {chosen.name}; use gigagan or sid-lsg")
        if not self.coco30k and self.images is None and chosen.prompts == "coco30k":
            raise UsageError(f"the protocol {chosen.name} draws 30,000 pictures; add --coco30k (or --images FOLDER)")

    @classmethod
    def of(cls, **options: Any) -> Request:
        """From plain values: paths as text, ``only`` as "fid,clip".

        Raises UsageError, suggesting the closest name, for an unknown option.
        """
        known = {field.name: field.type for field in fields(cls)}
        for name in options:
            if name not in known:
                raise UsageError(f'unknown option "{name}"{nearest(name, known)}')
        if isinstance(options.get("only"), str):
            options["only"] = parse_only(options["only"])
        for name, value in options.items():
            if "Path" in str(known[name]) and value is not None:
                options[name] = user_path(value)
        return cls(**options)

    @property
    def chosen(self) -> Protocol:
        """The protocol that was named, or the default one for the other options. Not for HPSv2, which has its own."""
        return get_protocol(self.protocol or ("gigagan" if self.coco30k or self.images is not None else "embedded"))

    @property
    def protocol_name(self) -> str:
        """As results carry it."""
        return f"hps-{self.hps_version}" if self.hpsv2 else self.chosen.name

    @property
    def drawn(self) -> str:
        """The model that draws the pictures, unless ``images`` are given."""
        return self.model or "emoji-student"

    @property
    def generation(self) -> dict[str, Any]:
        """The sampling options of a teacher; None stands for the default."""
        return {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}

    @property
    def folder(self) -> Path:
        """The folder of pictures and results; the same request always gets the same folder, so that it can resume."""
        if self.out is not None:
            return self.out
        parts = [self.protocol_name, self.drawn if self.images is None else str(self.images)]
        parts += [f"{name}-{value}" for name, value in self.generation.items() if value is not None]
        parts += [f"first-{self.limit}"] if self.limit else []
        return Path("evals") / re.sub(r"[^\w.+-]+", "-", "-".join(parts)).strip("-.")


def parse_only(text: str) -> tuple[str, ...]:
    """ "fid,clip" -> ("fid", "clip"); the names are checked by ``Request``."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))
