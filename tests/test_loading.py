"""A model is what its files say: what a library would fill in by itself is refused, what is only written differently works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from sidlsg.errors import UsageError
from sidlsg.teachers.loading import load_model
from support.terminal import one_line
from support.tiny import change_json

SIZES = ["--preset", "cpu", "--images", "4", "--batch", "4", "--micro-batch", "4", "--set", "grid_images=1"]
UNET, TEXT, VAE = ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")


@pytest.fixture
def folder(tiny_teacher: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_teacher, tmp_path / "model")


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change a safetensors file's content."""
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.fixture
def picture(run):
    """``picture(folder)`` -> pixels of one prompt and seed, drawn in two steps."""

    def draw(folder: Path) -> np.ndarray:
        options = ["--model", folder, "--steps", "2", "--seed", "3", "--device", "cpu", "--out", f"{folder.name}.png"]
        code, _, err = run("sample", "a cat", *options)
        assert code == 0, err
        return np.asarray(Image.open(f"{folder.name}.png")).astype(int)

    return draw


def refused(folder: Path, *parts: str) -> None:
    """Nothing is filled in at random: the model is refused, by the name of the part."""
    with pytest.raises(UsageError) as said:
        load_model(str(folder), torch.device("cpu"))
    missing = [part for part in parts if part not in str(said.value)]
    assert not missing, (missing, said.value)


def test_every_command_refuses_a_model_in_one_line(run, folder: Path) -> None:
    """Before anything is drawn or trained; what is refused is below."""
    change_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=9)
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    for command in (
        ["sample", "a cat", "--model", folder, "--device", "cpu"],
        ["distill", *SIZES, "--prompts", prompts, "--teacher", folder],
        ["eval", "--model", folder, "--limit", "2", "--only", "clip", "--device", "cpu"],
    ):
        code, _, err = run(*command)
        assert code == 2, err
        one_line(err, "up to 9 tokens", "takes 6")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_weights_under_another_tools_names_are_refused(folder: Path, prefix: str) -> None:
    rewrite(folder / f"{TEXT}.safetensors", lambda weights: {prefix + name: w for name, w in weights.items()})
    refused(folder, "text_encoder lacks", "random", "names of another tool")


@pytest.mark.parametrize("part", [UNET, TEXT, VAE])
def test_a_missing_weight_is_named(folder: Path, part: str) -> None:
    name = next(
        n for n in sorted(load_file(folder / f"{part}.safetensors")) if n.endswith("weight") and "norm" not in n
    )
    rewrite(folder / f"{part}.safetensors", lambda weights: {n: w for n, w in weights.items() if n != name})
    refused(folder, f"{part.split('/')[0]} lacks 1 weights", name.removeprefix("text_model."))


@pytest.mark.parametrize("part", [UNET, TEXT, VAE])
def test_a_weight_without_a_place_is_named(folder: Path, part: str) -> None:
    rewrite(folder / f"{part}.safetensors", lambda weights: weights | {"text_model.extra.weight": torch.zeros(3)})
    refused(folder, "1 weights that its network has no place for", "extra.weight")


def test_the_positions_of_old_clip_files_are_no_weights(picture, folder: Path, tiny_teacher: Path) -> None:
    positions = {"text_model.embeddings.position_ids": torch.arange(6)[None]}
    rewrite(folder / f"{TEXT}.safetensors", lambda weights: weights | positions)
    assert np.array_equal(picture(folder), picture(tiny_teacher))


def test_an_autoencoder_under_diffusers_old_names_is_read(picture, folder: Path, tiny_teacher: Path) -> None:
    """As in the original Stable Diffusion repositories: query, key, value and proj_attn."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {name: name for name in weights if "attentions" not in name}
        for name in weights.keys() - names.keys():
            names[name] = name
            for new, then in old.items():
                names[name] = names[name].replace(f".{new}.", f".{then}.")
        assert names.keys() == weights.keys()
        assert any(name != was for was, name in names.items())
        return {name: weights[was] for was, name in names.items()}

    rewrite(folder / f"{VAE}.safetensors", rename)
    assert np.array_equal(picture(folder), picture(tiny_teacher))


def test_a_tokenizer_must_fit_its_encoder(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()
    (folder / "tokenizer" / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    refused(folder, "tokenizer", "vocabulary of 2", "embeddings for 514")


def test_what_a_configuration_leaves_open_is_filled_in_rightly(picture, folder: Path, tiny_teacher: Path) -> None:
    change_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=10**30)
    change_json(folder / "unet" / "config.json", sample_size=None)
    assert np.array_equal(picture(folder), picture(tiny_teacher))


def test_half_precision_variants_and_shards_are_read(picture, folder: Path, tiny_teacher: Path) -> None:
    whole = picture(tiny_teacher)
    for part in (UNET, TEXT, VAE):
        path = folder / f"{part}.safetensors"
        save_file(load_file(path), path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    assert np.array_equal(picture(folder), whole)  # the tiny teacher's files hold halves already
    path = folder / f"{UNET}.fp16.safetensors"
    weights = load_file(path)
    names, stem = sorted(weights), "diffusion_pytorch_model"
    held = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{i}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, path.with_name(file), metadata={"format": "pt"})
        held |= dict.fromkeys(part, file)
    index = path.with_name(f"{stem}.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": held}))
    path.unlink()
    assert np.array_equal(picture(folder), whole)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], Path]:
    """``hub(folder)`` makes ``somebody/model`` on the hub of a folder; returns where its snapshots are put."""

    def publish(folder: Path) -> Path:
        cache = tmp_path / "snapshot"

        def snapshot_download(
            repository: str, cache_dir: Path, allow_patterns: list[str], ignore_patterns: list[str]
        ) -> str:
            assert repository == "somebody/model"
            for path in (p for p in folder.rglob("*") if p.is_file()):
                name = path.relative_to(folder).as_posix()
                if any(fnmatch(name, p) for p in allow_patterns) and not any(fnmatch(name, p) for p in ignore_patterns):
                    (cache / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, cache / name)
            return str(cache)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return cache

    return publish


@pytest.mark.parametrize("only_half", [False, True])
def test_the_hub_gives_each_weight_once(hub, folder: Path, tiny_teacher: Path, only_half: bool) -> None:
    """The plain files where there are some, else the half-precision ones; no pickles, no other formats."""
    for part in (UNET, TEXT, VAE):
        path = folder / f"{part}.safetensors"
        shutil.copyfile(path, path.with_suffix(".fp16.safetensors"))
        path.with_suffix(".bin").write_bytes(b"a pickle")
        path.with_name("model.onnx").write_bytes(b"another format")
        if only_half:
            path.unlink()
    cache = hub(folder)
    model = load_model("somebody/model", torch.device("cpu"))
    end = ".fp16.safetensors" if only_half else ".safetensors"
    files = (path for path in cache.rglob("*") if path.is_file() and path.suffix not in (".json", ".txt"))
    weights = {path.relative_to(cache).as_posix() for path in files}
    assert weights == {f"{part}{end}" for part in (UNET, TEXT, VAE)}
    assert model.source == "somebody/model"
    assert model.digests() == load_model(str(tiny_teacher), torch.device("cpu")).digests()


def test_pickled_weights_are_named_for_what_they_are(folder: Path) -> None:
    path = folder / f"{UNET}.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    refused(folder, "diffusion_pytorch_model.bin", "safetensors")


def test_a_picture_that_is_not_finite_is_no_picture(run, folder: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["conv_in.weight"][0] = float("nan")
        return weights

    rewrite(folder / f"{UNET}.safetensors", spoil)
    for command in (["sample", "a cat"], ["eval", "--limit", "2", "--only", "clip"]):
        code, _, err = run(*command, "--model", folder, "--steps", "2", "--device", "cpu", "--out", "out")
        assert code == 1
        one_line(err, "not finite", "--precision")
    assert not list(Path("out").rglob("*.png"))


def test_pictures_of_one_model_are_never_taken_for_anothers(run, tiny_teacher_64: Path, tmp_path: Path) -> None:
    """Two models that differ in one part only, in the same --out: as in a comparison of two VAEs."""

    def score(model: Path) -> tuple[int, str, str]:
        drawn = ["--limit", "2", "--only", "clip", "--steps", "1", "--device", "cpu"]
        return run("eval", "--model", model, *drawn, "--out", "scores")

    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: w + 0.1 if w.is_floating_point() else w for name, w in weights.items()}

    folder, other = tmp_path / "model", tmp_path / "other"
    shutil.copytree(tiny_teacher_64, folder)
    assert score(folder)[0] == 0
    first = (Path("scores") / "results.json").read_text()
    for part in (UNET, TEXT, VAE):
        folder.rename(other)  # another model in the same place
        shutil.copytree(tiny_teacher_64, folder)
        rewrite(folder / f"{part}.safetensors", change)
        code, _, err = score(folder)
        assert code == 2
        one_line(err, f"made with other settings: parts_sha256 {part.partition('/')[0]} (", "--out")
        assert err.count(" there, ") == 1
        assert (Path("scores") / "results.json").read_text() == first
        shutil.rmtree(other)
    change_json(folder / "scheduler" / "scheduler_config.json", timestep_spacing="trailing")
    code, _, err = score(folder)
    assert code == 2
    one_line(err, "scheduler timestep_spacing (", "trailing here)")


def test_a_student_of_a_model_without_a_size_is_drawn_by_the_stock_pipeline(run, folder: Path, tmp_path: Path) -> None:
    change_json(folder / "unet" / "config.json", sample_size=None)
    (tmp_path / "prompts.txt").write_text("a cat\n", encoding="utf-8")
    code, _, err = run("distill", *SIZES, "--prompts", "prompts.txt", "--teacher", folder, "--out", "run")
    assert code == 0, err
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "student")
    assert pipeline("a cat", num_inference_steps=1, guidance_scale=1.0).images[0].size == (8, 8)
