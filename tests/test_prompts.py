"""Prompt files, and what the names given to --prompts and --teacher refer to."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff")) | st.sampled_from(
    ["", " ", "\t", "a b", " c "]
)


@given(st.lists(lines, min_size=1, max_size=20), st.booleans())
def test_any_text_reads_as_python_would_split_it(tmp_path_factory, parts: list[str], last_newline: bool) -> None:
    text = "\n".join(parts) + "\n" * last_newline
    expected = [line.strip() for line in text.split("\n") if line.strip()]
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text, encoding="utf-8", newline="")
    if expected:
        assert list(PromptFile(path)) == expected
    else:
        with pytest.raises(UsageError, match="no prompts"):
            PromptFile(path)


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\t\r\n\n"])
def test_a_file_without_prompts_is_refused(file, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"some\.txt holds no prompts"):
        PromptFile(file(content))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.txt does not exist"):
        PromptFile(tmp_path / "nothing.txt")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        PromptFile(tmp_path)


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
    with pytest.raises(UsageError, match="is not a folder"):
        locate(str(file(b"x")))


def test_prompt_path_knows_models_files_and_published_lists(file, tmp_path: Path) -> None:
    assert prompt_path("emoji", tmp_path) == (registry()["emoji"].prompts, False)
    assert prompt_path(str(file(b"a")), tmp_path) == (tmp_path / "some.txt", False)
    assert prompt_path("missing.txt", tmp_path) == (Path("missing.txt"), False)  # PromptFile says that it is missing
    assert prompt_path("aesthetics6plus", tmp_path, download=False) == (tmp_path / "aesthetics_6_plus.txt", True)
    with pytest.raises(UsageError, match='did you mean "aesthetics6plus"'):
        prompt_path("aesthetics6", tmp_path)
    with pytest.raises(UsageError, match="unknown prompt list"):
        prompt_path("sd15", tmp_path)  # a model, but one without prompts of its own


# -- published lists -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The authors' repository as a local archive; returns the list of files fetched so far."""
    (tmp_path / "source.txt").write_text("a cat\na dog\n", encoding="utf-8")
    with tarfile.open(tmp_path / "lists.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "source.txt", "data/aesthetics_6_plus.txt")
        tar.add(tmp_path / "source.txt", "data/other.txt")
    fetched: list[str] = []

    def download(repository: str, name: str) -> str:
        assert repository == PROMPT_REPOSITORY
        fetched.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: ["README.md", "lists.tar.gz"])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return fetched


def test_a_published_list_is_downloaded_once(tmp_path: Path, hub: list[str]) -> None:
    cache = tmp_path / "cache" / "lists"
    for _ in range(2):
        path, missing = prompt_path("aesthetics6plus", cache)
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
        prompt_path("aesthetics6plus", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, hub: list[str], monkeypatch) -> None:
    with pytest.raises(SidlsgError, match=r"no archive with aesthetics_65_plus\.txt.*--prompts FILE"):
        prompt_path("aesthetics65plus", tmp_path / "cache")

    def offline(repository: str) -> list[str]:
        raise ConnectionError("no route to host\nand a second line")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    with pytest.raises(SidlsgError, match=r"aesthetics6plus \(ConnectionError\).*--prompts FILE") as caught:
        prompt_path("aesthetics6plus", tmp_path / "cache")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
