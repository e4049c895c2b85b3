"""The demo in a browser and on the wire: images follow the typing, nothing hangs, and only this machine is served."""

from __future__ import annotations

import base64
import contextlib
import io
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from sidlsg.demo.studio import LAST_SEED, LONGEST, Studio
from support.terminal import one_line

pytest.importorskip("uvicorn", reason='no demo extra: pip install "sidlsg[demo]"')

from sidlsg.demo import server

SLOWEST = 120_000  # milliseconds for what takes one, on a machine with other work


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(["emoji-student", "emoji@2"], device="cpu")


@pytest.fixture(scope="module")
def address(studio: Studio) -> Iterator[str]:
    """The page, served as the command does."""
    with server.listen("127.0.0.1", 0) as listening:
        running = server.Server(server.application(studio))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        running.should_exit = True
        thread.join()


# -- on the wire -----------------------------------------------------------------------------------------------------------


def sent(address: str, request: str) -> str:
    """What the server answers to bytes."""
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall(request.replace("\n", "\r\n").encode())
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := wire.recv(1 << 16):
                parts.append(part)
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ("Host: localhost:9", 200),  # a forwarded port
        ("Host: 127.0.0.2", 200),
        ("Host: [::1]:7860", 200),
        ("Host: evil.example", 400),
        ("X: no host", 400),
        ("Host: localhost\nSec-Fetch-Site: same-origin", 200),
        ("Host: localhost\nSec-Fetch-Site: cross-site\nSec-Fetch-Mode: no-cors", 403),
    ],
)
def test_only_this_machine_and_this_page_are_served(address: str, headers: str, code: int) -> None:
    version = "1.0" if "no host" in headers else "1.1"
    answer = sent(address, f"GET /about HTTP/{version}\n{headers}\nConnection: close\n\n")
    assert answer.startswith(f"HTTP/1.1 {code} ")
    if code == 400:
        assert "http://localhost:PORT/" in answer


def test_other_loopback_addresses_are_guarded_too_and_others_are_not() -> None:
    from starlette.testclient import TestClient

    class Empty:
        @staticmethod
        def about() -> dict[str, str]:
            return {}

    for host, code in (("127.0.0.2", 400), ("::1", 400), ("localhost", 400), ("0.0.0.0", 200)):
        client = TestClient(server.application(Empty(), host), base_url="http://evil.example")  # type: ignore[arg-type]
        assert client.get("/about").status_code == code, host


def test_broken_requests_print_nothing(address: str, capfd: pytest.CaptureFixture) -> None:
    for request in (
        "POST / HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\nno chunk\n",
        "GET /about HTTP/1.1\nHost: localhost\nConnection: Upgrade, close\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
        "Sec-WebSocket-Key: x\n\n",
        "\x16\x03\x01 no HTTP\n\n",
    ):
        sent(address, request)
    assert sent(address, "GET / HTTP/1.1\nHost: localhost\nConnection: close\n\n").startswith("HTTP/1.1 200")
    assert capfd.readouterr() == ("", "")


def test_what_goes_wrong_while_drawing_is_a_line_here_and_there(
    address: str, studio: Studio, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(studio, "draw", lambda *_: 1 / 0)
    answer = sent(address, "GET /draw HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    assert answer.startswith("HTTP/1.1 500")
    assert '{"error":"unexpected ZeroDivisionError: division by zero."}' in answer
    out, err = capfd.readouterr()
    assert (out, err) == ("", "warning: a picture was not drawn: unexpected ZeroDivisionError: division by zero.\n")


def test_the_command_listens_on_ipv6_and_warns_where_others_can_reach_it(run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def __init__(self, *_: Any) -> None:
            self.contenders: list[Any] = []

    monkeypatch.setattr("sidlsg.demo.studio.Studio", Nothing)
    monkeypatch.setattr(server, "serve", lambda *_: None)
    code, out, err = run("demo", "--host", "0.0.0.0", "--port", "0")
    assert (code, out.startswith("http://0.0.0.0:")) == (0, True)
    assert "warning: everybody who reaches 0.0.0.0 can draw on this machine" in err
    code, out, err = run("demo", "--host", "::1", "--port", "0")
    if code == 2:
        one_line(err, "cannot listen on ::1")
    else:
        assert re.fullmatch(r"http://\[::1\]:\d+/\n", out)
        assert "warning" not in err


# -- in a browser ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def visitor(browser: Any, address: str, width: int = 1200) -> Iterator[Any]:
    """A page of its own with the first model's images drawn; nothing may go wrong on it but what the server refuses."""
    said: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SLOWEST)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    images(page, "#first")
    yield page
    context.close()
    assert [text for text in said if "Failed to load resource" not in text] == []


def says(page: Any, selector: str, text: str) -> None:
    """Wait until an element contains the text, or is empty for no text. (The page's policy forbids waiting by a script.)"""
    from playwright.sync_api import expect

    found = expect(page.locator(selector))
    found.to_contain_text(text, timeout=SLOWEST) if text else found.to_have_text("", timeout=SLOWEST)


def images(page: Any, figure: str, prompt: str = "red heart", seeds: range = range(4)) -> list[Image.Image]:
    """The images of a figure, once they are those of the prompt and the seeds and none is faded."""
    for place, seed in enumerate(seeds, 1):
        page.wait_for_selector(f"{figure} .cells button:nth-child({place}) img[alt='{prompt}, seed {seed}']:not(.past)")
    found = page.locator(f"{figure} .cells img")
    assert found.count() == len(seeds)
    return [picture(found.nth(place).get_attribute("src")) for place in range(len(seeds))]


def picture(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_four_seeds_follow_the_prompt_and_the_teacher_comes_after_a_pause(browser, address: str) -> None:
    with visitor(browser, address) as page:
        page.fill("#prompt", "")
        page.locator("#prompt").press_sequentially("cat face")
        drawn = images(page, "#first", "cat face")
        assert [image.text["seed"] for image in drawn] == ["0", "1", "2", "3"]
        assert {image.text["prompt"] for image in drawn} == {"cat face"}
        assert {image.text["model"] for image in images(page, "#second", "cat face")} == {"emoji"}
        assert page.text_content("#first b").startswith("emoji-student, 1 step: ")
        says(page, "#second span", "“cat face”, seeds 0 to 3")
        assert page.locator("em").all_text_contents() == ["", ""]
        page.click("#forth")
        images(page, "#first", "cat face", range(4, 8))
        assert page.input_value("#seed") == "4"
        page.click("text=blue heart")  # an example
        images(page, "#first", "blue heart", range(4, 8))
        page.click("#many")
        images(page, "#first", "blue heart", range(4, 20))


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_the_first_screen_fits(browser, address: str, width: int) -> None:
    with visitor(browser, address, width) as page:
        box = page.locator("#first .cells").bounding_box()
        assert box["width"] <= 512
        assert box["y"] + box["height"] <= 900
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert page.locator("body").bounding_box()["width"] <= width


def test_seeds_are_what_is_drawn(browser, address: str) -> None:
    with visitor(browser, address) as page:
        for written, seed in (("3.7", 3), ("-5", 0), ("99999999999", LAST_SEED - 3), ("12", 12)):
            page.fill("#seed", written)
            images(page, "#first", seeds=range(seed, seed + 4))
            assert page.input_value("#seed") == str(seed)
        page.fill("#seed", "")
        page.locator("#seed").blur()
        assert page.input_value("#seed") == "12"
        page.click("#random")
        seed = int(page.input_value("#seed"))
        images(page, "#first", seeds=range(seed, seed + 4))
        page.fill("#seed", str(LAST_SEED))
        page.click("#many")
        assert page.input_value("#seed") == str(LAST_SEED - 15)


def test_an_error_is_said_and_never_leaves_drawing(browser, address: str) -> None:
    with visitor(browser, address) as page:
        images(page, "#second")
        page.route("**/draw*", lambda route: route.fulfill(status=502, body="<html>a proxy</html>"))
        page.fill("#prompt", "cat face")
        says(page, "#first em", "The server answered with status 502.")
        says(page, "#second em", "The server answered with status 502.")
        page.unroute("**/draw*")
        page.route("**/draw*", lambda route: route.abort())
        page.fill("#prompt", "bear")
        says(page, "#first em", "The server does not answer; is sidlsg demo still running?")
        says(page, "#second em", "The server does not answer")
        page.unroute("**/draw*")
        page.fill("#prompt", "bus")
        images(page, "#first", "bus")
        images(page, "#second", "bus")
        assert page.locator("em").all_text_contents() == ["", ""]


def test_the_page_says_what_happens_to_an_empty_and_an_overlong_prompt(browser, address: str) -> None:
    with visitor(browser, address) as page:
        for prompt, part in (
            ("", "prompt is empty"),
            ("cat " * 30, "reads the first 14"),
            ("x" * (LONGEST + 1), "at most 2000"),
            ("cat", ""),
        ):
            page.fill("#prompt", prompt)
            says(page, "#said", part)
        images(page, "#first", "cat")


def test_a_teacher_that_draws_does_not_block_typing(browser, address: str, studio: Studio, monkeypatch) -> None:
    """Its steps here take as long as the visitor needs, and it is stopped when its prompt is one of the past."""
    from sidlsg.demo import studio as module

    begun, typed, stopped = threading.Event(), threading.Event(), threading.Event()
    real = module.draw

    def slow(model: Any, prompts: Any, seeds: Any, *, after_step: Any, **options: Any) -> Iterator[Image.Image]:
        if model.student is not None:
            yield from real(model, prompts, seeds, after_step=after_step, **options)
            return
        begun.set()
        try:
            while not typed.wait(0.02):  # a step
                after_step()
        except Exception:
            stopped.set()
            raise
        yield from real(model, prompts, seeds, after_step=after_step, **options)

    monkeypatch.setattr(module, "draw", slow)
    with visitor(browser, address) as page, visitor(browser, address) as other:
        assert begun.wait(120)
        other.uncheck("#auto")
        other.fill("#prompt", "cat face")
        images(other, "#first", "cat face")
        assert not stopped.is_set()  # this one gave way, and goes on
        page.fill("#prompt", "bear")
        images(page, "#first", "bear")
        assert stopped.wait(120)
        typed.set()
        images(page, "#second", "bear")


def test_an_image_is_enlarged_and_saved_and_a_link_shows_it_again(browser, address: str, tmp_path) -> None:
    with visitor(browser, address) as page:
        page.fill("#prompt", "Cat, face!")
        page.fill("#seed", "7")
        images(page, "#first", "Cat, face!", range(7, 11))
        page.click("#first .cells button:nth-child(2)")
        says(page, "#large p", "“Cat, face!”, seed 8. emoji-student, 1 step")
        assert page.locator("#large img").bounding_box()["width"] <= 512
        with page.expect_download() as started:
            page.click("#save")
        assert started.value.suggested_filename == "cat-face-8.png"
        started.value.save_as(tmp_path / "saved.png")
        facts = {"prompt": "Cat, face!", "seed": "8", "model": "emoji-student"}
        assert Image.open(tmp_path / "saved.png").text == facts
        page.click("#use")
        assert page.input_value("#seed") == "8"
        images(page, "#first", "Cat, face!", range(8, 12))
        page.wait_for_url(re.compile(r"\?prompt=Cat%2C\+face%21&seed=8$"))
        link = page.url.removeprefix(address)
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(SLOWEST)
    page.goto(address + link)
    images(page, "#first", "Cat, face!", range(8, 12))
    context.close()


def test_two_visitors_see_their_own(browser, address: str) -> None:
    with visitor(browser, address) as one, visitor(browser, address) as two:
        one.fill("#prompt", "bear")
        two.fill("#prompt", "cat face")
        two.fill("#seed", "9")
        images(two, "#first", "cat face", range(9, 13))
        images(one, "#first", "bear")
        assert one.input_value("#seed") == "0"
