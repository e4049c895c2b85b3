"""The options of an evaluation: one dataclass with their defaults, and the check for conflicts. No torch in here."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sidlsg.errors import UsageError, nearest
from sidlsg.evaluation.protocol import HPS_PROMPTS, HPS_VERSIONS, RUN, Protocol, get_protocol
from sidlsg.paths import user_path

METRICS = ("fid", "clip", "pr")
MOST_STEPS = 1000  # timesteps of the families' schedules


@dataclass(frozen=True)
class Request:
    """The options of ``sidlsg eval`` and ``sidlsg.evaluate``.

    The defaults score the shipped emoji student by the protocol ``embedded``. Raises UsageError for options that conflict, have
    no effect beside the others, or are out of range.

    Attributes:
        model: run folder, diffusers folder, alias or hub id.
        images: score this folder of pictures instead of drawing with a model.
        coco30k: draw the 30,000 COCO captions, as in the paper's tables 1 and 2.
        hpsv2: compute the human preference score over 4 x 800 prompts.
        reference: real pictures: a folder, or a file made by ``sidlsg eval stats``.
        prompts: caption file, line or row i for picture i; with ``hpsv2``, a folder of ``<style>.json`` files.
        caption_column: of a table with the captions; None takes the only one with a usual name.
        file_column: of a table; the picture of ``images`` that it names has the caption of that row.
        protocol: gigagan, sid-lsg, embedded or teacher; None chooses by the other options.
        only: which of fid, clip and pr (precision and recall) to compute.
        limit: draw only the first captions (with ``hpsv2``: use the first of each style); the scores are then not comparable
            with published ones.
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
    caption_column: str | None = None
    file_column: str | None = None
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
        if self.hps_version not in HPS_VERSIONS:
            raise UsageError(f'--hps-version is "{self.hps_version}"; use {" or ".join(HPS_VERSIONS)}')
        if (self.caption_column or self.file_column) is not None and (self.prompts is None or self.hpsv2):
            raise UsageError(
                "--caption-column and --file-column are columns of --prompts FILE, a table of captions; give it"
            )
        if self.file_column is not None and self.images is None:
            raise UsageError(
                "--file-column is for pictures that are there; with --model they are named by the captions' numbers"
            )
        self._check_ranges()
        self._check_unused()
        if self.hpsv2:
            return
        alone = self.reference is None and self.prompts is None and self.protocol != "embedded"
        if self.images is not None and alone:
            raise UsageError(
                "--images needs --reference (a folder of real pictures, or statistics) or --prompts, or both"
            )
        chosen = self.chosen
        if chosen.prompts == RUN and (self.model is None or (self.reference or self.prompts) is not None):
            raise UsageError(
                f"the protocol {chosen.name} compares the student of a run with its teacher, which draws the reference: give "
                "--model RUN, and neither --reference nor --prompts"
            )
        if self.coco30k and chosen.prompts != "coco30k":
            raise UsageError(f"--coco30k does not go with the protocol {chosen.name}; use gigagan or sid-lsg")
        if not self.coco30k and self.images is None and chosen.prompts == "coco30k":
            raise UsageError(f"the protocol {chosen.name} draws 30,000 pictures; add --coco30k (or --images FOLDER)")

    def _check_ranges(self) -> None:
        """Raise UsageError for a number that no evaluation can have."""
        prompts = HPS_PROMPTS if self.hpsv2 else self.chosen.images if self.coco30k else None
        most = {"limit": prompts, "steps": MOST_STEPS, "batch": None}
        for name, high in most.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= (high or value):
                raise UsageError(f"--{name} is {value}; give 1 {'or more' if high is None else f'to {high:,}'}")

    def _check_unused(self) -> None:
        """Raise UsageError for an option that would have no effect beside the others."""
        changed = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        if self.images is not None:  # pictures that are there are scored as they are, all of them
            drawing = changed & {"steps", "guidance", "sampler", "precision", "coco30k"}
            drawing |= changed & {"limit"} if not self.hpsv2 else set()
            if drawing:
                raise UsageError(f"--{min(drawing)} is for pictures that are drawn; with --images leave it out")
        where, ignored = "without --hpsv2", changed & {"hps", "hps_version", "hps_antialias", "hps_package"}
        if self.hpsv2:
            where, ignored = (
                "with --hpsv2",
                changed & {"reference", "protocol", "only", "inception", "clip", "assume_protocol"},
            )
            if self.hps_package:
                where, ignored = "with --hps-package", changed & {"hps_antialias"}
        elif self.reference is None and self.assume_protocol:
            where, ignored = "without --reference", {"assume_protocol"}
        elif not ignored:
            judged = self.chosen.features == "judge"
            needed = {"inception": {"fid", "pr"} & set(self.only), "clip": {"clip"} & set(self.only)}
            where = f"with --only {','.join(self.only)}" if not judged else f"with the protocol {self.chosen.name}"
            ignored = {name for name in changed & set(needed) if judged or not needed[name]}
        if ignored:
            option = min(ignored).replace("_", "-").replace("hps-antialias", "no-hps-antialias")
            raise UsageError(f"--{option} has no effect {where}; leave it out")

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
        inputs = {"reference": self.reference, "prompts": self.prompts}
        parts += [f"{name}-{path.stem}" for name, path in inputs.items() if path is not None]
        parts += ["hps-package"] * self.hps_package + ["no-antialias"] * (not self.hps_antialias)
        parts += [f"first-{self.limit}"] if self.limit else []
        return Path("evals") / re.sub(r"[^\w.+-]+", "-", "-".join(parts)).strip("-.")


def parse_only(text: str) -> tuple[str, ...]:
    """ "fid,clip" -> ("fid", "clip"); the names are checked by ``Request``."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))
