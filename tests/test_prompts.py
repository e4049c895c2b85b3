"""Prompt files, and what the names given to --prompts and --teacher refer to."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.prompts import PromptFile
from sidlsg.teachers.prompt_lists import PROMPT_REPOSITORY, prompt_path
from sidlsg.teachers.registry import locate, registry

settings.register_profile("unhurried", deadline=None)  # other work may slow the machine down
settings.load_profile("unhurried")


@pytest.fixture
def file(tmp_path: Path):
    """Write a prompt file, return its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "some.txt"
        path.write_bytes(content)
        return path

    return write


# -- the file ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"a cat\na dog\n", ["a cat", "a dog"]),
        (b"a cat\na dog", ["a cat", "a dog"]),
        (b"\n\na cat\n   \n\t\na dog\n\n", ["a cat", "a dog"]),
        (b"a cat\r\n\r\na dog\r\n", ["a cat", "a dog"]),
        (b"  a cat \n\ta dog\t\n", ["a cat", "a dog"]),
        (b"\xef\xbb\xbfa cat\n", ["a cat"]),
        ("un café\n赤い心\n".encode(), ["un café", "赤い心"]),
        (b"a cat\na cat\n", ["a cat", "a cat"]),
    ],
)
def test_prompts_are_the_stripped_lines_that_are_not_blank(file, content: bytes, prompts: list[str]) -> None:
    read = PromptFile(file(content))
    assert list(read) == prompts
    assert len(read) == len(prompts)
    assert read[-1] == prompts[-1]
    assert read[1:] == prompts[1:]
    with pytest.raises(IndexError):
        read[len(prompts)]


@pytest.mark.parametrize("content", [b"a\r\n\nb", b"\n" * 5 + b"x", "é\n".encode() * 1000])
def test_the_hash_is_that_of_the_files_bytes(file, content: bytes) -> None:
    read = PromptFile(file(content))
    assert read.sha256 == hashlib.sha256(content).hexdigest()
    assert read.sha256[:12] in repr(read)


# Unicode has seven more characters that end lines for str.splitlines, and the byte order mark: all are part of a line here.
INSIDE = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r\ufeff") | st.sampled_from(INSIDE))
lines |= st.sampled_from(["", " ", "\t", "a b", " c ", "a\u2028b", "a, b", "{a|b}", "[a]"])


@given(
    st.lists(lines, min_size=1, max_size=20), st.sampled_from(["\n", "\r\n", "\r\r\n"]), st.booleans(), st.booleans()
)
@settings(max_examples=50)
def test_any_text_reads_as_its_lines(tmp_path_factory, parts: list[str], end: str, last_end: bool, mark: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text("\ufeff" * mark + end.join(parts) + end * last_end, encoding="utf-8", newline="")
    stripped = [line.strip() for line in parts]
    while stripped and not stripped[-1]:
        stripped.pop()
    if not stripped:
        with pytest.raises(UsageError, match="no prompts"):
            PromptFile(path)
        return
    assert list(PromptFile(path)) == [line for line in stripped if line]
    assert list(PromptFile(path, numbered=True)) == stripped


def test_files_put_together_keep_their_lines_apart(file) -> None:
    """Each may begin with a byte order mark; where that stands inside a line, two captions have become one."""
    mark = b"\xef\xbb\xbf"
    assert list(PromptFile(file(mark + b"a cat\n" + mark + b"a dog\n"), numbered=True)) == ["a cat", "a dog"]
    with pytest.raises(UsageError, match=r"some\.txt, line 2: a byte order mark inside the line"):
        PromptFile(file(b"a cow\n" + mark + b"a cat" + mark + b"a dog\n"), numbered=True)


@pytest.mark.parametrize(
    ("content", "numbered", "line"),
    [(b"a cat\ra dog\r", False, 1), (b"a cat\ra dog", True, 1), (b"a cow\n\na cat\ra dog\n", True, 3)],
)
def test_carriage_returns_end_no_lines(file, content: bytes, numbered: bool, line: int) -> None:
    with pytest.raises(UsageError, match=rf"some\.txt, line {line}: a carriage return .* tr"):
        PromptFile(file(content), numbered=numbered)


def test_a_stray_carriage_return_is_a_blank_in_a_prompt(file) -> None:
    assert list(PromptFile(file(b"a\rcat\na dog\n"))) == ["a\rcat", "a dog"]


# -- what is no list of prompts -------------------------------------------------------------------------------------------


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("captions.txt", "a cat\n")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("captions.txt"))
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    return buffer.getvalue()


MISTAKES = {
    "a gzip file.*gunzip": gzip.compress(b"a cat\n"),
    "a zip archive": zipped(),
    "a compressed file.*7zXZ": lzma.compress(b"a cat\n"),
    "a compressed file.*BZh": bz2.compress(b"a cat\n"),
    "a tar archive": tarred(),
    "UTF-16.*iconv": "a cat\n".encode("utf-16"),
    "UTF-16 or UTF-32": "a cat\n".encode("utf-32"),
    "line 1: a NUL byte, as in UTF-16": "a cat\n".encode("utf-16-le"),
    "line 2: a NUL byte": b"a cat\na \0dog\n",
    "a picture.*PNG": picture("png"),
    "a picture.*JF": picture("jpeg"),
    "a picture.*RIFF": picture("webp"),
    "a safetensors file": save({"weight": np.zeros(3)}),
    "a pickle file": pickle.dumps(["a cat"]),
    "an HTML page.*fetch": b"\n<!DOCTYPE html>\n<html><body>404</body></html>\n",
    "a Git LFS pointer.*git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
    r"a JSON array.*jq -r": b'["a cat", "a dog"]',
    r"a JSON array.*jq -c": json.dumps([{"text": "a cat"}], indent=2).encode(),
    "not JSON Lines": json.dumps({"text": ["a cat"]}, indent=2).encode(),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_is_no_list_of_prompts_is_named(file, message: str) -> None:
    with pytest.raises(UsageError, match=rf"(?s)some\.txt.*{message}"):
        PromptFile(file(MISTAKES[message]))


@given(
    st.sampled_from(["txt", "csv", "tsv", "jsonl", "parquet", ""]),
    st.sampled_from([b"", b"text\n", b'text,file\n"', b'{"text": "a"}\n', *MISTAKES.values()]),
    st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode(errors="surrogatepass")),
    st.integers(0, 200),
    st.booleans(),
)
@settings(max_examples=50)
def test_a_broken_file_is_refused_or_read(
    tmp_path_factory, suffix: str, start: bytes, rest: bytes, cut: int, numbered: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"broken.{suffix}"
    path.write_bytes(start[:cut] + rest)
    with contextlib.suppress(UsageError):
        assert all(
            text == text.strip() and text.encode() for text in PromptFile(path, numbered) if text or not numbered
        )


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\t\r\n\n"])
def test_a_file_without_prompts_is_refused(file, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"some\.txt holds no prompts"):
        PromptFile(file(content))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.txt does not exist"):
        PromptFile(tmp_path / "nothing.txt")
    with pytest.raises(UsageError, match="is a folder; give a text file"):
        PromptFile(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/fd")
@pytest.mark.parametrize("content", ["a cat\n\na dog\n", 'n,caption\n1,"a\ncat"\n2,\n3,a dog\n'])
def test_a_pipe_reads_as_the_file_of_its_content(file, content: str) -> None:
    path = file(content.encode())
    reading, writing = os.pipe()
    try:
        os.write(writing, content.encode())
        os.close(writing)
        read = PromptFile(f"/dev/fd/{reading}", numbered=True)
    finally:
        os.close(reading)
    expected = PromptFile(path, numbered=True)
    assert list(read) == list(expected) == [expected[0], "", "a dog"]
    assert read.sha256 == expected.sha256


@pytest.mark.parametrize(("content", "line"), [(b"caf\xe9\n", 1), (b"fine\n\nalso\ncaf\xe9 noir", 4)])
def test_a_line_that_is_not_utf8_is_named(file, content: bytes, line: int) -> None:
    with pytest.raises(UsageError, match=rf"some\.txt, line {line}: not UTF-8 \(byte 4 of the line\)"):
        PromptFile(file(content))


# -- names ---------------------------------------------------------------------------------------------------------------


def test_locate_knows_aliases_folders_and_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd15 = locate("sd15")
    assert sd15.folder is None
    assert sd15.repositories == registry()["sd15"].repositories != ()
    assert sd15.entry is registry()["sd15"]
    assert locate(str(tmp_path)).folder == tmp_path
    hub = locate("owner/some-model.v1")
    assert (hub.repositories, hub.folder, hub.entry) == (("owner/some-model.v1",), None, None)
    # A folder that looks like a hub id is the folder.
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/model").folder == Path("owner/model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/owner").folder == tmp_path / "owner"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd-15", 'did you mean "sd15"'),
        ("emoji-studnet", 'did you mean "emoji-student"'),
        ("zzzz", "known: emoji, emoji-student, sd15, sd21-base"),
        ("/no/such/folder", "is not a folder"),
        ("~no_such_user/model", "is not a folder"),
        ("a/b/c", "is not a folder"),
    ],
)
def test_locate_refuses_other_names_and_says_what_would_do(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        locate(name)


def test_a_file_is_not_a_model(file) -> None:
    with pytest.raises(UsageError, match="is a file and not a folder"):
        locate(str(file(b"x")))


def test_prompt_path_knows_models_files_and_published_lists(file, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path))
    assert prompt_path("emoji") == (registry()["emoji"].prompts, False)
    assert prompt_path(str(file(b"a"))) == (tmp_path / "some.txt", False)
    assert prompt_path("missing.txt") == (Path("missing.txt"), False)  # PromptFile says that it is missing
    assert prompt_path("aesthetics6plus", download=False) == (tmp_path / "aesthetics_6_plus.txt", True)
    with pytest.raises(UsageError, match='did you mean "aesthetics6plus"'):
        prompt_path("aesthetics6")
    with pytest.raises(UsageError, match="unknown prompt list"):
        prompt_path("sd15")  # a model, but one without prompts of its own


# -- published lists -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The authors' repository as a local archive; returns the list of files fetched so far."""
    (tmp_path / "source.txt").write_text("a cat\na dog\n", encoding="utf-8")
    with tarfile.open(tmp_path / "lists.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "source.txt", "data/aesthetics_6_plus.txt")
        tar.add(tmp_path / "source.txt", "data/other.txt")
    fetched: list[str] = []
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / "cache" / "lists"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def download(repository: str, name: str, cache_dir: Path) -> str:
        assert repository == PROMPT_REPOSITORY
        fetched.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: ["README.md", "lists.tar.gz"])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return fetched


def test_a_published_list_is_downloaded_once(tmp_path: Path, hub: list[str]) -> None:
    cache = tmp_path / "cache" / "lists"
    for _ in range(2):
        path, missing = prompt_path("aesthetics6plus")
        assert not missing
        assert list(PromptFile(path)) == ["a cat", "a dog"]
    assert hub == ["lists.tar.gz"]
    assert [p.name for p in cache.iterdir()] == ["aesthetics_6_plus.txt"]


def test_a_download_that_breaks_off_leaves_no_list(tmp_path: Path, hub: list[str], monkeypatch) -> None:
    class Cut:
        def __init__(self) -> None:
            self.blocks = [b"a cat\n"]

        def read(self, size: int) -> bytes:
            if not self.blocks:
                raise ConnectionError("gone")
            return self.blocks.pop()

    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda tar, member: Cut())
    with pytest.raises(SidlsgError, match="--prompts"):
        prompt_path("aesthetics6plus")
    assert not list((tmp_path / "cache" / "lists").iterdir())


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, hub: list[str], monkeypatch) -> None:
    with pytest.raises(SidlsgError, match=r"no archive with aesthetics_65_plus\.txt.*--prompts FILE"):
        prompt_path("aesthetics65plus")

    def offline(repository: str) -> list[str]:
        raise ConnectionError("no route to host\nand a second line")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    with pytest.raises(SidlsgError, match=r"aesthetics6plus \(ConnectionError\).*--prompts FILE") as caught:
        prompt_path("aesthetics6plus")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
