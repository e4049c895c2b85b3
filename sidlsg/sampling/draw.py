"""Draw pictures from prompts and seeds: one step for a student, diffusers' own multi-step pipeline for a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sidlsg.errors import SidlsgError, UsageError, nearest, sentence
from sidlsg.method.generator import OneStepGenerator
from sidlsg.sampling.pictures import to_pil
from sidlsg.sampling.samplers import SAMPLERS, STAND_INS
from sidlsg.teachers.family import Description, Model


def seed_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """z ~ N(0, I), float32 [B, *shape], each sample from a CPU generator with its own seed.

    diffusers draws the same numbers given ``generator=[torch.Generator().manual_seed(s) for s in seeds]``.
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def one_step(model: Model, prompts: Sequence[str], seeds: Sequence[int], t_init: int) -> Tensor:
    """x_g = G_theta(z, c) (Eq. 9), decoded: images [B, 3, H, W] in [0, 1]."""
    c = model.encoder()(prompts)
    z = seed_noise(seeds, model.latent_shape).to(c.device)
    return model.decode(OneStepGenerator(model.denoiser(), t_init)(z, c))


DEFAULT_STEPS, DEFAULT_GUIDANCE = 25, 3.0  # of a teacher


def many_step_scheduler(model: Model | Description, steps: int, sampler: str | None = None) -> Any:
    """diffusers' scheduler for ``many_steps``; raises UsageError for a number of steps that it cannot take."""
    import diffusers

    own = model.scheduler_config.get("_class_name", "DDPMScheduler")
    kind, options = (SAMPLERS[sampler], {}) if sampler else STAND_INS.get(own, (own, {}))
    count, why = len(model.schedule), None
    try:
        scheduler = getattr(diffusers, kind).from_config(model.scheduler_config, clip_sample=False, **options)
        scheduler.set_timesteps(steps)
        at = scheduler.timesteps
        if steps > count:
            why = f"the model has {count} timesteps"
        elif at.max() >= count:
            why = "it would begin after the last timestep"
        elif at.min() < 0:
            why = "it would go beyond the first timestep"
        elif len(at) == steps > len(at.unique()):  # Heun and PNDM come back to a timestep within a step, on purpose
            why = "two of them would be at one timestep"
    except Exception as error:  # each scheduler raises its own types for what it cannot take
        why = sentence(error).rstrip(".")
    if why:
        raise UsageError(f"{kind} cannot draw in {steps} steps: {why}; give another --steps, or another --sampler")
    return scheduler


def many_steps(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    sampler: str | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Sample with classifier-free guidance by the family's stock diffusers pipeline: images [B, 3, H, W] in [0, 1].

    Args:
        sampler: a key of ``SAMPLERS``; None uses the model's own scheduler.
        after_step: called after each step; what it raises ends the sampling.
    """

    def step_ended(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        after_step()
        return tensors

    pipeline = model.pipeline(many_step_scheduler(model, steps, sampler))
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt=list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
        callback_on_step_end=step_ended,
    ).images
    return model.decode(latents)


EMPTY_PROMPT = "the prompt is empty: this is what the model draws when it is told nothing"


def sampling_text(one_step: bool, steps: int | None, guidance: float | None) -> str:
    """ "1 step" or "25 steps, guidance 3", as labels say it."""
    return "1 step" if one_step else f"{steps} steps, guidance {guidance:g}"


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise UsageError for a seed that torch would change."""
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise UsageError(f"the seed {seed} is not in 0 to 2^64 - 1")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise UsageError for a prompt that is not valid Unicode, which no tokenizer takes."""
    for text in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(f"the prompt {text!a} is not valid Unicode; write it in UTF-8")


def check_sampling(
    model: Model | Description, steps: int | None, guidance: float | None, sampler: str | None = None
) -> tuple[int, float]:
    """(steps, guidance scale) with the defaults filled in: one step for a student, 25 steps at CFG 3 for a teacher.

    Raises UsageError when an option does not fit the model, or for an unknown sampler or a number of steps it cannot take.
    """
    if model.student is not None:
        if len(model.student.get("timesteps", [0])) > 1:
            raise UsageError(f"{model.source} takes several steps; this version of sidlsg draws one-step students only")
        if steps not in (None, 1):
            raise UsageError(f"{model.source} is a one-step generator; leave out --steps")
        if guidance not in (None, 1.0):
            raise UsageError(f"{model.source} has its guidance built in; leave out --guidance")
        if sampler is not None:
            raise UsageError(f"{model.source} is a one-step generator; leave out --sampler")
        return 1, 1.0
    if sampler is not None and sampler not in SAMPLERS:
        raise UsageError(f'unknown sampler "{sampler}"{nearest(sampler, SAMPLERS)}')
    if guidance is not None and guidance < 1:
        raise UsageError(
            f"guidance is {guidance:g}; diffusers' pipelines guide only above 1 and would draw the picture of 1 (no guidance): "
            "give 1 or more"
        )
    steps = DEFAULT_STEPS if steps is None else steps
    many_step_scheduler(model, steps, sampler)
    return steps, DEFAULT_GUIDANCE if guidance is None else guidance


def draw(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = 8,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> Iterator[Image.Image]:
    """One picture for each (prompt, seed) pair, in order; picture i does not depend on ``batch``.

    Args:
        batch: pictures drawn at once.
        steps, guidance, sampler: of a teacher, by default 25, 3 and its own scheduler; a student needs none of them.
        after_step: called after each step of a teacher.

    Raises UsageError when the options do not fit the model, or a seed is not in 0 to 2^64 - 1.
    """
    check_seeds(seeds)
    steps, guidance = check_sampling(model, steps, guidance, sampler)
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        if model.student is not None:
            images = one_step(model, prompts[part], seeds[part], model.student["t_init"])
        else:
            images = many_steps(model, prompts[part], seeds[part], steps, guidance, sampler, after_step)
        if bad := [i for i, image in enumerate(images) if not bool(image.isfinite().all())]:
            first = start + bad[0]
            raise SidlsgError(
                f'{len(bad)} of {len(images)} pictures are not finite (first: "{prompts[first]}", seed {seeds[first]}): '
                f"the weights of {model.source} are damaged, or overflow in this precision; try another --precision"
            )
        yield from to_pil(images)
