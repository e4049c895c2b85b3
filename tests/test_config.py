"""Settings: what a text means, which value wins, what is refused, and that the presets are the paper's Table 4."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidlsg.cli.drawing import parse_seeds
from sidlsg.config import FIELDS, FREE_FIELDS, Config, parse_count, parse_kappa
from sidlsg.data import presets_folder
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.files import read_object
from sidlsg.method.guidance import make_guidance
from sidlsg.planning.cost import forward_equivalents, passes_per_image
from sidlsg.settings import gather, load_settings, make_config, preset_names, preset_path, read_settings
from support.terminal import one_line

settings.register_profile("unhurried", deadline=None)  # other work may slow the machine down
settings.load_profile("unhurried")

PAPER = ("a5000-fp16", "a6000-fp32", "h100-fp16", "h100-fp32")


@pytest.fixture
def preset(tmp_path: Path):
    """Write a preset file, return its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(call, *parts: str) -> str:
    """The call raises UsageError, in one line that contains every part."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    return message


# -- numbers as text -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9))
def test_a_count_is_the_same_in_every_notation(n: int) -> None:
    assert parse_count(str(n)) == parse_count(n) == parse_count(f"{n:_}") == n
    for suffix, digits in (("k", 3), ("K", 3), ("M", 6), ("m", 6)):
        assert parse_count(f"{n}{suffix}") == n * 10**digits
        whole, rest = divmod(n, 10**digits)
        assert parse_count(f" {whole}.{rest:0{digits}}{suffix} ") == n


@pytest.mark.parametrize(
    ("text", "n"), [("10M", 10_000_000), ("50k", 50_000), ("1.5M", 1_500_000), ("1e6", 1_000_000), ("12_800", 12_800)]
)
def test_counts_of_the_documentation(text: str, n: int) -> None:
    assert parse_count(text) == n


@pytest.mark.parametrize(
    "junk", ["", "M", "-5", "1.5", "0.0001k", "ten", "1e400", "nan", "inf", "5 0", math.nan, math.inf, -1, 0.5, 10**400]
)
def test_what_is_no_count_is_refused_by_name(junk: Any) -> None:
    refused(lambda: parse_count(junk, "batch"), "batch")


@given(st.text() | st.text("0123456789.,_-+ekMnaif ") | st.integers() | st.floats())
def test_junk_never_raises_anything_but_a_usage_error(junk: Any) -> None:
    for parse in (parse_count, parse_kappa):
        if parse is parse_kappa and not isinstance(junk, str):
            continue
        try:
            value = parse(junk)
        except UsageError:
            continue
        assert isinstance(value, int) if parse is parse_count else all(isinstance(k, float) for k in value)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_kappa_is_numbers_between_commas(kappas: list[float]) -> None:
    assert parse_kappa(",".join(map(str, kappas))) == tuple(kappas)


def test_kappa_that_is_no_number_is_refused() -> None:
    for text in ("x", "", "1,", "1;2", "1.5 2"):
        refused(lambda text=text: parse_kappa(text), "kappa", text)


ranges = st.tuples(st.integers(0, 10**6), st.integers(0, 50)).map(lambda r: (r[0], r[0] + r[1]))


@given(st.lists(ranges, min_size=1, max_size=8), st.sampled_from(["", " "]))
def test_seeds_are_ranges_and_numbers_in_the_order_given(parts: list[tuple[int, int]], space: str) -> None:
    text = f"{space},{space}".join(str(a) if a == b else f"{a}{space}-{space}{b}" for a, b in parts)
    assert parse_seeds(text) == [n for a, b in parts for n in range(a, b + 1)]


@given(st.text("0123456789,- x", max_size=8) | st.text())
def test_junk_seeds_never_raise_anything_but_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert all(n >= 0 for n in parse_seeds(text))


@pytest.mark.parametrize("text", ["", "5-1", "1,,2", "-1", "a", "1.5", "0-999999999999"])
def test_bad_seeds_are_refused(text: str) -> None:
    refused(lambda: parse_seeds(text), "seeds")


# -- which value wins ----------------------------------------------------------------------------------------------------


def test_option_beats_preset_beats_default(preset) -> None:
    path = str(preset("lr: 1e-5\nimages: 2M\n"))
    config = make_config(path, {"images": 640})
    assert (config.images, config.lr, config.seed) == (640, 1e-5, Config().seed)
    assert make_config(None, {}) == Config()
    assert make_config(path, {"ema": False}).ema is False  # an option that is false is given all the same


def test_null_is_a_value(run) -> None:
    """``--set NAME=null`` is what null in a preset is, not an option that was left out."""
    options = gather(["clip_value=null", "ema_ramp_up=null"], {})
    config = make_config("h100-fp16", options)
    assert (config.clip_value, config.ema_ramp_up) == (None, None)
    assert make_config("h100-bf16", gather(["fake_micro_batch=null"], {})).fake_micro_batch is None
    code, shown, _ = run("distill", "--preset", "h100-fp16", "--set", "clip_value=null", "--dry-run")
    assert code == 0
    assert "h100-fp16, with clip_value null (not 1.0)" in shown


def test_precision_is_one_decision_in_four_settings() -> None:
    """Another precision than the preset's takes what goes with it, unless that is given too."""
    half = make_config("h100-fp32", {"precision": "fp16"})
    assert (half.adam_eps, half.clip_value, half.half_teacher) == (1e-6, 1.0, False)
    full = make_config("16gb", {"precision": "fp32"})
    assert (full.adam_eps, full.clip_value, full.half_teacher) == (1e-8, None, False)
    mixed = make_config("h100-fp16", {"precision": "bf16", "clip_value": 0.5})
    assert (mixed.adam_eps, mixed.clip_value) == (1e-8, 0.5)
    same = make_config("16gb", {"precision": "bf16"})
    assert same == make_config("16gb", {})
    # 1e-8 is 0 in half precision: the first step would make every weight NaN.
    refused(lambda: make_config("h100-fp32", {"precision": "fp16", "adam_eps": 1e-8}), "adam_eps", "1e-6")


def test_a_micro_batch_caps_that_of_the_fake_score() -> None:
    assert make_config("h100-bf16", {"micro_batch": 4}).micro_batches == (4, 4)
    assert make_config("h100-bf16", {"micro_batch": 4, "fake_micro_batch": 8}).micro_batches == (8, 4)
    assert make_config("h100-bf16", {"micro_batch": 32}).micro_batches == (16, 32)


def test_a_setting_is_given_once() -> None:
    assert gather(["two_stage=true"], {"lr": 1e-5, "seed": None}) == {"two_stage": True, "lr": 1e-5}
    refused(lambda: gather(["micro_batch=4"], {"micro_batch": 2}), "micro_batch", "--micro-batch", "--set")
    refused(lambda: gather(["seed=1", "seed=2"], {}), "seed", "twice")


@pytest.mark.parametrize("command", [["distill", "--dry-run"], ["bench", "--device", "cpu"]])
def test_both_commands_refuse_a_setting_that_is_given_twice(run, command: list[str]) -> None:
    code, _, err = run(*command, "--micro-batch", "2", "--set", "micro_batch=4")
    assert code == 2
    one_line(err, "micro_batch is given twice")


def test_only_what_changes_no_result_is_free_to_change() -> None:
    """Everything that the mathematics reads belongs to the run; what a resumed run may change is where, how fast, how long."""
    science = {
        "teacher",
        "prompts",
        "strategy",
        "kappa",
        "alpha",
        "t_min",
        "t_init",
        "t_max",
        "drop_prompt",
        "drop_when",
    }
    science |= {"batch", "lr", "adam_eps", "clip_value", "precision", "ema", "ema_half_life", "ema_ramp_up", "seed"}
    assert not science & FREE_FIELDS
    assert {"images", "device", "micro_batch", "compile", "offload_optimizer", "checkpoint_every"} <= FREE_FIELDS


def test_a_strategy_option_without_kappa_drops_the_presets_kappa(preset) -> None:
    path = str(preset("strategy: lsg\nkappa: 4.5\n"))
    assert tuple(make_config(path, {}).guidance) == (4.5, 4.5, 4.5, 4.5)
    assert tuple(make_config(path, {"strategy": "long"}).guidance) == (1, 1, 1, 3)
    assert tuple(make_config(path, {"kappa": (2.0,)}).guidance) == (2, 2, 2, 2)
    assert tuple(make_config(path, {"strategy": "short", "kappa": (0.2,)}).guidance) == (1, 0.2, 0.2, 1)


@given(st.floats(0, 20))
def test_the_four_strategies_spread_kappa_as_section_2_3_says(k: float) -> None:
    spread = {name: tuple(make_guidance(name, (k,))) for name in ("long", "short", "lsg-simple", "lsg")}
    assert spread == {"long": (1, 1, 1, k), "short": (1, k, k, 1), "lsg-simple": (k, 1, 1, 1), "lsg": (k, k, k, k)}


def test_four_numbers_are_the_four_scales(preset) -> None:
    config = make_config(str(preset("kappa: [1, 0.5, 0.25, 4]\n")), {})
    assert tuple(config.guidance) == (1, 0.5, 0.25, 4)
    assert tuple(make_config("cpu", {"kappa": parse_kappa("1,0.5,0.5,1")}).guidance) == (1, 0.5, 0.5, 1)


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kappa": (-1.0,)}, "kappa"),
        ({"kappa": (math.nan,)}, "kappa"),
        ({"kappa": (1.0, 1.0, math.inf, 1.0)}, "kappa3"),
        ({"kappa": (1.0, 2.0, 3.0)}, "kappa"),
        ({"t_min": -1}, "t_min"),
        ({"t_max": 1000}, "t_max"),
        ({"t_init": 1000}, "t_init"),
        ({"t_min": 700, "t_max": 600}, "t_min"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"adam_eps": -1e-8}, "adam_eps"),
        ({"alpha": math.inf}, "alpha"),
        ({"drop_prompt": 1.1}, "drop_prompt"),
        ({"clip_value": 0.0}, "clip_value"),
        ({"images": 0}, "images"),
        ({"batch": 0}, "batch"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"ema_half_life": 0}, "ema_half_life"),
        ({"seed": -1}, "seed"),
        ({"grid_images": 0}, "grid_images"),
        ({"latent_std": (1.0,)}, "latent_std"),
        ({"precision": "fp61"}, 'did you mean "fp16"'),
        ({"attention": "xformer"}, 'did you mean "xformers"'),
        ({"drop_when": "alway"}, 'did you mean "always"'),
        ({"strategy": "lsg-simpel"}, 'did you mean "lsg-simple"'),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    refused(lambda: Config(**changes), named)


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 8))
def test_rounds_times_micro_batch_times_processes_is_the_batch_or_it_is_refused(batch: int, micro: int, world: int):
    config = Config(batch=batch, micro_batch=micro)
    if batch % (micro * world):
        refused(lambda: config.rounds(world), f"batch {batch}", "--batch")
    else:
        assert config.rounds(world) * micro * world == batch


def test_a_batch_that_fits_is_proposed() -> None:
    message = refused(lambda: Config(batch=100, micro_batch=3).rounds(8))
    assert "--batch 96 or 120" in message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("lr: 1e-6\nmicrobatch: 1\n", ["line 2", '"microbatch"', 'did you mean "micro_batch"']),
        ("# comment\n\nlr: fast\n", ["line 3", "lr", "number"]),
        ("tf32: 1\n", ["line 1", "tf32", "true or false"]),
        ("seed: 1.5\n", ["line 1", "seed", "whole number"]),
        ("seed: true\n", ["line 1", "seed", "whole number"]),
        ("teacher: 5\n", ["line 1", "teacher", "text"]),
        ("images: 10 million\n", ["line 1", "images", "10 million"]),
        ("batch:\n", ["line 1", "batch", "a value"]),
        ("kappa: [1, two]\n", ["line 1", "kappa", "number"]),
        ("kappa: {a: 1}\n", ["line 1", "kappa", "number"]),
        ("lr: 1e-6\nseed: 1\nlr: 1e-5\n", ["line 3", '"lr"', "twice"]),
        ("lr: 1\nseed: [1\n", ["line 3", "YAML"]),
        ("lr: *there\n", ["line 1", "YAML"]),
        ("seed: 1\n---\nseed: 2\n", ["YAML"]),
        (b"lr: 1e-6\nteacher: caf\xe9\n", ["cannot be read"]),
        ("- lr\n- seed\n", ["key: value"]),
        ("just text", ["key: value"]),
        ("lr: 1.2.3e5\n", ["line 1", "lr", "number"]),
        ("images: 1" + "0" * 400, ["line 1", "images"]),
        ("lr: 1" + "0" * 400, ["line 1", "lr"]),
        ('images: !!int ""', ["line 1", "images"]),
        ("ema: !!bool perhaps", ["line 1", "ema"]),
        ("seed: !!timestamp x", ["line 1", "seed"]),
        ("seed: &a [*a]", ["line 1", "seed"]),
        ("seed: " + "[" * 5000, ["nested"]),
    ],
)
def test_a_bad_preset_is_refused_with_key_and_line(preset, content: str | bytes, parts: list[str]) -> None:
    path = preset(content)
    refused(lambda: make_config(str(path), {}), "mine.yaml", *parts)


def test_a_preset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(lambda: make_config(str(tmp_path / "no.yaml"), {}), "no.yaml", "does not exist")
    refused(lambda: make_config("h100-fp61", {}), "h100-fp61", 'did you mean "h100-fp16"')
    refused(lambda: load_settings(tmp_path), str(tmp_path))


TOKENS = ["lr", "kappa", "images", "ema", ": ", ":", "\n", "- ", "[", "]", "{", "}", "&a ", "*a", "!!int ", "!!float "]
TOKENS += ['"', "'", "1", "1e-6", ".nan", "2001-99-01", "#", "|\n ", "? ", "<<", "%", "\t", "\x00", "~", ","]
yaml_words = st.lists(st.sampled_from(TOKENS), max_size=12).map("".join)


@given(yaml_words | st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_as_a_preset_is_settings_or_a_usage_error(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    with suppress(UsageError):
        assert load_settings(path).keys() <= Config.__dataclass_fields__.keys()


@given(st.sampled_from(FIELDS), yaml_words | st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_as_a_value_is_a_setting_or_a_usage_error(name: str, text: str) -> None:
    with suppress(UsageError):
        assert gather([f"{name}={text}"], {}).keys() == {name}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(FIELDS), json_values)
def test_any_value_in_python_is_a_setting_or_a_usage_error(name: str, value: Any) -> None:
    with suppress(UsageError):
        assert read_settings({name: value}).keys() == {name}


@given(st.dictionaries(st.text(), json_values, max_size=4) | json_values, st.binary(max_size=4))
def test_a_json_file_is_an_object_or_an_error_that_names_it(tmp_path_factory, content: Any, front: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(front + json.dumps(content).encode())
    finite = True
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        finite = False
    if isinstance(content, dict) and finite and not front.strip(b" \t\r\n"):
        assert read_object(path) == content
    else:
        with pytest.raises(SidlsgError, match=re.escape(str(path))):
            read_object(path)


@pytest.mark.parametrize(("name", "rule"), [("kappa", "number"), ("seed", "whole number")])
def test_a_value_that_grows_when_it_is_written_out_is_refused_at_once(preset, name: str, rule: str) -> None:
    """Ten anchors of ten aliases each: a value of ten thousand million parts."""
    parts = [f"&{n} [{', '.join(['*' + p] * 10)}]" for p, n in zip("abcdefghi", "bcdefghij", strict=True)]
    refused(lambda: load_settings(preset(f"{name}: [&a [1], {', '.join(parts)}]\n")), name, rule)


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("\ufeffseed: 5\n", "seed", 5),
        ("ema: off\n", "ema", False),
        ("ema: Yes\n", "ema", True),
        ('lr: "1e-5"\n', "lr", 1e-5),
        ('batch: "64"\n', "batch", 64),
        ("seed: &s 7\ngrid_images: *s\n", "grid_images", 7),
        ("seed: 5\r\nema: off\r\n", "seed", 5),
        ("seed: 0\n", "seed", 0),
    ],
)
def test_the_ways_people_write_a_value(preset, content: str, name: str, value: Any) -> None:
    assert load_settings(preset(content))[name] == value


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("seed:\t5\n\tlr: 1\n", ["line", "not valid YAML"]),
        ("ema: 'true'\n", ["line 1", "ema", "true or false"]),
        ("seed: '5'\n", ["line 1", "seed", "whole number"]),
        ("<<: {seed: 5}\n", ["line 1", '"<<"']),
        ("teacher: no\n", ["line 1", "teacher", "text"]),
        ("images: .inf\n", ["line 1", "images"]),
        ("images: 1:30\n", ["line 1", "images is 1:30", "base 60"]),
        ("batch: 010\n", ["line 1", "batch is 010", "plain number"]),
    ],
)
def test_the_ways_that_are_refused(preset, content: str, parts: list[str]) -> None:
    refused(lambda: load_settings(preset(content)), *parts)


# -- presets -------------------------------------------------------------------------------------------------------------


NEWER = ("16gb", "24gb", "48gb", "h100-bf16", "h200-bf16", "sdxl-48gb", "sdxl-80gb")


def test_every_preset_file_is_valid_and_known_by_name() -> None:
    files = sorted(presets_folder().glob("*.yaml"))
    assert {f.stem for f in files} == {*PAPER, "cpu", "cpu-long", *NEWER} == set(preset_names())
    for file in files:
        config = make_config(file.stem, {})
        assert config.rounds(config.processes) >= 1
        assert preset_path(file.stem) == file


@pytest.mark.parametrize("name", NEWER)
def test_newer_presets_run_the_papers_method_with_fp32_weights_and_ema(name: str) -> None:
    new, old = make_config(name, {}), make_config("h100-fp32", {})
    method = (
        "strategy",
        "kappa",
        "alpha",
        "t_min",
        "t_init",
        "t_max",
        "drop_prompt",
        "images",
        "batch",
        "lr",
        "adam_eps",
    )
    for setting in (*method, "ema", "ema_half_life", "ema_ramp_up"):
        if not (setting == "images" and name.startswith("sdxl")):  # nothing is published for SDXL, and 10M are years
            assert getattr(new, setting) == getattr(old, setting), setting
    assert new.precision == "bf16"
    assert new.clip_value is None


@pytest.mark.parametrize(
    ("name", "micro", "rounds", "attention", "precision", "eps", "clip", "ema"),
    [
        ("a5000-fp16", 1, 64, "xformers", "fp16", 1e-6, 1.0, False),
        ("a6000-fp32", 1, 64, "xformers", "fp32", 1e-8, None, False),
        ("h100-fp16", 4, 16, "flash", "fp16", 1e-6, 1.0, True),
        ("h100-fp32", 1, 64, "eager", "fp32", 1e-8, None, True),
    ],
)
def test_presets_are_table_4(name, micro, rounds, attention, precision, eps, clip, ema) -> None:
    c = make_config(name, {})
    assert (c.micro_batch, c.rounds(8), c.processes) == (micro, rounds, 8)
    assert (c.attention, c.precision, c.adam_eps, c.clip_value, c.ema) == (attention, precision, eps, clip, ema)
    assert (c.batch, c.images, c.lr, c.alpha, c.tf32) == (512, 10_000_000, 1e-6, 1.0, False)
    assert (c.t_min, c.t_init, c.t_max) == (20, 625, 979)
    assert (c.ema_half_life, c.ema_ramp_up) == (50_000, 0.05)
    assert tuple(c.guidance) == (1.5, 1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("strategy", "forward", "full", "inputs", "cost"),
    [("long", 6, 2, 3, 13.5), ("short", 6, 2, 3, 13.5), ("lsg-simple", 6, 3, 2, 14.3), ("lsg", 8, 3, 4, 18.6)],
)
def test_passes_an_image(strategy: str, forward: int, full: int, inputs: int, cost: float) -> None:
    config = Config(strategy=strategy)
    passes = {"forward": forward, "full backward": full, "input backward": inputs, "repeated forward": 0}
    assert passes_per_image(config) == passes
    assert forward_equivalents(config) == pytest.approx(cost, abs=0.1)


configs = st.builds(
    Config,
    teacher=st.text(min_size=1),
    prompts=st.text(),
    kappa=st.none() | st.lists(st.floats(0, 1e6), min_size=4, max_size=4).map(tuple),
    alpha=st.floats(-1e3, 1e3),
    lr=st.floats(1e-12, 1),
    clip_value=st.none() | st.floats(1e-9, 1e9),
    images=st.integers(1, 10**12),
    ema_half_life=st.integers(1, 10**9),
    ema_ramp_up=st.none() | st.floats(1e-9, 1),
    seed=st.integers(0, 2**63 - 1),
    ema=st.booleans(),
    adam_eps=st.floats(1e-6, 1),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    grid_prompts=st.none() | st.text(),
)


@given(configs)
def test_a_config_survives_its_yaml_file(tmp_path_factory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(yaml.safe_dump(config.as_dict(), sort_keys=False, default_flow_style=None), encoding="utf-8")
    assert Config(**load_settings(path)) == config


def test_usage_errors_are_misuse_and_others_failures() -> None:
    assert (UsageError.exit_code, SidlsgError.exit_code) == (2, 1)


def test_four_scales_are_called_custom_and_one_by_its_strategy() -> None:
    assert Config(strategy="long", kappa=(3.0,)).strategy_name == "long"
    assert Config(strategy="lsg", kappa=(1.0, 0.5, 0.5, 1.0)).strategy_name == "custom"
