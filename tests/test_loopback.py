"""Servers for this machine: which names and addresses reach them, and which pages may not use them."""

from __future__ import annotations

import socket

import pytest

from sidlsg import loopback


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("localhost", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("box.local", False),
        ("localhost.evil.example", False),
    ],
)
def test_which_addresses_are_this_machines_own(host: str, own: bool) -> None:
    assert loopback.is_loopback(host) == own


@pytest.mark.parametrize(
    "header", ["localhost", "localhost:9999", "127.0.0.1:7860", "127.0.0.2:1", "[::1]:7860", "LOCALHOST:", "mybox:7860"]
)
def test_names_of_this_machine_reach_its_server_through_any_port(header: str) -> None:
    assert loopback.refuse_host(header, served="mybox") is None


@pytest.mark.parametrize(
    "header",
    [
        "evil.example",
        "evil.example:7860",
        "",
        "127.0.0.1.evil.example",
        "a@127.0.0.1",
        "127.0.0.1, x",
        "[::2]",
        "[evil]",
    ],
)
def test_other_names_do_not_and_are_told_which_do(header: str) -> None:
    said = loopback.refuse_host(header, served="127.0.0.1")
    assert said is not None
    assert "http://localhost:PORT/" in said


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),  # no browser, or an old one
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, True),
        (
            {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
            True,
        ),  # another port here
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, True),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, False),  # a link
    ],
)
def test_pages_of_other_sites_may_link_here_and_nothing_else(headers: dict[str, str], refused: bool) -> None:
    assert (loopback.refuse_site(headers) is not None) == refused


@pytest.mark.parametrize(("host", "start"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_a_socket_is_made_for_ipv4_and_ipv6(host: str, start: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        listening = loopback.listen(host, 0)
    except OSError as error:
        if host != "::1":
            raise
        pytest.skip(f"no IPv6 here: {error}")
    with listening, socket.create_connection((host, listening.getsockname()[1])):
        assert loopback.url(listening) == f"{start}{listening.getsockname()[1]}/"
