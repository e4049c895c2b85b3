"""The embedded models: what is shipped is what the README says, and stock diffusers runs it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from typer.testing import CliRunner

from sidlsg.cli import app
from sidlsg.data import ASSETS
from sidlsg.prompts import PromptFile
from sidlsg.sampling.draw import one_step
from sidlsg.settings import make_config
from sidlsg.teachers.loading import Model, load_model

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def student() -> Model:
    return load_model("emoji-student", CPU)


def test_stock_diffusers_draws_the_same_picture(student: Model) -> None:
    """The README's four lines, against our own sampler: no scheduler argument, no dtype argument."""
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "emoji-student")
    pipeline.set_progress_bar_config(disable=True)
    for seed, prompt in enumerate(["red heart", "grinning face, noto style", ""]):
        theirs = pipeline(
            prompt,
            num_inference_steps=1,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        ours = one_step(student, [prompt], [seed], student.student["t_init"])[0].permute(1, 2, 0).numpy()
        assert np.abs(ours - theirs).max() < 1e-3
        assert ours.std() > 0.05  # not a blank page


def test_teacher_loads_unchanged_and_is_an_sd_model() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "emoji")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.float32
    config = pipeline.scheduler.config
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert (config.prediction_type, config.clip_sample) == ("epsilon", False)
    image = pipeline("red heart", num_inference_steps=8, guidance_scale=3.0, output_type="np").images[0]
    assert image.shape == (64, 64, 3)


def test_red_heart_is_red_and_the_style_of_the_page_is_white(student: Model) -> None:
    """What anybody can check by looking, in numbers: over eight seeds, the middle is red and the corners are white."""
    images = one_step(student, ["red heart"] * 8, list(range(8)), student.student["t_init"]).mean(0)
    red, green, blue = images[:, 28:36, 28:36].mean(dim=(1, 2)).tolist()
    assert red > 0.6
    assert red - green > 0.3
    assert red - blue > 0.3
    assert images[:, :3, :3].mean() > 0.9


def test_different_prompts_and_seeds_give_different_pictures(student: Model) -> None:
    prompts = list(PromptFile(ASSETS / "emoji-grid.txt"))
    by_prompt = one_step(student, prompts, [0] * len(prompts), student.student["t_init"]).flatten(1)
    distances = torch.pdist(by_prompt)
    assert distances.min() > 1.0
    by_seed = one_step(student, ["guitar"] * 8, list(range(8)), student.student["t_init"]).flatten(1)
    assert torch.pdist(by_seed).max() > 1.0


def test_shipped_student_is_what_cpu_long_makes(student: Model) -> None:
    config = make_config("cpu-long", {})
    assert student.student is not None
    assert student.student["teacher"] == config.teacher == "emoji"
    assert student.student["images_seen"] == config.images
    assert student.student["kappa"] == list(config.guidance)
    assert student.student["t_init"] == config.t_init
    assert student.student["prompts_sha256"] == PromptFile(ASSETS / "emoji-prompts.txt").sha256
    teacher = load_model("emoji", CPU)
    for part in ("vae", "text_encoder"):
        for p, q in zip(teacher.parts[part].parameters(), student.parts[part].parameters(), strict=True):
            assert torch.equal(p, q)


def test_weights_are_half_and_small() -> None:
    files = sorted(ASSETS.rglob("*.safetensors"))
    assert len(files) == 7  # unet, text encoder and VAE of teacher and student; the judge
    for path in files:
        with safe_open(path, framework="pt") as weights:
            types = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        assert types - {"I64"} == {"F16"}  # the judge counts its batches in I64
    assert sum(p.stat().st_size for p in (ASSETS / "emoji").rglob("*") if p.is_file()) <= 17e6
    assert sum(p.stat().st_size for p in files) <= 40e6


def test_grid_prompts_are_training_prompts() -> None:
    assert set(PromptFile(ASSETS / "emoji-grid.txt")) <= set(PromptFile(ASSETS / "emoji-prompts.txt"))


def test_readme_commands_are_accepted() -> None:
    """Every `sidlsg distill` line of the README plans without error; every `sample` line names options that exist."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [line.partition("#")[0] for block in blocks for line in block.splitlines() if "sidlsg" in line]
    calls = [re.search(r"sidlsg (distill|sample)\b.*", command) for command in commands]
    words = [shlex.split(call[0])[1:] for call in calls if call]
    assert len(words) >= 6
    for arguments in words:
        extra = ["--dry-run"] if arguments[0] == "distill" else ["--help"]
        result = CliRunner().invoke(app, [*arguments, *extra])
        assert result.exit_code == 0, (arguments, result.output)
