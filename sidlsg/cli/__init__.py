"""The ``sidlsg`` command: one file per subcommand. Nothing here imports torch, so that ``--help`` is instant."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated

import typer

from sidlsg import terminal
from sidlsg.cli import bench, compare, demo, distill, doctor, eval, models, presets, report, sample
from sidlsg.errors import SidlsgError, known_reason, sentence
from sidlsg.version import __version__

app = typer.Typer(
    name="sidlsg",
    help="One-step image generators out of diffusion models you already have (SiD-LSG).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("distill")(distill.distill)
app.command("sample")(sample.sample)
app.command("compare")(compare.compare)
app.command("demo")(demo.demo)
app.add_typer(eval.app, name="eval")
app.add_typer(bench.app, name="bench")
app.command("report")(report.report)
app.add_typer(presets.app, name="presets")
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)


DEBUG = "SIDLSG_DEBUG"
# Flags that may stand anywhere on the line, and the variables that they set.
ANYWHERE = {"--debug": DEBUG, "--quiet": terminal.QUIET, "--verbose": terminal.VERBOSE}


def _version(value: bool) -> None:
    if value:
        print(f"sidlsg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print results and errors only (anywhere on the line).")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what the libraries say, and every setting (anywhere on the line).")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    """Options of all subcommands."""


def describe(error: BaseException) -> tuple[str, int]:
    """One line for the user, and the exit code: 2 for misuse, 1 for failure, 130 for Ctrl-C (docs/troubleshooting.md)."""
    if isinstance(error, SidlsgError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return (
            "interrupted; what was already written is kept, and the same command goes on from the last checkpoint",
            130,
        )
    if known := known_reason(error):
        return known, 1
    return f"unexpected {type(error).__name__}: {sentence(error)} Run again with --debug and report what it prints", 1


def main() -> None:
    """Entry point. Flags of ``ANYWHERE`` are taken off the line before it is parsed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show κ shows a substitute
    arguments, before = sys.argv[1:], {variable: os.environ.get(variable) for variable in ANYWHERE.values()}
    os.environ |= {variable: "1" for flag, variable in ANYWHERE.items() if flag in arguments}
    sys.argv[1:] = [argument for argument in arguments if argument not in ANYWHERE]
    try:
        run()
    finally:
        for variable, value in before.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value


def run() -> None:
    """Run the app on ``sys.argv``; every error is one line on stderr and an exit code."""
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:  # typer's exit code on Ctrl-C
            message, code = describe(KeyboardInterrupt())
            complain(message)
            sys.exit(code)
        raise
    except (Exception, KeyboardInterrupt) as error:
        if terminal.given(DEBUG):
            traceback.print_exc()
        message, code = describe(error)
        complain(message)
        sys.exit(code)


def complain(message: str) -> None:
    """Write an error to stderr: on a terminal a paragraph broken between words, elsewhere one line."""
    line = " ".join(message.splitlines())
    if sys.stderr.isatty():
        terminal.say(terminal.console(messages=True), line, "sidlsg: ")
    else:
        print(f"sidlsg: {line}", file=sys.stderr, flush=True)
