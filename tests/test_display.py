"""Pictures in a terminal: the bytes that each protocol takes decode to the picture, and nothing but a terminal gets them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidlsg.cli.display import PROTOCOLS, VARIABLE, Display, iterm2, kitty, protocol, sixel, sized
from sidlsg.errors import UsageError


@pytest.fixture
def picture() -> Image.Image:
    """Noise, which PNG cannot make small, so that kitty needs several pieces."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def decoded(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_kitty_gets_the_picture_in_pieces(picture: Image.Image) -> None:
    text = kitty(picture)
    pieces = re.findall("\033_G([^;]*);([^\033]*)\033\\\\", text)
    assert "".join(f"\033_G{head};{data}\033\\" for head, data in pieces) == text
    assert len(pieces) > 2
    assert [head for head, _ in pieces] == ["a=T,f=100,q=2,m=1", *["m=1"] * (len(pieces) - 2), "m=0"]
    assert max(len(data) for _, data in pieces) <= 4096
    assert (decoded("".join(data for _, data in pieces)) == np.asarray(picture)).all()


def test_iterm2_gets_the_picture_and_its_size(picture: Image.Image) -> None:
    size, data = re.fullmatch(
        "\033]1337;File=inline=1;size=(\\d+);width=70px;height=50px:(.*)\a", iterm2(picture)
    ).groups()
    assert (decoded(data) == np.asarray(picture)).all()
    assert len(base64.b64decode(data)) == int(size)


def test_sixels_decode_to_the_picture() -> None:
    wanted = np.zeros((8, 5, 3), dtype=np.uint8)  # a height that is no multiple of six
    wanted[:3, :2], wanted[6:, 4] = (255, 0, 0), (0, 0, 255)
    head, body = re.fullmatch(
        '\033Pq"1;1;5;8((?:#\\d+;2;[\\d;]+)*)(.*)\033\\\\', sixel(Image.fromarray(wanted))
    ).groups()
    colours = {n: tuple(map(int, rgb.split(";"))) for n, rgb in re.findall(r"#(\d+);2;([\d;]+?)(?=#|$)", head)}
    found = np.zeros((12, 5, 3))
    for number, band in enumerate(body.rstrip("-").split("-")):
        for line in band.split("$"):
            colour, runs = re.match(r"#(\d+)(.*)", line).groups()
            column = 0
            for count, sign in re.findall(r"!(\d+)(.)", runs):
                for bit in range(6):
                    if (ord(sign) - 63) >> bit & 1:
                        found[number * 6 + bit, column : column + int(count)] = colours[colour]
                column += int(count)
            assert column == 5
    assert (found[:8] == wanted / 255 * 100).all()
    assert (found[8:] == 0).all()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-kitty", VARIABLE: "none"}, None),
        ({"TERM": "dumb", VARIABLE: "sixel"}, "sixel"),
        ({}, None),
    ],
)
def test_the_protocol_is_the_terminals(environment: dict[str, str], expected: str | None) -> None:
    assert protocol(environment) == expected


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UsageError, match='SIDLSG_PICTURES is "kity"; did you mean "kitty"'):
        protocol({VARIABLE: "kity"})


def test_only_a_terminal_gets_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.png")

    def shown(stream: io.StringIO, wanted: bool | None, pictures: int = 1) -> str:
        Display.of(stream, wanted, pictures).show(tmp_path / "a.png")
        return stream.getvalue()

    monkeypatch.setenv(VARIABLE, "iterm2")
    expected = iterm2(sized(picture)) + "\n"
    assert shown(Screen(), None) == shown(Screen(), True) == shown(Screen(), True, 100) == expected
    assert shown(Screen(), None, 100) == ""
    assert shown(Screen(), False) == ""
    assert shown(io.StringIO(), None) == shown(io.StringIO(), True) == ""
    monkeypatch.setenv(VARIABLE, "none")
    assert shown(Screen(), None) == ""
    with pytest.raises(UsageError, match="not known to show pictures"):
        shown(Screen(), True)


def test_small_pictures_are_enlarged_and_large_ones_reduced(picture: Image.Image) -> None:
    assert sized(picture).size == (140, 100)
    assert (np.asarray(sized(picture))[::2, ::2] == np.asarray(picture)).all()
    assert sized(Image.new("RGB", (4096, 1024))).size == (1024, 256)
    assert set(PROTOCOLS) == {"kitty", "iterm2", "sixel"}
