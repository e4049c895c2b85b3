"""Models that are written in another way than ours but are whole, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.sampling.draw import draw
from sidlsg.teachers import stable_diffusion
from sidlsg.teachers.family import Model
from sidlsg.teachers.loading import describe, load_model
from sidlsg.training import preflight

CPU = torch.device("cpu")
TEXT = Path("text_encoder") / "model.safetensors"
SCHEDULER = Path("scheduler") / "scheduler_config.json"


@pytest.fixture
def model(tiny_model: Model) -> Model:
    return tiny_model


@pytest.fixture
def folder(teacher_copy: Path) -> Path:
    return teacher_copy


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def add_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    path = folder / TEXT
    save_file({**load_file(path), **weights}, path.with_name("new"), metadata={"format": "pt"})
    path.with_name("new").replace(path)


def whole_clip(model: Model) -> CLIPModel:
    """A CLIP of random weights around the model's text encoder."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = model.parts["text_encoder"].config.to_dict()
    config = CLIPConfig(text_config=text, vision_config={**vision, "image_size": 8, "patch_size": 4}, projection_dim=8)
    return CLIPModel(config)


@pytest.mark.parametrize(
    "beside", ["text_projection", "logit_scale", "the whole CLIP", "the whole CLIP with its config"]
)
def test_a_text_encoder_saved_with_the_rest_of_clip_is_read(folder: Path, model: Model, beside: str) -> None:
    if beside == "text_projection":
        add_weights(folder, {"text_projection.weight": torch.ones(8, 8)})
    elif beside == "logit_scale":
        add_weights(folder, {"logit_scale": torch.tensor(4.6)})
    else:
        rest = whole_clip(model)
        add_weights(folder, {n: w for n, w in rest.state_dict().items() if not n.startswith("text_model.")})
        if beside.endswith("config"):
            rest.config.save_pretrained(folder / "text_encoder")
    assert load_model(str(folder), CPU).digests() == model.digests()


def test_weights_beside_clip_are_refused_in_other_parts(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "logit_scale": torch.ones(1)}, path.with_name("new"), metadata={"format": "pt"})
    path.with_name("new").replace(path)
    with pytest.raises(UsageError, match="holds 1 weights that its network has no place for, for instance logit_scale"):
        load_model(str(folder), CPU)


@pytest.mark.parametrize("kind", ["DPMSolverSDE", "SASolver", "DDIMParallel", "DDPMParallel"])
def test_solvers_of_the_ddpm_process_are_read_and_drawn_with(folder: Path, model: Model, kind: str) -> None:
    """Training takes the betas only; a picture depends on its prompt and its seed, and not on the others of its batch."""
    edit(folder / SCHEDULER, _class_name=f"{kind}Scheduler")
    about = describe(folder, str(folder))
    assert torch.equal(about.schedule.betas, model.schedule.betas)
    own = load_model(str(folder), CPU)
    assert own.digests() == model.digests()
    pictures = [
        [np.asarray(picture) for picture in draw(own, ["a", "b", "c"], [7, 8, 9], batch=batch, steps=4)]
        for batch in (1, 3)
    ]
    assert np.abs(np.stack(pictures[0]).astype(int) - np.stack(pictures[1])).max() <= 1


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_quantised_part_is_named_before_weights_are_read(folder: Path, part: str) -> None:
    edit(folder / part / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(
        UsageError, match=rf"the {part} of .* is quantised \(bitsandbytes\).*the model that it was made from"
    ):
        describe(folder, str(folder))


def test_a_library_that_is_not_there_is_no_damaged_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("No package metadata was found for gguf")

    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", missing)
    with pytest.raises(SidlsgError, match=r"unet cannot be loaded without a library.*for gguf") as refused:
        load_model(str(folder), CPU)
    assert "corrupt" not in str(refused.value)


def test_an_unusable_list_of_betas_is_not_printed(folder: Path) -> None:
    edit(folder / SCHEDULER, beta_schedule="x" * 5000)
    with pytest.raises(UsageError, match="betas") as refused:
        describe(folder, str(folder))
    assert len(str(refused.value)) < 500


def test_no_compiler_is_said_before_anything_is_loaded(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr("sidlsg.training.trainer.load_model", never)
    (tmp_path / "prompts.txt").write_text("a cat\n", encoding="utf-8")
    options = ["--preset", "cpu", "--teacher", folder, "--prompts", "prompts.txt", "--set", "compile=true"]
    code, _, err = run("distill", *options, "--out", "out")
    assert code == 2
    assert re.fullmatch(r"sidlsg: compile is on, .*Failed to find C compiler\..*--set compile=false\n", err)


def test_a_network_is_compiled_once_to_see_whether_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: seen.append(function(x)))
    preflight.check_compiler(CPU)
    assert len(seen) == 1


def test_an_empty_prompt_is_encoded_when_it_is_needed_and_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[list[str]] = []
    tokens = stable_diffusion.Encoder.tokens

    def note(self: Any, prompts: Any) -> Any:
        encoded.append(list(prompts))
        return tokens(self, prompts)

    monkeypatch.setattr(stable_diffusion.Encoder, "tokens", note)
    student = Model(**{**vars(model), "student": {"t_init": 625}})
    assert len(list(draw(student, ["a", "b", "c"], [0, 1, 2], batch=1))) == 3
    assert encoded == [["a"], ["b"], ["c"]]
    encode = model.encoder()
    assert torch.equal(encode.empty["text"], encode.empty["text"])
    assert encoded[3:] == [[""]]
