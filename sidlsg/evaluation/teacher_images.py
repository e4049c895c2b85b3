"""A reference that needs no real pictures: images that a run's teacher draws of the run's prompts, once, kept in the cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from sidlsg import distributed
from sidlsg.config import Config
from sidlsg.data import in_cache
from sidlsg.devices import DTYPES
from sidlsg.distributed import Processes
from sidlsg.errors import UsageError
from sidlsg.evaluation.generation import Job, draw_missing, identity, settings_of
from sidlsg.evaluation.pictures import Folder
from sidlsg.evaluation.progress import Bars
from sidlsg.evaluation.protocol import RUN
from sidlsg.method.draws import PromptOrder
from sidlsg.prompts import PromptFile
from sidlsg.runs.folder import run_folder
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.prompt_lists import prompt_path

# Of the first image. A student's images have the seeds 0, 1, ...: no image of the two shares its noise.
FIRST_SEED = 2**32
NOISE = "torch CPU generator, seed = 2^32 + number"
# How the teacher draws: its own scheduler, with the defaults of `sidlsg sample`.
OPTIONS = {"steps": None, "guidance": None, "sampler": None}


def chosen_prompts(prompts: PromptFile, count: int) -> list[str]:
    """``count`` prompts of a list, mixed; the first ones are the same for every ``count``. A shorter list begins again."""
    return [prompts[i] for i in PromptOrder(len(prompts), seed=0)(0, count)]


def run_config(model: str) -> Config:
    """The settings of the run that ``--model`` names; raises UsageError when it names no run."""
    folder = run_folder(model)
    if folder is None:
        raise UsageError(
            f"{model} is no run: the protocol teacher compares the student of a run with its teacher; give --model RUN"
        )
    return folder.load_config()


def run_prompts(config: Config, download: bool = True) -> PromptFile | None:
    """The prompt list of a run; None when it would have to be downloaded and ``download`` is false."""
    path, missing = prompt_path(config.prompts, download)
    return None if missing else PromptFile(path, column=config.caption_column)


def draw_teacher(
    config: Config, prompts: PromptFile, count: int, device: torch.device, processes: Processes, batch: int, bars: Bars
) -> Folder:
    """Images that ``config.teacher`` draws of ``chosen_prompts``, image i with the seed 2^32 + i.

    The processes share the drawing. What was drawn before by the same teacher (its weights, schedule and sampler), in the same
    precision, of the same prompts, is in the cache and is not drawn again: 10,000 images use 1,000 that are there.

    Returns the folder of images. Raises UsageError when not every process sees the cache, or what is no teacher; SidlsgError as
    ``draw_missing`` does.
    """
    model = load_model(config.teacher, device, DTYPES[config.precision], teacher=True)
    settings = settings_of(model, OPTIONS, config.precision, RUN, prompts.sha256, count, noise=NOISE)
    key = hashlib.sha256(json.dumps(identity(settings), sort_keys=True).encode()).hexdigest()[:20]
    folder = shared_folder(in_cache(f"teachers/{key}"), processes)
    jobs = [Job(Path(f"{i:06d}.png"), text, FIRST_SEED + i) for i, text in enumerate(chosen_prompts(prompts, count))]
    bars.stage(f"{count:,} images of the teacher, in {folder}")
    draw_missing(model, jobs, folder, settings, processes, options=OPTIONS, batch=batch, bar=bars)
    images = folder / "images"
    return Folder(images, tuple(images / job.path for job in jobs), tuple(range(count)))


def shared_folder(folder: Path, processes: Processes) -> Path:
    """Make a folder, where the main process has it; raises UsageError, on every process, when another one does not see it."""
    folder = distributed.gather(folder)[0]
    if processes.main:
        folder.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    if not all(distributed.gather(folder.is_dir())):
        raise UsageError(
            f"not every process sees the cache folder {folder}; set SIDLSG_CACHE to a folder on a disk that all of them share"
        )
    return folder
