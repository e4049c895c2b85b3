"""The families that this version knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidlsg.errors import UsageError
from sidlsg.teachers.family import Family
from sidlsg.teachers.sdxl import StableDiffusionXL
from sidlsg.teachers.stable_diffusion import StableDiffusion

FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL())


def known_families() -> str:
    return "; ".join(f"{family.what} ({family.pipeline})" for family in FAMILIES)


def get_family(name: str) -> Family:
    """A family by its own name."""
    return next(family for family in FAMILIES if family.name == name)


def family_of(index: Mapping[str, Any], source: str) -> Family:
    """The family of a ``model_index.json``; raises UsageError, naming the families that are known, for any other."""
    kind = index.get("_class_name")
    for family in FAMILIES:
        if kind in (family.pipeline, *family.relatives):
            return family
    raise UsageError(f"{source} is a {kind or 'folder without a pipeline class'}; known families: {known_families()}")
