"""The page and its two addresses. Requests carry everything that they need, so visitors cannot see or change each other's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import h11
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sidlsg import loopback
from sidlsg.demo.studio import Studio
from sidlsg.demo.turns import Unwanted
from sidlsg.errors import SidlsgError, UsageError, sentence
from sidlsg.sampling.pictures import png_facts
from sidlsg.terminal import note

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
# The page is one file, loads nothing from anywhere, and stands in no other page.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
)


def application(studio: Studio, host: str = HOST) -> Starlette:
    """``/`` is the page, ``/about`` what it shows of the models, ``/draw?model=0&prompt=...&seed=0&count=1`` pictures.

    Requests that pages of other sites make are refused, and on loopback those under another machine's name.
    """

    def page(request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    def about(request: Request) -> Response:
        return JSONResponse(studio.about())

    async def draw(request: Request) -> Response:
        """Draws in a thread, where it may wait for its turn, and stops when the visitor has gone."""
        gone = threading.Event()
        watching = asyncio.ensure_future(wait_for_leave(request.receive, gone))
        try:
            return await run_in_threadpool(drawn, studio, request.query_params, lambda: not gone.is_set())
        finally:
            gone.set()
            watching.cancel()

    return Starlette(
        routes=[Route("/", page), Route("/about", about), Route("/draw", draw)],
        middleware=[Middleware(Guard, host=host)],
    )


class Guard:
    """Refuses, in a sentence for who reads it, what comes from elsewhere.

    Args:
        host: that is listened on.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        local = scope["type"] == "http" and loopback.is_loopback(self.host)
        if local and (why := loopback.refuse_host(headers.get("host", ""), self.host)):
            await PlainTextResponse(why, 400)(scope, receive, send)
        elif why := loopback.refuse_site(headers):
            await PlainTextResponse(why, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


async def wait_for_leave(receive: Receive, gone: threading.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def drawn(studio: Studio, query: Mapping[str, str], wanted: Callable[[], bool]) -> Response:
    """The answer to a request for pictures: PNG files that carry prompt, seed and model, or what went wrong."""
    try:
        model, seed, count = (
            number(query.get(name, default)) for name, default in (("model", "0"), ("seed", "0"), ("count", "1"))
        )
        prompt = query.get("prompt", "")
        seeds = range(seed, seed + count)
        found = studio.draw(model, prompt, seeds, wanted)
    except Unwanted:
        return Response(status_code=204)
    except SidlsgError as error:
        return JSONResponse({"error": str(error)}, status_code=400 if isinstance(error, UsageError) else 500)
    except Exception as error:
        memory = type(error).__name__ == "OutOfMemoryError"
        said = "out of GPU memory" if memory else f"unexpected {type(error).__name__}: {sentence(error)}"
        note(f"a picture was not drawn: {said}", "warning: ")
        return JSONResponse({"error": said}, status_code=500)
    pictures = [
        data_address(picture, prompt=prompt, seed=seed, model=found.source)
        for picture, seed in zip(found.pictures, seeds, strict=True)
    ]
    return JSONResponse({"pictures": pictures, "seconds": found.seconds, "source": found.source, "note": found.note})


def number(text: str) -> int:
    """A whole number of an address; raises UsageError for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UsageError(f'"{text[:40]}" is not a whole number')
    return int(text)


def data_address(picture: Image.Image, **facts: str | int) -> str:
    """A PNG file with its text entries, as a data: address."""
    file = BytesIO()
    picture.save(file, format="PNG", compress_level=1, pnginfo=png_facts(facts))
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def listen(host: str, port: int) -> socket.socket:
    """A socket on the address; raises UsageError when it cannot be had."""
    try:
        return loopback.listen(host, port)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; give another --port or --host") from None


class Server(uvicorn.Server):
    """uvicorn, which says nothing of its own: a visitor's broken request is no news, and any other error is one line."""

    def __init__(self, app: ASGIApp) -> None:
        quiet: dict[str, Any] = {"log_config": None, "log_level": "critical", "access_log": False}
        super().__init__(uvicorn.Config(app, **quiet, ws="none", lifespan="off", timeout_graceful_shutdown=1))

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self.say)
        await super().serve(sockets)

    @staticmethod
    def say(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, h11.ProtocolError | ConnectionError):
            note(sentence(error) if error else str(context.get("message")), "warning: ")


def serve(studio: Studio, host: str, listening: socket.socket) -> None:
    """Serve the page until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        Server(application(studio, host)).run(sockets=[listening])
