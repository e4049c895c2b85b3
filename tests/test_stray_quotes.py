"""Quotation marks in tables: rows stay rows, or the file is refused by line; and files that are no tables at all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import one_line
from sidlsg import tables
from sidlsg.errors import UsageError
from sidlsg.prompts import PromptFile


@pytest.fixture
def read(tmp_path: Path):
    """``read(content, name)`` -> the captions of a file of that content, numbered."""

    def call(content: str, name: str = "some.csv", **options: Any) -> list[str]:
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        return list(PromptFile(tmp_path / name, numbered=True, **options))

    return call


# -- tabs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["some.tsv", "some.txt", "some.csv"])
@pytest.mark.parametrize(
    ("lines", "captions"),
    [
        (["elf\t0", '"bucket\t1', "sloth\t2", 'cat"\t3'], ["elf", '"bucket', "sloth", 'cat"']),
        (["elf\t0", '"open\t1', "cat\t2"], ["elf", '"open', "cat"]),
        (['"word" rest\t0', "elf\t1"], ['"word" rest', "elf"]),
        (['"word" and "word"\t0', "elf\t1"], ['"word" and "word"', "elf"]),
        (['5" nail\t0', '"an elf"\t1'], ['5" nail', '"an elf"']),  # one mark is a letter, so all are
        (['"elf\tgnome"', "cat\t2"], ['"elf', "cat"]),
        (
            ['"an elf"\t0', '"5"" nail"\t"1\t2"', '"a ""cat"""\t"3"'],
            ["an elf", '5" nail', 'a "cat"'],
        ),  # as csv writes them
        (['"""\t0', "elf\t1"], ['"""', "elf"]),
        (['""\t0', "elf\t1"], ["", "elf"]),
        (["elf\t0\r", '"cat\t1\r', 'dog"\t2\r'], ["elf", '"cat', 'dog"']),
    ],
)
def test_with_tabs_a_row_is_a_line(read, name: str, lines: list[str], captions: list[str]) -> None:
    assert read("\n".join(["caption\turl", *lines]) + "\n", name) == captions


def test_a_row_with_too_few_tabs_is_refused_and_a_carriage_return_too(read) -> None:
    with pytest.raises(UsageError, match=r"line 2: 1 fields, but the first line names 2 columns; .* a row is a line"):
        read('caption\turl\n"elf\nand gnome"\t0\n', "some.tsv")
    with pytest.raises(UsageError, match="line 1: a carriage return"):
        read("caption\turl\relf\t0\r", "some.tsv")


# -- commas ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('caption,url\nelf,0\n"bucket,1\nsloth",2\nkiwi,3\n', "3 to 4"),
        ('caption,url\n"bucket,1\nhelicopter,2\n\nsloth",3\nkiwi,4\n', "2 to 5"),
        ('id,caption\n1,elf\n2,"bucket\n3,sloth"\n', "3 to 4"),
        ('id;caption;url\n1;"elf, big";x\n2;"bucket;x\n3;sloth";x\n', "3 to 4"),
        ('a, caption\n1, elf\n2,"bucket\n3, sloth"\n', "3 to 4"),
        ('a,caption,b\n"one\nline","bucket,0\nc,sloth",0\n', None),  # the first line is half of a row
        ('id,caption\n1,"a cat\nand a dog"\n', None),
        ('id,caption\n1,"a cat, black\nor white, asleep"\n', None),
        ('id,caption\n1,"a cat\nor a dog, asleep"\n', None),  # a blank follows this comma, and no other one
        ('caption\n"a cat\nand a dog"\n', None),
    ],
)
def test_a_quoted_field_that_swallows_what_looks_like_rows_is_refused_by_line(
    read, content: str, lines: str | None
) -> None:
    if lines is None:
        assert len(read(content, column="caption")) == 1
        return
    with pytest.raises(UsageError, match=rf"some\.csv, line {lines.split()[0]}: lines {lines} are one row"):
        read(content, column="caption")


def test_a_table_by_its_first_line_stays_one_with_stray_marks(read) -> None:
    with pytest.raises(UsageError, match="line 2: lines 2 to 3 are one row"):
        read('caption,url\n"bucket,1\nsloth",2\nkiwi,3\n', "some.txt")
    with pytest.raises(UsageError, match="line 2: not a row of a CSV file"):
        read('caption,url\n"bucket,1\nsloth,2\nkiwi,3\n', "some.txt")


def test_fields_may_be_long_but_not_the_rest_of_a_file(read, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 200_000
    assert read(f'caption,data\nelf,"{long}"\n"{long}, y",z\n') == ["elf", f"{long}, y"]
    monkeypatch.setattr(tables, "LONGEST_FIELD", 1)
    tables.csv.field_size_limit(1000)
    with pytest.raises(UsageError, match="line 3: a field of more than 1 characters; a quotation mark is opened"):
        read('caption,data\nelf,0\n"cat,1\n' + "dog,2\n" * 1000)


def test_captions_that_rows_may_have_been_joined_in_are_not_scored_with_more_pictures(run, tmp_path: Path) -> None:
    Path("pictures").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(f"pictures/{number}.png")
    Path("captions.csv").write_text('caption\nelf\n"bucket\nsloth"\nkiwi\n', encoding="utf-8")
    command = ["eval", "--protocol", "embedded", "--only", "clip", "--device", "cpu", "--images", "pictures"]
    code, _, err = run(*command, "--prompts", "captions.csv")
    assert code == 2
    one_line(err, "captions.csv", "3 captions for 4 pictures", "the row at line 3")


# -- JSON that is no JSON Lines --------------------------------------------------------------------------------------------

COCO = {
    "info": {"year": 2014},
    "images": [{"id": 7, "file_name": "7.jpg"}],
    "annotations": [{"image_id": 7, "id": 1, "caption": "a cat"}, {"image_id": 7, "id": 2, "caption": "a 'dog'"}],
}
KARPATHY = {
    "images": [
        {"filename": "7.jpg", "sentids": [1, 2], "sentences": [{"raw": "a cat", "imgid": 0}, {"raw": "a 'dog'"}]}
    ],
    "dataset": "coco",
}
DOCUMENTS = {
    "COCO": COCO,
    "Karpathy": KARPATHY,
    "kohya": {"a/1.png": {"caption": "a cat", "tags": "x"}, "a/2.png": {"caption": "a 'dog'"}},
    "columns": {"id": [1, 2], "text": ["a cat", "a 'dog'"]},
    "pandas": {"id": {"0": 1, "1": 2}, "text": {"0": "a cat", "1": "a 'dog'"}},
    "library": {"one": "a cat", "two": "a 'dog'"},
    "rows": {"it's": [{"prompt": "a cat"}, {"prompt": "a 'dog'"}]},
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_json_document_is_refused_with_the_program_that_makes_json_lines_of_it(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    document = tmp_path / "some.json"
    document.write_text(json.dumps(DOCUMENTS[name], indent=indent), encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"is one JSON object and not JSON Lines; write one object a line, with: jq -c"
    ) as told:
        PromptFile(document)
    if shutil.which("jq") is None:
        pytest.skip("no jq to run the program")
    line = str(told.value).partition("with: ")[2].replace(" IN > OUT.jsonl", f" {document} > {tmp_path}/out.jsonl")
    subprocess.run(line, shell=True, check=True)
    assert list(PromptFile(tmp_path / "out.jsonl")) == ["a cat", "a 'dog'"]


def test_the_document_is_told_whatever_column_is_asked_for(tmp_path: Path) -> None:
    document = tmp_path / "captions.json"
    document.write_text(json.dumps(COCO), encoding="utf-8")
    with pytest.raises(UsageError, match=r"jq -c '\.annotations\[\]'"):
        PromptFile(document, column="annotations")


def test_one_row_of_json_lines_is_a_row(read) -> None:
    for row in ({"caption": "a cat", "boxes": [{"text": "x"}]}, {"file_name": "1.png", "text": "a cat"}):
        assert read(json.dumps(row), "some.jsonl") == ["a cat"]
    assert read('{"title": "a cat", "tags": "x"}', "some.jsonl", column="title") == ["a cat"]


def test_a_row_with_a_list_of_captions_is_refused_with_the_program_that_parts_them(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"caption": ["a cat", "a dog"]}\n{"caption": ["a cow"]}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"line 1: .* give one text a row, with: jq -c '\.caption = \.caption\[\]'"):
        PromptFile(path)
