"""Every command, argument and option of the command line, a line each: what scripts depend on.

``cd tests && python -m support.surface`` records it; what disappears or changes belongs into CHANGELOG.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from sidlsg.cli import app

RECORD = Path(__file__).parents[1] / "command-line.txt"


def surface(command: Any, name: str = "sidlsg") -> Iterator[str]:
    """``sidlsg eval --images/-i``: a line per command and per parameter, with its other names."""
    yield name
    for parameter in command.params:
        names = "/".join([*parameter.opts, *parameter.secondary_opts])
        yield f"{name} {names if names.startswith('-') else names.upper()}"
    for sub, child in getattr(command, "commands", {}).items():
        yield from surface(child, f"{name} {sub}")


def lines() -> list[str]:
    return sorted(surface(get_command(app)))


if __name__ == "__main__":
    RECORD.write_text("\n".join(lines()) + "\n", encoding="utf-8")
