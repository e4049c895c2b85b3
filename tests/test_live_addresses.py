"""The live report answers at this machine's own names through any port, and says why not elsewhere."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from sidlsg.report.live import server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    live = SimpleNamespace(page=lambda: "<p>a report</p>", version=lambda: "v1", warn=pytest.fail)
    with server(live, 0) as serving:  # type: ignore[arg-type]
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving.server_port
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("method", "path", "headers", "code", "text"),
    [
        ("GET", "/", {"Host": "localhost:1"}, 200, "a report"),  # a forwarded port
        ("GET", "/?x=1", {"Host": "[::1]:8000"}, 200, "a report"),
        ("GET", "/version?x=1", {}, 200, "v1"),
        ("HEAD", "/", {}, 200, ""),
        ("GET", "/nothing", {}, 404, "only one page here"),
        ("GET", "/", {"Host": "evil.example"}, 403, "http://localhost:PORT/"),
        ("GET", "/", {"Sec-Fetch-Site": "cross-site"}, 403, "Pages of other sites"),
    ],
)
def test_what_is_answered(port: int, method: str, path: str, headers: dict, code: int, text: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    assert (answer.status, text in body) == (code, True)
    assert (body == "") == (method == "HEAD")
