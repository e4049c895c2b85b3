"""A report that follows its runs: a server on this machine's loopback, and the file written anew with every change."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sidlsg.errors import UsageError
from sidlsg.files import STUDENT_FILE, write_text
from sidlsg.loopback import refuse_host, refuse_site
from sidlsg.report.page import build
from sidlsg.report.reading import read_run

HOST = "127.0.0.1"


class Live:
    """The newest report of some runs. ``page()`` makes it again only when a run has written something."""

    def __init__(self, folders: Sequence[Path], out: Path, warn: Callable[[str], None]) -> None:
        self.folders, self.out, self.warn = folders, out, warn
        self._known: set[str] = set()
        self._version, self._page = "", ""
        self._lock = threading.Lock()  # two tabs

    def version(self) -> str:
        """A hash of names, sizes and times of the files that a report is made from."""
        files = [
            path
            for folder in self.folders
            for pattern in (
                "config.yaml",
                "*.jsonl",
                "samples/*.png",
                "evals/*.json",
                f"student/{STUDENT_FILE}",
                "checkpoints/*/state.json",
            )
            for path in sorted(folder.glob(pattern))
        ]
        facts = []
        for path in files:
            try:
                status = path.stat()
            except OSError:  # a checkpoint that was deleted just now
                continue
            facts.append(f"{path} {status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def page(self) -> str:
        """The HTML, also written to ``out`` when it is new; problems that were not named before are passed to ``warn``."""
        with self._lock:
            version = self.version()
            if version != self._version:
                runs = [read_run(folder) for folder in self.folders]
                self._page = build(runs, live=version)
                write_text(self.out, build(runs))
                self._version = version
                for problem in [p for run in runs for p in run.problems if p not in self._known]:
                    self._known.add(problem)
                    self.warn(problem)
            return self._page


def server(live: Live, port: int) -> ThreadingHTTPServer:
    """A server for this machine only; port 0 takes a free one. Raises UsageError when the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            if why := refuse_host(headers.get("host", ""), HOST) or refuse_site(headers):
                self.answer(why, "text/plain; charset=utf-8", 403)
            elif path == "/":
                self.answer(live.page(), "text/html; charset=utf-8")
            elif path == "/version":
                self.answer(live.version(), "text/plain")
            else:
                self.answer("There is only one page here: /", "text/plain", 404)

        do_HEAD = do_GET

        def answer(self, text: str, kind: str, code: int = 200) -> None:
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: requests are no news."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A line instead of a traceback; a browser that goes away is no error."""
            error = sys.exc_info()[1]
            if not isinstance(error, ConnectionError):
                live.warn(str(error))

    try:
        serving = Server((HOST, port), Handler)
    except OSError as error:
        raise UsageError(f"--port {port}: {error.strerror}; give another, or none for a free one") from None
    return serving
