"""The package as Python functions: ``distill``, ``sample`` and ``evaluate``.

They take what the options of the commands of that name take, print nothing unless given a console, and raise ``UsageError`` for
what the caller can correct and ``SidlsgError`` for a run that failed (both in ``sidlsg.errors``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from sidlsg.runs.folder import RunFolder


def distill(
    preset: str | None = None,
    *,
    out: str | PathLike[str] | None = None,
    force: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> RunFolder:
    """Distil a teacher into a one-step generator, or resume that run; returns its folder, with the student in ``.student``.

    Args:
        preset: a preset's name or a YAML file; None is ``cpu`` for the embedded teacher, else the one for the GPU that ``gpu``
            names, or for this machine's.
        out: run folder; None is one below ``runs/``, the same for the same settings.
        force: run even if the plan says that memory will not suffice.
        console: where plan and progress are printed.
        settings: any settings of a preset, as it writes them: ``teacher="sd15", images="50k", kappa=1.5``.
    """
    from sidlsg.paths import user_path
    from sidlsg.settings import read_settings
    from sidlsg.training.launch import launch, prepare

    job = prepare(preset, read_settings(settings), None if out is None else user_path(out))
    if console is not None:
        console.print(job.plan(), highlight=False, soft_wrap=True)
    return launch(job, console, force)


@dataclass(frozen=True)
class Picture:
    """One sampled picture: the PIL image, and what made it."""

    image: Image
    prompt: str
    seed: int
    model: str

    def save(self, path: str | PathLike[str]) -> None:
        """Write a PNG that carries prompt, seed and model as text entries; complete or not there."""
        from sidlsg.paths import user_path
        from sidlsg.sampling.pictures import save_png

        save_png(self.image, user_path(path), prompt=self.prompt, seed=self.seed, model=self.model)


def sample(
    prompts: str | Sequence[str],
    *,
    model: str | PathLike[str] = "emoji-student",
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    batch: int = 8,
    precision: str | None = None,
    device: str = "auto",
) -> Iterator[Picture]:
    """Draw every prompt with every seed, prompt by prompt; a picture depends on nothing but its prompt and its seed.

    The model is loaded when this is called; pictures are drawn as they are taken.

    Args:
        model: run folder (also of an unfinished run), diffusers folder, alias or hub id.
        steps, guidance, sampler: of a teacher (default 25, 3, its own); a one-step student takes none of them.
        batch: pictures drawn at once.
        precision: fp32, bf16 or fp16; None is fp16 on a GPU, else fp32.

    Raises UsageError, before the model is loaded, for options that do not fit it, a prompt that is not valid Unicode, and a seed
    that is not in 0 to 2^64 - 1.
    """
    from sidlsg.devices import DTYPES, pick_device, pick_precision
    from sidlsg.runs.opening import describe_model, open_model
    from sidlsg.sampling.draw import check_prompts, check_sampling, check_seeds, draw

    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_prompts(texts)
    check_seeds(seeds)
    if (about := describe_model(str(model))) is not None:
        check_sampling(about, steps, guidance, sampler)
    where = pick_device(device)
    net = open_model(str(model), where, DTYPES[pick_precision(precision, where)])
    check_sampling(net, steps, guidance, sampler)
    jobs = [(text, seed) for text in texts for seed in seeds]
    images = draw(
        net, [j[0] for j in jobs], [j[1] for j in jobs], batch=batch, steps=steps, guidance=guidance, sampler=sampler
    )
    return (Picture(image, text, seed, net.source) for image, (text, seed) in zip(images, jobs, strict=True))


def evaluate(
    model: str | PathLike[str] | None = None, *, console: Console | None = None, **options: Any
) -> dict[str, Any] | None:
    """Score a model, or pictures made by anything, by a named protocol; returns what ``results.json`` holds.

    Args:
        model: run folder, diffusers folder, alias or hub id; None is the shipped student (or ``images=FOLDER``).
        console: where progress and warnings are printed.
        options: fields of ``sidlsg.evaluation.request.Request``: ``coco30k=True, reference="coco.npz"``.

    Under torchrun, the processes other than the first return None.
    """
    from sidlsg.evaluation.request import Request
    from sidlsg.evaluation.run import run

    return run(Request.of(model=None if model is None else str(model), **options), console)
