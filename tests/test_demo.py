"""The demo page: pictures follow the prompt, mistakes are said, visitors do not mix, and only this machine is served."""

from __future__ import annotations

import base64
import functools
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sidlsg
from sidlsg.demo import studio as studio_module
from sidlsg.demo.studio import LONGEST, MOST, Studio
from sidlsg.errors import UsageError
from sidlsg.runs import opening
from support.terminal import one_line

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


def picture(address: str) -> Image.Image:
    head, data = address.split(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def pixels(answer: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(picture(address)).astype(int) for address in answer["pictures"]]


def sampled(prompt: str, seed: int, **options: Any) -> np.ndarray:
    (one,) = sidlsg.sample(prompt, seeds=[seed], device="cpu", **options)
    return np.asarray(one.image).astype(int)


def test_pictures_are_those_of_sample_with_their_text_entries_and_seconds(client) -> None:
    for model, options in ((0, {}), (1, {"model": "emoji", "steps": 2})):
        answer = client.get("/draw", params={"model": model, "prompt": "red heart", "seed": 3, "count": 2}).json()
        for seed, found in zip((3, 4), pixels(answer), strict=True):
            assert np.abs(found - sampled("red heart", seed, **options)).max() <= 1
        facts = {"prompt": "red heart", "seed": "4", "model": options.get("model", "emoji-student")}
        assert picture(answer["pictures"][1]).text == facts
        assert 0 < answer["seconds"] < 60
        assert answer["note"] == ""


def test_the_page_is_one_file_and_the_models_are_named(client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    about = client.get("/about").json()
    named = {"name": "emoji-student", "steps": 1, "ready": True}, {"name": "emoji", "steps": 2, "ready": True}
    assert about["models"] == [*named]
    assert about["longest"] == LONGEST
    assert about["examples"][:2] == ["red heart", "blue heart"]


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
        assert np.abs(pixels(answer)[0] - sampled(prompt, seed)).max() <= 1
    assert most == 1


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
