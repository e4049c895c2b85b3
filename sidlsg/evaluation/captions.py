"""The caption list of an evaluation, and which picture each caption belongs to."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from sidlsg.data import in_cache
from sidlsg.errors import UsageError
from sidlsg.evaluation.pictures import Folder, bare_name
from sidlsg.evaluation.protocol import RUN, Protocol
from sidlsg.evaluation.reference import BENCH
from sidlsg.evaluation.request import Request
from sidlsg.evaluation.teacher_images import chosen_prompts, run_config, run_prompts
from sidlsg.evaluation.weights import find_weights, weight_files
from sidlsg.prompts import PromptFile


@dataclass(frozen=True)
class Captions:
    """The captions of an evaluation.

    Attributes:
        lines: caption i belongs to picture i, and "" (a blank line) to none; None when the captions are not downloaded yet, or
            none were given.
        where: their path; before a download, its URL and target path.
        sha256: of the caption file, as ``PromptFile`` has it; empty when unknown.
        names: the file name of the picture that caption i belongs to, when the file gives it; None: picture i.
        broken: of a CSV file, the line at which its first row with a line break in a field begins; None without one.
    """

    lines: list[str] | None
    where: str
    sha256: str
    names: list[str] | None = None
    broken: int | None = None


def captions_of(request: Request, protocol: Protocol, download: bool) -> Captions:
    """The captions of a request, all of them: ``request.limit`` is for drawing, and is checked here.

    Args:
        download: download the protocol's caption list when it is neither given nor cached.

    Raises UsageError when the file given does not exist, when it holds fewer captions than ``request.limit``, or when the
    protocol's caption list has the wrong length or SHA-256; SidlsgError when the download fails.
    """
    own = BENCH / "captions.txt"
    if protocol.prompts == RUN:
        listed = run_prompts(run_config(request.drawn), download)
        if listed is None:
            return Captions(None, "the run's own list, to be downloaded", "")
        count = request.limit or protocol.images
        return Captions(chosen_prompts(listed, count), f"{count:,} of {_where(listed)}", listed.sha256)
    if request.images is not None:  # finished pictures: any caption file will do
        if request.prompts is None and protocol.prompts == "coco30k":
            return Captions(None, "none given", "")
        lines = PromptFile(request.prompts or own, True, request.caption_column, request.file_column)
        return Captions(list(lines), _where(lines), lines.sha256, lines.names, lines.broken)
    if protocol.prompts == "emoji-bench":
        lines = PromptFile(request.prompts or own, True, request.caption_column)
    else:
        found = request.prompts or find_weights(protocol.prompts, download=download)
        row = weight_files()[protocol.prompts]
        if found is None:
            return Captions(None, f"{row.url} -> {in_cache(f'weights/{row.file}')}", row.sha256 or "")
        lines = PromptFile(found, True, request.caption_column)
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
        raise UsageError(f"--limit is {request.limit:,}, but {_where(lines)} holds {len(lines):,} captions")
    return Captions(list(lines), _where(lines), lines.sha256)


def _where(lines: PromptFile) -> str:
    return str(lines.path) if lines.column is None else f'{lines.path}, column "{lines.column}"'


def assign(folder: Folder, captions: Captions, warn: Callable[[str], None]) -> Folder:
    """The folder, its pictures numbered by the caption that each belongs to, where the caption file names the pictures.

    A picture that no row names gets a number beyond the captions. Where nothing is named, pictures are numbered already; ``warn``
    is told when there is one caption more than pictures, as where the first line is a header.

    Raises UsageError when no picture is named, or a name means two pictures, or two rows name one picture; and when there are
    fewer captions than pictures where quotation marks may have made one row of several.
    """
    if captions.lines is None:
        return folder
    if captions.names is None:
        count = len(folder)
        if captions.broken is not None and len(captions.lines) < count:
            raise UsageError(
                f"{captions.where} holds {len(captions.lines):,} captions for {count:,} pictures, and the row at line "
                f"{captions.broken:,} goes over several lines: where quotation marks joined rows, every later caption would be "
                "scored with another picture; correct that row, or give JSON Lines"
            )
        if len(captions.lines) == count + 1 and folder.index is not None and set(folder.index) == set(range(count)):
            warn(
                f"{captions.where} has one line more than there are pictures ({count:,}): if its first line "
                f'("{captions.lines[0][:40]}") is a header, every picture is scored with the caption of the one before; remove it'
            )
        return folder
    find = _finder(folder)
    numbers: dict[int, int] = {}
    for number, row in enumerate(captions.names):
        found = find(row) if row else []
        if len(found) > 1:
            raise UsageError(
                f'{captions.where}: "{row}" is the name of {folder.files[found[0]]} and of {folder.files[found[1]]}; give '
                f"their paths in {folder.path}"
            )
        for position in found:
            if position in numbers:
                raise UsageError(
                    f"{captions.where}: rows {numbers[position] + 1:,} and {number + 1:,} both name {folder.files[position]}; "
                    "leave one caption for each picture"
                )
            numbers[position] = number
    if not numbers:
        raise UsageError(f'{captions.where} names no picture of {folder.path} (its first row: "{captions.names[0]}")')
    beyond = len(captions.lines)
    return replace(folder, index=tuple(numbers.get(i, beyond + i) for i in range(len(folder))), assigned=True)


def _finder(folder: Folder) -> Callable[[str], list[int]]:
    """The positions of the pictures that a name in a table may mean.

    It is a path in the folder, or the end of one, or one that ends with a path in the folder; the suffix may be another, or none.
    """
    whole: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, list[int]] = defaultdict(list)
    for position, file in enumerate(folder.files):
        path, *shorter = _ends(file.relative_to(folder.path).as_posix())
        for places, name in ((whole, path), *((ends, end) for end in shorter)):
            for spelling in _spellings(name):
                places[spelling].append(position)

    def find(text: str) -> list[int]:
        path, *shorter = _ends(text)
        tried = [(whole, path), (ends, path), *((whole, end) for end in shorter)]
        return next((places[n] for places, name in tried for n in _spellings(name) if n in places), [])

    return find


def _ends(text: str) -> list[str]:
    """ "a/b/c.png" -> "a/b/c.png", "b/c.png", "c.png"."""
    parts = PurePosixPath(unicodedata.normalize("NFC", text.replace("\\", "/"))).parts
    return ["/".join(parts[first:]) for first in range(max(1, len(parts)))]


def _spellings(path: str) -> list[str]:
    """A path with the suffix of its picture, and without."""
    file = PurePosixPath(path)
    return list(dict.fromkeys([path, str(file.with_name(bare_name(file.name)))])) if file.name else [path]
