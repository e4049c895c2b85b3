"""The command line in this process, and what it may say when it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sidlsg import cli


def one_line(err: str, *parts: str) -> None:
    """stderr is one line of ours, without a traceback, and contains every part."""
    assert err.startswith("sidlsg: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert "unexpected" not in err
    missing = [part for part in parts if part not in err]
    assert not missing, (missing, err)


def run_command(*arguments: str | Path) -> None:
    """Run a command in this process; it must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sidlsg", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
