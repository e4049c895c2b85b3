"""What a command may say when it fails."""

from __future__ import annotations


def one_line(err: str, *parts: str) -> None:
    """stderr is one line of ours, without a traceback, and contains every part."""
    assert err.startswith("sidlsg: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert "unexpected" not in err
    missing = [part for part in parts if part not in err]
    assert not missing, (missing, err)
