"""A path means the same in every option, preset and Python call, and a run finds its files again from anywhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from sidlsg import data
from sidlsg.data import in_cache
from sidlsg.errors import UsageError
from sidlsg.paths import check_output, full_path, user_path, writable
from sidlsg.runs.folder import RunFolder
from sidlsg.teachers.foreign import about_file
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.registry import locate
from sidlsg.teachers.student import save_student
from support.runs import ONE, TWO
from support.scoring import folder_of
from support.terminal import one_line


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path) -> Path:
    """A home folder with a model, a prompt file and a preset that names both by ``~``."""
    folder = tmp_path / "home"
    shutil.copytree(tiny_teacher, folder / "models" / "mine")
    (folder / "p.txt").write_text("a cat\na dog\n", encoding="utf-8")
    (folder / "mine.yaml").write_text("teacher: ~/models/mine\nprompts: ~/p.txt\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


def saved(run_folder: Path) -> dict[str, object]:
    return yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8"))


# -- what a path means -----------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_in_every_option_and_in_presets(run, home: Path, tmp_path: Path) -> None:
    ways = {
        "options": [*ONE, "--teacher", "~/models/mine", "--prompts", "~/p.txt"],
        "set": [*ONE, "--set", "teacher=~/models/mine", "--set", "prompts=~/p.txt"],
        "preset": ["--preset", "~/mine.yaml", *ONE[2:]],
    }
    for name, options in ways.items():
        code, out, err = run("distill", *options, "--set", "grid_prompts=~/p.txt", f"--out=~/runs/{name}")
        assert (code, err) == (0, ""), out
        found = saved(home / "runs" / name)
        assert found["teacher"] == str(home / "models" / "mine")
        assert found["prompts"] == found["grid_prompts"] == str(home / "p.txt")
        assert (home / "runs" / name / "student" / "unet").is_dir()
    code, out, err = run("sample", "--prompts", "~/p.txt", "--model", "~/runs/set", "--out=~/a.png", "--grid")
    assert (code, out, err) == (0, f"{home / 'a.png'}\n", "")
    assert run("presets", "copy", "cpu", "~/copied.yaml")[:2] == (0, f"{home / 'copied.yaml'}\n")
    assert not (tmp_path / "~").exists()


def test_a_run_goes_on_from_another_folder_and_by_another_spelling(
    run, home: Path, tmp_path: Path, monkeypatch
) -> None:
    options = [*ONE, "--out", tmp_path / "run"]
    monkeypatch.chdir(home)
    assert run("distill", *options, "--teacher", "models/mine", "--prompts", "p.txt")[0] == 0
    (tmp_path / "link").symlink_to(home / "models" / "mine")
    monkeypatch.chdir(home / "models")
    spellings = [
        "./mine",
        "mine/",
        "../models/mine",
        "~/models/mine",
        str(tmp_path / "link"),
        str(home / "models/mine"),
    ]
    for teacher in spellings:
        code, out, err = run("distill", *options, "--teacher", teacher, "--prompts", "./../p.txt")
        assert (code, err) == (0, ""), teacher
        assert "this run is complete" in out
    code, out, _ = run("distill", *options, "--teacher", "mine", "--prompts", "../p.txt", "--images", "16")
    assert code == 0
    assert "resuming at 8 images" in out
    moved = (home / "models" / "mine").rename(home / "moved")
    monkeypatch.chdir(moved)
    code, out, _ = run("distill", *options, "--teacher", moved, "--prompts", "~/p.txt", "--images", "24")
    assert code == 0
    said = f"note: {moved} has the content of {home / 'models' / 'mine'}, which this run was started with"
    assert said in out.splitlines()
    assert "resuming at 16 images" in out
    assert saved(tmp_path / "run")["teacher"] == str(moved)
    shutil.rmtree(tmp_path / "run" / "student")
    code, out, err = run("sample", "a cat", "--model", tmp_path / "run", "--out", tmp_path / "a.png")
    assert (code, err) == (0, "")


def test_the_default_run_folder_is_named_by_the_teachers_folder(run, home: Path, tmp_path: Path) -> None:
    long = home / "models" / ("κ" * 120)
    (home / "models" / "mine").rename(long)
    code, _, err = run("distill", *ONE, "--prompts", "~/p.txt", "--teacher", long)
    assert (code, err) == (0, "")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["κ" * 40 + "-cpu-lsg-2"]


@pytest.mark.parametrize("name", ["./x", "/no/x", "~/x", "../x", "x/", "C:\\models\\x", "C:/x", "models\\x", "a/b/c"])
def test_what_looks_local_is_never_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        locate(name)


def test_what_else_a_name_could_mean_is_said(run, home: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "sd15")
    (tmp_path / "mine").mkdir()
    code, out, err = run("distill", "--preset", "16gb", "--teacher", "sd15", "--dry-run")
    assert (code, err) == (0, "")
    assert "note: sd15 is the alias; the folder sd15 in this directory is ./sd15" in " ".join(out.split())
    code, out, _ = run("distill", *TWO, "--teacher", "./sd15", "--prompts", "~/p.txt", "--dry-run")
    assert code == 0
    assert "note:" not in out
    assert f"{tmp_path / 'sd15'}" in out.replace("\n", "")
    code, _, err = run("sample", "a cat", "--model", "sd15")
    assert code == 1
    assert err.splitlines()[0] == "note: sd15 is the alias; the folder sd15 in this directory is ./sd15"
    code, out, _ = run("distill", "--preset", "16gb", "--teacher", "mine/typo", "--dry-run")
    assert code == 0
    assert "no folder mine/typo here (though mine is one), so it is looked up on the Hugging Face hub" in " ".join(
        out.split()
    )
    # An alias is not a run folder of that name either.
    (tmp_path / "emoji-student").mkdir()
    (tmp_path / "emoji-student" / "config.yaml").write_text("seed: 1\n")
    code, out, err = run("sample", "red heart", "--out", "a.png")
    assert (code, out) == (0, "a.png\n")
    assert err == "note: emoji-student is the alias; the folder emoji-student in this directory is ./emoji-student\n"


def test_an_empty_path_is_refused(run, tmp_path: Path) -> None:
    """``--out "$OUT"`` with a variable that is not set must not be the working directory."""
    for command in (["distill", "--out", ""], ["sample", "a", "--out", ""], ["distill", "--teacher", ""]):
        code, _, err = run(*command, *(["--preset", "cpu"] if command[0] == "distill" else []))
        assert code == 2
        one_line(err, "a path is empty")
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


def test_paths(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_path("~/x") == home / "x"
    assert user_path("~no-such-user/x") == Path("~no-such-user/x")  # as a shell leaves it
    assert full_path(os.devnull) == os.devnull  # a pipe or a device is not followed
    assert full_path("not-there") == "not-there"
    monkeypatch.chdir(tmp_path)
    assert full_path("home/../home/p.txt") == str(home / "p.txt")
    assert writable(tmp_path / "a" / "b")
    assert not writable(home / "p.txt" / "b")
    assert not writable(home / "p.txt")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert not writable(tmp_path / "a")


def test_an_output_is_tried_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions that allow it prove nothing, for instance below /proc or on Windows."""
    check_output(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (
        tmp_path / "file",
        tmp_path / "file" / "b",
        *([Path("/proc/x")] if os.path.isdir("/proc/self") else []),
    ):
        with pytest.raises(UsageError, match=r"cannot write to .*; give another --out"):
            check_output(folder)


def test_a_home_that_cannot_be_written_to_has_its_cache_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDLSG_CACHE", raising=False)
    assert in_cache("x") == home / ".cache" / "sidlsg" / "x"
    monkeypatch.setenv("HOME", str(home / "p.txt"))
    monkeypatch.setenv("USERPROFILE", str(home / "p.txt"))
    assert in_cache("x").is_relative_to(tempfile.gettempdir())
    assert writable(in_cache("x"))
    monkeypatch.setenv("SIDLSG_CACHE", str(home / "elsewhere"))
    assert in_cache("x") == home / "elsewhere" / "x"


def test_what_is_in_a_cache_that_cannot_be_written_to_is_used(home: Path, read_only, temporary, monkeypatch) -> None:
    monkeypatch.setenv("SIDLSG_CACHE", "~/cache")
    (home / "cache" / "weights").mkdir(parents=True)
    (home / "cache" / "weights" / "there").write_text("")
    read_only(home / "cache")
    assert in_cache("weights/there") == home / "cache" / "weights" / "there"
    missing = in_cache("weights/missing")
    assert missing.is_relative_to(temporary)
    assert writable(missing.parent)
    assert in_cache("weights/missing") == missing  # of all processes of this user


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="every user has a folder for temporary files")
def test_a_temporary_folder_of_another_user_is_no_cache(home: Path, read_only, temporary: Path, monkeypatch) -> None:
    monkeypatch.setenv("SIDLSG_CACHE", str(home / "cache"))
    read_only(home)
    usual = in_cache("x").parent
    assert usual.parent == temporary
    usual.mkdir()
    data._temporary_cache.cache_clear()
    assert in_cache("x").parent == usual
    stranger = os.getuid() + 1
    theirs = usual.rename(usual.with_name(usual.name.replace(str(os.getuid()), str(stranger))))
    monkeypatch.setattr(os, "getuid", lambda: stranger)  # whose folder was made by another: us
    data._temporary_cache.cache_clear()
    found = in_cache("x").parent
    assert found.parent == temporary
    assert found != theirs
    assert found.stat().st_mode & 0o77 == 0


# -- an --out that cannot be ---------------------------------------------------------------------------------------------


@pytest.fixture
def short(home: Path) -> list[str | Path]:
    """A run of one iteration."""
    return ["distill", *ONE, "--teacher", home / "models" / "mine", "--prompts", home / "p.txt"]


def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("sidlsg.training.trainer.load_model", loaded)


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_loaded(
    run, short, tmp_path, read_only, monkeypatch
) -> None:
    nothing_loaded(monkeypatch)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "student").symlink_to(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "best").write_text("mine")
    for out, parts in (
        ("x" * 300, ["too long a name"]),
        ("κ" * 130, ["too long a name"]),  # 260 bytes
        ("other", ["other/student is a link", "another --out"]),
        ("taken", ["taken/best is a link or a file"]),
    ):
        code, _, err = run(*short, "--out", out)
        assert code == 2
        one_line(err, *parts)
    (tmp_path / "read-only").mkdir()
    read_only(tmp_path / "read-only")
    code, _, err = run(*short, "--out", "read-only/run")
    assert code == 2
    one_line(err, "cannot write to read-only/run", "another --out")


def test_results_that_could_not_be_written_are_not_computed(
    run, home: Path, tmp_path: Path, read_only, monkeypatch
) -> None:
    def computed(*arguments: object, **options: object) -> None:
        raise AssertionError("something was computed")

    scoring = ("evaluation.run.Scorer", "evaluation.run.open_model", "evaluation.hps.find_weights")
    benchmarks = ("benchmark.distillation.measure", "benchmark.sampling.measure_sampling")
    for name in (*scoring, *benchmarks, "api.sample", "benchmark.comparison.compare"):
        monkeypatch.setattr(f"sidlsg.{name}", computed)
    pictures = folder_of(tmp_path / "pictures", 2)
    (tmp_path / "closed").mkdir()
    read_only(tmp_path / "closed")
    for command, out in (
        (["eval", "--images", pictures, "--protocol", "embedded"], "closed/scores"),
        (["eval", "--limit", "2"], "closed/scores"),
        (["eval", "--hpsv2", "--images", pictures], "closed/scores"),
        (["eval", "stats", pictures, "--protocol", "embedded"], "closed/it.npz"),
        (["sample", "a cat"], "closed/pictures"),
        (["sample", "a cat"], "closed/it.png"),
        (["compare", "a cat"], "closed/it.png"),
        (["bench", "--device", "cpu"], "closed/bench"),
        (["bench", "sample", "--device", "cpu"], "closed/bench"),
    ):
        code, _, err = run(*command, "--out", out)
        assert code == 2, err
        one_line(err, "cannot write to closed", "another --out")
    code, _, err = run("eval", "--images", pictures, "--protocol", "embedded", "--out", "x" * 300)
    assert code == 2
    one_line(err, "too long a name")


def test_a_models_name_means_the_same_to_the_plan_of_an_evaluation(
    run, home: Path, tmp_path: Path, monkeypatch
) -> None:
    """A run folder also behind ~; an alias before a run folder of that name."""
    for folder in (home / "mine", tmp_path / "emoji-student"):
        folder.mkdir()
        (folder / "config.yaml").write_text("teacher: emoji\n")
    place = lambda model: " ".join(run("eval", "--dry-run", "--model", model)[1].split())  # noqa: E731
    assert "(a run folder)" in place("~/mine")
    assert "(a run folder)" in place("./emoji-student")
    assert "(in the package)" in place("emoji-student")


def test_a_folder_that_holds_hidden_files_only_is_empty(run, short, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".DS_Store").write_text("")
    assert run(*short, "--out", "run")[0] == 0


# -- a student that is not whole -------------------------------------------------------------------------------------------


def remove(*names: str) -> Callable[[Path], None]:
    def change(student: Path) -> None:
        for name in names:
            path = student / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def empty(student: Path) -> None:
    shutil.rmtree(student)
    student.mkdir()


@pytest.mark.parametrize(
    ("damage", "lacks"),
    [
        (empty, "sidlsg.json"),
        (remove("model_index.json"), "model_index.json"),
        (remove("vae"), "vae/"),
        (remove("unet/diffusion_pytorch_model.safetensors"), "unet/"),
        (remove("scheduler"), "scheduler/"),
    ],
)
def test_a_student_that_is_not_whole_is_said_and_written_anew(
    run, finished_run, tmp_path: Path, damage, lacks: str
) -> None:
    student = tmp_path / "run" / "student"
    whole = {p.relative_to(student): p.read_bytes() for p in student.rglob("*") if p.is_file()}
    damage(student)
    code, _, err = run("sample", "a cat", "--model", "run")
    assert code == 2
    one_line(err, "run/student is not whole", f"no {lacks}", "sidlsg distill")
    code, out, err = run(*finished_run)
    assert (code, err) == (0, "")
    assert "resuming at 16 images" in out
    assert "complete" not in out
    assert {p.relative_to(student): p.read_bytes() for p in student.rglob("*") if p.is_file()} == whole


def test_a_link_for_a_student_is_never_written_through(run, finished_run, tmp_path: Path) -> None:
    """A finished run whose student was moved to another disk is complete; going on with it is refused."""
    (tmp_path / "run" / "student").rename(tmp_path / "moved")
    (tmp_path / "run" / "student").symlink_to(tmp_path / "moved")
    code, _, err = run(*finished_run, "--images", "24")
    assert code == 2
    one_line(err, "run/student is a link")
    assert (tmp_path / "moved" / "sidlsg.json").is_file()


def test_a_link_that_appears_while_a_run_goes_on_is_replaced(tiny_teacher: Path, tmp_path: Path) -> None:
    """Also one that leads nowhere: a week's student must not be lost to it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    model = load_model(str(tiny_teacher), torch.device("cpu"))
    for target in (tmp_path / "mine", tmp_path / "nowhere"):
        student = tmp_path / f"student-{target.name}"
        student.symlink_to(target)
        save_student(student, model, model.network, 625, {"images_seen": 8})
        assert not student.is_symlink()
        assert (student / "sidlsg.json").is_file()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "student-mine", "student-nowhere"}


@pytest.mark.parametrize("left", ["metrics.jsonl", "samples", "student"])
def test_checkpoints_that_were_deleted_are_said_by_whatever_is_left(
    run, finished_run, tmp_path: Path, left: str
) -> None:
    for path in (tmp_path / "run").iterdir():
        if path.name not in (left, "config.yaml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, out, err = run(*finished_run, "--images", "8")
    assert (code, err) == (0, "")
    assert "the run that was here before starts again from 0 images" in " ".join(out.split())
    assert RunFolder(tmp_path / "run").student.is_dir()


# -- what other tools leave ------------------------------------------------------------------------------------------------


def test_a_file_for_a_teacher_is_refused_with_what_to_do(run, short, tmp_path: Path) -> None:
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "sd.safetensors")
    save_file({"conditioner.embedders.0.x": torch.zeros(1)}, tmp_path / "xl.safetensors")
    save_file({"unet.down.lora_A.weight": torch.zeros(1)}, tmp_path / "style.safetensors")
    for name in ("old.ckpt", "q.gguf", "notes.txt"):
        (tmp_path / name).write_bytes(b"\x00")
    for name, parts in {
        "sd.safetensors": ["StableDiffusionPipeline.from_single_file", 'save_pretrained("sd")'],
        "xl.safetensors": ["StableDiffusionXLPipeline.from_single_file"],
        "style.safetensors": ["a LoRA", "fuse_lora"],
        "old.ckpt": ["single file", "from_single_file"],
        "q.gguf": ["GGUF", "quantised"],
        "notes.txt": ["notes.txt is a file"],
    }.items():
        for command in ([*short, "--teacher", name], ["sample", "a", "--model", name], ["eval", "--model", name]):
            code, _, err = run(*command)
            assert code == 2
            one_line(err, *parts)


def test_a_folder_that_is_no_pipeline_is_named_for_what_it_is(
    run, short, finished_run, tmp_path: Path, tiny_teacher: Path
) -> None:
    for name, files in {
        "lora": ["pytorch_lora_weights.safetensors"],
        "peft": ["adapter_config.json", "adapter_model.safetensors"],
        "webui": ["v1-5.ckpt"],
        "control": ["config.json", "diffusion_pytorch_model.safetensors"],
        "empty": [],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"")
    (tmp_path / "above").mkdir()
    shutil.copytree(tiny_teacher, tmp_path / "above" / "model")
    for name, parts in {
        "lora": ["a LoRA", "fuse_lora"],
        "peft": ["a LoRA"],
        "webui": ["no model_index.json", "v1-5.ckpt is a single file"],
        "control": ["one network", "ControlNet"],
        "empty": ["no model_index.json"],
        "above/model/unet": ["one part of a model", "above/model"],
        "above": ["give", "above/model"],
        "run": ["a run of sidlsg", "no teacher"],
    }.items():
        code, _, err = run(*short, "--teacher", name, "--out", "another")
        assert code == 2, err
        one_line(err, *parts)


def test_a_damaged_file_for_a_teacher_is_still_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    assert "from_single_file" in about_file(tmp_path / "cut.safetensors")
