"""Make every picture of the README with the tool itself, into docs/images, and print the command behind each.

    python experiments/emoji/pictures.py            # after the README's first command, whose run it shows

The seconds in the pictures are measured while they are made: leave the machine alone. The two screenshots need Chromium,
Playwright and ``sidlsg[demo]``; they are left out, by name, where one is missing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from figures import OUT, cells
from PIL import Image

from sidlsg.data import ASSETS
from sidlsg.prompts import PromptFile
from sidlsg.runs.folder import RunFolder
from sidlsg.sampling.draw import draw
from sidlsg.sampling.grid import Block, Row, labelled_grid
from sidlsg.sampling.pictures import make_grid
from sidlsg.teachers.loading import load_model

PROMPTS, SEEDS = ["red heart", "cat face", "light bulb"], "0-7"
TYPED = "four leaf clover"
SIZE = {"width": 1200, "height": 900}


def sidlsg(*words: str) -> str:
    """Run a command of the tool, print it, and return what it printed."""
    print("sidlsg", " ".join(f'"{word}"' if " " in word else word for word in words), flush=True)
    command = [sys.executable, "-m", "sidlsg", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def first_command(run: RunFolder) -> None:
    """readme.png: a prompt a row: the run's student at step 0 and at the end, the shipped student, the teacher; with the seconds
    that each takes for its pictures, all prompts in one batch."""
    grids = sorted(run.samples.glob("[0-9]*.png"))
    prompts = list(PromptFile(ASSETS / "emoji-grid.txt"))
    shipped, teacher = "emoji-student", "emoji"
    drawn, seconds = {}, {}
    for name, options in ((str(run.student), {}), (shipped, {}), (teacher, {"steps": 25, "guidance": 3.0})):
        model, times = load_model(name, torch.device("cpu")), []
        for _ in range(4):
            begun = time.perf_counter()
            drawn[name] = list(draw(model, prompts, range(len(prompts)), batch=len(prompts), **options))
            times.append(time.perf_counter() - begun)
        seconds[name] = f"{median(times[1:]):.2f} s"
    columns = {
        "student, step 0": cells(Image.open(grids[0]), len(prompts)),
        f"student, {int(grids[-1].stem):,} images": cells(Image.open(grids[-1]), len(prompts)),
        f"shipped student: {seconds[shipped]}": drawn[shipped],
        f"teacher, 25 steps: {seconds[teacher]}": drawn[teacher],
    }
    rows = [Row(pictures, prompt) for prompt, *pictures in zip(prompts, *columns.values(), strict=True)]
    middle = len(rows) // 2
    halves = [labelled_grid([Block(half)], list(columns)) for half in (rows[:middle], rows[middle:])]
    make_grid(halves, 2).save(OUT / "readme.png", optimize=True)


def compared() -> None:
    """readme-compare.png: the shipped student beside its teacher with 25 and with 4 steps."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "compare.png"
        sidlsg(
            "compare", *PROMPTS, "--models", "emoji-student,emoji@25,emoji@4", "--seeds", SEEDS, "--out", str(target)
        )
        shutil.move(target, OUT / "readme-compare.png")


def trade_off(run: RunFolder) -> None:
    """readme-trade-off.png: the run beside the teacher's own trade-off."""
    with tempfile.TemporaryDirectory() as folder:
        sidlsg("report", str(run.path), "--png", folder)  # writes report.html anew too
        shutil.move(Path(folder) / "trade-off.png", OUT / "readme-trade-off.png")


def report(run: RunFolder, browser: Any) -> None:
    """readme-report.png: the upper part of the run's report."""
    page = browser.new_page(viewport=SIZE)
    page.goto(run.report.resolve().as_uri())
    page.screenshot(path=OUT / "readme-report.png")


def demo(browser: Any) -> None:
    """readme-demo.png: a prompt typed into the demo, and its teacher's picture beside it."""
    serving = subprocess.Popen(
        [sys.executable, "-m", "sidlsg", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    print("sidlsg demo", flush=True)
    try:
        assert serving.stdout is not None
        page = browser.new_page(viewport=SIZE)
        page.goto(serving.stdout.readline().strip())
        page.fill("#prompt", TYPED)
        page.wait_for_selector(f"#second img[alt='{TYPED}, seed 3']")  # the last one drawn
        page.screenshot(path=OUT / "readme-demo.png")
    finally:
        serving.terminate()
        serving.wait()


def in_browser(*work: Callable[[Any], None]) -> None:
    """Do what needs a browser, or say why not."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("left out: readme-report.png, readme-demo.png (pip install playwright)")
        return
    found = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
    if found is None:
        print("left out: readme-report.png, readme-demo.png (no Chromium)")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        for make in work:
            make(browser)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/emoji-cpu-lsg-2"), help="a finished run that was scored")
    run = RunFolder(parser.parse_args().run)
    OUT.mkdir(parents=True, exist_ok=True)
    first_command(run)
    compared()
    trade_off(run)
    in_browser(lambda browser: report(run, browser), demo)


if __name__ == "__main__":
    main()
