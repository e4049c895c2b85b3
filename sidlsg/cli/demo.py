"""``sidlsg demo``: a page on this machine where the picture follows the prompt as it is typed."""

from __future__ import annotations

from typing import Annotated

import typer

from sidlsg.cli import completion
from sidlsg.cli.options import Device, Precision


def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completion.models,
            help="The model that draws as one types, and, given twice, the one that draws beside it after a pause (emoji@25: "
            "with 25 steps). Default: emoji-student and the teacher of the first.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on, IPv4 or IPv6; any but this machine's own (127.0.0.1, ::1) lets other machines draw on it."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 7860,
    precision: Precision = None,
    device: Device = "auto",
) -> None:
    """Serve a page where one types a prompt and sees the picture change (needs `pip install "sidlsg[demo]"`).

    Four seeds are seen at once, or sixteen. After a pause the teacher draws the same seeds beside them, with the seconds of each,
    and gives way to typing between its steps. Each image can be enlarged and saved with its prompt, seed and model; the page's
    address is a link to what it shows. Nothing is kept of what visitors type. Ctrl-C ends it.

    Examples: `sidlsg demo` · `sidlsg demo --model runs/my-run --model sd15@25`
    """
    from sidlsg.errors import UsageError

    if model is not None and len(model) > 2:
        raise UsageError(f"--model is given {len(model)} times; a page shows one or two models")
    try:
        from sidlsg.demo.server import listen, serve
    except ImportError as error:
        raise UsageError(f'the demo needs {error.name}: pip install "sidlsg[demo]"') from None
    from sidlsg import loopback
    from sidlsg.demo.studio import Studio
    from sidlsg.teachers.registry import locate
    from sidlsg.terminal import note

    with listen(host, port) as listening:
        if not loopback.is_loopback(listening.getsockname()[0]):
            note(f"everybody who reaches {host} can draw on this machine; 127.0.0.1 is for itself only", "warning: ")
        studio = Studio(model or ["emoji-student"], device, precision)
        for contender in studio.contenders:
            note(locate(contender.model).note)
        print(loopback.url(listening), flush=True)
        note("Ctrl-C ends it.", label="")
        serve(studio, host, listening)
