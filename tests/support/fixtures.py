"""The fixtures of all test modules: models, prompts, folders, the command line, a browser."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import typer.main
from filelock import FileLock

from sidlsg import cli, data
from sidlsg.evaluation import networks
from sidlsg.evaluation.protocol import get_protocol
from sidlsg.evaluation.scorer import Scorer, bench_reference
from sidlsg.teachers.family import Model
from sidlsg.teachers.loading import load_model
from support.runs import TWO, config_for, trainer, write_prompts
from support.scoring import TINY_CLIP
from support.terminal import run_command
from support.tiny import change_json, save_tiny_sdxl, save_tiny_teacher

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def little_for_the_garbage_collector() -> None:
    """Take what is imported and kept by now out of the collector, which otherwise looks through a million objects of torch and
    transformers whenever a run measures its memory: more than half the time of a tiny run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def commands_are_built_once() -> Iterator[None]:
    """Typer builds the whole command line anew at every call: a twentieth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``once(name, make)``: a folder that ``make(folder)`` has filled, once in the session, whichever worker needs it first.

    Nothing may be changed in it: tests that spoil something copy it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_teacher(once: Any) -> Path:
    """A Stable Diffusion folder; byte-level tokenizer, 8x8 images."""
    return once("teacher", save_tiny_teacher)


@pytest.fixture(scope="session")
def tiny_teacher_64(once: Any) -> Path:
    """The Stable Diffusion folder for 64x64 images, which the protocol ``embedded`` compares."""

    def save(folder: Path) -> None:
        change_json(save_tiny_teacher(folder) / "unet" / "config.json", sample_size=32)

    return once("teacher-64", save)


@pytest.fixture(scope="session")
def tiny_model(tiny_teacher: Path) -> Model:
    """The tiny teacher, opened; nothing may be changed in it."""
    return load_model(str(tiny_teacher), torch.device("cpu"))


@pytest.fixture
def teacher_copy(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher's folder, to be changed."""
    return shutil.copytree(tiny_teacher, tmp_path / "model")


@pytest.fixture(scope="session", params=["as published", "without optional parts"])
def tiny_sdxl(request: pytest.FixtureRequest, once: Any) -> Path:
    """An SDXL folder."""
    published = request.param == "as published"
    return once("sdxl" if published else "bare-sdxl", lambda folder: save_tiny_sdxl(folder, published))


@pytest.fixture(scope="session")
def unbroken(once: Any, tiny_teacher: Path) -> tuple[Path, Path]:
    """A finished run of four iterations (32 images), and its prompt file; to be read or copied."""

    def distill(folder: Path) -> None:
        trainer(config_for(tiny_teacher), folder / "run", write_prompts(folder / "prompts.txt")).run()

    folder = once("unbroken", distill)
    return folder / "run", folder / "prompts.txt"


@pytest.fixture(scope="session")
def finished(once: Any, tiny_teacher: Path) -> tuple[list[str | Path], Path]:
    """The command of a run of two iterations without its --out, and the folder of that run; to be read or copied."""
    folder = once("finished", lambda folder: None)
    prompts = folder / "p.txt"
    line: list[str | Path] = ["distill", *TWO, "--teacher", tiny_teacher, "--prompts", prompts]

    def distill(place: Path) -> None:
        prompts.write_text("a cat\nthe dog\n", encoding="utf-8")
        run_command(*line, "--out", place / "run")

    return line, once("finished-run", distill) / "run"


@pytest.fixture
def finished_run(finished: tuple[list[str | Path], Path], tmp_path: Path) -> list[str | Path]:
    """A copy of the finished run in ``tmp_path``/run, and the command that goes on with it."""
    line, run = finished
    shutil.copytree(run, tmp_path / "run")
    return [*line, "--out", "run"]


@pytest.fixture(scope="session")
def warm_cache(once: Any) -> Path:
    """A cache that holds the features of the embedded benchmark's reference."""

    def encode(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SIDLSG_CACHE", str(folder))
            bench_reference(Scorer(get_protocol("embedded"), torch.device("cpu"), ["fid"]))

    return once("cache", encode)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """``read_only(folder)``: nothing can be written below it, as far as the system is asked (root may write anywhere)."""
    folders: list[Path] = []
    allowed = os.access

    def access(path: str, mode: int) -> bool:
        below = any(Path(path).resolve().is_relative_to(folder) for folder in folders)
        return not (below and mode & os.W_OK) and allowed(path, mode)

    monkeypatch.setattr(os, "access", access)
    return lambda folder: folders.append(folder.resolve())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which holds the cache where nothing else can."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    data._temporary_cache.cache_clear()
    yield folder
    data._temporary_cache.cache_clear()


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.txt")


@pytest.fixture
def tiny_clip(monkeypatch: pytest.MonkeyPatch):
    """A CLIP of random weights whose architecture, "tiny", open_clip knows."""
    import open_clip

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY_CLIP)
    torch.manual_seed(0)
    return open_clip.create_model("tiny").eval()


@pytest.fixture
def cold_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """``cold_run(*arguments)`` -> (exit code, stdout, stderr), in an empty folder, offline, with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / ".cache"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sidlsg", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def judge() -> networks.Clip:
    """The judge, opened once, which keeps the embeddings of captions that it has encoded."""
    clip = networks.load_judge()
    encode = functools.cache(clip.encode_captions)
    clip.encode_captions = lambda captions: encode(tuple(captions))  # type: ignore[method-assign, misc]
    return clip


@pytest.fixture
def run(cold_run: Any, warm_cache: Path, judge: networks.Clip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``cold_run`` with what every session has encoded already in its cache (``warm_cache``), and the judge opened."""
    shutil.copytree(warm_cache, tmp_path / ".cache", copy_function=os.link)
    monkeypatch.setattr(networks, "load_judge", lambda: judge)
    return cold_run


BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")  # from its first use on, asyncio.run() is refused in this thread; no test calls it
def browser() -> Iterator[Any]:
    """Headless Chromium; without one, tests that need it are skipped."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    why = "" if found else f"no browser: none of {', '.join(BROWSERS)} is installed"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        why = "no playwright: pip install playwright"
    if why:
        pytest.skip(why)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """``page(file or address, width, theme)`` opens it; the test fails on any error or message in the console."""
    said: list[str] = []
    contexts = []

    def open_page(address: str | Path, width: int = 1280, theme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **options)
        contexts.append(context)
        opened = context.new_page()
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("requestfailed", lambda failed: said.append(failed.url))
        opened.goto(address.as_uri() if isinstance(address, Path) else address)
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
