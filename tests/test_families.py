"""Model families: what each makes of text and networks, against diffusers' own pipelines; what is refused, with which advice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.method.condition import Condition
from sidlsg.runs.folder import RunFolder
from sidlsg.runs.opening import open_model
from sidlsg.sampling.draw import one_step
from sidlsg.settings import make_config
from sidlsg.teachers.families import FAMILIES
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.registry import locate
from sidlsg.training.launch import about_teacher
from support.terminal import one_line
from support.tiny import change_json

CPU = torch.device("cpu")
PRESET = (
    "images: 16\nbatch: 8\nmicro_batch: 8\nlr: 1e-3\nlog_every: 8\ncheckpoint_every: 8\ngrid_images: 1\ndevice: cpu\n"
)


# -- conditions ------------------------------------------------------------------------------------------------------------


def some_condition(count: int = 5) -> Condition:
    return Condition(
        {
            "text": torch.randn(count, 3, 2),
            "pooled": torch.randn(count, 4),
            "time_ids": torch.arange(6).expand(count, 6),
        }
    )


def equal(a: Condition, b: Condition) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(a[name], b[name]) for name in a.tensors)


def test_a_condition_is_split_and_stacked_as_a_whole() -> None:
    c = some_condition()
    parts = list(c.split(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert equal(Condition.cat(parts), c)
    assert equal(c.rows([4, 0]), Condition.cat([c.rows(slice(4, 5)), c.rows(slice(0, 1))]))


def test_rows_of_a_condition_are_replaced_by_the_empty_one() -> None:
    c, empty = some_condition(), some_condition(1)
    mixed = c.where(torch.tensor([True, False, True, False, False]), empty)
    for i, kept in enumerate((True, False, True, False, False)):
        assert equal(mixed.rows([i]), c.rows([i]) if kept else empty)
    assert equal(empty.expand(3), Condition.cat([empty] * 3))


def test_ids_keep_their_type_when_a_condition_goes_to_half() -> None:
    half = some_condition().to(torch.float16)
    assert (half["text"].dtype, half["pooled"].dtype, half["time_ids"].dtype) == (
        torch.float16,
        torch.float16,
        torch.int64,
    )


# -- SDXL against diffusers ------------------------------------------------------------------------------------------------


def test_prompts_are_encoded_as_the_stock_pipeline_does(tiny_sdxl: Path) -> None:
    model, pipeline = load_model(str(tiny_sdxl), CPU), StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    encode = model.encoder()
    prompts = ["a cat", "", "a prompt that is longer than six tokens"]
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(prompts, do_classifier_free_guidance=True)
    found, empty = encode(prompts), encode.empty.expand(3)
    torch.testing.assert_close(found["text"], text)
    torch.testing.assert_close(found["pooled"], pooled)
    torch.testing.assert_close(empty["text"], negative)
    torch.testing.assert_close(empty["pooled"], negative_pooled)
    # ∅ is zeros exactly where the model's own index says so.
    zeros = json.loads((tiny_sdxl / "model_index.json").read_text())["force_zeros_for_empty_prompt"]
    assert bool((empty["text"] == 0).all()) == bool((empty["pooled"] == 0).all()) == zeros
    assert torch.equal(found["time_ids"][0], empty["time_ids"][0])
    assert found["time_ids"][0].tolist() == [8, 8, 0, 0, 8, 8]


def test_the_network_is_called_as_the_stock_pipeline_calls_it(tiny_sdxl: Path) -> None:
    """Every input of the UNet in one guided step, caught on its way."""
    model, pipeline = load_model(str(tiny_sdxl), CPU), StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipeline.set_progress_bar_config(disable=True)
    seen: dict[str, Any] = {}

    def spy(module, args, kwargs):
        seen.update(kwargs, x=args[0], t=args[1])

    pipeline.unet.register_forward_pre_hook(spy, with_kwargs=True)
    pipeline("a cat", num_inference_steps=1, guidance_scale=3.0, output_type="latent")
    encode = model.encoder()
    c = Condition.cat([encode.empty, encode(["a cat"])])  # the order in which Eq. 6 asks for both
    torch.testing.assert_close(c["text"], seen["encoder_hidden_states"])
    torch.testing.assert_close(c["pooled"], seen["added_cond_kwargs"]["text_embeds"])
    torch.testing.assert_close(c["time_ids"].float(), seen["added_cond_kwargs"]["time_ids"])
    with torch.no_grad():
        ours = model.family.predict(model.network, seen["x"], seen["t"], c)
        theirs = pipeline.unet(
            seen["x"],
            seen["t"],
            encoder_hidden_states=seen["encoder_hidden_states"],
            added_cond_kwargs=seen["added_cond_kwargs"],
        ).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# -- SDXL from end to end --------------------------------------------------------------------------------------------------


@pytest.fixture
def distil(run, tmp_path: Path):
    """``distil(teacher, out, *more)`` -> (exit code, stdout, stderr)."""
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(10)), encoding="utf-8")
    (tmp_path / "preset.yaml").write_text(PRESET, encoding="utf-8")

    def call(teacher: Path, out: str, *more: str):
        options = ["--preset", "preset.yaml", "--prompts", "prompts.txt", "--teacher", teacher, "--out", out]
        return run("distill", *options, *more)

    return call


def test_sdxl_is_distilled_resumed_sampled_and_read_by_the_stock_pipeline(tiny_sdxl: Path, distil, run, tmp_path: Path):
    code, shown, err = distil(tiny_sdxl, "run")
    assert code == 0, err
    # Without its second half, which is made again: the same student, bit for bit.
    half = shutil.copytree(tmp_path / "run", tmp_path / "half")
    shutil.rmtree(half / "student")
    shutil.rmtree(max(RunFolder(half).checkpoints.iterdir()))
    code, shown, err = distil(tiny_sdxl, "half")
    assert code == 0, err
    assert "resuming at 8 images" in shown
    weights = "student/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (half / weights).read_bytes()
    moved = load_file(tmp_path / "run" / weights)
    before = load_file(tiny_sdxl / "unet" / "diffusion_pytorch_model.safetensors")
    assert sum(not torch.equal(moved[name], before[name]) for name in moved) > 0.8 * len(moved)

    note = json.loads((tmp_path / "run" / "student" / "sidlsg.json").read_text())
    assert (note["family"], note["timesteps"], note["prediction_type"]) == ("sdxl", [625], "epsilon")
    assert note["licence"] == ("openrail++" if (tiny_sdxl / "README.md").exists() else "unknown: that of the teacher")

    code, shown, err = run(
        "sample", "a cat", "", "--model", "run", "--seed", "3", "--device", "cpu", "--out", "pictures"
    )
    assert code == 0, err
    ours = [np.asarray(Image.open(path)).astype(int) for path in shown.split()]
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "run" / "student")
    pipeline.set_progress_bar_config(disable=True)
    for prompt, picture in zip(("a cat", ""), ours, strict=True):
        generator = torch.Generator().manual_seed(3)
        stock = pipeline(prompt, num_inference_steps=1, guidance_scale=1.0, generator=generator).images[0]
        assert np.abs(np.asarray(stock).astype(int) - picture).max() <= 1
        assert picture.std() > 1  # a picture, not a constant

    # A run that has no student yet draws what that would draw.
    student = open_model(str(tmp_path / "run"), CPU, torch.float32)
    shutil.rmtree(tmp_path / "run" / "student")
    unfinished = open_model(str(tmp_path / "run"), CPU, torch.float32)
    pictures = [one_step(model, ["a cat"], [1], 625) for model in (student, unfinished)]
    assert (pictures[0] - pictures[1]).abs().max() < 2e-2  # the student is kept in half precision


def test_an_sdxl_teacher_is_sampled_and_scored(tiny_sdxl: Path, run, tmp_path: Path) -> None:
    """Many steps with guidance give the stock pipeline's picture; `eval` draws by the same code."""
    options = ["--model", tiny_sdxl, "--steps", "3", "--guidance", "2.5", "--device", "cpu"]
    code, _, err = run("sample", "a cat", "--seed", "5", *options, "--out", "one.png")
    assert code == 0, err
    ours = np.asarray(Image.open("one.png")).astype(int)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 3, "guidance_scale": 2.5, "generator": torch.Generator().manual_seed(5)}
    stock = pipeline("a cat", **arguments).images[0]
    assert np.abs(np.asarray(stock).astype(int) - ours).max() <= 1


def test_an_sdxl_model_is_scored(tiny_sdxl: Path, run, tmp_path: Path) -> None:
    """With latents for the 64x64 pictures that the embedded protocol compares."""
    folder = shutil.copytree(tiny_sdxl, tmp_path / "model")
    change_json(folder / "unet" / "config.json", sample_size=32)
    options = ["--model", folder, "--steps", "2", "--guidance", "2.5", "--limit", "4", "--device", "cpu"]
    options += ["--out", "scores"]
    code, _, err = run("eval", *options)
    assert code == 0, err
    found = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert set(found["scores"]) == {"fd", "precision", "recall", "clip", "retrieval_top1", "retrieval_top5"}
    assert (found["pictures"], found["generation"]["steps"], found["generation"]["guidance"]) == (4, 2, 2.5)


def test_a_unet_that_does_not_say_its_size_has_its_familys() -> None:
    for family, side in zip(FAMILIES, (64, 128), strict=True):
        network = SimpleNamespace(config=SimpleNamespace(sample_size=None, in_channels=4))
        assert family.latent_shape(network) == (4, side, side)


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A Stable Diffusion folder to spoil."""
    return shutil.copytree(tiny_teacher, tmp_path / "model")


@pytest.fixture
def folder_xl(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """An SDXL folder to spoil."""
    return shutil.copytree(tiny_sdxl, tmp_path / "model-xl")


def refused(folder: Path, *parts: str, error: type[SidlsgError] = UsageError) -> None:
    """No teacher, by its configurations alone, and the reason is given."""
    with pytest.raises(error) as said:
        about_teacher(locate(str(folder)), make_config("cpu", {"teacher": str(folder)}))
    missing = [part for part in parts if part not in str(said.value)]
    assert not missing, (missing, said.value)


def test_what_is_refused_is_one_line_before_anything_is_written(distil, folder: Path) -> None:
    """Also in a dry run. What else is refused is below."""
    change_json(folder / "model_index.json", _class_name="PixArtSigmaPipeline")
    for more in ((), ("--dry-run",)):
        code, _, err = distil(folder, "run", *more)
        assert code == 2, err
        one_line(err, "PixArtSigmaPipeline", *(family.pipeline for family in FAMILIES))
    assert not Path("run").exists()


def test_a_missing_second_encoder_is_named(folder_xl: Path) -> None:
    change_json(folder_xl / "model_index.json", text_encoder_2=[None, None])
    refused(folder_xl, "no text_encoder_2", "Stable Diffusion XL")


@pytest.mark.parametrize("pipeline", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLPipeline"])
def test_a_refiner_is_sent_to_its_base(folder_xl: Path, pipeline: str) -> None:
    """As published (its own pipeline class and flag), and resaved as a text-to-image pipeline."""
    flag = pipeline.endswith("Img2ImgPipeline") or None
    change_json(
        folder_xl / "model_index.json",
        _class_name=pipeline,
        text_encoder=[None, None],
        tokenizer=[None, None],
        requires_aesthetics_score=flag,
    )
    refused(folder_xl, "refiner", "sdxl")


def test_an_inpainting_unet_is_known_by_its_channels(folder: Path, folder_xl: Path) -> None:
    for spoilt, base in ((folder, "sd15"), (folder_xl, "sdxl")):
        change_json(spoilt / "unet" / "config.json", in_channels=9)
        refused(spoilt, "inpainting", "9 channels", base)
    change_json(folder / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    refused(folder, "inpainting", "9 channels")


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_turbo_and_lcm_are_no_teachers(distil, folder: Path, folder_xl: Path, family: str, run) -> None:
    spoilt = folder if family == "sd" else folder_xl
    scheduler = spoilt / "scheduler" / "scheduler_config.json"
    kept = scheduler.read_text()
    change_json(scheduler, _class_name="EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    refused(spoilt, "Turbo", "distilled already", "sdxl" if family == "sdxl" else "sd15")
    change_json(scheduler, _class_name="LCMScheduler")
    refused(spoilt, "LCM", "distilled already")
    scheduler.write_text(kept)
    named = spoilt.rename(spoilt.with_name("my-xl-turbo"))
    refused(named, 'by its name ("turbo"', "another name")
    fine = named.rename(named.with_name("turbocharged"))  # a word, not a part of one
    assert distil(fine, "run", "--dry-run")[0] == 0
    # Such models can still be sampled, to compare with.
    change_json(fine / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler")
    code, _, err = run("sample", "a cat", "--model", fine, "--steps", "1", "--guidance", "1", "--device", "cpu")
    assert code == 0, err


def test_a_student_is_no_teacher(unbroken: tuple[Path, Path], tiny_teacher: Path) -> None:
    refused(unbroken[0] / "student", "one-step student", str(tiny_teacher))


def test_another_familys_parts_are_named(folder: Path, folder_xl: Path) -> None:
    change_json(folder_xl / "unet" / "config.json", addition_embed_type=None)
    refused(folder_xl, "text_time", "another family")
    change_json(folder / "unet" / "config.json", addition_embed_type="image")
    refused(folder, "image", "another family")
    change_json(folder / "unet" / "config.json", addition_embed_type=None, class_embed_type="timestep")
    refused(folder, "class labels")
    change_json(folder / "unet" / "config.json", class_embed_type=None)
    change_json(folder / "model_index.json", text_encoder=["transformers", "BertModel"])
    refused(folder, "BertModel", "CLIPTextModel")


@pytest.mark.parametrize(
    ("part", "changes", "parts"),
    [
        ("unet", {"time_cond_proj_dim": 256}, ["guidance scale as an input", "LCM"]),
        ("unet", {"class_embed_type": "timestep"}, ["class labels (timestep)"]),
        ("unet", {"num_class_embeds": 1000}, ["class labels (1000)"]),
        ("unet", {"addition_embed_type": "text_time"}, ["text_time", "another family"]),
        ("unet", {"encoder_hid_dim": 768, "encoder_hid_dim_type": "ip_image_proj"}, ["ip_image_proj", "IP-adapter"]),
        ("unet", {"encoder_hid_dim": 4096}, ["further projection (4096)"]),
        ("unet", {"in_channels": 8}, ["edits a given picture", "8 channels"]),
        ("unet", {"out_channels": 8}, ["gives 8 channels for 4", "variance"]),
        ("unet", {"cross_attention_dim": 1024}, ["text of width 1024", "give 8"]),
        ("unet", {"cross_attention_dim": [8, 16]}, ["text of width [8, 16]"]),
        ("unet", {"_class_name": "UNetMotionModel"}, ["the unet", "UNetMotionModel by its config.json"]),
        ("unet", {"_class_name": "ControlNetModel"}, ["ControlNetModel"]),
        ("vae", {"latent_channels": 16}, ["4 channels where the latents have 16"]),
        ("vae", {"shift_factor": 0.1159}, ["normalises its latents"]),
        ("vae", {"latents_mean": [0.0] * 4}, ["normalises its latents"]),
        ("vae", {"_class_name": "VQModel"}, ["the vae", "VQModel"]),
        ("vae", {"_class_name": "AsymmetricAutoencoderKL"}, ["AsymmetricAutoencoderKL"]),
        ("vae", {"out_channels": 4}, ["pictures of 4 channels"]),
        ("text_encoder", {"architectures": ["T5EncoderModel"]}, ["the text_encoder", "T5EncoderModel"]),
        ("text_encoder", {"architectures": ["BertModel"]}, ["BertModel", "CLIPTextModel"]),
        ("text_encoder", {"hidden_size": 1024}, ["give 1024", "do not belong together"]),
    ],
)
def test_what_is_not_given_is_read_from_the_configurations(folder: Path, part, changes, parts) -> None:
    """No weight is read: there are none."""
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    change_json(folder / part / "config.json", **changes)
    refused(folder, *parts)


@pytest.mark.parametrize(
    ("part", "changes", "parts"),
    [
        ("unet", {"addition_embed_type": "image_hints"}, ["image_hints"]),
        ("unet", {"projection_class_embeddings_input_dim": 100}, ["pooled embedding of width 76", "gives 12"]),
        ("unet", {"cross_attention_dim": 8}, ["text of width 8", "give 20"]),
        ("vae", {"scaling_factor": None}, ["scaling_factor", "0.18215", "0.13025"]),
    ],
)
def test_what_sdxl_does_not_give_is_read_from_the_configurations(folder_xl: Path, part, changes, parts) -> None:
    change_json(folder_xl / part / "config.json", **changes)
    refused(folder_xl, *parts)


def test_old_configurations_that_leave_things_open_are_fine(distil, folder: Path) -> None:
    """As in the first Stable Diffusion repositories: no scaling factor, a text encoder's file of the whole CLIP model."""
    change_json(folder / "vae" / "config.json", scaling_factor=None)
    encoder = folder / "text_encoder" / "config.json"
    inside = json.loads(encoder.read_text())
    encoder.write_text(json.dumps({"architectures": ["CLIPModel"], "model_type": "clip", "text_config": inside}))
    code, out, err = distil(folder, "run", "--dry-run")
    assert (code, err) == (0, "")
    assert "note:" not in out


def test_a_part_without_its_configuration_is_named(distil, folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    code, _, err = distil(folder, "run", "--dry-run")
    assert code == 1
    one_line(err, "model/vae has no config.json")


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("model_index.json", "[]", ["not a JSON object"]),
        ("model_index.json", "", ["cannot be read"]),
        ("model_index.json", "{" * 3 + '"a": ' + "[" * 100_000, ["cannot be read"]),
        ("unet/config.json", '{"in_channels": NaN}', ["NaN is not JSON"]),
        ("unet/config.json", "\ufeff{}", ["BOM"]),
        ("unet/config.json", '{"in_channels": "4"}', ['in_channels is "4"', "wrong type"]),
        ("unet/config.json", '{"in_channels": true}', ["in_channels is true"]),
        ("unet/config.json", '{"in_channels": [4]}', ["in_channels is [4]"]),
        ("unet/config.json", '{"_name_or_path": 5}', ["_name_or_path is 5"]),
        ("vae/config.json", '{"scaling_factor": "big"}', ["scaling_factor"]),
        ("text_encoder/config.json", '{"hidden_size": {}}', ["hidden_size is {}"]),
        ("scheduler/scheduler_config.json", '{"_class_name": ["DDIMScheduler"]}', ["_class_name"]),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": 1e3}', ["num_train_timesteps is 1000.0"]),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": 1000000000000}', ["1000000000000 timesteps"]),
        ("scheduler/scheduler_config.json", '{"trained_betas": ["a", "b"]}', ["betas", "cannot be used"]),
        ("scheduler/scheduler_config.json", '{"trained_betas": [0.1, 0.2]}', ["2 timesteps", "t_max"]),
    ],
)
def test_a_configuration_of_another_shape_is_one_line(folder: Path, file: str, content: str, parts) -> None:
    (folder / file).write_text(content, encoding="utf-8")
    refused(folder, *parts, error=SidlsgError)


# -- the schedule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, None),
        ({"prediction_type": "v_prediction"}, None),
        ({"beta_end": 0.0121}, None),  # half a per cent
        ({"beta_schedule": "linear"}, "3.7711"),
        ({"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}, "7.2325"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "1.5168"),
    ],
)
def test_betas_that_are_not_the_published_ones_are_said(distil, folder: Path, changes: dict[str, Any], found) -> None:
    change_json(folder / "scheduler" / "scheduler_config.json", **changes)
    code, out, err = distil(folder, "run", "--dry-run")
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    if found is None:
        assert "note:" not in words
    else:
        assert (
            f"σ/a at t_init 625 is {found} by the teacher's scheduler_config.json, and 2.5017 in the published" in words
        )


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ["FlowMatchEulerDiscreteScheduler", "DDPM"]),
        ({"_class_name": "EDMEulerScheduler"}, ["EDMEulerScheduler"]),
        ({"_class_name": "CMStochasticIterativeScheduler"}, ["CMStochasticIterativeScheduler"]),
        ({"use_flow_sigmas": True}, ["use_flow_sigmas", "DDPM"]),
        ({"beta_start": None, "beta_end": None}, ["beta_start, beta_end"]),
        ({"rescale_betas_zero_snr": True}, ["zero terminal SNR"]),
    ],
)
def test_a_schedule_is_never_made_up(folder: Path, changes: dict[str, Any], parts: list[str]) -> None:
    change_json(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(folder, *parts)
