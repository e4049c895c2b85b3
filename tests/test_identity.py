"""What a model is: a hash changes with whatever changes the function, and with nothing else; hashes of older versions go on."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from sidlsg.errors import UsageError
from sidlsg.evaluation.generation import Settings
from sidlsg.teachers.family import Model
from sidlsg.teachers.identity import part_digest, settings_of
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.sdxl import StableDiffusionXL

CPU = torch.device("cpu")
TEXT = Path("text_encoder") / "model.safetensors"


@pytest.fixture
def model(tiny_model: Model) -> Model:
    return tiny_model


@pytest.fixture
def folder(teacher_copy: Path) -> Path:
    return teacher_copy


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON object in a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


SCHEDULER, UNET, VAE = "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"
ENCODER, TOKENIZER, CALLED = "text_encoder/config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"


@pytest.mark.parametrize(
    "changes",
    [
        {
            SCHEDULER: {"prediction_type": "v_prediction"},
            UNET: {"attention_head_dim": 4},
            VAE: {"scaling_factor": 0.4},
            ENCODER: {"hidden_act": "gelu"},
            CALLED: {"pad_token": "!"},
        },
        {
            SCHEDULER: {"beta_schedule": "linear"},
            UNET: {"flip_sin_to_cos": False},
            VAE: {"act_fn": "relu"},
            ENCODER: {"num_attention_heads": 4},
            CALLED: {"padding_side": "left"},
        },
        {
            SCHEDULER: {"beta_end": 0.0121},
            UNET: {"norm_eps": 1e-3},
            ENCODER: {"layer_norm_eps": 1e-3},
            CALLED: {"model_max_length": 5},
        },
        {UNET: {"sample_size": 8}},
    ],
)
def test_a_setting_that_changes_the_function_changes_the_hash_of_its_part_only(
    folder: Path, model: Model, changes: dict[str, dict[str, Any]]
) -> None:
    for file, values in changes.items():
        edit(folder / file, lambda content, values=values: content.update(values))
    parts = {file.partition("/")[0] for file in changes}
    assert differing(load_model(str(folder), CPU).digests(), model.digests()) == parts


def test_the_merges_of_a_tokenizer_belong_to_it(folder: Path, model: Model) -> None:
    """As many tokens and as long as before; and merges as other releases of tokenizers write them are the same."""
    seen = [model.digests()["tokenizer"]]
    for merges in ([], [["a", "b</w>"], ["a", "b"]], ["a b</w>", "a b"], [["a", "b"], ["a", "b</w>"]]):

        def change(content: dict[str, Any], merges: list[Any] = merges) -> None:
            vocab = content["model"]["vocab"]
            for new, old in (("ab</w>", "z"), ("ab", "y")):
                vocab[new] = vocab.pop(new if new in vocab else old)
            content["model"]["merges"] = merges

        edit(folder / TOKENIZER, change)
        seen.append(part_digest(CLIPTokenizer.from_pretrained(folder / "tokenizer")))
    assert seen[2] == seen[3]
    assert len(set(seen)) == 4


def test_a_weight_and_two_that_are_exchanged_change_the_hash(model: Model) -> None:
    encoder = deepcopy(model.parts["text_encoder"])
    found = [part_digest(encoder)]
    norms = {name.rpartition(".")[2]: w for name, w in encoder.state_dict().items() if "final_layer_norm" in name}
    with torch.no_grad():
        kept = norms["bias"].clone()
        norms["bias"].copy_(norms["weight"]), norms["weight"].copy_(kept)
        found.append(part_digest(encoder))
        norms["bias"][0] += 1e-6
        found.append(part_digest(encoder))
    assert len(set(found)) == 3
    assert found[0] == model.digests()["text_encoder"]


def test_what_an_empty_prompt_is_belongs_to_an_sdxl_model(model: Model) -> None:
    models = [
        replace(model, family=StableDiffusionXL(), index={"force_zeros_for_empty_prompt": zeros} if said else {})
        for zeros, said in ((True, True), (False, True), (True, False))
    ]
    zeros, encoded, unsaid = (m.digests() for m in models)
    assert differing(zeros, encoded) == {"model_index"}
    assert zeros == unsaid  # the pipeline's own default


def test_what_is_written_in_another_way_is_the_same_model(folder: Path, model: Model) -> None:
    """Names of folders and versions, training settings, a solver of the same process, defaults that are said or not, 1.0 for 1,
    another release's names of weights, and calls of the tokenizer."""
    for file, changes in {
        SCHEDULER: {"_class_name": "PNDMScheduler", "clip_sample": True, "_diffusers_version": "9.0"},
        UNET: {"_name_or_path": "/elsewhere", "dropout": 0.5, "freq_shift": 0.0, "later_setting": 3},
        VAE: {"sample_size": 999, "force_upcast": False, "latents_mean": None},
        ENCODER: {
            "attention_dropout": 0.5,
            "dtype": "float16",
            "transformers_version": "9.0",
            "initializer_factor": 2.0,
        },
    }.items():
        edit(folder / file, lambda content, changes=changes: content.update(changes))
    edit(folder / UNET, lambda content: content.pop("act_fn"))
    weights = {name.removeprefix("text_model."): tensor.clone() for name, tensor in load_file(folder / TEXT).items()}
    save_file(weights, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / TEXT)
    same = load_model(str(folder), CPU)
    same.encoder()(["a cat", "two"])
    assert same.digests() == model.digests()


def test_a_setting_that_a_later_library_adds_is_no_other_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a default, which is what the network did before."""
    unet = model.network
    now = settings_of(unet)

    def later(self: Any, *, gates: str = "none", **options: Any) -> None:
        raise NotImplementedError

    today = inspect.signature(type(unet).__init__).parameters
    added = inspect.Parameter("gates", inspect.Parameter.KEYWORD_ONLY, default="none")
    later.__signature__ = inspect.Signature([*today.values(), added])  # type: ignore[attr-defined]
    monkeypatch.setattr(type(unet), "__init__", later)
    for gates, expected in (("none", now), ("many", now | {"gates": "many"})):
        monkeypatch.setattr(unet, "_internal_dict", FrozenDict({**unet.config, "gates": gates}))
        assert settings_of(unet) == expected


# -- hashes that older versions recorded ------------------------------------------------------------------------------------


def old_digests(model: Model, prefix: str) -> dict[str, str]:
    """As versions gave them that hashed what the library called the weights, with ``prefix`` in the text encoder."""
    found = {}
    for part, content in model.parts.items():
        digest = hashlib.sha256()
        if part == "tokenizer":
            digest.update(json.dumps([sorted(content.get_vocab().items()), content.model_max_length]).encode())
        else:
            plain = {name.removeprefix("text_model."): tensor for name, tensor in content.state_dict().items()}
            named = {(prefix if part == "text_encoder" else "") + name: tensor for name, tensor in plain.items()}
            for name, tensor in sorted(named.items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        found[part] = digest.hexdigest()
    return found


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_hashes_of_older_versions_are_recognised(model: Model, prefix: str) -> None:
    today, old = model.digests(), old_digests(model, prefix)
    assert model.recognised(old, today) == today
    assert model.recognised(today, today) == today
    for part in old:
        spoiled = model.recognised(old | {part: "0" * 64}, today)
        assert differing(spoiled, today) == {part}
    for name in ("scheduler", "model_index"):
        assert differing(model.recognised(today | {name: "0" * 64}, today), today) == {name}
        assert name not in model.recognised({k: v for k, v in today.items() if k != name}, today)


# Of the embedded teacher: today's, and those that the first version recorded with transformers 5.0 and 5.24. Runs on users' disks
# hold them: where this fails, either the teacher is another one, or those runs can no longer be taken up.
EMOJI = {
    "tokenizer": "2dc8488a281c391b",
    "text_encoder": "76a75c35a615f51e",
    "vae": "507a5eacb0d275d0",
    "unet": "a5ebc0ae8aa938e4",
    "scheduler": "6eb4485ff4fe5d02",
    "model_index": "65351d1490c3c94a",
}
RECORDED = {
    "tokenizer": "da2f1730674748d41913c423b32c9637ca88300df9af9d521ef57f66a58418f1",
    "vae": "0555e247741dbb028718e3446b1484ac0e4ea702db78dd04c4a3f7e703d19d90",
    "unet": "f9845d21d505224c15e0c7c983ea34a34d7d3e7dcce4ad9218cbfc41e9e8c425",
}
ENCODERS = (
    "62d0cad5391cec6a252a1299c00af9ec7a653e9ebe1c545c4fbac9b2a7afd65f",
    "29235df63dbb763653eaca858f2c0db6519fb9cd0b005de9c5737c4053d665c6",
)


@pytest.mark.parametrize("encoder", ENCODERS, ids=["transformers 5.0", "transformers 5.24"])
def test_the_hashes_of_the_embedded_teacher_are_what_runs_have_recorded(encoder: str) -> None:
    emoji = load_model("emoji", CPU)
    today = emoji.digests()
    assert {name: digest[:16] for name, digest in today.items()} == EMOJI
    assert emoji.recognised({**RECORDED, "text_encoder": encoder}, today) == today


def settings(model: Model, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "model": model.source,
        "parts_sha256": model.digests(),
        "scheduler": model.scheduler_config,
        "t_init": None,
        "one_step": False,
        "steps": 4,
        "guidance": 3.0,
        "sampler": None,
        "precision": "fp32",
        "prompts": "list",
        "prompts_sha256": "0" * 64,
        "pictures": 8,
    }
    return Settings(**{**values, **changes})


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_pictures_of_an_older_version_are_gone_on_with(model: Model, tmp_path: Path, prefix: str) -> None:
    settings(model, parts_sha256=old_digests(model, prefix)).claim(tmp_path, model)
    settings(model, pictures=16).claim(tmp_path, model)
    recorded = json.loads((tmp_path / "generation.json").read_text(encoding="utf-8"))
    assert recorded["parts_sha256"] == model.digests()
    assert recorded["pictures"] == 16


def test_pictures_of_another_function_are_not_reused(folder: Path, model: Model, tmp_path: Path) -> None:
    settings(model).claim(tmp_path / "out", model)
    edit(folder / VAE, lambda content: content.update(scaling_factor=0.4))
    other = load_model(str(folder), CPU)
    with pytest.raises(UsageError, match=r"parts_sha256 vae \(.* there, .* here\)\. Give another --out"):
        settings(other).claim(tmp_path / "out", other)


def test_a_refusal_is_one_line_however_much_differs(model: Model, tmp_path: Path) -> None:
    """A student's folder against its teacher's: betas one by one, and all that schedulers are configured with."""
    betas = [0.001 + i / 10**6 for i in range(401)]
    scheduler = {"_class_name": "EulerDiscreteScheduler", "trained_betas": betas} | {f"key_{i}": i for i in range(20)}
    settings(model, scheduler=scheduler, one_step=True, t_init=400, steps=1).claim(tmp_path, model)
    with pytest.raises(UsageError) as refused:
        settings(model, scheduler={"_class_name": "DDIMScheduler", "trained_betas": betas[1:]}).claim(tmp_path, model)
    said = str(refused.value)
    assert "t_init (400 there, None here), one_step (True there, False here), steps (1 there, 4 here)" in said
    assert "scheduler trained_betas (401 values there, 400 values here)" in said
    assert "more. Give another --out" in said
    assert len(said) < 700


# -- a run --------------------------------------------------------------------------------------------------------------


def test_a_run_of_an_older_version_is_resumed_and_no_other_teacher_is(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\nthe dog\n", encoding="utf-8")
    options = ["--preset", "cpu", "--teacher", folder, "--prompts", "prompts.txt", "--out", "out", "--batch", "8"]
    options += ["--micro-batch", "8", "--set", "grid_images=1", "--images"]
    with monkeypatch.context() as older:
        older.setattr(Model, "digests", lambda self: old_digests(self, "text_model."))
        older.setattr(Model, "recognised", lambda self, recorded, today: recorded)
        code, _, err = run("distill", *options, "8")
        assert code == 0, err
    code, shown, err = run("distill", *options, "16")
    assert code == 0, err
    assert "resuming at 8 images" in shown
    edit(folder / SCHEDULER, lambda content: content.update(prediction_type="v_prediction"))
    edit(folder / ENCODER, lambda content: content.update(hidden_act="gelu"))
    code, _, err = run("distill", *options, "24")
    assert code == 2
    assert f"the text_encoder, scheduler of {folder} is not what this run was started with" in err


# -- drawing --------------------------------------------------------------------------------------------------------------


class WaitingVae(torch.nn.Module):
    """A VAE that says where it is, and counts how often it was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.moves = torch.device("meta"), 0

    def parameters(self, recurse: bool = True) -> Any:
        return iter([SimpleNamespace(device=self.device)])

    def to(self, device: Any) -> Any:
        self.device, self.moves = torch.device(device), self.moves + 1
        return self


def test_the_vae_moves_once_for_many_pictures(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = WaitingVae()
    waiting = replace(model, parts={**model.parts, "vae": vae})
    seen = []

    def decode(self: Any, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        seen.append(vae.device)
        return latents

    monkeypatch.setattr(type(model.family), "decode", decode)
    with waiting.decoding(CPU):
        for _ in range(3):
            waiting.decode(torch.zeros(1, 3, 2, 2))
    assert (vae.moves, vae.device.type, seen) == (2, "meta", [CPU] * 3)
    waiting.decode(torch.zeros(1, 3, 2, 2))
    assert (vae.moves, vae.device.type) == (4, "meta")
