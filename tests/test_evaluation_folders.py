"""What an evaluation finds in its folders: files that count, pictures that are not its own, results that are there already."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation import scorer as scorers
from sidlsg.evaluation.captions import Captions, assign
from sidlsg.evaluation.generation import caption_jobs, check_drawn, remove_unfinished
from sidlsg.evaluation.picture_file import load_rgb, read_header
from sidlsg.evaluation.pictures import bare_name, find_pictures, match_captions
from sidlsg.evaluation.protocol import get_protocol
from sidlsg.evaluation.results import check_conditions, store
from sidlsg.evaluation.scorer import Scorer
from sidlsg.evaluation.scoring import tell_of_names
from sidlsg.files import replacing, write_text
from sidlsg.runs.folder import RunFolder
from sidlsg.sampling.pictures import save_png
from support.scoring import folder_of, results
from support.terminal import one_line

CPU = torch.device("cpu")


def picture(seed: int = 0, size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def encoded(kind: str = "PNG", seed: int = 0) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, kind)
    return file.getvalue()


# -- which files count -----------------------------------------------------------------------------------------------------

ODD = ["3.png?size=64", "4.png.1", "5.png_orig", "6", "7.JPG.copy"]


def test_what_begins_as_a_picture_counts_whatever_its_name(tmp_path: Path) -> None:
    for name, kind in (("0.png", "PNG"), *((name, "JPEG" if "JPG" in name else "PNG") for name in ODD)):
        (tmp_path / name).write_bytes(encoded(kind))
    for i, kind in enumerate(("BMP", "GIF", "PPM", "TIFF", "WEBP")):
        (tmp_path / f"{10 + i}").write_bytes(encoded(kind))
    texts = {"BM notes": b"BMW and others\n" * 9, "P3": b"P3 is a text\n", "captions.txt": b"a cat\n", "empty": b""}
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    found = find_pictures(tmp_path)
    assert [path.name for path in found.files] == ["0.png", *ODD, "10", "11", "12", "13", "14"]
    assert found.left_out == ()
    assert found.index == (0, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14)
    said: list[str] = []
    tell_of_names(found, said.append, said.append)
    assert len(said) == 1
    assert said[0].startswith("10 of the 11 files counted in")
    assert "first: 3.png?size=64" in said[0]


def test_pictures_that_are_not_read_are_named_whatever_their_name(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded())
    for name, content in (
        ("a", b"\0\0\0\x1cftypavif\0\0\0\0"),
        ("b", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("c.png.77-aa.part", encoded()),
        ("d.gif", encoded("GIF")),
    ):
        (tmp_path / name).write_bytes(content)
    found = find_pictures(tmp_path)
    assert [path.name for path in found.left_out] == ["a", "b", "c.png.77-aa.part", "d.gif"]
    said: list[str] = []
    tell_of_names(found, said.append, said.append)
    assert said[0].startswith("4 pictures of kinds that are not read (.gif, .part, no suffix)")


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("7.png", "7"),
        ("7.PNG?x=1.5", "7"),
        ("7.png.1", "7"),
        ("7", "7"),
        ("a.b", "a.b"),
        ("7.jpgx", "7.jpgx"),
        ("7.jpg_o", "7"),
    ],
)
def test_a_name_without_what_says_its_kind(name: str, bare: str) -> None:
    assert bare_name(name) == bare


def test_odd_names_pair_with_captions_as_others_do(tmp_path: Path) -> None:
    for name in ("0.png?size=64", "1", "2.png.1"):
        (tmp_path / name).write_bytes(encoded())
    found = find_pictures(tmp_path)
    assert match_captions(found, ["a", "b", "c"])[0] == [(0, 0), (1, 1), (2, 2)]
    table = Captions(["x", "y", "z"], "table", "", ["2.png", "0.png?size=64", "1.png"])
    assert assign(found, table, print).index == (1, 2, 0)


# -- what is in a file -----------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


LONG = b"x" * (PngImagePlugin.MAX_TEXT_CHUNK * 2)
CHUNKS = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG)),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LONG)),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + zlib.compress(LONG)),
    "tEXt": b"".join(chunk(b"tEXt", b"a%d\0" % i + b"y" * 2**20) for i in range(70)),
    "bomb": b"".join(chunk(b"zTXt", b"b%d\0\0" % i + zlib.compress(LONG[:900_000], 9)) for i in range(80)),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_long_texts_and_profiles_do_not_keep_a_picture_out(tmp_path: Path, kind: str) -> None:
    save_png(picture(), tmp_path / "plain.png", prompt="a cat", seed=3, model="emoji")
    plain = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "long.png").write_bytes(plain[:33] + CHUNKS[kind] + plain[33:])
    np.testing.assert_array_equal(np.asarray(load_rgb(tmp_path / "long.png")), np.asarray(picture()))
    header, same = read_header(tmp_path / "long.png"), read_header(tmp_path / "plain.png")
    assert (header.seed, header.model, header.prompt_sha256) == ("3", "emoji", same.prompt_sha256)
    assert header.sha256 != same.sha256  # of the whole file


def test_a_png_that_is_damaged_in_front_of_its_texts_is_still_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded()[:40] + CHUNKS["zTXt"])
    with pytest.raises(UsageError, match=r"0\.png is not a (readable )?picture"):
        load_rgb(tmp_path / "0.png")


def test_a_damaged_picture_met_by_a_worker_process_is_one_line(tmp_path: Path, monkeypatch) -> None:
    folder = folder_of(tmp_path / "in", 6, size=64)
    whole = (folder / "000004.png").read_bytes()
    (folder / "000004.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(scorers, "loader_workers", lambda device, pictures: 2)
    with pytest.raises(UsageError) as raised:
        Scorer(get_protocol("embedded"), CPU, ("fid",), batch=2).encode(find_pictures(folder).files, True, False)
    assert str(raised.value).startswith(f"{folder / '000004.png'} is not a readable picture")
    assert "\n" not in str(raised.value)


# -- pictures that are not ours --------------------------------------------------------------------------------------------

JOBS = caption_jobs([f"prompt {i}" for i in range(4)])


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """The pictures of ``JOBS``, as the model "emoji" draws them."""
    for job in JOBS:
        save_png(picture(job.seed), tmp_path / job.path, prompt=job.prompt, seed=job.seed, model="emoji")
    return tmp_path


def test_our_own_pictures_are_taken(drawn: Path) -> None:
    check_drawn(JOBS, drawn, ["emoji", "/elsewhere/emoji"])
    (drawn / "000002.png").unlink()  # still to be drawn
    check_drawn(JOBS, drawn, ["emoji"])


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "it does not say how it was drawn"),
        ({"prompt": "prompt 2", "seed": 7, "model": "emoji"}, "it has the seed 7, not 2"),
        ({"prompt": "prompt 3", "seed": 2, "model": "emoji"}, "it has another prompt"),
        ({"prompt": "prompt 2", "seed": 2, "model": "other"}, "it was drawn by other"),
    ],
)
def test_another_picture_is_named_before_anything_is_drawn(drawn: Path, facts: dict, said: str) -> None:
    save_png(picture(9), drawn / "000002.png", **facts)
    with pytest.raises(UsageError, match=rf"1 of the 4 pictures in .* \(first: 000002\.png: {said}\); delete them"):
        check_drawn(JOBS, drawn, ["emoji"])


# -- results that are there ------------------------------------------------------------------------------------------------

COMMON = {
    "protocol": "embedded",
    "protocol_sha256": "p",
    "what": "",
    "pairing": "",
    "generation": {"images": "None"},
    "prompts_sha256": "captions",
    "weights_sha256": {"judge": "w"},
    "precision": "",
    "device": "cpu",
    "device_name": "",
    "seconds": {"scoring": 1.0},
    "versions": {"torch": "1"},
    "pictures_sha256": "x",
    "warnings": [],
    "not_given": {},
}


def result(scores: dict, pictures: int = 1024, **changes: object) -> dict:
    reference = {"source": "real", "pictures": 5, "sha256": "r"} if "fd" in scores else None
    return COMMON | {"scores": scores, "pictures": pictures, "reference": reference} | changes


WHOLE = {"fd": 48.0, "clip": 0.6, "precision": 0.9, "recall": 0.8}


def keep(folder: Path, *several: dict) -> list[str]:
    said: list[str] = []
    for one in several:
        store(folder, one, said.append)
    return said


def read(path: Path) -> dict:
    assert path.with_suffix(".md").is_file()
    return json.loads(path.read_text(encoding="utf-8"))


def test_some_of_the_scores_are_added_to_the_others(tmp_path: Path) -> None:
    only = result({"clip": 0.61}, warnings=["said"], weights_sha256={"clip": "c"})
    assert keep(tmp_path, result(WHOLE), only) == []
    found = read(tmp_path / "results.json")
    assert found["scores"] == WHOLE | {"clip": 0.61}
    assert found["reference"]["source"] == "real"
    assert found["weights_sha256"] == {"judge": "w", "clip": "c"}
    assert found["warnings"] == ["said"]
    impossible = result({"fd": None}, not_given={"fd": "there is no reference"})
    keep(tmp_path, impossible)
    assert read(tmp_path / "results.json")["scores"]["fd"] == 48.0
    assert read(tmp_path / "results.json")["not_given"] == {}


def test_results_of_fewer_pictures_have_a_file_of_their_own(tmp_path: Path) -> None:
    said = keep(tmp_path, result(WHOLE), result(WHOLE | {"fd": 300.0}, 24), result({"clip": 0.5}, 24))
    assert read(tmp_path / "results.json")["scores"] == WHOLE
    assert read(tmp_path / "results-24-pictures.json")["scores"] == WHOLE | {"fd": 300.0, "clip": 0.5}
    assert "is of 1,024 pictures and is kept; these results are in results-24-pictures.json" in said[0]


def test_results_of_more_pictures_leave_those_of_fewer(tmp_path: Path) -> None:
    said = keep(tmp_path, result(WHOLE, 24), result(WHOLE | {"fd": 40.0}))
    assert read(tmp_path / "results.json")["scores"]["fd"] == 40.0
    assert read(tmp_path / "results-24-pictures.json")["scores"] == WHOLE
    assert "are now results-24-pictures.json" in said[0]


@pytest.mark.parametrize("change", [{"pictures_sha256": "y"}, {"versions": {"torch": "2"}}])
def test_scores_of_other_pictures_or_packages_are_not_mixed(tmp_path: Path, change: dict) -> None:
    said = keep(tmp_path, result(WHOLE), result({"clip": 0.1}, **change))
    assert read(tmp_path / "results.json")["scores"] == {"clip": 0.1}
    assert read(tmp_path / "results-2.json")["scores"] == WHOLE
    assert "are now results-2.json" in said[0]


OTHERWISE = [
    ({"reference": {"source": "else", "sha256": "s"}}, r"another reference \(real\)"),
    ({"prompts_sha256": "others"}, "other captions"),
    ({"weights_sha256": {"judge": "v"}}, r"other weights \(judge\)"),
    ({"protocol_sha256": "q"}, "another version of the protocol"),
]


@pytest.mark.parametrize(("change", "said"), OTHERWISE)
def test_scores_computed_otherwise_are_refused_before_drawing_and_never_lost(
    tmp_path: Path, change: dict, said: str
) -> None:
    keep(tmp_path, result(WHOLE))
    with pytest.raises(UsageError, match=rf"results\.json holds results of {said}; give another --out"):
        check_conditions(tmp_path, change)
    keep(tmp_path, result(WHOLE | {"fd": 1.0}, **change))  # where it is known only afterwards
    assert read(tmp_path / "results.json")["scores"] == WHOLE
    assert read(tmp_path / "results-2.json")["scores"]["fd"] == 1.0


def test_the_command_keeps_what_is_there(cold_run, tmp_path: Path) -> None:
    """Pictures of other tools, by their captions alone: seconds, and all of the path from the command to the file."""
    pictures = folder_of(tmp_path / "in", 4, size=64)
    captions = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for number, path in enumerate(captions):
        path.write_text("".join(f"a cat {number + i}\n" for i in range(4)), encoding="utf-8")
    common = ["--images", pictures, "--protocol", "embedded", "--device", "cpu", "--out", "out"]
    common += ["--reference", folder_of(tmp_path / "real", 5, size=64)]
    command = ["eval", *common, "--prompts", captions[0]]
    assert cold_run(*command)[0] == 0
    whole = results(Path("out"))
    assert cold_run(*command, "--only", "clip")[0] == 0
    assert results(Path("out"))["scores"] == whole["scores"]
    code, _, err = cold_run("eval", *common, "--prompts", captions[1])
    assert code == 2
    one_line(err, "out/results.json holds results of other captions", "--out")
    with RunFolder(Path("out")).locked():
        code, _, err = cold_run(*command)
    assert code == 2
    one_line(err, "another process is evaluating in", "out")
    assert results(Path("out"))["scores"] == whole["scores"]


# -- files that are being written ------------------------------------------------------------------------------------------


def test_no_two_writers_share_a_name_and_none_is_left(tmp_path: Path) -> None:
    """Also of threads, and of processes of the same number on two hosts: 8 writers of one picture, and whoever reads it."""
    path, whole = tmp_path / "0.png", set()
    for seed in range(2):
        file = tmp_path / f"whole-{seed}"
        save_png(picture(seed, 64), file, seed=seed)
        whole.add(file.read_bytes())
    save_png(picture(0, 64), path, seed=0)
    failed: list[Exception] = []

    def write(seed: int) -> None:
        try:
            for _ in range(20):
                save_png(picture(seed, 64), path, seed=seed)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(i % 2,)) for i in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in whole
    assert failed == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.png", "whole-0", "whole-1"]


def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(SidlsgError, match="stop"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half", encoding="utf-8")
        raise SidlsgError("stop")
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    left, written = (tmp_path / "images" / f"0.png.{number}-ab.part" for number in (1, 2))
    left.touch()
    written.touch()
    os.utime(left, (0, 0))
    remove_unfinished(tmp_path)
    assert list((tmp_path / "images").iterdir()) == [written]


def test_nothing_writes_unfinished_files_by_another_way() -> None:
    """One helper names them; checkpoints, which are folders, have their own."""
    package = Path(__file__).parent.parent / "sidlsg"
    others = [
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if '.part"' in file.read_text(encoding="utf-8") or ".part.png" in file.read_text(encoding="utf-8")
    ]
    assert set(others) <= {"files.py", "runs/checkpoints.py"}
