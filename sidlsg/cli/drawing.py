"""What the commands that draw pictures share: seeds, the folder, what labels cannot show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.terminal import note

MOST = 1_000_000  # seeds a prompt


def make_folder(folder: Path) -> None:
    """Make the folder for pictures; raises SidlsgError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SidlsgError(f"cannot write to {folder}: {error.strerror}; give another --out") from None


def say_unwritable(labels: Sequence[str]) -> None:
    """Say which characters of the labels are empty boxes in a picture, if any."""
    from sidlsg.sampling.lettering import unwritable

    if characters := unwritable(labels):
        note(
            f"no font on this machine can write {characters} in the labels, where they are boxes; install one "
            "(Noto has all scripts). The PNG's text entries hold the prompts in full"
        )


def parse_seeds(text: str) -> list[int]:
    """ "0-63" or "1,5,8-10"; raises UsageError for anything else."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(f'seeds are "{text}"; write a range (0-63), a list (1,5,9) or both (0-3,8)')
        new = range(int(match[1]), int(match[2] or match[1]) + 1)
        if len(new) > MOST:
            raise UsageError(f'seeds are "{text}"; that is more than {MOST:,} pictures')
        numbers += new
    return numbers
