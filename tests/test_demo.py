"""The demo page: pictures follow the prompt, mistakes are said, visitors do not mix, and only this machine is served."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.terminal import one_line

import sidlsg
from sidlsg.demo import studio as studio_module
from sidlsg.demo.studio import LONGEST, MOST, Studio
from sidlsg.errors import UsageError
from sidlsg.runs import opening

pytest.importorskip("uvicorn", reason='no demo extra: pip install "sidlsg[demo]"')
pytest.importorskip("httpx", reason="no httpx, which starlette's test client needs: pip install httpx")

from sidlsg.demo import server


@pytest.fixture(scope="module", autouse=True)
def opened_once() -> Iterator[None]:
    """Every model is opened once, for the page and for what its pictures are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        keeping = functools.cache(opening.open_model)
        patch.setattr(opening, "open_model", keeping)
        patch.setattr(studio_module, "open_model", keeping)
        yield


@pytest.fixture(scope="module")
def studio(opened_once: None) -> Studio:
    return Studio(["emoji-student", "emoji@2"], device="cpu")


@pytest.fixture
def client(studio: Studio):
    from starlette.testclient import TestClient

    return TestClient(server.application(studio), base_url="http://127.0.0.1:7860")


def pixels(answer: dict[str, Any]) -> np.ndarray:
    head, data = answer["picture"].split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)


def sampled(prompt: str, seed: int, **options: Any) -> np.ndarray:
    (picture,) = sidlsg.sample(prompt, seeds=[seed], device="cpu", **options)
    return np.asarray(picture.image).astype(int)


def test_a_picture_is_that_of_sample_with_the_seconds_it_took(client) -> None:
    for model, options in ((0, {}), (1, {"model": "emoji", "steps": 2})):
        answer = client.get("/draw", params={"model": model, "prompt": "red heart", "seed": 3}).json()
        assert np.abs(pixels(answer) - sampled("red heart", 3, **options)).max() <= 1
        assert 0 < answer["seconds"] < 60
        assert answer["note"] == ""


def test_a_grid_holds_consecutive_seeds(client) -> None:
    grid = pixels(client.get("/draw", params={"prompt": "red heart", "seed": 5, "count": 4}).json())
    for number in range(4):
        top, left = number // 2 * 66, number % 2 * 66
        assert np.abs(grid[top : top + 64, left : left + 64] - sampled("red heart", 5 + number)).max() <= 1


def test_the_page_is_one_file_and_the_models_are_named(client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    about = client.get("/about").json()
    assert about["models"] == [{"name": "emoji-student", "steps": 1}, {"name": "emoji", "steps": 2}]
    assert about["longest"] == LONGEST


def test_an_empty_and_an_overlong_prompt_are_drawn_and_said(client) -> None:
    def note(prompt: str) -> str:
        return client.get("/draw", params={"prompt": prompt}).json()["note"]

    assert "prompt is empty" in note("")
    assert "prompt is empty" in note("  ")
    assert note("cat " * 30) == "The prompt has 30 tokens; the model reads the first 14."


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ({"prompt": "x" * (LONGEST + 1)}, "2,001 characters; at most 2,000"),
        ({"count": MOST + 1}, "from 1 to 64"),
        ({"count": 0}, "from 1 to 64"),
        ({"seed": -1}, '"-1" is not a whole number'),
        ({"seed": 2**32}, "from 0 to 4294967295"),
        ({"seed": "²"}, "not a whole number"),
        ({"model": 2}, "there is no model 2"),
    ],
)
def test_what_cannot_be_drawn_is_said(client, query: dict[str, Any], part: str) -> None:
    answer = client.get("/draw", params=query)
    assert answer.status_code == 400
    assert part in answer.json()["error"]


def test_two_visitors_at_once_get_their_own_pictures_one_after_the_other(client, studio, monkeypatch) -> None:
    inside, most = 0, 0
    real = studio_module.draw

    def watched(*arguments: Any, **options: Any) -> Iterator[Image.Image]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        yield from real(*arguments, **options)
        inside -= 1

    monkeypatch.setattr(studio_module, "draw", watched)
    jobs = [(prompt, seed) for seed in range(3) for prompt in ("red heart", "cat face")]
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda job: client.get("/draw", params={"prompt": job[0], "seed": job[1]}).json(), jobs)
        )
    for (prompt, seed), answer in zip(jobs, answers, strict=True):
        assert np.abs(pixels(answer) - sampled(prompt, seed)).max() <= 1
    assert most == 1


@pytest.mark.parametrize(
    ("host", "name", "code"),
    [("127.0.0.1", "evil.example", 400), ("127.0.0.1", "localhost:7860", 200), ("0.0.0.0", "box.local", 200)],
)
def test_on_loopback_no_other_name_reaches_the_page(studio: Studio, host: str, name: str, code: int) -> None:
    from starlette.testclient import TestClient

    client = TestClient(server.application(studio, host), base_url="http://127.0.0.1")
    assert client.get("/about", headers={"host": name}).status_code == code


def test_one_model_is_joined_by_its_teacher() -> None:
    assert [c.model for c in Studio(["emoji-student"], device="cpu").contenders] == ["emoji-student", "emoji"]
    with pytest.raises(UsageError, match="leave out --steps"):
        Studio(["emoji-student@4"], device="cpu")


def test_mistakes_in_the_command(run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("demo", "--model", "a", "--model", "b", "--model", "c")
    assert code == 2
    one_line(err, "given 3 times")
    with server.listen("127.0.0.1", 0) as taken:
        code, _, err = run("demo", "--port", taken.getsockname()[1])
        assert code == 2
        one_line(err, "cannot listen on 127.0.0.1", "another --port")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "sidlsg.demo.server")
    code, _, err = run("demo")
    assert code == 2
    one_line(err, 'pip install "sidlsg[demo]"')


# -- in a browser ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(studio: Studio) -> Iterator[str]:
    """The page, served as the command does."""
    import uvicorn

    with server.listen("127.0.0.1", 0) as listening:
        running = uvicorn.Server(uvicorn.Config(server.application(studio), log_level="warning"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        running.should_exit = True
        thread.join()


@contextlib.contextmanager
def visitor(browser: Any, address: str) -> Iterator[Any]:
    """A page of its own with the first picture drawn; nothing may go wrong on it but what the server refuses."""
    said: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    says(page, "#first span", "“red heart”, seed 0")
    yield page
    context.close()
    assert said == []


def says(page: Any, selector: str, text: str) -> None:
    """Wait until an element contains the text, or is empty for no text. (The page's policy forbids waiting by a script.)"""
    from playwright.sync_api import expect

    found = expect(page.locator(selector))
    found.to_contain_text(text, timeout=60_000) if text else found.to_have_text("", timeout=60_000)  # a busy machine


def shown(page: Any, prompt: str, figure: str = "#first") -> np.ndarray:
    """The picture of a figure once it is the one of this prompt."""
    says(page, f"{figure} span", prompt)
    return pixels({"picture": page.get_attribute(f"{figure} img", "src")})


def test_the_picture_follows_the_prompt_and_the_seed(browser, address: str) -> None:
    with visitor(browser, address) as page:
        page.fill("#prompt", "")
        page.locator("#prompt").press_sequentially("cat face")
        assert np.abs(shown(page, "“cat face”, seed 0") - sampled("cat face", 0)).max() <= 1
        page.click("#forth")
        assert np.abs(shown(page, "“cat face”, seed 1") - sampled("cat face", 1)).max() <= 1
        assert page.text_content("#first b").startswith("emoji-student, 1 step: ")
        page.click("#other")
        assert (
            np.abs(shown(page, "“cat face”, seed 1", "#second") - sampled("cat face", 1, model="emoji", steps=2)).max()
            <= 1
        )
        page.click("#many")
        assert shown(page, "“cat face”, seeds 1 to 16", "#grid").shape == (262, 262, 3)
        assert page.get_attribute("#second", "class") == ""
        page.fill("#prompt", "red heart")
        shown(page, "“red heart”, seed 1")
        assert page.get_attribute("#second", "class") == "past"  # the teacher's is of the prompt before


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
        shown(page, "“cat”, seed 0")


def test_two_visitors_see_their_own(browser, address: str) -> None:
    with visitor(browser, address) as one, visitor(browser, address) as two:
        one.fill("#prompt", "red heart")
        two.fill("#prompt", "cat face")
        two.fill("#seed", "9")
        assert np.abs(shown(two, "“cat face”, seed 9") - sampled("cat face", 9)).max() <= 1
        assert np.abs(shown(one, "“red heart”, seed 0") - sampled("red heart", 0)).max() <= 1
        assert one.input_value("#seed") == "0"
