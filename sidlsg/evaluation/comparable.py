"""Whether a score may stand beside published ones: what it is made from, compared with what its protocol fixes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidlsg.evaluation.protocol import HPS_PROMPTS, HPS_STYLES, RUN, Protocol
from sidlsg.evaluation.reference import BENCH
from sidlsg.evaluation.weights import file_sha256, known_sha256, weight_files


@dataclass(frozen=True)
class Made:
    """What a score is made from, or must be made from.

    Attributes:
        pictures: how many are scored.
        prompts: name of each prompt list -> SHA-256 of its file; "" when it is not known with which prompts they were drawn.
        reference: number of real pictures, 0 when unknown; None when there are none.
        weights: key of ``weights.yaml`` -> SHA-256 of the file.
        names: ``Reference.names``; None when there is no reference.
    """

    pictures: int
    prompts: dict[str, str] = field(default_factory=dict)
    reference: int | None = None
    weights: dict[str, str] = field(default_factory=dict)
    names: str | None = None


def said_of(protocol: Protocol, found: Made) -> list[str]:
    """A sentence for everything in which ``found`` is not what the protocol fixes: of prompts of a run's own, weights alone."""
    return deviations(found, found if protocol.prompts == RUN else fixed_by(protocol), protocol)


def fixed_by(protocol: Protocol) -> Made:
    """What a protocol of ``protocols.yaml`` fixes; its weights are looked up by ``deviations``."""
    row = weight_files().get(protocol.prompts)
    prompts = row.sha256 if row is not None and row.sha256 else file_sha256(BENCH / "captions.txt")
    return Made(protocol.images, {protocol.prompts: prompts}, protocol.reference_images)


def fixed_by_hps() -> Made:
    """What HPSv2 fixes."""
    lists = {style: weight_files()[f"hps-prompts-{style}"].sha256 or "" for style in HPS_STYLES}
    return Made(HPS_PROMPTS * len(HPS_STYLES), lists)


def deviations(found: Made, fixed: Made, protocol: Protocol | str) -> list[str]:
    """A sentence for everything in which ``found`` is not what the protocol fixes. No sentence: comparable.

    Weights are compared with the pinned SHA-256, or the one that the hub announces.
    """
    said = []
    name, names = (protocol, ()) if isinstance(protocol, str) else (protocol.name, protocol.reference_names)
    if found.pictures != fixed.pictures:
        said.append(f"The number of pictures is {found.pictures:,}; the protocol {name} has {fixed.pictures:,}.")
    for key, sha256 in found.prompts.items():
        if not sha256:
            said.append("It is not known with which captions the pictures were drawn (--prompts).")
        elif sha256 != fixed.prompts[key]:
            said.append(
                f"The prompts are not the list {key} of the protocol {name} (SHA-256 {sha256[:12]}..., expected "
                f"{fixed.prompts[key][:12]}...)."
            )
    if found.reference is not None and found.reference != fixed.reference:
        count = f"holds {found.reference:,} pictures" if found.reference else "does not say how many pictures it holds"
        said.append(f"The reference {count}; that of the protocol {name} holds {fixed.reference:,}.")
    elif found.names is not None and names and found.names not in names:
        said.append(
            f"The files of the reference are not named as those of the protocol {name} ({names[0]}; # is a digit): it may be of "
            "other pictures, or a file of statistics that this version of `sidlsg eval stats` has not made."
        )
    for key, sha256 in found.weights.items():
        row = weight_files().get(key)
        if row is None:
            continue  # the judge, which is part of the package
        known = known_sha256(row)
        if known is None:
            said.append(f"The weights file of {row.what} cannot be verified: the hub does not answer with its SHA-256.")
        elif sha256 != known:
            said.append(
                f"The weights file is not the published one of {row.what} (SHA-256 {sha256[:12]}..., expected {known[:12]}...)."
            )
    return said
