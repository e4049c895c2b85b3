"""Write a page for every subcommand from the CLI: ``python docs/cli/generate.py``; a test fails when one is stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from sidlsg.cli import app

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/cli/generate.py from the command line itself. Change the help texts in sidlsg/cli/ instead. -->\n"


def pages() -> dict[str, str]:
    """Name of every page -> its text."""
    root = typer.main.get_command(app)
    texts = {f"{name}.md": NOTE + "".join(sections(f"sidlsg {name}", command)) for name, command in _children(root)}
    listed = [f"| [`sidlsg {name}`]({name}.md) | {_first(command)} |\n" for name, command in _children(root)]
    options = "".join(_options(root))
    index = f"{NOTE}# The commands\n\n| command | what it does |\n|---|---|\n{''.join(listed)}{options}{EVERYWHERE}"
    return {"README.md": index, **texts}


NOT_OURS = {"--help", "--install-completion", "--show-completion"}  # their texts differ between versions of Typer
EVERYWHERE = """
`--quiet`, `--verbose` and `--debug` may stand anywhere on the line; `SIDLSG_QUIET=1`, `SIDLSG_VERBOSE=1` and `SIDLSG_DEBUG=1` do
the same. `NO_COLOR` and `FORCE_COLOR` are followed.

Exit codes: 0 done, 1 a failure, 2 something to correct in the command or a file, 130 Ctrl-C
([troubleshooting.md](../troubleshooting.md)).

## Completion in the shell

`sidlsg --install-completion` installs it for the shell that it is called from (bash, zsh, fish, PowerShell); open a new one. The
Tab key then completes commands, options, and the names of presets, models, strategies, protocols, samplers, GPUs and settings
(`--set ema<Tab>`). `sidlsg --show-completion` prints what would be installed.
"""


def sections(name: str, command: Any, depth: int = 1) -> Iterator[str]:
    """The page of a command, and below it those of its subcommands."""
    yield f"{'#' * depth} {name}\n\n"
    yield _help(command) + "\n"
    yield from _options(command)
    for child, below in _children(command):
        yield "\n"
        yield from sections(f"{name} {child}", below, depth + 1)


def _children(command: Any) -> list[tuple[str, Any]]:
    return list(getattr(command, "commands", {}).items())


def _help(command: Any) -> str:
    return (command.help or "").strip()


def _first(command: Any) -> str:
    return " ".join(_help(command).split("\n\n")[0].split())


def _options(command: Any) -> Iterator[str]:
    """Tables of arguments and options."""
    shown = [p for p in command.params if not {*p.opts} & NOT_OURS]
    for title, kind in (("argument", "argument"), ("option", "option")):
        rows = [p for p in shown if p.param_type_name == kind]
        if rows:
            yield f"\n| {title} | default | |\n|---|---|---|\n"
        for parameter in rows:
            names = (
                [parameter.metavar or parameter.name.upper()]
                if kind == "argument"
                else [*parameter.opts, *parameter.secondary_opts]
            )
            cells = [", ".join(f"`{name}`" for name in names), _default(parameter), parameter.help or ""]
            yield "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |\n"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    flag = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
    return "" if value is None or flag or not isinstance(value, str | int | float | Path) else f"`{_plain(value)}`"


def _plain(value: object) -> str:
    return (
        str(value).lower() if isinstance(value, bool) else value.as_posix() if isinstance(value, Path) else str(value)
    )


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)
