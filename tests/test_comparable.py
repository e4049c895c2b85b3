"""What stands beside a score: how it deviates from its protocol, which scores cannot be given, and what computed it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from sidlsg.evaluation import hps, weights
from sidlsg.evaluation.comparable import Made, deviations, fixed_by, fixed_by_hps
from sidlsg.evaluation.protocol import HPS_STYLES, get_protocol
from sidlsg.evaluation.reference import BENCH
from sidlsg.evaluation.request import METRICS
from sidlsg.evaluation.scorer import obstacles, scores_of
from support.scoring import folder_of, hps_file, results
from support.terminal import one_line

GIGAGAN, EMBEDDED = get_protocol("gigagan"), get_protocol("embedded")
COCO = "edabd2a556026cbf5d36a5fffa35ad43d7ba71b72f6d640b727c1edefb7f1945"
INCEPTION = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


# -- deviations ------------------------------------------------------------------------------------------------------------

WHOLE = Made(30_000, {"coco30k": COCO}, 40_504, {"inception": INCEPTION})


def test_nothing_is_said_of_what_the_protocol_fixes() -> None:
    assert deviations(WHOLE, fixed_by(GIGAGAN), "gigagan") == []
    bench = Made(1024, {"emoji-bench": weights.file_sha256(BENCH / "captions.txt")}, 1024, {"judge": "any"})
    assert deviations(bench, fixed_by(EMBEDDED), "embedded") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pictures": 29_999}, "The number of pictures is 29,999; the protocol gigagan has 30,000."),
        ({"reference": 40_503}, "The reference holds 40,503 pictures; that of the protocol gigagan holds 40,504."),
        ({"reference": 0}, "The reference does not say how many pictures it holds"),
        ({"prompts": {"coco30k": "0" * 64}}, "The prompts are not the list coco30k of the protocol gigagan"),
        ({"prompts": {"coco30k": ""}}, "It is not known with which captions the pictures were drawn"),
        (
            {"weights": {"inception": "0" * 64}},
            "The weights file is not the published one of the Inception-2015 network",
        ),
    ],
)
def test_every_deviation_is_a_sentence(change: dict, said: str) -> None:
    found = deviations(replace(WHOLE, **change), fixed_by(GIGAGAN), "gigagan")
    assert len(found) == 1
    assert found[0].startswith(said)
    assert found[0].endswith(".")


def test_any_800_prompts_are_not_those_of_hpsv2() -> None:
    lists = {style: weights.weight_files()[f"hps-prompts-{style}"].sha256 for style in HPS_STYLES}
    assert deviations(Made(3200, lists), fixed_by_hps(), "hps-v2.0") == []
    found = deviations(Made(3200, lists | {"photo": "0" * 64}), fixed_by_hps(), "hps-v2.0")
    assert len(found) == 1
    assert "the list photo" in found[0]


# -- weights ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], list[str]]:
    """``hub(sha256)``: the hub announces this hash for every file (None: no answer); returns the list of what it was asked."""
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / ".cache"))

    def announce(sha256: str | None) -> list[str]:
        asked: list[str] = []

        def answer(url: str) -> str:
            asked.append(url)
            if sha256 is None:
                raise OSError("no answer")
            return sha256

        monkeypatch.setattr(weights, "announced_sha256", answer)
        return asked

    return announce


def test_what_the_hub_announced_is_remembered(hub) -> None:
    row = weights.weight_files()["hps-v2.0"]
    hub(None)
    assert weights.known_sha256(row) is None
    asked = hub("a" * 64)
    assert [weights.known_sha256(row) for _ in range(2)] == ["a" * 64] * 2
    assert asked == [row.url]
    hub(None)
    assert weights.known_sha256(row) == "a" * 64


def test_the_hash_of_a_file_is_that_of_its_content_now(tmp_path: Path) -> None:
    """Whatever its size, and when another content of the same length and times takes its place."""
    path = tmp_path / "weights.bin"
    for content in (b"a", b"b"):
        path.write_bytes(content * (2**24 + 1))
        os.utime(path, ns=(10**18, 10**18))
        assert weights.file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_that_cannot_be_verified_are_said_to_be(hub) -> None:
    made = Made(3200, weights={"hps-v2.0": "a" * 64})
    hub(None)
    assert "cannot be verified" in deviations(made, fixed_by_hps(), "hps-v2.0")[0]
    hub("a" * 64)
    assert deviations(made, fixed_by_hps(), "hps-v2.0") == []
    assert (
        "is not the published one"
        in deviations(replace(made, weights={"hps-v2.0": "b" * 64}), fixed_by_hps(), "hps-v2.0")[0]
    )


def test_a_checkpoint_of_the_other_hps_version_is_refused(hub, tmp_path: Path) -> None:
    named, renamed = tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "renamed.pt"
    for path in (named, renamed):
        path.write_bytes(b"weights of v2.1")
    with pytest.raises(weights.UsageError, match=r"this is the HPS v2\.1 checkpoint, not the HPS v2\.0"):
        weights.find_weights("hps-v2.0", named)
    assert weights.find_weights("hps-v2.0", renamed) == renamed  # nothing is known of it yet
    hub(weights.file_sha256(renamed))
    weights.known_sha256(weights.weight_files()["hps-v2.1"])
    with pytest.raises(weights.UsageError, match=r"this is the HPS v2\.1 checkpoint"):
        weights.find_weights("hps-v2.0", renamed)
    assert weights.find_weights("hps-v2.1", renamed) == renamed


# -- scores that are not given ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "impossible"),
    [
        ({}, set()),
        ({"pictures": 1}, {"fid", "pr"}),
        ({"pictures": 2}, {"pr"}),
        ({"pictures": 3}, {"pr"}),
        ({"pictures": 4}, set()),
        ({"real": 3}, {"pr"}),
        ({"real": 0}, set()),  # unknown
        ({"real": None}, {"fid", "pr"}),
        ({"real_features": False}, {"pr"}),
        ({"captions": False}, {"clip"}),
        ({"paired": 0}, {"clip"}),
    ],
)
def test_what_cannot_be_computed(change: dict, impossible: set[str]) -> None:
    facts = {"pictures": 100, "real": 100, "paired": 100} | change
    assert set(obstacles(GIGAGAN, METRICS, **facts)) == impossible
    assert set(obstacles(GIGAGAN, ("clip",), **facts)) == impossible & {"clip"}


@pytest.mark.parametrize(("count", "given"), [(1, {"clip"}), (3, {"clip", "fd"}), (4, {"clip", "fd", "precision"})])
def test_few_pictures_have_the_scores_that_they_can_have(run, tmp_path: Path, count: int, given: set[str]) -> None:
    fake = folder_of(tmp_path / "fake", count)
    code, shown, err = run("eval", "--images", fake, "--protocol", "embedded", "--device", "cpu", "--out", "out")
    assert code == 0, err
    found = results(Path("out"))
    assert list(found["scores"]) == scores_of(EMBEDDED, METRICS)
    absent = {name for name, value in found["scores"].items() if value is None}
    assert given == set(found["scores"]) - absent - {"recall", "retrieval_top1", "retrieval_top5"}
    assert absent == set(found["not_given"])
    assert ("Not given: " in shown) == bool(absent)


def test_when_nothing_can_be_computed_nothing_is(run, tmp_path: Path) -> None:
    fake = folder_of(tmp_path / "fake", 3)
    options = ["--images", fake, "--protocol", "embedded", "--only", "pr", "--out", "out"]
    code, _, err = run("eval", *options, "--device", "cpu")
    assert code == 2
    one_line(err, "no score can be computed", "at least 4 pictures")
    assert not Path("out").exists()


# -- HPSv2 -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hps_options(tiny_clip: open_clip.CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Options of an evaluation of three pictures a style, with a tiny model and prompts of our own."""
    monkeypatch.setattr(hps, "load_hps", partial(hps.load_hps, architecture="tiny"))
    (tmp_path / "prompts").mkdir()
    for style in HPS_STYLES:
        texts = [f"{style} {i}" for i in range(800)]
        (tmp_path / "prompts" / f"{style}.json").write_text(json.dumps(texts), encoding="utf-8")
        folder = tmp_path / "pictures" / style
        folder_of(folder, 3)
        for i in range(3):
            (folder / f"{i:06d}.png").rename(folder / f"{i:05d}.png")
    options = ["--images", tmp_path / "pictures", "--prompts", tmp_path / "prompts", "--limit", "3", "--out", "out"]
    return ["eval", "--hpsv2", "--hps", hps_file(tiny_clip, tmp_path), "--device", "cpu", *options]


def test_hps_scores_say_what_made_them(run, hps_options: list, tmp_path: Path) -> None:
    assert run(*hps_options)[0] == 0
    found = results(Path("out"))
    assert found["weights_sha256"] == {"hps-v2.0": weights.file_sha256(tmp_path / "HPS_v2_compressed.pt")}
    said = " ".join(found["warnings"])
    assert "The number of pictures is 12; the protocol hps-v2.0 has 3,200." in said
    assert all(f"The prompts are not the list {style} of" in said for style in HPS_STYLES)
    assert "the HPS v2.0 checkpoint cannot be verified" in said
    styles = [found["scores"][f"hps_{style}"] for style in HPS_STYLES]
    assert found["scores"]["hps_average"] == pytest.approx(sum(styles) / 4)
    assert "SiD-LSG" not in Path("out/results.md").read_text(encoding="utf-8")


def test_the_styles_that_are_there_are_scored(run, hps_options: list, tmp_path: Path) -> None:
    assert run(*hps_options)[0] == 0
    whole = results(Path("out"))["scores"]
    (tmp_path / "pictures" / "photo").rename(tmp_path / "photo")
    code, shown, _ = run(*hps_options)
    assert code == 0
    (fewer,) = Path("out").glob("results-*-pictures.json")  # those of all styles are kept
    assert results(Path("out"))["scores"] == whole
    found = json.loads(fewer.read_text(encoding="utf-8"))
    assert set(found["not_given"]) == {"hps_photo", "hps_average"}
    whole.pop("hps_photo_std")
    assert found["scores"] == whole | {"hps_photo": None, "hps_average": None}
    assert "Not given: HPS photo" in shown
    (tmp_path / "pictures" / "anime" / "00001.png").unlink()
    code, _, err = run(*hps_options)
    assert code == 2
    one_line(err, "00001.png", "style anime", "--limit")


# -- folders of results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["results.json", "generation.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_file_is_named_and_kept(run, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / name
    path.write_text(content, encoding="utf-8")
    code, _, err = run("eval", "--limit", "2", "--device", "cpu", "--out", tmp_path / "out")
    assert code == 2
    one_line(err, f"{path} is damaged")
    assert path.read_text(encoding="utf-8") == content
    assert not (tmp_path / "out" / "images").exists()


def test_results_of_other_pictures_are_not_overwritten(run, tmp_path: Path) -> None:
    one, two = (folder_of(tmp_path / name, 4) for name in ("one", "two"))
    options = ["--protocol", "embedded", "--only", "clip", "--device", "cpu", "--out", "out"]
    assert run("eval", "--images", one, *options)[0] == 0
    assert run("eval", "--images", "one", *options)[0] == 0  # the same folder in other words
    for other in (["--images", two], ["--limit", "2"]):
        code, _, err = run("eval", *other, *options)
        assert code == 2
        one_line(err, "out/results.json holds results of pictures in", "one; give another --out")


# -- pictures --------------------------------------------------------------------------------------------------------------


def test_pictures_drawn_with_other_seeds_than_their_numbers_are_said_to_be(run, tmp_path: Path) -> None:
    few = ["--only", "clip", "--device", "cpu"]
    assert run("eval", "--limit", "3", *few, "--out", "drawn")[0] == 0
    images = Path("drawn/images")
    finished = ["--images", images, "--protocol", "embedded", *few]
    assert "another seed" not in run("eval", *finished, "--out", "same")[1]
    (images / "000002.png").rename(images / "000007.png")
    code, shown, _ = run("eval", *finished, "--out", "moved")
    assert code == 0
    assert "1 pictures say that they were drawn with another seed than their number" in " ".join(shown.split())
    assert "(first: 7 (seed 2))" in shown


def test_captions_of_ones_own_are_said_to_be(run, tmp_path: Path) -> None:
    fake = folder_of(tmp_path / "fake", 4)
    (tmp_path / "own.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    options = ["--images", fake, "--protocol", "embedded", "--only", "clip", "--device", "cpu", "--out", "out"]
    assert run("eval", *options, "--prompts", "own.txt")[0] == 0
    assert any("The prompts are not the list emoji-bench" in text for text in results(Path("out"))["warnings"])


# -- precision -------------------------------------------------------------------------------------------------------------


def test_a_process_that_computes_coarsely_gets_the_same_scores(tiny_clip: open_clip.CLIP, tmp_path: Path) -> None:
    """Whatever the process has set, the judges compute in float32 without TF32 or autocast; and its settings are as before."""
    from sidlsg.evaluation.scorer import Scorer

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    scorer = Scorer(EMBEDDED, torch.device("cpu"))
    preference = hps.load_hps("v2.0", torch.device("cpu"), hps_file(tiny_clip, tmp_path), architecture="tiny")
    pictures = [Image.effect_noise((64, 64), 50 + i).convert("RGB") for i in range(3)]
    inside = []

    def look(*_: object) -> None:
        inside.append((cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32))

    def scores() -> list[torch.Tensor]:
        encoded = scorer.encode(pictures, features=True, clip=True)
        return [
            encoded.features,
            encoded.embeddings,
            scorer.clip.encode_captions(["red heart", "sad cat"]),
            preference(pictures, ["a", "b", "c"]),
        ]

    plain = scores()
    hooks = [m.register_forward_hook(look) for n in (scorer.clip.model, preference.model) for m in n.modules()]
    before = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32)
    coarse = (True, True, False, True)
    try:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = coarse
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = scores()
            assert torch.is_autocast_enabled("cpu")
        assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32) == coarse
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = before
        for hook in hooks:
            hook.remove()
    assert set(inside) == {(False, False, True, False)}
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
