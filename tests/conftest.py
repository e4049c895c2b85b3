"""A tiny random Stable Diffusion folder, so that tests run the real code path in seconds, without network or GPU."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sidlsg import cli, data
from sidlsg.method.condition import Condition
from sidlsg.method.denoiser import Denoiser
from sidlsg.teachers.sdxl import StableDiffusionXL
from sidlsg.teachers.stable_diffusion import StableDiffusion
from sidlsg.teachers.student import save_folder

SD_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TOKENS, WIDTH = 6, 8
SD = StableDiffusion()


def text(embeddings: torch.Tensor) -> Condition:
    """Text embeddings [B, L, D] as Stable Diffusion's condition."""
    return Condition({"text": embeddings})


def denoiser(unet, schedule, autocast=None) -> Denoiser:
    """A Stable Diffusion UNet as eps(x_t, t, c)."""
    return Denoiser(unet, schedule, SD.predict, autocast)


def tiny_unet(seed: int = 0) -> UNet2DConditionModel:
    """Two levels, attention in one of them; latents 4x4x4 (channels, height, width)."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def tiny_tokenizer(**options) -> CLIPTokenizer:
    """One token a byte; six tokens a prompt."""
    letters = list(bytes_to_unicode().values())
    vocab = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(vocab)}, merges=[], model_max_length=TOKENS, **options)


def tiny_text_encoder(kind: type, width: int, seed: int, layers: int = 1):
    """A CLIP text model of ``width``, for ``tiny_tokenizer``."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=16,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tiny_vae(**options) -> AutoencoderKL:
    """8x8 pictures from 4x4 latents."""
    return AutoencoderKL(
        sample_size=8,
        latent_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **options,
    )


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder that ``load_model`` and ``--teacher`` accept; byte-level tokenizer, 8x8 pictures."""
    tokenizer, text_encoder = tiny_tokenizer(), tiny_text_encoder(CLIPTextModel, WIDTH, 1)
    scheduler = DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    folder = tmp_path_factory.mktemp("models") / "teacher"
    parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": tiny_vae(), "unet": tiny_unet()}
    save_folder(folder, SD, parts, scheduler)
    return folder


def tiny_sdxl_unet(seed: int = 0) -> UNet2DConditionModel:
    """SDXL's layout: text_time conditioning, more transformer layers further down; latents 4x4x4."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=WIDTH + 12,  # both encoders' widths
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
        norm_num_groups=4,
    ).eval()


@pytest.fixture(scope="session", params=["as published", "without optional parts"])
def tiny_sdxl(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL folder; the second one has neither what the pipeline lists as optional nor what configs may leave out, and
    guides from the encoding of "" instead of zeros."""
    published = request.param == "as published"
    parts = {
        "tokenizer": tiny_tokenizer(),
        "tokenizer_2": tiny_tokenizer(pad_token="!"),
        "text_encoder": tiny_text_encoder(CLIPTextModel, WIDTH, 1, layers=2),
        "text_encoder_2": tiny_text_encoder(CLIPTextModelWithProjection, 12, 2, layers=3),
        "vae": tiny_vae(scaling_factor=0.13025, force_upcast=True),
        "unet": tiny_sdxl_unet(),
    }
    scheduler = EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading", steps_offset=1)
    folder = tmp_path_factory.mktemp("models") / "sdxl"
    save_folder(folder, StableDiffusionXL(), parts, scheduler, index={"force_zeros_for_empty_prompt": published})
    if published:
        (folder / "README.md").write_text("---\nlicense: openrail++\ntags:\n- text-to-image\n---\n# A card\n")
    else:
        change_json(folder / "model_index.json", feature_extractor=None, image_encoder=None)
        change_json(folder / "vae" / "config.json", force_upcast=None, latents_mean=None, shift_factor=None)
    return folder


def change_json(path: Path, **changes) -> None:
    """Set keys of a JSON object; None takes a key out."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(
        json.dumps({k: v for k, v in content.items() if k not in changes or v is not None}), encoding="utf-8"
    )


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """``read_only(folder)``: nothing can be written below it, as far as the system is asked (root may write anywhere)."""
    folders: list[Path] = []
    allowed = os.access

    def access(path: str, mode: int) -> bool:
        below = any(Path(path).resolve().is_relative_to(folder) for folder in folders)
        return not (below and mode & os.W_OK) and allowed(path, mode)

    monkeypatch.setattr(os, "access", access)
    return lambda folder: folders.append(folder.resolve())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which holds the cache where nothing else can."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    data._temporary_cache.cache_clear()
    yield folder
    data._temporary_cache.cache_clear()


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt number {i}\n" for i in range(23)), encoding="utf-8")
    return path


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(monkeypatch: pytest.MonkeyPatch):
    """A CLIP of random weights whose architecture, "tiny", open_clip knows."""
    import open_clip

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY_CLIP)
    torch.manual_seed(0)
    return open_clip.create_model("tiny").eval()


def hps_file(model: torch.nn.Module, folder: Path) -> Path:
    """The format of HPS_v2_compressed.pt: half precision under the key state_dict."""
    torch.save({"state_dict": {k: v.half() for k, v in model.state_dict().items()}}, folder / "HPS_v2_compressed.pt")
    return folder / "HPS_v2_compressed.pt"


def folder_of(path: Path, count: int, size: int = 64, suffix: str = ".png") -> Path:
    """``count`` numbered noise pictures."""
    path.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i:06d}{suffix}")
    return path


def results(folder: Path) -> dict:
    """What an evaluation wrote."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """``run(*arguments)`` -> (exit code, stdout, stderr), in an empty folder, offline, with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / ".cache"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sidlsg", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def one_line(err: str, *parts: str) -> None:
    """stderr is one line of ours, without a traceback, and contains every part."""
    assert err.startswith("sidlsg: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert "unexpected" not in err
    missing = [part for part in parts if part not in err]
    assert not missing, (missing, err)


BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")  # while Playwright runs, asyncio.run() is refused in this thread
def browser() -> Iterator[Any]:
    """Headless Chromium; without one, tests that need it are skipped."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    why = "" if found else f"no browser: none of {', '.join(BROWSERS)} is installed"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        why = "no playwright: pip install playwright"
    if why:
        pytest.skip(why)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """``page(file or address, width, theme)`` opens it; the test fails on any error or message in the console."""
    said: list[str] = []
    contexts = []

    def open_page(address: str | Path, width: int = 1280, theme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **options)
        contexts.append(context)
        opened = context.new_page()
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("requestfailed", lambda failed: said.append(failed.url))
        opened.goto(address.as_uri() if isinstance(address, Path) else address)
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
