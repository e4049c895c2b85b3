"""What a run will cost: exact counts against the architectures, the memory model against the paper's Table 4."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nullgpu import scorer
from sidlsg.config import Config
from sidlsg.errors import UsageError
from sidlsg.evaluation.protocol import protocols
from sidlsg.method.chunks import chunks
from sidlsg.planning import memory
from sidlsg.planning.cost import forward_equivalents
from sidlsg.planning.counting import compiled_passes, count, footprint, size
from sidlsg.planning.footprint import Moment, Pass, footprints, scorers, way
from sidlsg.planning.gpus import get_gpu, gpus, images_per_second, known_gpu, preset_for
from sidlsg.planning.recognise import Recognised, recognise
from sidlsg.settings import make_config, preset_names, preset_path
from sidlsg.teachers.architectures import (
    architectures,
    build_model,
    build_network,
    build_part,
    clip_tokenizer,
    family_of_architecture,
)
from sidlsg.teachers.loading import load_model
from sidlsg.teachers.registry import locate
from support.counted import COUNTED_AGAIN, RECORD, check_footprint, made_of, moments, numbers
from support.paper import TABLE_4, authors_gib
from support.terminal import one_line

SD15 = footprints()["sd15"]
GFLOP = SD15.gflop

CELLS = [
    (row, strategy, gib)
    for row, cells in TABLE_4.items()
    for strategy, gib in zip(("long", "short", "lsg-simple", "lsg"), cells, strict=True)
]


@pytest.mark.parametrize(("row", "strategy", "gib"), CELLS)
def test_the_memory_model_reproduces_table_4(row: str, strategy: str, gib: float) -> None:
    preset, _, attention = row.partition(", ")
    options: dict[str, Any] = {"strategy": strategy}
    if attention:
        options["attention"] = attention
    if preset.startswith("a"):
        options["ema"] = strategy != "lsg"
    found = authors_gib(make_config(preset, options), SD15)
    assert found == pytest.approx(
        gib, rel=0.05
    )  # the worst cells: LSG on the A6000 (-4.7 %), short with eager fp16 (+4.9 %)


def test_table_4_has_twenty_cells() -> None:
    assert len(CELLS) == 20


def test_targets_of_the_presets() -> None:
    def need(preset: str, **options: Any) -> float:
        return memory.predict(make_config(preset, options), SD15).total

    assert need("24gb") <= 19  # Table 4: 22.0 in pure fp16, without EMA
    assert need("16gb") <= 14.5
    assert need("h100-fp16", two_stage=True) <= 24  # Table 4: 35.2 in the same setting
    assert need("h100-fp32", attention="sdpa") <= 36  # Table 4: 62.9
    for name in preset_names():
        config = make_config(name, {})
        if config.gpu:
            size = footprints()[config.teacher]
            assert memory.predict(config, size).total + memory.OVERHEAD <= get_gpu(config.gpu).memory


@pytest.mark.parametrize("name", ["16gb", "24gb", "48gb", "h100-bf16", "h200-bf16", "sdxl-48gb", "sdxl-80gb"])
def test_the_presets_comments_are_the_plans_numbers(name: str) -> None:
    config = make_config(name, {})
    gpu, size = get_gpu(config.gpu), footprints()[config.teacher]
    need = memory.predict(config, size).total
    seconds = 1e3 / images_per_second(config, size.gflop, gpu, config.processes)
    first = preset_path(name).read_text(encoding="utf-8").splitlines()[0]
    assert first.endswith(
        f"estimates for LSG on {config.processes} x {gpu.name}: {need:.1f} GiB per GPU, {seconds:.0f} s per 1k images"
    )


@pytest.mark.parametrize("strategy", ["long", "short", "lsg-simple", "lsg"])
@pytest.mark.parametrize(
    "switch",
    [
        {"two_stage": True},
        {"gradient_checkpointing": True},
        {"offload_optimizer": True},
        {"ema_device": "cpu"},
        {"half_teacher": True},
        {"micro_batch": 2},
    ],
    ids=lambda s: next(iter(s)),
)
def test_every_switch_saves_memory_or_leaves_it(strategy: str, switch: dict[str, Any]) -> None:
    base = Config(strategy=strategy, precision="bf16", micro_batch=4)
    before, after = (memory.predict(c, SD15).total for c in (base, replace(base, **switch)))
    # The simplest strategy has one pass of each network: one at a time has little to save there.
    assert after <= before
    if strategy == "lsg":
        assert after < before - 0.5


def test_full_adam_costs_two_more_copies() -> None:
    base = Config(precision="fp32")
    gap = memory.predict(replace(base, lean_adam=False), SD15).total - memory.predict(base, SD15).total
    assert gap == pytest.approx(2 * 859_520_964 * 4 / 2**30, rel=0.01)  # the allocator rounds large weights up


@pytest.mark.parametrize(
    ("strategy", "two_stage", "fake", "scores"),
    [
        ("long", False, 1, 3),
        ("short", False, 1, 3),
        ("lsg-simple", False, 2, 2),
        ("lsg", False, 2, 4),
        ("lsg", True, 2, 2),
    ],
)
def test_graphs_alive_are_those_of_the_paper(strategy: str, two_stage: bool, fake: int, scores: int) -> None:
    """psi's update keeps its own passes; theta's the generator's and all those of the score networks, or of one at a time."""
    config = Config(strategy=strategy, precision="fp16", adam_eps=1e-6, micro_batch=1, two_stage=two_stage)
    passes = SD15.passes["fp16"]
    trained, frozen = passes["trained"].kept.sample, passes["frozen"].kept.sample
    psi, theta = memory.fake_score_phase(config, SD15), memory.generator_phase(config, SD15)
    assert psi.lines["activations"] == pytest.approx(fake * trained, rel=0.03)
    assert theta.lines["activations"] == pytest.approx(trained + scores * frozen, rel=0.03)


def test_the_phase_with_the_peak_is_the_largest_of_all() -> None:
    """On a small card with checkpointing, a grid of 16 pictures at once needs more than any update: 12 GiB of the VAE."""
    config = make_config(
        "16gb", {"micro_batch": 16, "fake_micro_batch": 1, "strategy": "long", "gradient_checkpointing": True}
    )
    found = {phase.name: phase.total for phase in memory.phases(config, SD15)}
    peak = memory.predict(config, SD15)
    assert peak.total == max(found.values())
    assert found["drawing a grid"] > found["the fake score's update"]
    assert list(found) == [
        "pre-flight",
        "the fake score's update",
        "the generator's update",
        "drawing a grid",
        "saving",
        "writing the student",
    ]


SCORING = {"eval_every": 512, "eval_protocol": "gigagan"}


def test_the_networks_that_score_are_counted() -> None:
    """Inception (24 M parameters) and CLIP ViT-g-14 (1,367 M) in float32; the judge is small. Every protocol is planned for."""
    assert scorers().keys() == protocols().keys()
    for name in ("gigagan", "embedded"):
        weights, encoding = scorer.count(protocols()[name])
        assert (weights, encoding) == pytest.approx((scorers()[name].weights, scorers()[name].encoding), abs=1e-4)
    assert scorers()["sid-lsg"] == scorers()["gigagan"]
    assert scorers()["gigagan"].weights == pytest.approx((24e6 + 1_367e6) * 4 / 2**30, rel=0.02)


def test_scoring_is_a_phase_where_the_run_scores() -> None:
    """Drawing as for a grid, then the scorer beside the run's state; it waits on the CPU otherwise."""
    base = make_config("24gb", {})
    scored = replace(base, **SCORING)  # type: ignore[arg-type]
    found = {phase.name: phase for phase in memory.phases(scored, SD15)}
    assert found.keys() - {phase.name for phase in memory.phases(base, SD15)} == {"scoring"}
    # Four pictures through the VAE take more than the judges.
    assert found["scoring"].total == found["drawing a grid"].total
    cpu = [sum(memory.on_the_cpu(config, SD15).values()) for config in (base, scored)]
    assert cpu[1] - cpu[0] == pytest.approx(scorers()["gigagan"].weights)
    judges = scorers()["gigagan"].weights + scorers()["gigagan"].encoding
    single = make_config("16gb", SCORING)
    saving = memory.saving_phase(single, SD15)
    resting = saving.total - saving.lines["test for finite numbers"]
    assert memory.scoring_phase(single, SD15).total == pytest.approx(resting + judges)


@pytest.mark.parametrize("preset", [name for name in preset_names() if make_config(name, {}).gpu])
def test_every_preset_can_score_while_it_trains(preset: str) -> None:
    config = make_config(preset, SCORING)
    scoring = memory.scoring_phase(config, footprints()[config.teacher])
    assert scoring.total + memory.OVERHEAD <= get_gpu(str(config.gpu)).memory


def test_scores_that_do_not_fit_are_left_to_eval() -> None:
    config = make_config("16gb", SCORING)
    training = max(memory.fake_score_phase(config, SD15).total, memory.generator_phase(config, SD15).total)
    assert memory.predict(config, SD15).name == "scoring"
    assert memory.make_fit(config, SD15, training + memory.OVERHEAD) == {"eval_every": None}


def test_draws_of_a_whole_iteration_are_on_the_gpu() -> None:
    """Noise, timesteps and 77 tokens of both updates: 0.35 GiB at 512 images in one process, 5.6 at 8192."""

    def draws(**options: Any) -> float:
        return memory.generator_phase(Config(precision="bf16", **options), SD15).lines["draws"]

    an_image = 2 * (2 * 4 * 64 * 64 * 4 + 8 + 77 * 768 * 4) / 2**30
    assert draws(batch=512) == pytest.approx(512 * an_image, rel=1e-3)
    assert draws(batch=8192) == pytest.approx(5.6, abs=0.05)
    assert draws(batch=512, processes=8) == pytest.approx(64 * an_image, rel=1e-3)


@pytest.mark.parametrize("name", ["sd15", "sd21-base", "sdxl"])
def test_pinned_blocks_are_powers_of_two(name: str) -> None:
    """As PyTorch's pinned allocator rounds them, for the optimiser's chunks and for the largest piece of the average."""
    parameters = list(build_model(name, torch.device("meta")).network.parameters())

    def rounded(group: list[torch.nn.Parameter]) -> int:
        return 1 << (4 * sum(p.numel() for p in group) - 1).bit_length()

    taken = sum(rounded(group) for group in chunks(parameters, memory.CHUNK))
    assert 1 <= taken / sum(4 * p.numel() for p in parameters) <= memory.PINNED
    assert 2 * max(rounded(group) for group in chunks(parameters, 2**24)) == memory.ARRIVING * 2**30


def test_memory_on_the_cpu() -> None:
    """Offloaded second moments of both networks in pinned blocks, the average, two pieces of the generator on their way into it,
    and a copy while saving."""
    copy = 859_520_964 * 4 / 2**30
    found = memory.on_the_cpu(make_config("16gb", {}), SD15)
    assert sum(found.values()) == pytest.approx(2 * 1.17 * copy + 2 * copy + 0.25, rel=0.01)
    assert sum(memory.on_the_cpu(make_config("h100-bf16", {}), SD15).values()) == pytest.approx(copy, rel=0.01)


@pytest.mark.parametrize("name", COUNTED_AGAIN)
def test_footprints_are_counts_of_the_published_architectures(name: str) -> None:
    """Always of sd15; all of them where code, architectures or libraries are not those they were last counted with."""
    passes = COUNTED_AGAIN[name]
    if made_of() == json.loads(RECORD.read_text(encoding="utf-8")):
        if name != "sd15":
            pytest.skip(f"{name} was counted with this code and these libraries (tests/counted.json)")
        passes = passes[:1]
    check_footprint(name, passes)


def test_compiled_checkpointed_sdxl_is_not_planned_too_low() -> None:
    """Allocated on the null GPU (python -m nullgpu.matrix --compiled sdxl-80gb): 90.2 GiB for psi's update, 68.8 for theta's."""
    planned = {
        phase.name: phase.total
        for phase in memory.phases(make_config("sdxl-80gb", {"compile": True}), footprints()["sdxl"])
    }
    assert 90.2 <= planned["the fake score's update"] <= 1.07 * 90.2
    assert 68.8 <= planned["the generator's update"] <= 1.07 * 68.8


def test_compiled_passes_that_were_not_counted_are_planned_as_without_checkpointing() -> None:
    settings = {"compile": True, "attention": "eager", "gradient_checkpointing": True}
    config, size = make_config("h100-bf16", settings), footprints()["sd15"]
    assert way("bf16", "eager", True, True) not in size.passes
    (whole,) = size.passes[way("bf16", "eager", False, False)]["trained"].backward
    update = next(phase for phase in memory.phases(config, size) if phase.name == "the fake score's update")
    assert update.lines["activations"] == pytest.approx(
        2 * config.fake_micro_batch * whole.sample
    )  # two passes an image


@pytest.mark.nullgpu_full
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", ["sd15", "sd21-base", "sdxl"])
def test_all_passes_are_counted_again(name: str) -> None:
    """Minutes: what the default run of the tests counts a part of, and the passes under ``torch.compile``."""
    model, known = build_model(name, torch.device("meta")), footprints()[name]
    found = footprint(name, lambda dtype: build_network(name, "meta", dtype), model.family, model.vae).passes
    found |= compiled_passes(name, ["bf16"], "sdpa")
    assert found.keys() <= known.passes.keys()
    for kind_of_run, kinds in found.items():
        for kind, counted in kinds.items():
            row = known.passes[kind_of_run][kind]
            assert numbers(*moments(counted)) == pytest.approx(numbers(*moments(row)), abs=1e-3), (kind_of_run, kind)


def test_the_emoji_teacher_is_counted_with_its_own_tokens() -> None:
    cost, known = (
        count(build_network("emoji", "meta"), family_of_architecture("emoji"), tokens=16),
        footprints()["emoji"],
    )
    assert cost.parameters == known.network
    assert cost.forward / 1e9 == pytest.approx(known.gflop, rel=1e-3)


def test_unfused_attention_writes_out_a_softmax_for_each_head() -> None:
    """SD1.5: five layers of 8 heads at each of 64x64, 32x32 and 16x16 tokens and one at 8x8, with as many queries for 77 words of
    text; two bytes a number. What only fused attention keeps, its output, is 1 % of that."""
    elements = 8 * (5 * (4096**2 + 1024**2 + 256**2) + 64**2) + 8 * 77 * (5 * (4096 + 1024 + 256) + 64)
    eager, fused = SD15.passes["fp16, eager attention"]["trained"], SD15.passes["fp16"]["trained"]
    assert eager.kept.sample - fused.kept.sample == pytest.approx(2 * elements / 2**30, rel=0.02)


def test_a_network_of_another_size_is_counted_not_guessed() -> None:
    """SD 2.1 for 768x768 pictures: the same weights as 2.1-base on 2.25 times the latents, 2.67 times the work."""
    config = architectures()["sd21-base"]["unet"] | {"sample_size": 96}
    larger = count(build_part("diffusers.UNet2DConditionModel", config, "meta"), family_of_architecture("sd21-base"))
    assert larger.parameters == footprints()["sd21-base"].network
    assert larger.forward / 1e9 == pytest.approx(2149, rel=1e-3)


def test_an_unknown_folder_is_counted_once(tiny_teacher: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path))
    place = locate(str(tiny_teacher))
    monkeypatch.setattr(
        "sidlsg.planning.counting.count_pass", lambda *_: Pass((Moment(1 / 3, 0.2),))
    )  # slow, tested above
    assert recognise(place) is None  # counting needs torch and time: only when a GPU is planned for
    found = recognise(place, "xformers")
    assert found is not None
    assert found.assumed is None
    model = load_model(str(tiny_teacher), torch.device("cpu"))
    sizes = [size(model.network), size(model.parts["text_encoder"]), size(model.vae)]
    assert [found.footprint.network, found.footprint.text_encoder, found.footprint.vae] == sizes
    monkeypatch.setattr(
        "sidlsg.planning.counting.footprint_of_folder", None
    )  # the second time it is read from the cache
    assert recognise(place, "sdpa") == found


def test_a_folder_of_a_known_architecture_is_recognised_by_its_configuration(tmp_path: Path) -> None:
    for name in ("sd15", "sd21-base", "sdxl"):
        (tmp_path / name / "unet").mkdir(parents=True)
        config = architectures()[name]["unet"] | {"_class_name": "UNet2DConditionModel", "act_fn": "silu"}
        (tmp_path / name / "unet" / "config.json").write_text(json.dumps(config))
        found = recognise(locate(str(tmp_path / name)))
        assert found == Recognised(footprints()[name])
    assert recognise(locate("somebody/sdxl-finetune")) == Recognised(footprints()["sdxl"], assumed="sdxl")
    assert recognise(locate("somebody/finetune")) == Recognised(footprints()["sd15"], assumed="sd15")


def test_the_published_sizes() -> None:
    assert footprints()["sd15"].network == 859_520_964  # 859.52 M
    assert footprints()["sd21-base"].network == 865_910_724  # 865.91 M
    assert footprints()["sdxl"].network == 2_567_463_684
    assert round(footprints()["sd15"].gflop) == 803


def test_the_tokenizer_of_random_models_is_clips() -> None:
    """Ids of "a photo of a cat" under CLIP's published vocabulary."""
    assert clip_tokenizer()("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_repeated_passes_are_counted() -> None:
    base = Config(strategy="lsg")
    assert (
        forward_equivalents(replace(base, two_stage=True)) - forward_equivalents(base) == 4
    )  # two of each score network
    checkpointed = forward_equivalents(replace(base, gradient_checkpointing=True))
    assert checkpointed - forward_equivalents(base) == 2 + 1 + 4


def test_estimated_times_are_near_table_4_where_its_efficiency_is_assumed() -> None:
    """The efficiencies marked "Table 4" give back the seconds per 1k images they were taken from."""
    for preset, strategy, seconds in (
        ("a5000-fp16", "long", 74),
        ("a5000-fp16", "lsg", 102),
        ("a6000-fp32", "long", 365),
        ("a6000-fp32", "lsg", 502),
        ("h100-fp16", "long", 12),
        ("h100-fp16", "lsg", 15),
        ("h100-fp32", "long", 74),
        ("h100-fp32", "lsg", 90),
    ):
        config = make_config(preset, {"strategy": strategy})
        found = 1e3 / images_per_second(config, GFLOP, get_gpu(config.gpu), 8)
        assert found == pytest.approx(seconds, rel=0.12), (preset, strategy)


def test_devices_are_found_by_their_own_names() -> None:
    assert known_gpu("NVIDIA H100 80GB HBM3", 79.1).key == "h100"
    assert known_gpu("NVIDIA A100-SXM4-40GB", 39.4).key == "a100-40g"
    assert known_gpu("NVIDIA A100-SXM4-80GB", 79.2).key == "a100"
    assert known_gpu("NVIDIA GeForce RTX 4090", 23.5).key == "4090"
    assert known_gpu("NVIDIA RTX A5000", 23.7).key == "a5000"
    assert known_gpu("Tesla T4", 14.6).key == "t4"
    assert known_gpu("NVIDIA L4", 22.0).key == "l4"
    assert known_gpu("NVIDIA L40", 44.4).key == "l40"
    assert known_gpu("NVIDIA L40S", 44.4).key == "l40s"
    assert known_gpu("NVIDIA Quadro P400", 2.0) is None
    assert known_gpu("NVIDIA T400 4GB", 4.0) is None
    assert len(gpus()) >= 10


def test_each_gpu_gets_a_bf16_preset_that_fits_it() -> None:
    for gpu in gpus().values():
        if gpu.bf16 and gpu.memory > 15.5:
            config = make_config(preset_for(gpu.memory), {})
            assert config.precision == "bf16"
            assert memory.predict(config, SD15).total + memory.OVERHEAD <= gpu.memory, gpu.name


def test_sdxl_gets_a_preset_of_its_own() -> None:
    assert preset_for(79.1, "sdxl") == preset_for(139.8, "sdxl") == "sdxl-80gb"
    assert preset_for(47.5, "sdxl") == "sdxl-48gb"
    with pytest.raises(UsageError, match="no preset distils a model of sdxl"):
        preset_for(23.5, "sdxl")


def test_the_remedy_fits_and_the_largest_micro_batch_is_the_largest() -> None:
    config = make_config("h100-bf16", {})
    for key in ("4090", "a6000", "a100-40g"):
        budget = get_gpu(key).memory
        remedy = memory.make_fit(config, SD15, budget)
        assert remedy is not None
        assert memory.predict(replace(config, **remedy), SD15).total + memory.OVERHEAD <= budget
        largest = memory.largest_micro_batch(config, SD15, budget, 8)
        if largest:
            assert (
                memory.predict(replace(config, micro_batch=largest, fake_micro_batch=largest), SD15).total + 1 <= budget
            )
            larger = replace(config, micro_batch=2 * largest, fake_micro_batch=2 * largest)
            assert memory.predict(larger, SD15).total + 1 > budget
    assert memory.make_fit(config, SD15, 8.0) is None
    small = memory.make_fit(make_config("24gb", {}), SD15, get_gpu("4080").memory)
    assert small == {"compile": False, "micro_batch": 1, "fake_micro_batch": 1}


@pytest.mark.parametrize("key", gpus())
def test_sdxl_is_planned_for_every_gpu(key: str, run) -> None:
    """It fits, or the settings that the plan names make it fit when they are typed, or no setting does."""
    command = ["distill", "--teacher", "sdxl", "--preset", "sdxl-80gb", "--gpu", key, "--dry-run"]
    code, shown, _ = run(*command)
    assert code == 0
    assert "2567.46 M parameters" in shown
    if "no setting changes that" in shown or "has no bf16" in shown:
        smallest = memory.predict(
            replace(make_config("sdxl-80gb", memory.PURE_HALF), ema_device="cpu", micro_batch=1, fake_micro_batch=1),
            footprints()["sdxl"],
        ).total
        assert smallest + memory.OVERHEAD > get_gpu(key).memory or not get_gpu(key).bf16
    elif "does not fit" in shown:
        code, shown, _ = run(*command, *shown.split("With ")[1].split(" it needs")[0].split())
        assert code == 0
        assert "does not fit" not in shown


# -- as a user meets it ----------------------------------------------------------------------------------------------------


def test_the_dry_run_shows_memory_time_and_what_would_make_it_fit(run) -> None:
    code, shown, _ = run("distill", "--preset", "h100-bf16", "--dry-run", "--show-config")
    assert code == 0
    assert "48.9 GiB in the generator's update (estimate): weights 8.0" in shown
    assert "images/s" in shown
    assert "does not fit" not in shown
    code, shown, _ = run("distill", "--preset", "h100-bf16", "--gpu", "4090", "--dry-run")
    assert code == 0
    assert "does not fit" in shown
    assert "--set gradient_checkpointing=true" in shown
    settings = [
        word
        for part in shown.split("With ")[1].split(" it needs")[0].split("--set ")[1:]
        for word in ("--set", part.strip())
    ]
    code, shown, _ = run("distill", "--preset", "h100-bf16", "--gpu", "4090", "--dry-run", *settings)
    assert "does not fit" not in shown


def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sidlsg.training.launch.plan_gpu", lambda config, dry_run: get_gpu("4090"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    command = ["distill", "--preset", "h100-fp32", "--teacher", "sd15", "--prompts", prompts, "--device", "cpu"]
    code, _, err = run(*command)
    assert code == 2
    one_line(err, "RTX 4090", "--set", "--force")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("two_stag=true", "two_stage"),
        ("two_stage", "NAME=VALUE"),
        ("two_stage=3", "true or false"),
        ("micro_batch=[", "YAML"),
    ],
)
def test_misuse_of_set_is_one_line(run, text: str, part: str) -> None:
    code, _, err = run("distill", "--dry-run", "--set", text)
    assert code == 2
    one_line(err, part)


def test_a_gpu_without_bf16_is_named(run) -> None:
    code, shown, _ = run("distill", "--preset", "16gb", "--gpu", "t4", "--dry-run")
    assert code == 0
    assert "has no bf16" in shown


def test_an_unknown_gpu_is_one_line(run) -> None:
    code, _, err = run("distill", "--preset", "24gb", "--gpu", "h10", "--dry-run")
    assert code == 2
    one_line(err, "h100")
