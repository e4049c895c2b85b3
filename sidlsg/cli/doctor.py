"""``sidlsg doctor``: what this machine has, what fits it, and what stands in the way."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False) -> None:
    """Look at GPU, driver, bf16, compiler, disk, caches and models here, and say which presets fit, and in how many hours.

    Nothing is downloaded or written. What stands in the way of a run is listed last, with what to do about it.
    """
    from dataclasses import asdict

    from sidlsg import terminal
    from sidlsg.planning.doctor import examine
    from sidlsg.sheet import Sheet

    found = examine()
    if as_json:
        terminal.print_json(asdict(found))
        return
    console = terminal.console()
    console.print(Sheet(found.groups), "", sep="\n", highlight=False, soft_wrap=True)
    for problem in found.problems:
        terminal.say(console, problem, "problem: ")
    if not found.problems:
        terminal.say(console, "Nothing stands in the way.")
