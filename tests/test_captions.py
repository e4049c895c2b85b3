"""Which picture of a folder each caption of a file belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidlsg.errors import UsageError
from sidlsg.evaluation.captions import Captions, assign
from sidlsg.evaluation.pictures import Folder, find_pictures
from support.terminal import one_line


def pictures(folder: Path, *names: str) -> Folder:
    """A folder with a noise picture of each name."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return find_pictures(folder)


def numbers(folder: Folder, rows: list[str]) -> dict[str, int]:
    """Number of the row that names each picture; pictures that no row names are left out."""
    found = assign(folder, Captions(["x"] * len(rows), "some.csv", "", rows), pytest.fail)
    assert found.index is not None
    named = zip(found.files, found.index, strict=True)
    return {file.relative_to(folder.path).as_posix(): number for file, number in named if number < len(rows)}


@pytest.mark.parametrize(
    "rows",
    [
        ["b.png", "a/c.png", "é.png"],
        ["b", "c", "é"],  # as kohya's metadata has them
        ["b.jpg", "c.jpg", "é.jpg"],  # of the photographs whose captions were drawn
        ["/data/set/b.png", "/data/set/a/c.png", "/data/set/é.png"],
        ["set\\b.png", "set\\a\\c.png", "set\\é.png"],
        ["./b.png", "./a/c.png", "./e\u0301.png"],  # as macOS writes the accent
    ],
)
def test_a_row_belongs_to_the_picture_that_it_names(tmp_path: Path, rows: list[str]) -> None:
    folder = pictures(tmp_path, "a/c.png", "b.png", "é.png")
    assert numbers(folder, rows) == {"b.png": 0, "a/c.png": 1, "é.png": 2}
    assert numbers(folder, ["missing.png", "", *rows[1:]]) == {"a/c.png": 2, "é.png": 3}


def test_paths_tell_pictures_of_one_name_apart(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "a/x.png", "b/x.png", "c.jpg", "c.png", "deep/a/y.png")
    assert numbers(folder, ["b/x.png", "a/x.png", "c.png", "a/y"]) == {
        "b/x.png": 0,
        "a/x.png": 1,
        "c.png": 2,
        "deep/a/y.png": 3,
    }
    assert numbers(folder, ["other/y.png", "c.jpg"]) == {"c.jpg": 1}  # another folder's picture of that name
    for row in ("x.png", "c"):
        with pytest.raises(UsageError, match=rf'some\.csv: "{row}" is the name of .* and of .*; give their paths'):
            numbers(folder, [row])


def test_two_rows_for_a_picture_and_rows_for_none_are_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "a.png", "b.png")
    with pytest.raises(UsageError, match=r"rows 1 and 3 both name .*a\.png"):
        numbers(folder, ["a.png", "b.png", "a.jpg"])
    with pytest.raises(UsageError, match=r'names no picture of .*first row: "1\.png"'):
        numbers(folder, ["1.png", "2.png"])


def test_one_line_more_than_pictures_is_said_to_be_perhaps_a_header(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "0.png", "1.png", "2.png")

    def said(*lines: str) -> str:
        texts: list[str] = []
        assert assign(folder, Captions(list(lines), "some.txt", ""), texts.append).index == (0, 1, 2)
        return " ".join(texts)

    assert said("a", "b", "c") == said("a", "b") == said("caption", "a", "b", "c", "d") == ""
    assert 'one line more than there are pictures (3): if its first line ("caption") is a header' in said(
        "caption", "a", "b", "c"
    )


def test_captions_by_file_name_give_the_score_of_captions_by_number(run, tmp_path: Path) -> None:
    names = [f"{word}.png" for word in ("zebra", "cat", "heart", "dog")]
    captions = [f"a drawing of thing number {i}" for i in range(4)]
    pictures(tmp_path / "named", *names)
    pictures(tmp_path / "numbered", *(f"{i}.png" for i in range(4)))
    Path("lines.txt").write_text("\n".join(captions), encoding="utf-8")
    rows = [{"file_name": names[i], "text": captions[i]} for i in (2, 0, 3, 1)]
    Path("metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def clip(out: str, *options: str) -> tuple[float, str]:
        common = ["--protocol", "embedded", "--only", "clip", "--device", "cpu"]
        code, shown, err = run("eval", *options, *common, "--out", out)
        assert code == 0, err
        return json.loads(Path(out, "results.json").read_text(encoding="utf-8"))["scores"]["clip"], shown

    expected, _ = clip("a", "--images", "numbered", "--prompts", "lines.txt")
    found, shown = clip("b", "--images", "named", "--prompts", "metadata.jsonl", "--file-column", "file_name")
    assert found == pytest.approx(expected, abs=1e-7)
    assert 'captions: metadata.jsonl, column "text"' in shown


def test_columns_without_a_table_are_refused(run) -> None:
    for options in (["--caption-column", "text"], ["--file-column", "name", "--images", "x", "--reference", "y.npz"]):
        code, _, err = run("eval", *options)
        assert code == 2
        one_line(err, "columns of --prompts FILE")
    code, _, err = run("eval", "--file-column", "name", "--prompts", "x.csv")
    assert code == 2
    one_line(err, "--file-column is for pictures that are there")
