"""Models of the Hugging Face hub on machines whose cache is read-only, incomplete, or has no place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch

from sidlsg.paths import writable
from sidlsg.teachers.hub import download_cache, download_file, missing_part, own_cache
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.registry import at_hand, locate
from support.terminal import one_line
from support.tiny import change_json

NAME, WEIGHTS = "somebody/model", "unet/diffusion_pytorch_model.safetensors"


def put(source: Path, cache: Path, commit: str = "0" * 40, keep: Callable[[str], bool] = lambda name: True) -> Path:
    """A snapshot of a folder in a cache, as the hub's client lays it out."""
    folder = cache / "models--somebody--model"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    for path in (p for p in source.rglob("*") if p.is_file()):
        if keep(name := path.relative_to(source).as_posix()):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, snapshot / name)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache; ours, and the folder for temporary files, are other ones below ``tmp_path``."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_XET_CACHE", "")
    monkeypatch.delenv("HF_XET_CACHE")
    return tmp_path / "hub"


@pytest.fixture
def downloads(cache: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The caches that the tiny teacher was downloaded to, as ``somebody/model``."""
    found: list[Path] = []

    def snapshot_download(name: str, cache_dir: Path, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert name == NAME
        found.append(cache_dir)
        wanted = lambda file: any(fnmatch(file, p) for p in allow_patterns)  # noqa: E731
        return str(put(tiny_teacher, cache_dir, "1" * 40, wanted))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return found


def test_downloads_go_to_the_hubs_own_cache(cache: Path, downloads: list[Path]) -> None:
    assert load_model(NAME, torch.device("cpu")).source == NAME
    assert downloads == [cache]
    assert locate(NAME).note is None


@pytest.mark.parametrize("closed", ["", "models--somebody--model/snapshots"])
def test_a_whole_model_in_a_read_only_cache_is_used_as_it_is(
    cache: Path, downloads: list[Path], read_only, tiny_teacher: Path, closed: str
) -> None:
    there = put(tiny_teacher, cache)
    read_only(cache / closed)
    assert at_hand(locate(NAME)) == there
    assert (
        load_model(NAME, torch.device("cpu")).digests() == load_model(str(tiny_teacher), torch.device("cpu")).digests()
    )
    assert downloads == []
    assert locate(NAME).note is None


@pytest.mark.parametrize("partial", [False, True])
def test_what_a_read_only_cache_lacks_is_downloaded_elsewhere_once(
    cache: Path, downloads: list[Path], read_only, tiny_teacher: Path, tmp_path: Path, partial: bool
) -> None:
    if partial:
        put(tiny_teacher, cache, keep=lambda name: name != WEIGHTS)
    else:
        cache.mkdir()
    read_only(cache)
    elsewhere = tmp_path / "ours" / "hub"
    note = locate(NAME).note
    assert note is not None
    assert f"{cache} cannot be written to" in note
    assert str(elsewhere) in note
    for _ in range(2):
        assert load_model(NAME, torch.device("cpu")).source == NAME
        assert downloads == [elsewhere]
    assert os.environ["HF_XET_CACHE"] == str(elsewhere / "xet")
    assert locate(NAME).note is None
    assert at_hand(locate(NAME)) == elsewhere / "models--somebody--model" / "snapshots" / ("1" * 40)


def test_no_cache_at_all_leaves_the_folder_for_temporary_files(
    cache, downloads, read_only, temporary, monkeypatch
) -> None:
    monkeypatch.setenv("SIDLSG_CACHE", str(cache / "sidlsg"))
    cache.mkdir()
    read_only(cache)
    place = download_cache(NAME)
    assert place.is_relative_to(temporary)
    assert writable(place)


def test_a_user_without_a_home_has_no_cache_of_the_hub(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the client makes of a missing HOME is a path that begins with ~, which is no place in the working directory."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert download_cache(NAME) == tmp_path / "ours" / "hub"


def test_the_command_says_where_a_model_goes(run, cache: Path, downloads: list[Path], read_only, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    cache.mkdir()
    read_only(cache)
    code, _, err = run("sample", "a cat", "--model", NAME, "--steps", "1", "--device", "cpu")
    assert code == 0, err
    assert err.startswith(f"note: the hub's cache {cache} cannot be written to: {NAME} goes to ")
    assert err.count("\n") == 1
    monkeypatch.delattr(huggingface_hub, "snapshot_download")
    code, _, err = run("sample", "a cat", "--model", "another/model", "--device", "cpu")
    assert code == 1
    one_line(err.splitlines(keepends=True)[-1], "another/model", "Without a network")


def test_a_file_in_a_read_only_cache_is_not_downloaded(cache: Path, read_only, tiny_teacher: Path, monkeypatch) -> None:
    asked: list[Path] = []

    def download(repository: str, name: str, cache_dir: Path) -> str:
        asked.append(cache_dir)
        return str(cache_dir / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    there = put(tiny_teacher, cache)
    read_only(cache)
    assert download_file(NAME, "model_index.json") == there / "model_index.json"
    assert asked == []
    assert download_file(NAME, "missing.tar") == download_cache(NAME) / "missing.tar"
    assert download_cache(NAME) != own_cache()


def test_what_is_missing_of_a_model_is_named(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_teacher, folder)
    change_json(folder / "model_index.json", safety_checker=["diffusers", "Checker"], image_encoder=[None, None])
    assert missing_part(folder) is None
    index = folder / f"{WEIGHTS}.index.json"
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index.write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    assert missing_part(folder) is None  # the index of weights that were not asked for
    for shard in shards:
        shutil.copyfile(folder / WEIGHTS, index.with_name(shard))
    assert missing_part(folder) is None
    index.with_name(shards[1]).unlink()
    assert missing_part(folder) == f"unet/{shards[1]}"
    index.with_name(shards[1]).symlink_to("an interrupted download")
    assert missing_part(folder) == f"unet/{shards[1]}"
    for name, said in (
        ("tokenizer", "tokenizer/"),
        ("text_encoder/config.json", "text_encoder/"),
        ("vae/diffusion_pytorch_model.safetensors", "vae/"),
        ("model_index.json", "model_index.json"),
    ):
        shutil.rmtree(folder)
        shutil.copytree(tiny_teacher, folder)
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        assert missing_part(folder) == said
