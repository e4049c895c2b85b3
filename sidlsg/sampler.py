"""Prompts and seeds to pictures: one pass for a student, diffusers' own pipeline for a teacher with many steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sidlsg.denoiser import Denoiser, OneStepGenerator
from sidlsg.errors import UsageError, nearest
from sidlsg.models import Model


def seed_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """z ~ N(0, I), float32 [B, *shape], each image from a CPU generator of its own seed.

    The same numbers as diffusers draws for ``generator=[torch.Generator().manual_seed(s) for s in seeds]``.
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images [B, 3, H, W] in [0, 1] -> PIL pictures, rounded to the nearest of 256 levels (as diffusers does)."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


@torch.no_grad()
def one_step(model: Model, prompts: Sequence[str], seeds: Sequence[int], t_init: int) -> Tensor:
    """x_g = G_theta(z, c) (Eq. 9), decoded: images [B, 3, H, W] in [0, 1]."""
    device = next(model.unet.parameters()).device
    z = seed_noise(seeds, model.latent_shape).to(device)
    generator = OneStepGenerator(Denoiser(model.unet, model.schedule), t_init)
    return model.decode(generator(z, model.encode()(prompts)))


DEFAULT_STEPS, DEFAULT_GUIDANCE = 25, 3.0  # of a teacher
SAMPLERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def many_steps(
    model: Model, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, sampler: str | None = None
) -> Tensor:
    """Classifier-free guidance by diffusers' StableDiffusionPipeline, images [B, 3, H, W] in [0, 1].

    Args:
        sampler: a key of ``SAMPLERS``; None is the model's own.
    """
    import diffusers

    kind = getattr(diffusers, SAMPLERS[sampler] if sampler else model.scheduler_config["_class_name"])
    pipeline = diffusers.StableDiffusionPipeline(
        tokenizer=model.tokenizer,
        text_encoder=model.text_encoder,
        vae=model.vae,
        unet=model.unet,
        scheduler=kind.from_config(model.scheduler_config, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt=list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).images
    return model.decode(latents)


def check_sampling(
    model: Model, steps: int | None, guidance: float | None, sampler: str | None = None
) -> tuple[int, float]:
    """Steps and guidance scale with their defaults: one pass for a student, 25 steps at CFG 3 for a teacher.

    Raises UsageError when they do not fit the model, or for an unknown sampler.
    """
    if model.student is not None:
        if steps not in (None, 1):
            raise UsageError(f"{model.source} is a one-step generator; leave out --steps")
        if guidance not in (None, 1.0):
            raise UsageError(f"{model.source} has its guidance built in; leave out --guidance")
        if sampler is not None:
            raise UsageError(f"{model.source} is a one-step generator; leave out --sampler")
        return 1, 1.0
    if sampler is not None and sampler not in SAMPLERS:
        raise UsageError(f'unknown sampler "{sampler}"{nearest(sampler, SAMPLERS)}')
    return steps or DEFAULT_STEPS, DEFAULT_GUIDANCE if guidance is None else guidance


def sample(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = 8,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
) -> Iterator[Image.Image]:
    """One picture for each (prompt, seed) pair, in order; picture i does not depend on ``batch``.

    Args:
        steps: 1 for a one-step student (its default); more runs ``sampler`` (None: the model's own) with ``guidance``.

    Raises UsageError when the settings do not fit the model.
    """
    steps, guidance = check_sampling(model, steps, guidance, sampler)
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        if model.student is not None:
            images = one_step(model, prompts[part], seeds[part], model.student["t_init"])
        else:
            images = many_steps(model, prompts[part], seeds[part], steps, guidance, sampler)
        yield from to_pil(images)


def make_grid(pictures: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Pictures of one size side by side on white, in rows; about square unless ``columns`` says otherwise."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return grid


def save_png(picture: Image.Image, path: Path, compress_level: int = 6, **facts: str | int) -> None:
    """Write a PNG under a temporary name and rename it; ``facts`` become its text entries (prompt, seed, model)."""
    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, str(value))
    temporary = path.with_name(path.name + ".part")
    try:
        picture.save(temporary, format="PNG", pnginfo=info, compress_level=compress_level)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def slug(prompt: str, length: int = 60) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:length].rstrip("-") or "empty"
