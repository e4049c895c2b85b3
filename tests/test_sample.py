"""Pictures of a one-step student: the same however they are made, never lost, and the ones stock diffusers makes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sidlsg
from sidlsg.errors import UsageError
from sidlsg.runs.folder import RunFolder
from sidlsg.runs.opening import student_of_checkpoint
from sidlsg.sampling import grid
from sidlsg.sampling.draw import check_sampling, many_step_scheduler, one_step
from sidlsg.sampling.pictures import slug
from sidlsg.sampling.samplers import SAMPLERS
from sidlsg.teachers.loading import load_model
from support.terminal import one_line, run_command
from support.tiny import SD_BETAS, change_json

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_folder(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 16 images, made by the command."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    prompts = out.with_name("prompts.txt")
    prompts.write_text("".join(f"prompt {i}\n" for i in range(10)), encoding="utf-8")
    preset = out.with_name("preset.yaml")
    # A long memory, so that the average and the last weights differ.
    preset.write_text(
        "images: 16\nbatch: 8\nmicro_batch: 8\nlr: 1e-2\nema_half_life: 100\nema_ramp_up: null\ngrid_images: 1\ndevice: cpu\n"
    )
    run_command("distill", "--preset", preset, "--teacher", tiny_teacher, "--prompts", prompts, "--out", out)
    return out


@pytest.fixture
def sample(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """``sample(*arguments)`` -> the PNG files printed, in order; into ``tmp_path`` unless told otherwise."""

    def call(*arguments: str | Path) -> list[Path]:
        out = [] if "--out" in arguments else ["--out", tmp_path]
        model = [] if "--model" in arguments else ["--model", run_folder]
        run_command("sample", "--device", "cpu", *model, *out, *arguments)
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    return call


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_picture_depends_on_prompt_and_seed_and_not_on_the_batch(sample) -> None:
    arguments = ["a cat", "a dog", "--seeds", "3,0-2"]
    alone = [pixels(p) for p in sample(*arguments, "--batch", "1")]
    assert len(alone) == 8
    for batch in ("3", "8"):
        together = [pixels(p) for p in sample(*arguments, "--batch", batch)]
        # Float sums may take another order in another batch shape: one grey level.
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(alone, together, strict=True))
    (again,) = sample("a dog", "--seed", "1")
    assert np.abs(pixels(again) - alone[4 + 2]).max() <= 1
    assert len({picture.tobytes() for picture in alone}) == 8


def test_files_are_named_by_prompt_and_seed_and_say_what_they_are(sample, run_folder: Path) -> None:
    (path,) = sample("A  cat, (very) sad: 悲しい猫!", "--seed", "12")
    assert path.name == "a-cat-very-sad-悲しい猫-12.png"
    picture = Image.open(path)
    assert picture.size == (8, 8)
    facts = {"prompt": "A  cat, (very) sad: 悲しい猫!", "seed": "12", "model": str(run_folder / "student")}
    assert picture.text == facts


@given(st.text() | st.sampled_from(["CON", "nul.", "a:b?*|<>", "..", "𠀀" * 200, "a" * 300, "é" * 59 + "𠀀" * 70]))
@settings(max_examples=50, deadline=None)
def test_every_prompt_gives_a_name_that_every_system_takes(prompt: str) -> None:
    name = f"grid-{slug(prompt)}-{2**63 - 1}-999999.png.part"
    assert len(name.encode()) <= 255
    assert not set(name.removesuffix(".png.part")) & set('.<>:"/\\|?* \n\0')


def test_prompts_with_the_same_beginning_keep_their_pictures(sample) -> None:
    paths = sample("𠀀" * 100 + " cat", "𠀀" * 100 + " dog")
    assert [Image.open(path).text["prompt"][-3:] for path in paths] == ["cat", "dog"]


def test_a_prompt_that_is_not_unicode_is_refused(run) -> None:
    code, _, err = run("sample", "caf\udce9", "--device", "cpu")
    assert code == 2
    one_line(err, r"'caf\udce9' is not valid Unicode", "UTF-8")


def test_existing_pictures_are_never_overwritten(sample, tmp_path: Path) -> None:
    first, second = sample("a cat"), sample("a cat")
    assert [p.name for p in first + second] == ["a-cat-0.png", "a-cat-0-2.png"]
    (tmp_path / "a-cat-0.png").write_text("precious")
    assert [p.name for p in sample("a cat")] == ["a-cat-0-3.png"]
    assert (tmp_path / "a-cat-0.png").read_text() == "precious"
    grids = sample("a cat", "--grid") + sample("a cat", "--grid")
    assert [p.name for p in grids] == ["grid-a-cat.png", "grid-a-cat-2.png"]
    # Prompts with the same file name get a file each.
    assert len(set(sample("!", "?", "--seeds", "5"))) == 2
    assert not list(tmp_path.glob("*.part"))


def test_a_prompt_file_and_several_seeds_give_every_pair(sample, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("two\nthree\n")
    paths = sample(
        "one", "--prompts", tmp_path / "list.txt", "-n", "2", "--seed", "7", "--out", tmp_path / "new" / "dir"
    )
    names = [f"{word}-{seed}.png" for word in ("one", "two", "three") for seed in (7, 8)]
    assert [p.name for p in paths] == names
    assert all(p.parent == tmp_path / "new" / "dir" and p.is_file() for p in paths)


@pytest.mark.parametrize(("options", "columns"), [([], 3), (["--columns", "5"], 5), (["--columns", "2"], 2)])
def test_a_grid_holds_the_pictures_in_order(sample, tmp_path: Path, monkeypatch, options, columns: int) -> None:
    sheets: list[tuple] = []
    real = grid.labelled_grid
    monkeypatch.setattr(grid, "labelled_grid", lambda *given: (sheets.append(given), real(*given))[1])
    arguments = ["a cat", "--seeds", "0-4"]
    (path,) = sample(*arguments, "--grid", "--out", tmp_path / "grid.png", *options)
    assert path == tmp_path / "grid.png"
    (([block], heads, note, given),) = sheets
    (row,) = block.rows
    assert (row.name, list(heads), given) == ("a cat", [f"seed {i}" for i in range(5)], columns)
    assert row.details == (["seeds 0 to 4"] if columns < 5 else [])
    assert note.endswith("student, 1 step")
    for found, single in zip(row.pictures, sample(*arguments), strict=True):
        assert np.abs(np.asarray(found).astype(int) - pixels(single)).max() <= 1
    assert Image.open(path).text["seed"] == "0,1,2,3,4"


def test_stock_diffusers_makes_the_same_picture_without_special_arguments(run_folder: Path) -> None:
    model = load_model(str(run_folder / "student"), CPU)
    pipeline = StableDiffusionPipeline.from_pretrained(run_folder / "student")
    pipeline.set_progress_bar_config(disable=True)
    for prompt, seed in (("a cat", 0), ("", 5), ("prompt 3", 2**40)):
        ours = one_step(model, [prompt], [seed], model.student["t_init"])[0].permute(1, 2, 0).numpy()
        theirs = pipeline(
            prompt,
            num_inference_steps=1,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        assert np.abs(ours - theirs).max() < 1e-3
        assert ours.std() > 0.01  # a picture, not a constant


def test_the_student_is_not_its_teacher(run_folder: Path, tiny_teacher: Path) -> None:
    student, teacher = (load_model(str(f), CPU) for f in (run_folder / "student", tiny_teacher))
    made = [one_step(m, ["a cat"], [0], 625) for m in (student, teacher)]
    assert (made[0] - made[1]).abs().max() > 1e-4
    assert (student.student["t_init"], student.student["images_seen"], teacher.student) == (625, 16, None)


def test_an_unfinished_run_can_be_sampled_and_gives_the_students_picture(sample, run_folder: Path, tmp_path: Path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run_folder, unfinished, ignore=shutil.ignore_patterns("student"))
    (path,) = sample("a cat", "--model", unfinished)
    assert Image.open(path).text["model"] == f"{unfinished} at 16 images"
    (finished,) = sample("a cat")
    assert np.abs(pixels(path) - pixels(finished)).max() <= 2  # the student is kept in half precision
    model = student_of_checkpoint(RunFolder(unfinished), CPU, torch.float32)
    assert (model.student["t_init"], model.student["images_seen"]) == (625, 16)
    student = load_model(str(run_folder / "student"), CPU).network.state_dict()  # the average
    assert all((student[name] - p).abs().max() < 5e-4 for name, p in model.network.state_dict().items())


def test_a_teacher_is_sampled_in_many_steps_with_guidance(sample, tiny_teacher: Path) -> None:
    teacher = ["--model", tiny_teacher]
    (one,), (two,) = (
        sample("a cat", *teacher, "--steps", "2"),
        sample("a cat", *teacher, "--steps", "2", "--batch", "1"),
    )
    assert np.abs(pixels(one) - pixels(two)).max() <= 1
    changed = [
        sample("a cat", *teacher, "--steps", "3")[0],
        sample("a cat", *teacher, "--steps", "2", "--guidance", "9")[0],
        sample("a cat", *teacher, "--steps", "2", "--seed", "1")[0],
    ]
    assert all(np.abs(pixels(one) - pixels(path)).max() > 0 for path in changed)


def test_a_student_of_several_steps_is_not_drawn_in_one(run, run_folder: Path, tmp_path: Path) -> None:
    """The note says how a student is sampled, and is asked before a picture is drawn."""
    folder = shutil.copytree(run_folder / "student", tmp_path / "student")
    change_json(folder / "sidlsg.json", timesteps=[625, 312])
    code, _, err = run("sample", "a cat", "--model", folder, "--device", "cpu")
    assert code == 2
    one_line(err, "several steps")


def test_a_scale_below_1_is_not_drawn_as_1(run, tiny_teacher: Path) -> None:
    """diffusers' pipelines guide only above 1."""
    for command, guidance in ((["sample", "a cat"], "0.5"), (["eval", "--only", "clip"], "0")):
        code, _, err = run(*command, "--model", tiny_teacher, "--guidance", guidance, "--device", "cpu")
        assert code == 2
        one_line(err, f"guidance is {guidance}", "1 or more")


def test_student_folder_names_no_path_of_this_machine(run_folder: Path) -> None:
    texts = {
        path: path.read_text(encoding="utf-8")
        for path in (run_folder / "student").rglob("*.json")
        if path.name != "sidlsg.json"
    }
    assert len(texts) >= 5
    assert [path for path, text in texts.items() if str(Path.home()) in text or "_name_or_path" in text] == []


SPACINGS = ["leading", "trailing", "linspace"]


def taken(sampler: str, spacing: str, counts: Iterable[int]) -> set[int]:
    """Those of some numbers of steps that are not refused, each of which is taken and must end in finite latents."""
    settings = {**SD_BETAS, "steps_offset": 1, "set_alpha_to_one": False, "timestep_spacing": spacing}
    model = SimpleNamespace(
        student=None, schedule=range(1000), scheduler_config=settings | {"_class_name": "DDIMScheduler"}
    )
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    found = set()
    for steps in counts:
        try:
            check_sampling(model, steps, None, sampler)
        except UsageError:
            continue
        found.add(steps)
        kind, x = many_step_scheduler(model, steps, sampler), noise
        for t in kind.timesteps:
            x = kind.step(0.1 * kind.scale_model_input(x, t), t, x).prev_sample
        assert x.isfinite().all(), steps
    return found


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_refused_or_can_be_taken(sampler: str, spacing: str) -> None:
    found = taken(sampler, spacing, (1, 2, 3, 4, 25, 500, 1000, 1001))
    assert 1001 not in found
    assert {4, 25, 500} <= found
    assert found >= ({1, 2} if sampler != "pndm" else set())
    assert sampler != "pndm" or 2 not in found
    assert spacing != "leading" or 1000 not in found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_many_steps_are_refused_or_can_be_taken(sampler: str, spacing: str) -> None:
    assert 499 in taken(sampler, spacing, (499, 998, 999))


def test_more_steps_than_a_sampler_can_take_are_refused(run, tiny_teacher: Path) -> None:
    options = ["--model", tiny_teacher, "--device", "cpu", "--steps", "1000", "--sampler", "unipc"]
    code, _, err = run("sample", "a cat", *options)
    assert code == 2
    one_line(err, "cannot draw in 1000 steps", "another --steps")


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_torch_would_change_are_refused(tiny_teacher: Path, seed: int) -> None:
    with pytest.raises(UsageError, match=f"the seed {seed} is not in"):
        sidlsg.sample("a", model=tiny_teacher, seeds=[0, seed], steps=1, device="cpu")
