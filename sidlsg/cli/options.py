"""What the subcommands' options share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sidlsg.cli import completion
from sidlsg.paths import user_path


def path_option(help: str, *names: str) -> Any:
    """An option that is a path, with ``~`` as in a shell also where the shell leaves it alone (``--out=~/x``)."""
    return typer.Option(*names, parser=user_path, metavar="PATH", help=help)


def path_argument(help: str) -> Any:
    """As ``path_option``, without a name."""
    return typer.Argument(parser=user_path, metavar="PATH", help=help)


# Of commands that draw; training and scoring explain their own precision.
Precision = Annotated[
    str | None,
    typer.Option(autocompletion=completion.precisions, help="fp32, bf16 or fp16 (default: fp16 on a GPU, else fp32)."),
]
Device = Annotated[str, typer.Option(autocompletion=completion.devices, help="auto, cpu, cuda or cuda:N.")]
