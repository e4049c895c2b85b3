"""The caption list of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from sidlsg.data import cache_folder
from sidlsg.errors import UsageError
from sidlsg.evaluation.protocol import Protocol
from sidlsg.evaluation.reference import BENCH
from sidlsg.evaluation.request import Request
from sidlsg.evaluation.weights import find_weights, weight_files
from sidlsg.prompts import PromptFile


@dataclass(frozen=True)
class Captions:
    """The captions of an evaluation.

    Attributes:
        lines: caption i belongs to picture i, and "" (a blank line) to none; None when the captions are not downloaded yet, or
            none were given.
        where: their path; before a download, its URL and target path.
        sha256: of the whole caption file; empty when unknown.
    """

    lines: list[str] | None
    where: str
    sha256: str


def captions_of(request: Request, protocol: Protocol, download: bool) -> Captions:
    """The captions of a request, all of them: ``request.limit`` is for drawing, and is checked here.

    Args:
        download: download the protocol's caption list when it is neither given nor cached.

    Raises UsageError when the file given does not exist, when it holds fewer captions than ``request.limit``, or when the
    protocol's caption list has the wrong length or SHA-256; SidlsgError when the download fails.
    """
    own = BENCH / "captions.txt"
    if request.images is not None:  # finished pictures: any caption file will do
        if request.prompts is None and protocol.prompts == "coco30k":
            return Captions(None, "none given", "")
        lines = PromptFile(request.prompts or own, numbered=True)
        return Captions(list(lines), str(lines.path), lines.sha256)
    if protocol.prompts == "emoji-bench":
        lines = PromptFile(request.prompts or own, numbered=True)
    else:
        found = find_weights(protocol.prompts, request.prompts, download)
        row = weight_files()[protocol.prompts]
        if found is None:
            return Captions(None, f"{row.url} -> {cache_folder() / 'weights' / row.file}", row.sha256 or "")
        lines = PromptFile(found, numbered=True)
        if len(lines) != protocol.images:
            raise UsageError(
                f"{found} holds {len(lines):,} captions; the protocol {protocol.name} has {protocol.images:,}"
            )
        if row.sha256 and lines.sha256 != row.sha256:
            raise UsageError(
                f"{found} is not the protocol's caption list (SHA-256 {lines.sha256[:12]}..., expected {row.sha256[:12]}...); "
                "leave out --prompts to download it"
            )
    if request.limit is not None and request.limit > len(lines):
        raise UsageError(f"--limit is {request.limit:,}, but {lines.path} holds {len(lines):,} captions")
    return Captions(list(lines), str(lines.path), lines.sha256)
