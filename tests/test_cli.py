"""The command as a user meets it: what it prints, what it exits with, and one clear line for every mistake."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from support.terminal import one_line

from sidlsg import cli
from sidlsg.data import in_cache
from sidlsg.runs.folder import RunFolder
from sidlsg.settings import preset_path


@pytest.fixture
def short(tiny_teacher: Path, prompt_file: Path, tmp_path: Path) -> list[str | Path]:
    """A distillation that would take a second."""
    sizes = ["--images", "8", "--batch", "8", "--micro-batch", "4", "--set", "grid_images=1", "--device", "cpu"]
    out = tmp_path / "run"
    return ["distill", "--preset", "cpu", "--teacher", tiny_teacher, "--prompts", prompt_file, "--out", out, *sizes]


# -- mistakes in the command of `distill` (exit code 2) --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--prompts", "none.txt"], ["none.txt does not exist", "one prompt a line"]),
        (["--prompts", "empty.txt"], ["empty.txt holds no prompts", "one prompt a line"]),
        (["--prompts", "latin1.txt"], ["latin1.txt, line 2", "UTF-8", "iconv"]),
        (["--prompts", "."], ["is a folder"]),
        (["--prompts", "aesthetic"], ['did you mean "aesthetics6plus"']),
        (["--teacher", "sd51"], ['unknown model "sd51"', 'did you mean "sd15"']),
        (["--teacher", "/no/folder"], ["/no/folder is not a folder", "hub id"]),
        (["--teacher", "plain"], ["model_index.json"]),
        (["--teacher", "other"], ["FluxPipeline", "StableDiffusionPipeline"]),
        (["--preset", "h100-fp61"], ['unknown preset "h100-fp61"', 'did you mean "h100-fp16"']),
        (["--preset", "none.yaml"], ["none.yaml does not exist"]),
        (["--preset", "typo.yaml"], ["typo.yaml, line 3", 'unknown key "micro_bacth"', 'did you mean "micro_batch"']),
        (["--preset", "late.yaml"], ["t_max is 1000", "0 to 999"]),
        (["--preset", "early.yaml"], ["t_min is 700", "at most t_max"]),
        (["--preset", "control.yaml"], ["control.yaml", "not valid YAML"]),
        (["--strategy", "longer"], ['unknown strategy "longer"', 'did you mean "long"']),
        (["--kappa", "-1"], ["kappa", "-1", "finite number >= 0"]),
        (["--kappa", "nan"], ["kappa", "nan", "finite number >= 0"]),
        (["--kappa", "x"], ['kappa is "x"', "1.5"]),
        (["--kappa", "1,2,3"], ["kappa", "one number or four", "3"]),
        (["--batch", "9"], ["batch 9 does not divide", "--batch 8 or 12", "--micro-batch"]),
        (["--batch", "many"], ['batch is "many"', "10M"]),
        (["--images", "1.5"], ['images is "1.5"', "whole number"]),
        (["--lr", "0"], ["lr is 0", "> 0"]),
        (["--precision", "fp61"], ['precision is "fp61"', 'did you mean "fp16"']),
        (["--device", "toaster"], ['"toaster"', "cpu"]),
        (["--out", "plain"], ["plain is not empty", "another --out"]),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_a_mistake_in_distill_is_one_line_and_code_2(run, short, tmp_path: Path, options, parts) -> None:
    (tmp_path / "empty.txt").write_bytes(b"\n \n")
    (tmp_path / "latin1.txt").write_bytes(b"fine\ncaf\xe9\n")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "notes.txt").write_text("no model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "typo.yaml").write_text("# mine\nlr: 1e-5\nmicro_bacth: 4\n")
    (tmp_path / "late.yaml").write_text("t_max: 1000\n")
    (tmp_path / "early.yaml").write_text("t_min: 700\nt_max: 600\n")
    (tmp_path / "control.yaml").write_bytes(b"lr: 1\x00\n")
    code, _, err = run(*short, *options)
    one_line(err, *parts)
    assert code == 2
    assert not (tmp_path / "run" / "checkpoints" / "000000000008").exists()


def test_another_teacher_needs_a_preset(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run("distill", "--teacher", "sd15", "--dry-run")
    assert code == 2
    one_line(err, "--preset", "sidlsg presets list")


def test_another_teacher_gets_the_preset_of_this_gpu(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    card = SimpleNamespace(name="NVIDIA GeForce RTX 4090", total_memory=int(23.5 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    code, out, _ = run("distill", "--teacher", "sd15", "--dry-run", "--show-config")
    assert code == 0
    assert "preset 24gb, unchanged" in " ".join(out.split())
    assert "gradient_checkpointing true" in " ".join(out.split())


def test_a_finished_run_is_not_trained_again_nor_with_another_learning_rate(run, short, tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.yaml"
    assert run(*short)[0] == 0
    before = config.read_bytes()
    code, _, err = run(*short, "--lr", "5e-5")
    one_line(err, "lr (0.0006 there, 5e-05 here)", "another --out")
    assert code == 2
    assert config.read_bytes() == before
    code, out, err = run(*short)
    assert (code, err) == (0, "")
    assert "this run is complete" in out


@pytest.mark.parametrize("arguments", [["distill", "--bathc", "8"], ["distil"], ["distill", "--micro-batch", "x"]])
def test_an_unknown_option_or_command_is_code_2(run, arguments) -> None:
    assert run(*arguments)[0] == 2


# -- failures that are not the command's fault (exit code 1) ---------------------------------------------------------------


def test_scores_by_emoji_are_said_to_say_little_about_another_teacher(run, short) -> None:
    said = "says little about sd15. Give eval_protocol: gigagan and an eval_reference"
    for options, expected in (
        (["--teacher", "sd15", "--eval-every", "8"], True),
        (["--teacher", "sd15", "--eval-every", "8", "--set", "eval_protocol=gigagan"], False),
        (["--teacher", "sd15"], False),
        (["--teacher", "emoji", "--eval-every", "8"], False),
    ):
        code, out, err = run(*short, *options, "--dry-run")
        assert code == 0, err
        assert (said in " ".join(out.split())) == expected


def test_a_hub_model_without_network_says_what_to_do(run, short) -> None:
    code, _, err = run(*short, "--teacher", "sd15", "--out", "new")
    one_line(err, "sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", "Without a network", "give its path")
    assert code == 1


@pytest.mark.parametrize("out", ["file/run", "file"])
def test_a_run_folder_that_cannot_be_written_is_named(run, short, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = run(*short, "--out", out)
    one_line(err, f"cannot write to {out}", "another --out")
    assert code == 2
    assert (tmp_path / "file").read_text() == "in the way"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def corrupt(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("damage", [cut, corrupt, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_damaged_model_file_is_named(run, tiny_teacher: Path, tmp_path: Path, part: str, damage) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "copy")
    (weights,) = (tmp_path / "copy" / part).glob("*.safetensors")
    damage(weights)
    code, _, err = run("sample", "a cat", "--model", "copy", "--device", "cpu")
    one_line(err, f"copy/{part}", "copy it again")
    assert code == 1


def test_debug_adds_the_traceback(run) -> None:
    for arguments in (["--debug", "sample"], ["sample", "--debug"]):
        code, _, err = run(*arguments)
        assert code == 2
        assert err.startswith("Traceback (most recent call last)")
        assert err.splitlines()[-1].startswith("sidlsg: nothing to draw")


def test_an_unforeseen_error_asks_for_a_report_in_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr("sidlsg.training.launch.make_config", broken)
    code, _, err = run("distill", "--dry-run")
    assert (code, err) == (
        1,
        "sidlsg: unexpected ZeroDivisionError: first line. Run again with --debug and report what it prints\n",
    )


def test_ctrl_c_outside_the_loop_is_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sidlsg.training.launch.make_config", interrupted)
    code, _, err = run("distill", "--dry-run")
    one_line(err, "interrupted", "goes on from the last checkpoint")
    assert code == 130


@pytest.mark.parametrize("command", [["distill"], ["sample", "a cat"]])
def test_ctrl_c_while_a_model_is_loaded_or_downloaded_is_one_line(run, short, monkeypatch, command) -> None:
    """What a library in between raises and catches does not matter: Ctrl-C is no failed download."""

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.snapshot_download", interrupted)
    teacher = ["--teacher", "some/model"] if command == ["distill"] else ["--model", "some/model"]
    code, _, err = run(*(short if command == ["distill"] else command), *teacher)
    assert code == 130
    one_line(err, "interrupted")


def test_an_error_of_the_operating_system_is_no_defect_of_ours(run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, said in (
        (OSError(5, "Input/output error"), "the system says: Input/output error"),
        (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied"),
    ):

        def broken(*arguments: object, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr("sidlsg.training.launch.make_config", broken)
        code, _, err = run("distill", "--dry-run")
        assert (code, err) == (1, f"sidlsg: {said}\n")


# -- `sample` --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["nothing to draw", "--prompts"]),
        (["--prompts", "none.txt"], ["none.txt does not exist"]),
        (["a", "--seeds", "5-1"], ['seeds are "5-1"', "0-63"]),
        (["a", "--seeds", "0-999999999999"], ["seeds", "more than"]),
        (["a", "b", "--out", "one.png"], ["one.png names one file", "2 pictures", "--grid"]),
        (["a", "-n", "3", "--out", "one.PNG"], ["3 pictures"]),
        (["a", "--out", "one.jpg"], ["one.jpg", ".png"]),
        (["a", "--model", "emoji-studnet"], ['did you mean "emoji-student"']),
        (["a", "--precision", "fp61"], ['precision is "fp61"', "fp16"]),
        (["a", "--device", "toaster"], ['"toaster"', "cpu"]),
    ],
)
def test_a_mistake_in_sample_is_one_line_and_code_2(run, tmp_path: Path, arguments, parts) -> None:
    code, out, err = run("sample", *arguments)
    one_line(err, *parts)
    assert (code, out) == (2, "")
    assert not list(tmp_path.rglob("*.png"))


def test_pictures_that_cannot_be_written_are_not_drawn(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = run("sample", "a", "--out", "file/pictures")
    one_line(err, "cannot write to file/pictures", "another --out")
    assert code == 2


def test_a_student_takes_neither_steps_nor_guidance_and_a_run_without_checkpoint_is_no_model(run, unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    for options in (["--steps", "4"], ["--guidance", "3"]):
        code, _, err = run("sample", "a", "--model", "run", "--device", "cpu", *options)
        one_line(err, f"leave out {options[0]}")
        assert code == 2
    shutil.rmtree(tmp_path / "run" / "student")
    shutil.rmtree(RunFolder(tmp_path / "run").checkpoints)
    code, _, err = run("sample", "a", "--model", "run", "--device", "cpu")
    one_line(err, "no checkpoint yet")
    assert code == 2


# -- what needs no model -----------------------------------------------------------------------------------------------


def test_the_dry_run_of_the_papers_setting(run, tmp_path: Path) -> None:
    code, out, err = run("distill", "--preset", "h100-fp16", "--teacher", "sd15", "--dry-run", "--show-config")
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    assert "512 = 8 process(es) x 16 round(s) x 4 images" in words
    assert "8 forward, 3 full backward, 4 input-only backward" in words
    assert "14.9 TFLOP" in words  # 8 + 3 x 2.00 + 4 x 1.15 = 18.6 passes of 803.27 GFLOP
    assert "10,000,000 images in 19,532 iterations" in words
    assert "859.52 M parameters" in words
    assert "κ1 1.5, κ2 1.5, κ3 1.5, κ4 1.5" in words
    assert "to be downloaded" in words
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


def test_the_dry_run_shows_what_the_options_change(run, prompt_file: Path, tmp_path: Path) -> None:
    options = ["--strategy", "short", "--images", "50k", "--prompts", prompt_file, "--out", "[/b] [red]x"]
    code, out, _ = run("distill", *options, "--dry-run")
    words = " ".join(out.split())
    assert code == 0
    assert "short: κ1 1, κ2 0.5, κ3 0.5, κ4 1" in words
    assert "50,000 images" in words
    assert "23 prompts" in words
    assert "[/b] [red]x" in words  # brackets in a name are not markup
    assert {path.name for path in tmp_path.iterdir()} == {".cache", prompt_file.name}


def test_presets_can_be_listed_shown_and_copied(run, tmp_path: Path) -> None:
    code, out, _ = run("presets", "list")
    names = [line.split()[0] for line in out.splitlines()[1:] if not line.startswith(" ")]
    assert (code, names) == (0, sorted(path.stem for path in preset_path("cpu").parent.glob("*.yaml")))
    assert {"a5000-fp16", "a6000-fp32", "h100-fp16", "h100-fp32"} <= set(names)  # the rows of Table 4
    row = next(line for line in out.splitlines() if line.startswith("h100-fp16"))
    assert row.split()[1:7] == ["fp16", "512", "4", "8", "10M", "1.5"]
    assert run("presets", "show", "h100-fp16") == (0, preset_path("h100-fp16").read_text(encoding="utf-8"), "")
    assert run("presets", "copy", "cpu")[:2] == (0, "cpu.yaml\n")
    assert (tmp_path / "cpu.yaml").read_bytes() == preset_path("cpu").read_bytes()
    (tmp_path / "cpu.yaml").write_text("seed: 5  # edited\n")
    code, _, err = run("presets", "copy", "h100-fp16", "cpu.yaml")
    one_line(err, "cpu.yaml exists", "another name")
    assert code == 2
    assert (tmp_path / "cpu.yaml").read_text() == "seed: 5  # edited\n"
    assert "seed: 5" in run("presets", "show", "cpu.yaml")[1]


def test_presets_that_do_not_exist_and_folders_that_do_not(run, tmp_path: Path) -> None:
    for command in (["show", "h100"], ["copy", "h100"]):
        code, _, err = run("presets", *command)
        one_line(err, 'unknown preset "h100"', 'did you mean "h100-fp')
        assert code == 2
    code, _, err = run("presets", "copy", "cpu", "nowhere/mine.yaml")
    one_line(err, "cannot write nowhere/mine.yaml")
    assert code == 1


def test_models_lists_every_alias_with_its_place(run) -> None:
    code, out, _ = run("models")
    lines = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert code == 0
    assert lines.keys() >= {"emoji", "emoji-student", "sd15", "sd21-base"}
    assert "in the package" in lines["emoji"]
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in lines["sd15"]


def test_a_terminal_that_cannot_show_greek_shows_a_substitute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sidlsg", "distill", "--dry-run"])
    for encoding in ("ascii", "latin-1", "cp1252"):
        screen = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        sys.stdout.flush()
        assert not stop.value.code
        assert b"?1 2, ?2 2" in screen.getvalue()


def test_a_machine_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SIDLSG_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert in_cache("x").is_relative_to(tempfile.gettempdir())


def test_a_machine_without_home_cache_or_temporary_folder_works(tmp_path: Path) -> None:
    """A home below a file, which nobody can write to: not even root."""
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "x")
    names = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR", "TORCH_HOME", "MPLCONFIGDIR", "SIDLSG_CACHE")
    environment = os.environ | dict.fromkeys(names, nowhere)
    (tmp_path / "p.txt").write_text("red heart\n")
    sizes = ["--images", "1", "--batch", "1", "--micro-batch", "1", "--set", "grid_images=1"]
    distil = ["distill", *sizes, "--prompts", "p.txt", "--out", "run"]
    commands = [["presets", "list"], ["models"], distil, ["sample", "red heart", "--model", "run"]]
    script = f"import sys\nfrom sidlsg.cli import main\nfor line in {commands}:\n"
    script += " sys.argv = ['sidlsg', *line]\n try: main()\n except SystemExit as stop: assert not stop.code"
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "run" / "student" / "sidlsg.json").is_file()
    assert (tmp_path / "samples" / "red-heart-0.png").is_file()


def test_world_size_without_a_rank_is_named(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    code, _, err = run("distill", "--dry-run")
    assert code == 2
    one_line(err, "WORLD_SIZE", "RANK", "torchrun")


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"WORLD_SIZE": "two", "RANK": "0"}, ["whole numbers", "two"]),
        ({"WORLD_SIZE": "2", "RANK": "2"}, ["RANK is 2", "WORLD_SIZE 2"]),
        ({"WORLD_SIZE": "0", "RANK": "0"}, ["WORLD_SIZE 0"]),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, ["RANK is -1"]),
        ({"WORLD_SIZE": "2", "RANK": "0"}, ["MASTER_ADDR and MASTER_PORT not set", "torchrun"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, ["MASTER_PORT not set"]),
    ],
)
def test_variables_that_torchrun_would_not_set_are_named(run, short, monkeypatch, variables, parts) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(*short)
    assert code == 2
    one_line(err, *parts)


def test_a_hidden_gpu_is_explained_by_the_variable_that_hides_it(run, short, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for command in ([*short, "--device", "cuda"], ["sample", "a", "--device", "cuda:0"]):
        code, _, err = run(*command)
        assert code == 2
        one_line(err, "no CUDA GPU", 'CUDA_VISIBLE_DEVICES is ""', "--device cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    code, _, err = run("sample", "a", "--device", "cuda:7")
    assert code == 2
    one_line(err, "only 2 GPUs", "0,1")


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("checkpoint_every=0", ["checkpoint_every is", "at least 1"]),
        ("keep_checkpoints=0", ["keep_checkpoints"]),
        ("latent_std=[5, 0.1]", ["latent_std", "smaller bound"]),
        ("latent_mean=-1", ["latent_mean", "> 0"]),
        ("eval_images=3", ["eval_images", "at least 16"]),
        ("fake_micro_batch=3", ["batch 8 does not divide", "fake_micro_batch 3"]),
        ("eval_protocol=gigagn", ['"gigagn"', 'did you mean "gigagan"']),
        ("gpu=h1000", ['"h1000"', 'did you mean "h100"']),
        ("half_teacher=true", ["half_teacher", "bf16"]),
        ("seed=" + "1" * 5000, ["seed", "not valid YAML"]),
        ("seed=2001-99-99", ["seed", "not valid YAML"]),
        ("seed=" + "[" * 5000, ["nested"]),
    ],
)
def test_settings_that_cannot_be_are_one_line_before_anything_is_loaded(run, short, tmp_path, setting, parts) -> None:
    code, _, err = run(*short, "--set", setting)
    assert code == 2
    one_line(err, *parts)
    assert len(err) < 1000
    assert not (tmp_path / "run").exists()


def test_scoring_without_a_reference_is_refused(run, short) -> None:
    code, _, err = run(*short, "--eval-every", "8", "--set", "eval_protocol=gigagan")
    assert code == 2
    one_line(err, "gigagan", "eval_reference", "sidlsg eval stats")


def test_no_steps_are_no_picture(run, tiny_teacher: Path) -> None:
    options = ["--model", tiny_teacher, "--device", "cpu", "--sampler", "euler"]
    assert run("sample", "a cat", *options, "--steps", "1")[0] == 0
    assert run("sample", "a cat", *options, "--steps", "0")[0] == 2


def test_brackets_in_names_are_printed_as_they_are(run, short, tmp_path: Path) -> None:
    folder = tmp_path / "a[b]c[/red]"
    folder.mkdir(parents=True)
    (folder / "[p].yaml").write_text("seed: 1\n")
    command = [*short[:1], "--preset", folder / "[p].yaml", *short[3:], "--out", folder / "run"]
    code, out, err = run(*command, "--set", "lr=1e-5")
    assert (code, err) == (0, ""), err
    assert f" {folder / 'run' / 'student'}\n" in out
    assert "/red]/[p].yaml" in out
    shutil.rmtree(folder / "run" / "checkpoints")
    (folder / "run" / "samples" / "x.png").write_text("")
    code, out, err = run(*command, "--set", "lr=1e-5", "--images", "16")
    assert (code, err) == (0, ""), err
    assert str(folder / "run" / "checkpoints") in out.replace("\n", "")
    code, out, err = run("sample", "[bold]a[/bold]", "--model", folder / "run", "--out", folder / "i[/y]")
    assert (code, out, err) == (0, f"{folder / 'i[/y]' / 'bold-a-bold-0.png'}\n", "")
    (folder / "i[/x]").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (64, 64), (64 * i, i, 255 - i)).save(folder / "i[/x]" / f"{i}.png")
    options = ["--images", folder / "i[/x]", "--protocol", "embedded", "--only", "fid", "--device", "cpu"]
    code, out, err = run("eval", *options, "--out", folder / "e[/x]")
    assert (code, err) == (0, ""), err
    assert f"{folder / 'e[/x]' / 'results.json'}\n" in out


def test_the_preset_is_chosen_for_the_teacher_wherever_that_is_named(run, monkeypatch) -> None:
    """``--set teacher=`` counts like ``--teacher``: Stable Diffusion never gets the CPU preset's learning rate."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for teacher in (["--teacher", "sd15"], ["--set", "teacher=sd15"]):
        code, _, err = run("distill", *teacher, "--dry-run")
        assert code == 2
        one_line(err, "sd15 needs a --preset")


def test_the_command_line_does_not_import_torch() -> None:
    light = ("cli", "api", "config", "planning.plan", "teachers.registry", "evaluation.request", "evaluation.report")
    code = f"import sys, {', '.join(f'sidlsg.{name}' for name in light)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
