"""The documentation of the commands is what the commands say, and the shell is offered what they take."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sidlsg.cli import app
from sidlsg.config import FIELDS
from sidlsg.method.guidance import STRATEGIES
from sidlsg.settings import preset_names
from support import surface

PAGES = Path(__file__).parents[1] / "docs" / "cli"


def test_the_pages_of_the_commands_are_what_the_commands_say() -> None:
    spec = importlib.util.spec_from_file_location("generate", PAGES / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    written = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.md")}
    assert written == generate.pages(), "run: python docs/cli/generate.py"


def test_no_command_and_no_option_appears_or_disappears_unnoticed() -> None:
    recorded = surface.RECORD.read_text(encoding="utf-8").splitlines()
    assert surface.lines() == recorded, "scripts depend on these: cd tests && python -m support.surface records them"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("distill --preset ", preset_names()),
        ("distill --teacher sd", ["sd15", "sd21-base", "sdxl"]),
        ("distill --teacher emoji", ["emoji"]),  # no student
        ("sample --model emoji", ["emoji", "emoji-student"]),
        ("distill --strategy ", list(STRATEGIES)),
        ("distill --set ema_", [f"{name}=" for name in FIELDS if name.startswith("ema_")]),
        ("eval --protocol ", ["gigagan", "sid-lsg", "embedded", "teacher"]),
        ("sample --sampler d", ["ddim", "ddpm", "dpm++"]),
        ("bench --arch sd", ["sd15", "sd21-base", "sdxl"]),
        ("presets show h200", [name for name in preset_names() if name.startswith("h200")]),
    ],
)
def test_the_shell_is_offered_what_an_option_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, line: str, offered: list[str]
) -> None:
    words = f"sidlsg {line}"
    monkeypatch.setenv("_SIDLSG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit) as ended:
        app(prog_name="sidlsg")
    assert (ended.value.code, capsys.readouterr().out.split()) == (0, offered)
