"""Every score against an independent computation: SciPy, a naive k-NN, Pillow, torch-fidelity's own pipeline, open_clip."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import scipy.linalg
import torch
import torch_fidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.transforms import functional as tvf

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation import hps
from sidlsg.evaluation import scorer as scorer_module
from sidlsg.evaluation.distance import Moments, frechet_distance, moments, precision_recall, retrieval
from sidlsg.evaluation.networks import (
    BICUBIC,
    TRUNCATED,
    Clip,
    feature_extractor,
    load_clip,
    load_judge,
    resize_bicubic,
)
from sidlsg.evaluation.pictures import centre_square, load_sheet, to_protocol
from sidlsg.evaluation.protocol import HPS_STYLES, get_protocol, protocols
from sidlsg.evaluation.reference import BENCH, load_reference
from sidlsg.evaluation.scorer import Pictures, Scorer
from support.scoring import TINY_CLIP, hps_file, results
from support.terminal import one_line

CPU = torch.device("cpu")
GIGAGAN, SID, EMBEDDED = (get_protocol(name) for name in ("gigagan", "sid-lsg", "embedded"))


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# -- distances -------------------------------------------------------------------------------------------------------------


def test_frechet_distance_is_scipys() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(300, 24)) @ rng.normal(size=(24, 24)), 0.3 + rng.normal(size=(500, 24))
    ours = frechet_distance(*(moments(torch.from_numpy(x).float()) for x in (one, two)))
    one, two = one.astype(np.float32), two.astype(np.float32)
    s1, s2 = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    theirs = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(s1 + s2 - 2 * root)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_frechet_distance_of_known_gaussians() -> None:
    # Diagonal covariances: |mu|^2 + sum (s1 - s2)^2 with standard deviations s.
    mu, s1, s2 = np.array([3.0, 0, 4]), np.array([1.0, 2, 3]), np.array([2.0, 2, 1])
    one = Moments(np.zeros(3, np.float32), np.diag(s1**2), 10)
    two = Moments(mu.astype(np.float32), np.diag(s2**2), 10)
    assert frechet_distance(one, two) == pytest.approx(25 + 1 + 0 + 4)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_sample_of_a_known_gaussian() -> None:
    # Features with exactly these moments: an orthogonal design, scaled.
    design = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * torch.tensor([2.0, 5.0]) + torch.tensor([1.0, -1.0])
    found = moments(design, ddof=0)
    np.testing.assert_allclose(found.sigma, np.diag([4.0, 25.0]), rtol=1e-6)
    np.testing.assert_allclose(moments(design, ddof=1).sigma, np.diag([4.0, 25.0]) * 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(found.mu, [1, -1], rtol=1e-6)


def naive_precision_recall(fake: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    """Share of ``fake`` inside some ball of ``real`` (radius: distance to the k-th nearest other point), and reverse."""

    def inside(points: np.ndarray, centres: np.ndarray) -> float:
        radius = [sorted(np.linalg.norm(c - o) for o in centres)[k] for c in centres]
        return np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radius, strict=True)) for p in points])

    return inside(fake, real), inside(real, fake)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.sampled_from([1, 3]), st.sampled_from([5, 7, 1000]))
def test_precision_and_recall_are_the_naive_ones_in_any_block_size(seed: int, k: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    fake, real = rng.normal(size=(11, 4)).astype(np.float32), 0.7 + 1.5 * rng.normal(size=(16, 4)).astype(np.float32)
    ours = precision_recall(torch.from_numpy(fake), torch.from_numpy(real).float(), k, block)
    assert ours == pytest.approx(naive_precision_recall(fake, real, k), abs=1e-6)


def test_a_collapsed_generator_has_precision_but_no_recall() -> None:
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(400, 8, generator=rng)
    collapsed = real[:1] + 1e-3 * torch.randn(400, 8, generator=rng)
    precision, recall = precision_recall(collapsed, real)
    assert precision == 1.0
    assert recall <= 0.01


def test_too_few_pictures_for_the_neighbourhood() -> None:
    with pytest.raises(SidlsgError, match="more than 3"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))


def test_retrieval_counts_ranks() -> None:
    captions = torch.eye(6)
    images = torch.tensor([[9.0, 1, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0]])
    images = images / images.norm(dim=1, keepdim=True)
    # own captions: best, 5th best, worst
    assert retrieval(images, captions, torch.tensor([0, 4, 5]), block=2) == pytest.approx((1 / 3, 2 / 3))


# -- resizing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (481, 640), (483, 640), (512, 512), (333, 500)])
def test_the_crop_and_resize_of_table_1_are_torchvisions_and_pillows(size: tuple[int, int]) -> None:
    picture = noise_picture(*size)
    expected = tvf.center_crop(picture, [min(size)] * 2).resize((256, 256), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(to_protocol(picture, GIGAGAN), np.asarray(expected))


def test_the_two_protocols_crop_differently_where_the_margin_is_3_mod_4() -> None:
    picture = noise_picture(483, 640 - 154)  # margin 3
    offsets = [np.asarray(centre_square(picture, how)) for how in ("round", "floor")]
    pixels = np.asarray(picture)
    np.testing.assert_array_equal(offsets[0], pixels[2:485])  # round(1.5) = 2
    np.testing.assert_array_equal(offsets[1], pixels[1:484])


def test_the_bicubic_resize_is_clean_fids() -> None:
    """Per channel float32 in Pillow's mode F, bicubic to 299, clipped, never quantised."""
    pixels = np.asarray(noise_picture(256, 256))
    channels = [
        np.asarray(Image.fromarray(pixels[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    expected = np.stack(channels).clip(0, 255)
    ours = resize_bicubic(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float())[0].numpy()
    assert np.abs(ours - expected).max() < 0.01


def test_the_in_training_resize_is_tensorflow_1s_bilinear() -> None:
    """No half-pixel centres: target pixel i looks at i * 256 / 299."""
    pixels = np.asarray(noise_picture(256, 256)).astype(np.float64)
    at = np.arange(299) * 256 / 299
    low, share = np.floor(at).astype(int), (at % 1)
    high = np.minimum(low + 1, 255)
    rows = pixels[low] * (1 - share)[:, None, None] + pixels[high] * share[:, None, None]
    expected = rows[:, low] * (1 - share)[None, :, None] + rows[:, high] * share[None, :, None]
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    ours = (
        interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)[0].permute(1, 2, 0).numpy()
    )
    assert np.abs(ours - expected).max() < 0.01


def test_clip_preprocessing_of_table_1_is_open_clips() -> None:
    """Shortest side to 224 by Pillow's bicubic on 8 bits, then OpenAI's normalisation; grey levels 1 to 63 lose one."""
    clip = Clip(torch.nn.Linear(1, 1), None, 224, *OPENAI, "A photo depicts ", "pil", True)
    pixels = np.asarray(noise_picture(256, 256))
    lowered = pixels - ((pixels >= 1) & (pixels <= 63))
    small = Image.fromarray(lowered.astype(np.uint8)).resize((224, 224), Image.Resampling.BICUBIC)
    expected = (np.asarray(small) / 255 - OPENAI[0]) / OPENAI[1]
    assert np.abs(clip.prepare(pixels).permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_the_truncating_round_trip_lowers_63_levels() -> None:
    levels = np.arange(256)
    np.testing.assert_array_equal(TRUNCATED, levels - ((levels >= 1) & (levels <= 63)))


OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def cubic_weight(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


def test_in_training_clip_preprocessing_is_bicubic_without_antialiasing() -> None:
    clip = Clip(torch.nn.Linear(1, 1), None, 224, *OPENAI, "", "tensor", False)
    pixels = np.asarray(noise_picture(256, 256)).astype(np.float64) / 255
    at = (np.arange(224) + 0.5) * 256 / 224 - 0.5
    weights = np.zeros((224, 256))
    for tap in range(-1, 3):
        place = np.floor(at).astype(int) + tap
        np.add.at(weights, (np.arange(224), place.clip(0, 255)), cubic_weight(at - place))
    small = np.einsum("ih,hwc->iwc", weights, pixels)
    small = np.einsum("jw,iwc->ijc", weights, small)
    expected = (small - OPENAI[0]) / OPENAI[1]
    ours = clip.prepare(np.asarray(noise_picture(256, 256))).permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() < 0.01 / 255 / 0.26  # 0.01 grey levels


def test_hps_preprocessing_resizes_float_tensors() -> None:
    picture = noise_picture(512, 384)
    x = tvf.to_tensor(picture)
    small = tvf.resize(x, [168, 224], tvf.InterpolationMode.BICUBIC, antialias=True)
    expected = tvf.normalize(tvf.pad(small, [0, 28, 0, 28]), *OPENAI)
    torch.testing.assert_close(hps.prepare(picture), expected, atol=1e-5, rtol=0)
    assert (hps.prepare(picture, antialias=False) - expected).abs().max() > 0.1


def test_pictures_of_another_size_are_refused_by_the_embedded_protocol() -> None:
    with pytest.raises(UsageError, match="65x64"):
        to_protocol(noise_picture(65, 64), EMBEDDED)


# -- Inception -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict with the names and shapes of the real file, and random values."""
    patch = pytest.MonkeyPatch()
    patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
    torch.manual_seed(0)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    patch.undo()
    state = network.state_dict()
    assert len(state) == 566
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def opened() -> Callable[..., FeatureExtractorInceptionV3]:
    """``feature_extractor``, which keeps what it has opened."""
    return functools.cache(feature_extractor)


@pytest.fixture
def few_pictures(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is quick for a few pictures: extractors are opened once, and of a product of covariances only the eigenvalues
    that are not zero are sought: its rank is less than the number of pictures."""
    every = np.linalg.eigvals

    def not_zero(matrix: np.ndarray) -> np.ndarray:
        basis, _ = np.linalg.qr(matrix @ np.random.default_rng(0).normal(size=(len(matrix), 16)))
        return every(basis.T @ matrix @ basis)

    monkeypatch.setattr(np.linalg, "eigvals", not_zero)
    monkeypatch.setattr(scorer_module, "feature_extractor", opened)


def test_the_trunk_is_torch_fidelitys(inception_file: Path, opened) -> None:
    """At 299x299 both resizes are the identity, so the two extractors must agree to the bit."""
    ours, stock = (opened(protocol, inception_file, CPU) for protocol in (GIGAGAN, SID))
    assert type(stock) is FeatureExtractorInceptionV3
    x = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x)[0], stock(x)[0], rtol=0, atol=0)
    x = x[:, :, :256, :256].contiguous()
    assert not torch.allclose(ours(x)[0], stock(x)[0], rtol=1e-3)  # at 256 the resize matters


@pytest.mark.parametrize("protocol", [GIGAGAN, SID], ids=lambda p: p.name)
def test_scores_are_those_of_torch_fidelity_end_to_end(protocol, inception_file: Path, few_pictures) -> None:
    """The same files through ``calculate_metrics`` with the registered extractor."""

    def dimmed(picture: Image.Image, share: float) -> Image.Image:
        """So that the pictures of a set differ more than the sets do: the covariances matter."""
        return picture.point([int(v * share) for v in range(256)] * 3)

    items = [dimmed(noise_picture(300 + i, 280, seed=i), (i + 1) / 4) for i in range(4)]
    reals = [dimmed(noise_picture(280, 290 + i, seed=100 + i), (i + 1) / 5) for i in range(5)]
    scorer = Scorer(protocol, CPU, ("fid", "pr"), inception=inception_file, batch=3)
    encoded = scorer.encode(items, features=True, clip=False)
    reference = scorer.reference(scorer.encode(reals, features=True, clip=False).features, "test")
    ours = scorer.score(encoded, reference, None)

    class Bare(Pictures):
        def __getitem__(self, i: int) -> torch.Tensor:
            return super().__getitem__(i)[0]

    theirs = torch_fidelity.calculate_metrics(
        input1=Bare(items, protocol, None),
        input2=Bare(reals, protocol, None),
        cuda=False,
        fid=True,
        prc=True,
        prc_neighborhood=3,
        feature_extractor=BICUBIC if protocol is GIGAGAN else "inception-v3-compat",
        feature_extractor_weights_path=str(inception_file),
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    if protocol.ddof == 1:
        assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4, abs=0)
    else:  # they divide by N - 1; the authors' metric divides by N
        one, two = (e.double() for e in (encoded.features, reference.features))
        mean = (one.mean(0) - two.mean(0)).square().sum()
        one, two = ((e - e.mean(0)) / len(e) ** 0.5 for e in (one, two))  # the covariances are one.T one and two.T two
        root = torch.linalg.matrix_norm(one @ two.T, "nuc")
        assert ours["fid"] == pytest.approx(
            (mean + one.square().sum() + two.square().sum() - 2 * root).item(), rel=1e-4, abs=0
        )
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])


def test_without_captions_the_distance_is_given_and_no_clip_is_loaded(
    run, inception_file: Path, tmp_path: Path, few_pictures
) -> None:
    for kind, count in (("real", 3), ("fake", 2)):
        (tmp_path / kind).mkdir()
        for i in range(count):
            noise_picture(256, 256, seed=count * i).save(tmp_path / kind / f"{i}.png")
    options = ["--protocol", "sid-lsg", "--inception", inception_file, "--only", "fid,clip", "--device", "cpu"]
    options += ["--out", "out"]
    code, shown, err = run("eval", "--images", tmp_path / "fake", "--reference", tmp_path / "real", *options)
    assert code == 0, err
    found = results(Path("out"))
    assert found["scores"].pop("clip") is None
    assert None not in found["scores"].values()
    assert found["not_given"] == {"clip": "there are no captions (--prompts)"}
    assert "Not given: CLIP (there are no captions (--prompts))." in shown
    assert set(found["weights_sha256"]) == {"inception"}
    said = " ".join(found["warnings"])
    assert "The weights file is not the published one of the Inception-2015 network" in said
    assert "The reference holds 3 pictures; that of the protocol sid-lsg holds 40,504." in said
    code, _, err = run("eval", "--images", tmp_path / "fake", "--prompts", inception_file, *options)
    assert code == 2
    one_line(err, "is a zip archive")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(3)}, other)
    with pytest.raises(SidlsgError, match="--inception"):
        feature_extractor(GIGAGAN, other, CPU)
    other.write_bytes(b"not a checkpoint")
    with pytest.raises(SidlsgError, match="--inception"):
        feature_extractor(GIGAGAN, other, CPU)


# -- CLIP and HPS ----------------------------------------------------------------------------------------------------------


def clip_files(model: open_clip.CLIP, folder: Path) -> list[Path]:
    """The weights as the hub's two formats have them: safetensors, and a training checkpoint with "module." names."""
    state = model.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "open_clip_pytorch_model.bin")
    return [folder / "open_clip_model.safetensors", folder / "open_clip_pytorch_model.bin"]


def test_clip_scores_are_open_clips(tiny_clip: open_clip.CLIP, tmp_path: Path) -> None:
    captions = ["A dog on a bench. ", "two cats", "two cats"]
    pictures = [noise_picture(256, 256, seed=i) for i in range(3)]
    transform = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    tokenizer = open_clip.get_tokenizer("ViT-g-14")
    with torch.no_grad():
        lowered = [Image.fromarray(TRUNCATED[np.asarray(p)]) for p in pictures]
        image = tiny_clip.encode_image(torch.stack([transform(p) for p in lowered]))
        text = tiny_clip.encode_text(tokenizer([f"A photo depicts {c}" for c in captions]))
        expected = torch.nn.functional.cosine_similarity(image, text).mean().item()
    for path in clip_files(tiny_clip, tmp_path):
        scorer = Scorer(replace(GIGAGAN, clip_model="tiny"), CPU, ("clip",), clip=path)
        encoded = scorer.encode(pictures, features=False, clip=True)
        found = scorer.score(encoded, None, captions, [(0, 0), (1, 1), (2, 2)])
        assert found["clip"] == pytest.approx(expected, abs=1e-6)


def test_the_prefix_is_three_tokens_after_the_start() -> None:
    tokenizer = open_clip.get_tokenizer("ViT-g-14")
    with_prefix, without = tokenizer([GIGAGAN.clip_prefix + "a red bus", "a red bus"])
    assert with_prefix[:4].tolist() == [49406, 320, 1125, 29340]
    torch.testing.assert_close(with_prefix[4:], without[1:-3])


def test_clip_weights_of_another_model_are_refused(tiny_clip: open_clip.CLIP, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_file({"logit_scale": torch.zeros(())}, path)
    with pytest.raises(SidlsgError, match="--clip"):
        load_clip(replace(GIGAGAN, clip_model="tiny"), path, CPU)


def test_the_real_architectures_have_the_published_sizes() -> None:
    for name, size in ((GIGAGAN.clip_model, 1_366_678_273), (hps.ARCHITECTURE, 986_109_441)):
        with torch.device("meta"):
            model = open_clip.CLIP(**open_clip.get_model_config(name))
        assert sum(p.numel() for p in model.parameters()) == size


def test_hps_scores_are_100_times_the_cosine(tiny_clip: open_clip.CLIP, tmp_path: Path) -> None:
    path = hps_file(tiny_clip, tmp_path)
    scorer = hps.load_hps("v2.0", CPU, path, architecture="tiny")
    pictures, prompts = [noise_picture(224, 224, seed=i) for i in range(2)], ["a cat", "a dog"]
    tiny_clip.load_state_dict({k: v.half().float() for k, v in tiny_clip.state_dict().items()})
    x = torch.stack([tvf.normalize(tvf.to_tensor(p), *OPENAI) for p in pictures])
    with torch.no_grad():
        out = tiny_clip(x, open_clip.get_tokenizer("ViT-H-14")(prompts))
    torch.testing.assert_close(scorer(pictures, prompts), 100 * (out[0] * out[1]).sum(1), atol=1e-4, rtol=0)
    assert scorer.facts == {"version": "v2.0", "jpeg_quality": 75, "backend": "open_clip", "antialias": True}


def test_the_hpsv2_package_agrees_with_the_built_in_path(
    tiny_clip: open_clip.CLIP, tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("clint", reason="the hpsv2 package is not installed")
    factory = pytest.importorskip("hpsv2.src.open_clip.factory")
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", TINY_CLIP)
    path = hps_file(tiny_clip, tmp_path)
    ours, theirs = (hps.load_hps("v2.0", CPU, path, package=p, architecture="tiny") for p in (False, True))
    pictures = [hps.as_jpeg(noise_picture(512, 512, seed=i)) for i in range(3)]
    prompts = ["a cat", "a dog with a hat, oil painting", ""]
    torch.testing.assert_close(ours(pictures, prompts), theirs(pictures, prompts), atol=1e-3, rtol=0)


def test_hps_averages_are_over_pictures_and_spread_over_ten_chunks() -> None:
    values = torch.arange(800).float()
    found = hps.summary({"anime": values, "photo": values + 100})
    assert found["hps_anime"] == pytest.approx(399.5)
    assert "hps_average" not in found  # it is over all four styles
    styles = {style: values + shift for style, shift in zip(HPS_STYLES, (0, 100, 200, 300), strict=True)}
    assert hps.summary(styles)["hps_average"] == pytest.approx(549.5)
    means = [values[i * 80 : i * 80 + 80].mean().item() for i in range(10)]
    assert found["hps_anime_std"] == pytest.approx(np.std(means))


# -- the judge -------------------------------------------------------------------------------------------------------------


def test_the_judge_knows_the_reference_drawings() -> None:
    """It was trained on nine tenths of them; weights, tokenizer and preprocessing must be those of its training."""
    count = 100
    sheet = load_sheet(BENCH / "reference.png", 64, count)
    captions = (BENCH / "captions.txt").read_text(encoding="utf-8").splitlines()[:count]
    scorer = Scorer(EMBEDDED, CPU)
    encoded = scorer.encode(sheet, features=True, clip=True)
    found = scorer.score(encoded, None, captions, [(i, i) for i in range(count)])
    assert found["retrieval_top1"] > 0.9
    assert found["clip"] > 0.5
    shuffled = scorer.score(encoded, None, captions, [(i, (i + 1) % count) for i in range(count)])
    assert shuffled["retrieval_top1"] < 0.05


def test_retrieval_is_among_all_captions_whatever_the_number_of_pictures() -> None:
    count = 24
    sheet = load_sheet(BENCH / "reference.png", 64, count)
    captions = (BENCH / "captions.txt").read_text(encoding="utf-8").splitlines()
    scorer = Scorer(EMBEDDED, CPU)
    encoded = scorer.encode(sheet, features=False, clip=True)
    found = scorer.score(encoded, None, captions, [(i, i) for i in range(count)])
    distinct = list(dict.fromkeys(captions))
    similar = (encoded.embeddings.double() @ load_judge().encode_captions(distinct).double().T).tolist()
    ranks = [
        sorted(range(len(distinct)), key=lambda j, i=i: -similar[i][j]).index(distinct.index(captions[i]))
        for i in range(count)
    ]
    assert found["retrieval_top1"] == pytest.approx(sum(rank < 1 for rank in ranks) / count)
    assert found["retrieval_top5"] == pytest.approx(sum(rank < 5 for rank in ranks) / count)
    easier = scorer.score(encoded, None, captions[:count], [(i, i) for i in range(count)])
    assert easier["retrieval_top1"] > found["retrieval_top1"]


def test_the_judges_features_are_its_embedding_before_normalisation() -> None:
    judge, picture = load_judge(), noise_picture(64, 64)
    scorer = Scorer(EMBEDDED, CPU)
    encoded = scorer.encode([picture], features=True, clip=True)
    x = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = judge.model.encode_image(x)
    torch.testing.assert_close(encoded.features, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.embeddings, expected / expected.norm(), atol=1e-6, rtol=1e-5)


# -- references ------------------------------------------------------------------------------------------------------------


def test_a_reference_knows_its_protocol_and_network(tmp_path: Path) -> None:
    scorer = Scorer(EMBEDDED, CPU, ("fid", "pr"))
    made = scorer.reference(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), "somewhere")
    path = tmp_path / "stats.npz"
    made.save(path)
    back = load_reference(path, EMBEDDED, scorer.feature_weights)
    assert (back.source, back.moments.count) == ("somewhere", 50)
    np.testing.assert_array_equal(back.moments.sigma, made.moments.sigma)
    torch.testing.assert_close(back.features, made.features, rtol=0, atol=0)
    with pytest.raises(UsageError, match="made by the protocol embedded"):
        load_reference(path, GIGAGAN, None)
    with pytest.raises(UsageError, match="another version of embedded"):
        load_reference(path, replace(EMBEDDED, neighbours=5), None)
    with pytest.raises(UsageError, match="another feature network"):
        load_reference(path, EMBEDDED, "0" * 64)


def test_statistics_of_another_tool_need_to_be_vouched_for(tmp_path: Path) -> None:
    path = tmp_path / "coco.npz"
    np.savez(path, mu=np.zeros(4), sigma=np.eye(4))  # float64 means, as clean-fid and StyleGAN write them
    with pytest.raises(UsageError, match="--assume-protocol"):
        load_reference(path, GIGAGAN, "abc")
    found = load_reference(path, GIGAGAN, "abc", assume=True)
    assert found.features is None
    assert frechet_distance(found.moments, found.moments) == pytest.approx(0)


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 half a zip"])
def test_a_damaged_statistics_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "stats.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"stats\.npz is not a statistics file"):
        load_reference(path, GIGAGAN, None)


@pytest.mark.parametrize("about", ["{", "[]", "null", '{"protocol": "gigagan"}'])
def test_statistics_with_a_damaged_description_are_named(tmp_path: Path, about: str) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), about=np.array(about))
    with pytest.raises(UsageError, match="not a statistics file of sidlsg"):
        load_reference(path, get_protocol("gigagan"), None)


def test_features_that_are_not_finite_are_an_error() -> None:
    scorer = Scorer(EMBEDDED, CPU, ("fid",))
    features = torch.zeros(10, 4)
    features[3, 1] = float("nan")
    with pytest.raises(SidlsgError, match="first: picture 3"):
        scorer.reference(features, "somewhere")


def test_no_two_protocols_have_one_fingerprint() -> None:
    assert len({p.fingerprint for p in protocols().values()}) == len(protocols()) == 4
