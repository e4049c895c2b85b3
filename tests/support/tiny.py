"""Tiny random networks and teachers: the real code path in milliseconds, without network or GPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

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


def shallow_unet() -> UNet2DConditionModel:
    """One level, where the network is not the subject: half the time."""
    shapes = {"block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",)}
    return UNet2DConditionModel.from_config(
        dict(tiny_unet().config) | shapes | {"up_block_types": ("CrossAttnUpBlock2D",)}
    )


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


def save_tiny_teacher(folder: Path, unet: UNet2DConditionModel | None = None) -> Path:
    """A Stable Diffusion folder that ``load_model`` and ``--teacher`` accept; byte-level tokenizer, 8x8 images."""
    tokenizer, text_encoder = tiny_tokenizer(), tiny_text_encoder(CLIPTextModel, WIDTH, 1)
    scheduler = DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": tiny_vae(), "unet": unet or tiny_unet()}
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


def save_tiny_sdxl(folder: Path, published: bool) -> Path:
    """An SDXL folder as published; or one that has neither what the pipeline lists as optional nor what configs may leave out,
    and guides from the encoding of "" instead of zeros."""
    parts = {
        "tokenizer": tiny_tokenizer(),
        "tokenizer_2": tiny_tokenizer(pad_token="!"),
        "text_encoder": tiny_text_encoder(CLIPTextModel, WIDTH, 1, layers=2),
        "text_encoder_2": tiny_text_encoder(CLIPTextModelWithProjection, 12, 2, layers=3),
        "vae": tiny_vae(scaling_factor=0.13025, force_upcast=True),
        "unet": tiny_sdxl_unet(),
    }
    scheduler = EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading", steps_offset=1)
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
