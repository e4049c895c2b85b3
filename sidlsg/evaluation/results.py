"""The results in a folder: which scores stand together in one file, and what is never replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidlsg import files
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation.report import COLUMNS, markdown
from sidlsg.evaluation.request import Request
from sidlsg.files import write_text
from sidlsg.paths import check_output
from sidlsg.sampling.pictures import free_path

FILE = "results.json"
Results = dict[str, Any]


def check_folder(request: Request) -> None:
    """Raise UsageError, before anything is drawn, when the folder cannot be written to or holds results of another protocol or
    other pictures, or when one of its files is damaged."""
    check_output(request.folder)
    path, protocol = request.folder / FILE, request.protocol_name
    read_object(request.folder / "generation.json")
    old = read_object(path)
    if old.get("protocol", protocol) != protocol:
        raise UsageError(f"{path} holds results of the protocol {old['protocol']}; give another --out for {protocol}")
    about = old.get("generation", {})
    scored = about.get("images") if isinstance(about, dict) else None
    scored, here = (None if place is None else Path(place).resolve() for place in (scored, request.images))
    if old and scored != here:
        was, now = (f"pictures in {place}" if place else "pictures that were drawn" for place in (scored, here))
        raise UsageError(f"{path} holds results of {was}; give another --out for {now}")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no file; raises UsageError when it is damaged."""
    if not path.is_file():
        return {}
    try:
        return files.read_object(path)
    except SidlsgError:
        raise UsageError(
            f"{path} is damaged; delete it (pictures beside it are of unknown origin), or give another --out"
        ) from None


def check_conditions(folder: Path, facts: Results) -> None:
    """Raise UsageError when the folder's results were computed with other captions, another reference or other networks.

    Args:
        facts: fields of the results to come, as far as they are known before anything is drawn.
    """
    if differ := differences(read_object(folder / FILE), facts):
        drawn = "" if facts.get("images") else f" (--images {folder / 'images'} scores the pictures that are there)"
        raise UsageError(
            f"{folder / FILE} holds results of {', of '.join(differ)}; give another --out{drawn}, so that both are kept"
        )


def differences(old: Results, new: Results) -> list[str]:
    """In what the scores of two results were computed otherwise; fields that one of them lacks are not compared."""
    found = []
    if _differ(old.get("prompts_sha256"), new.get("prompts_sha256")):
        found.append("other captions")
    was, now = ((results.get("reference") or {}) for results in (old, new))
    if _differ(was.get("sha256"), now.get("sha256")):
        found.append(f"another reference ({was.get('source')})")
    if _differ(old.get("protocol_sha256"), new.get("protocol_sha256")):
        found.append("another version of the protocol")
    there, here = ((results.get("weights_sha256") or {}) for results in (old, new))
    if changed := [key for key in there if _differ(there[key], here.get(key))]:
        found.append(f"other weights ({', '.join(changed)})")
    if _differ(old.get("hps"), new.get("hps")):
        found.append("another way to resize or encode (hps)")
    return found


def _differ(old: object, new: object) -> bool:
    return bool(old) and bool(new) and old != new


def merged(old: Results, new: Results) -> Results:
    """The scores of both, of the same pictures: those of ``new`` where both have one."""
    given = {name: value for results in (old, new) for name, value in results["scores"].items() if value is not None}
    names = [name for name in COLUMNS if name in old["scores"] or name in new["scores"]]
    whys = old["not_given"] | new["not_given"]
    return old | {
        **{key: value for key, value in new.items() if value or key not in old},
        "scores": {name: given.get(name) for name in names},
        "not_given": {name: why for name, why in whys.items() if name not in given},
        "weights_sha256": old["weights_sha256"] | new["weights_sha256"],
        "seconds": old["seconds"] | new["seconds"],
        "warnings": list(dict.fromkeys([*old["warnings"], *new["warnings"]])),
    }


def store(folder: Path, new: Results, say: Callable[[str], None]) -> Results:
    """Write ``results.json`` and ``results.md``; nothing that is there is lost.

    Scores of the same pictures, computed alike, are added to those that are there. ``results.json`` is of the most pictures;
    results of fewer have a file of their own, ``results-<count>-pictures.json``. What cannot stand with the others is kept beside
    them, under another name, and ``say`` is told so.

    Returns what the file holds now. Raises SidlsgError when it cannot be written, after printing the results.
    """
    path = folder / FILE
    old = read_object(path)
    if old and new["pictures"] < old.get("pictures", 0):
        path = _of_fewer(folder, new["pictures"])
        say(f"{folder / FILE} is of {old['pictures']:,} pictures and is kept; these results are in {path.name}")
        old = read_object(path)
    elif old and new["pictures"] > old.get("pictures", 0):
        _move(path, free_path(_of_fewer(folder, old.get("pictures", 0))), say)
        old = {}
    if old and (differ := differences(old, new)):
        path = free_path(path)
        say(f"the results that are there are of {', of '.join(differ)}, and are kept; these are in {path.name}")
    elif old and any(old.get(key) != new[key] for key in ("pictures_sha256", "versions")):
        _move(path, free_path(path), say)
    elif old:
        new = merged(old, new)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(new, indent=2) + "\n")
        write_text(path.with_suffix(".md"), markdown(new))
    except OSError as error:
        print(json.dumps(new, indent=2), flush=True)
        raise SidlsgError(
            f"cannot write the results to {folder}: {error.strerror}; they are printed above, in full"
        ) from None
    return new


def _of_fewer(folder: Path, pictures: int) -> Path:
    return folder / f"results-{pictures}-pictures.json"


def _move(path: Path, to: Path, say: Callable[[str], None]) -> None:
    """Keep older results, whose pictures or packages were others, under another name."""
    for suffix in (".json", ".md"):
        if path.with_suffix(suffix).exists():
            path.with_suffix(suffix).replace(to.with_suffix(suffix))
    say(f"the earlier results, of other pictures or packages, are now {to.name}")
