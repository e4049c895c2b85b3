"""Servers that are for this machine only: which addresses those are, and which requests to them come from elsewhere."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping

HOST_HEADER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d*)?", re.ASCII)


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which no other machine reaches."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def refuse_host(header: str, served: str) -> str | None:
    """Why a request to a server on loopback is refused, for its sender; None when its Host header names this machine.

    A page of the internet may give its own name this machine's address, and read what is served here under that name. Ports
    are not compared: a forwarded port is another one.

    Args:
        served: the name that the server was asked to listen on, which is one more that is right.
    """
    match = HOST_HEADER.fullmatch(header)
    name = match[1].strip("[]") if match else ""
    if name and (is_loopback(name) or name.lower() == served.lower()):
        return None
    return (
        f'This page is for the machine that serves it, and was asked for as "{header[:80]}". Open it as http://localhost:PORT/ '
        "(there, or through a forwarded port), which a proxy has to pass on as the Host header."
    )


def refuse_site(headers: Mapping[str, str]) -> str | None:
    """Why a request is refused that a page of another site makes in a visitor's browser; None for any other.

    Links from other sites may be followed.
    """
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return None if followed else "Pages of other sites cannot use this server."
    return None


def listen(host: str, port: int) -> socket.socket:
    """A socket on a name or address, IPv4 or IPv6; port 0 is any free one. Raises OSError when it cannot be had."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family)


def url(listening: socket.socket) -> str:
    """The address of the page that is served on a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
