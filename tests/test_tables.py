"""Prompts from tables: CSV, TSV, JSON Lines and Parquet, as Python and other tools write them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sidlsg.errors import UsageError
from sidlsg.prompts import PromptFile
from support.terminal import one_line

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from('\r\n\t\u2028",;|\\')
)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=10)
COLUMNS = ["file name", "caption"]


@pytest.fixture
def file(tmp_path: Path):
    """Write a file, return its path."""

    def write(content: str | bytes, name: str = "some.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def as_csv(rows: list[tuple[str, ...]], **options) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, **options).writerows(rows)
    return buffer.getvalue()


def as_json_lines(rows: list[tuple[str, str]], **options) -> str:
    return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True)), **options) + "\n" for row in rows)


# -- what is read ----------------------------------------------------------------------------------------------------------


@given(ROWS, st.sampled_from(["csv", "tsv", "semicolon.csv", "txt", "jsonl", "escaped.jsonl"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_python_writes_is_read_back_row_by_row(tmp_path_factory, rows: list, kind: str, mark: bool) -> None:
    """But for line breaks in TSV, and for delimiters beside line breaks in CSV, where rows may have been joined."""
    if kind == "tsv":
        rows = [tuple(text.replace("\n", " ") for text in row) for row in rows]
    elif "jsonl" not in kind:
        rows = [tuple(re.sub("[,;]", " ", text) if "\n" in text else text for text in row) for row in rows]
    texts = {
        "csv": as_csv([COLUMNS, *rows]),
        "tsv": as_csv([COLUMNS, *rows], dialect="excel-tab"),
        "semicolon.csv": as_csv([COLUMNS, *rows], delimiter=";", quoting=csv.QUOTE_ALL),
        "txt": as_csv([COLUMNS, *rows]),
        "jsonl": as_json_lines(rows, ensure_ascii=False),
        "escaped.jsonl": as_json_lines(rows),
    }
    path = tmp_path_factory.getbasetemp() / f"rows.{kind}"
    path.write_text("\ufeff" * mark + texts[kind], encoding="utf-8", newline="")
    captions = [caption.strip() for _, caption in rows]
    if not any(captions):
        with pytest.raises(UsageError, match="no prompts"):
            PromptFile(path, column="caption")
        return
    assert list(PromptFile(path, column="caption")) == [caption for caption in captions if caption]
    read = PromptFile(path, numbered=True, column="caption", file_column="file name")
    assert list(read) == captions
    assert read.names == [name.strip() for name, _ in rows]
    assert read.column == "caption"


@given(st.lists(TEXT, min_size=1, max_size=10).filter(lambda texts: any(text.strip() for text in texts)))
@settings(max_examples=30, deadline=None)
def test_a_table_of_one_column_is_read_back(tmp_path_factory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "one.csv"
    path.write_text(as_csv([("text",), *((text,) for text in texts)]), encoding="utf-8", newline="")
    assert list(PromptFile(path, numbered=True)) == [text.strip() for text in texts]


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.csv", "id,caption\n1,a cat\n2,a dog\n", "caption"),
        ("drawbench.csv", "Prompts,Category\na cat,Animals\na dog,Animals\n", "Prompts"),
        ("parti.tsv", "Prompt\tCategory\na cat\tAnimals\na dog\tAnimals\n", "Prompt"),
        ("tabs.tsv", "caption\ttags, all of them, sorted\na cat\tx\na dog\ty\n", "caption"),
        ("together.jsonl", '\ufeff{"text": "a cat"}\n\ufeff{"text": "a dog"}\n', "text"),
        ("pandas.csv", ",text\n0,a cat\n1,a dog\n", "text"),
        ("excel.csv", "\ufeffid;prompt\r\n1;a cat\r\n2;a dog\r\n", "prompt"),
        (
            "metadata.jsonl",
            '{"file_name": "1.png", "text": "a cat"}\n{"file_name": "2.png", "text": "a dog"}\n',
            "text",
        ),
        ("rows.json", '{"caption": "a cat"}\n\n{"caption": "a dog", "more": 1}\n', "caption"),
        # By content alone:
        ("captions.txt", "image,caption\n1.png,a cat\n2.png,a dog", "caption"),
        ("captions", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n', "prompt"),
    ],
)
def test_the_one_column_with_a_usual_name_is_taken_and_named(file, name: str, content: str, column: str) -> None:
    read = PromptFile(file(content, name))
    assert list(read) == ["a cat", "a dog"]
    assert f'{name}, column "{column}" (2 prompts' in repr(read)


def test_a_column_with_any_name_can_be_asked_for(file) -> None:
    flickr = file('image_name| comment_number| comment\n1.jpg| 0| A cat , asleep .\n1.jpg| 1| 5" of "fur" .\n', "f.csv")
    assert list(PromptFile(flickr, column="comment")) == ["A cat , asleep .", '5" of "fur" .']
    plain = file("TITLE,ALT\nx,a cat\n", "plain.txt")
    assert list(PromptFile(plain)) == ["TITLE,ALT", "x,a cat"]  # nothing says that it is a table ...
    assert list(PromptFile(plain, column="ALT")) == ["a cat"]  # ... but the column that is asked for


@pytest.mark.parametrize(
    "content",
    [
        "1girl, text, hat\n1boy, solo, sky\n",
        "caption\na cat\n",  # a header? It cannot be told from a prompt
        "text,logo\na cat, a dog, a bird\n",  # not as many fields
        "prompt,text\n",
        "{cat|dog} photo\n",
        "[cat:dog:0.5], [[sharp]]\n",
        "{}\na cat\n",
    ],
)
def test_prompts_that_look_a_little_like_a_table_are_prompts(file, content: str) -> None:
    assert list(PromptFile(file(content, "some.txt"))) == content.splitlines()


def test_values_that_are_missing_are_blank_captions(file) -> None:
    path = file('{"text": "a cat", "n": 1}\n{"text": null}\n{"n": 2}\n{"text": " "}\n{"text": "a dog"}\n', "some.jsonl")
    assert list(PromptFile(path)) == ["a cat", "a dog"]
    assert list(PromptFile(path, numbered=True)) == ["a cat", "", "", "", "a dog"]


def test_the_hash_is_of_the_file_and_the_column(file) -> None:
    path = file("a,b\nx,x\ny,y\n")
    hashes = {PromptFile(path, column=column).sha256 for column in "ab"}
    assert len(hashes) == 2
    assert list(PromptFile(path, column="a")) == list(PromptFile(path, column="b"))
    path.write_text("a,b\nx,x\ny,z\n", encoding="utf-8")
    assert PromptFile(path, column="a").sha256 not in hashes


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("a,b\n1,2\n", None, "is a table; say with --caption-column which column holds the captions: a, b"),
        ("text,prompt\n1,2\n", None, "--caption-column .*: text, prompt"),
        ("a,b\n1,2\n", "c", 'has no column "c"; .*: a, b'),
        ("a,a\n1,2\n", "a", 'more than one column "a"'),
        (
            "id,text\n1,a cat\n2,a cat, a dog\n",
            None,
            r"line 3: 3 fields, but the first line names 2 .*',' must be quoted",
        ),
        ("id,text\n1,a cat\n2\n", None, "line 3: 1 fields"),
        ('id,text\n1,a cat\n2,"a dog\n3,a cow\n', None, "line 3: not a row of a CSV file"),
        ('id,text\n1,"a" cat\n', None, "line 2: not a row of a CSV file"),
        ("id,text\r1,a cat\r2,a dog\r", None, "line 1: not a row of a CSV file"),
        ("id,text\n1,a cat\n\n2,a dog\n", None, "line 3: a blank line between rows"),
        ("id,text\n1,\n", None, "holds no prompts"),
        ("id,text\n", None, "holds no prompts"),
        ("\n", None, "--caption-column"),
        ('{"text": "a cat"}\n\n{"text": "a dog"}\n', None, "line 2: a blank line between rows"),
        ('{"text": "a cat"}\n{"text": 5}\n', None, 'line 2: "text" holds 5, which is no text'),
        ('{"text": "a cat"}\n{"text": ["a dog"]}\n', None, r'line 2: "text" holds \[\'a dog\'\]'),
        ('{"text": "a cat"}\n["a dog"]\n', None, "line 2: not a JSON object"),
        ('{"text": "a cat"}\n{"text": "a d\n', None, "line 2: not a JSON object"),
        ('{"text": "a cat"}\n' + '{"text":' * 100_000, None, "line 2: not a JSON object"),
        ('{"text": "\\ud83d"}\n', None, "line 1: .*half a surrogate"),
        ('{"text": "a\\u0000b"}\n', None, "line 1: .*NUL"),
        ('{"annotations": ["a cat"], "info": {}}', None, "--caption-column .*: annotations, info"),
        ("[" * 100_000, None, "has no column|--caption-column"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_line(file, content: str, column: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=rf"some\.csv.*{message}"):
        PromptFile(file(content), numbered=True, column=column)


def test_blank_lines_between_rows_are_no_prompts(file) -> None:
    assert list(PromptFile(file("id,text\n\n1,a cat\n  \n2,a dog\n\n"))) == ["a cat", "a dog"]
    assert list(PromptFile(file("id,text\n1,a cat\n2,\n\n"), numbered=True)) == ["a cat", ""]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".parquet"])
def test_a_suffix_that_promises_a_table_is_not_read_as_lines(file, suffix: str) -> None:
    with pytest.raises(UsageError, match="is not"):
        PromptFile(file("a cat\na dog\n", f"some{suffix}"))


# -- Parquet ---------------------------------------------------------------------------------------------------------------


def test_parquet_without_pyarrow_says_what_to_install(file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"some\.parquet is a Parquet file.*pip install \"sidlsg\[parquet\]\""):
        PromptFile(file(b"PAR1" + bytes(100), "some.parquet"))


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet_is_read_row_by_row(tmp_path: Path, kind: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    captions = [" a cat", None, 'a\n"dog"\u2028', "", "日本"] * 3
    column = arrow.array(captions)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    path = tmp_path / "no suffix"
    table = arrow.table({"prompt": column, "file_name": [f"{i}.png" for i in range(15)], "size": range(15)})
    parquet.write_table(table, path, row_group_size=4)
    read = PromptFile(path, numbered=True, file_column="file_name")
    assert list(read) == ["a cat", "", 'a\n"dog"', "", "日本"] * 3
    assert read.names == [f"{i}.png" for i in range(15)]
    assert list(PromptFile(path)) == ["a cat", 'a\n"dog"', "日本"] * 3
    with pytest.raises(UsageError, match='the column "size" holds int64'):
        PromptFile(path, column="size")
    with pytest.raises(UsageError, match=r'has no column "x".*: prompt, file_name, size'):
        PromptFile(path, column="x")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        PromptFile(path)


# -- in commands -----------------------------------------------------------------------------------------------------------


def test_a_run_is_resumed_with_the_column_it_was_started_with(run, tiny_teacher: Path) -> None:
    Path("prompts.csv").write_text("a,b\ncat,cat\ndog,dog\n", encoding="utf-8")
    command = ["distill", "--preset", "cpu", "--teacher", tiny_teacher, "--prompts", "prompts.csv", "--out", "out"]
    command += ["--images", "8", "--batch", "8", "--micro-batch", "8", "--device", "cpu", "--caption-column"]
    code, shown, err = run(*command, "a")
    assert code == 0, err
    assert 'prompts.csv, column "a" (2 prompts' in shown.replace("\n", " ")
    code, _, err = run(*command, "b")
    assert code == 2
    one_line(err, "caption_column (a there, b here)")
    Path("prompts.csv").write_text("a,b\ncat,cat\ndog,cow\n", encoding="utf-8")
    code, _, err = run(*command, "a", "--images", "16")
    assert code == 2
    one_line(err, "prompts.csv is not the prompt file this run was started with")


def test_the_column_of_a_table_is_sampled_and_named(run) -> None:
    Path("prompts.tsv").write_text("style\tprompt\tnote\nphoto\tred heart\tx\n", encoding="utf-8")
    code, shown, err = run("sample", "--prompts", "prompts.tsv", "--device", "cpu")
    assert code == 0
    assert 'prompts.tsv, column "prompt" (1 prompts' in err
    assert [Image.open(line).text["prompt"] for line in shown.split()] == ["red heart"]
    code, shown, err = run("sample", "--prompts", "prompts.tsv", "--caption-column", "style", "--device", "cpu")
    assert (code, err) == (0, "")
    assert [Image.open(line).text["prompt"] for line in shown.split()] == ["photo"]
    code, _, err = run("sample", "red heart", "--caption-column", "style")
    assert code == 2
    one_line(err, "--caption-column", "--prompts FILE")


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/fd")
def test_a_pipe_is_a_prompt_file(run) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"red heart\ncat face\n")
    os.close(writing)
    try:
        code, shown, err = run("distill", "--prompts", f"/dev/fd/{reading}", "--dry-run")
    finally:
        os.close(reading)
    assert code == 0, err
    assert "(2 prompts" in shown
