"""The page and its two addresses. Requests carry everything that they need, so visitors cannot see or change each other's."""

from __future__ import annotations

import base64
import contextlib
import socket
from io import BytesIO
from pathlib import Path

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sidlsg.demo.studio import Studio
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.sampling.pictures import make_grid

HERE = ("127.0.0.1", "localhost")
PAGE = Path(__file__).with_name("page.html")


def application(studio: Studio, host: str = HERE[0]) -> Starlette:
    """``/`` is the page, ``/about`` what it shows of the models, ``/draw?model=0&prompt=...&seed=0&count=1`` a picture or grid.

    On loopback, requests under another host name are refused, so that no page of the internet can reach it by one.
    """

    def page(request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    def about(request: Request) -> Response:
        return JSONResponse(studio.about())

    def draw(
        request: Request,
    ) -> Response:  # not a coroutine: starlette runs it in a thread, where it may wait for its turn
        query = request.query_params
        try:
            model, seed, count = (
                number(query.get(name, default)) for name, default in (("model", "0"), ("seed", "0"), ("count", "1"))
            )
            found = studio.draw(model, query.get("prompt", ""), range(seed, seed + count))
        except SidlsgError as error:
            return JSONResponse({"error": str(error)}, status_code=400 if isinstance(error, UsageError) else 500)
        picture = found.pictures[0] if count == 1 else make_grid(found.pictures)
        return JSONResponse({"picture": data_address(picture), "seconds": found.seconds, "note": found.note})

    allowed = [host, *HERE] if host in HERE else ["*"]
    return Starlette(
        routes=[Route("/", page), Route("/about", about), Route("/draw", draw)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)],
    )


# The page is one file and loads nothing from anywhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'"


def number(text: str) -> int:
    """A whole number of an address; raises UsageError for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UsageError(f'"{text[:40]}" is not a whole number')
    return int(text)


def data_address(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def listen(host: str, port: int) -> socket.socket:
    """A socket on the address; raises UsageError when it cannot be had."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; give another --port or --host") from None


def serve(studio: Studio, host: str, listening: socket.socket) -> None:
    """Serve the page until Ctrl-C."""
    server = uvicorn.Server(uvicorn.Config(application(studio, host), log_level="warning"))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
