"""Picture folders as people have them: which files count, what is in them, which caption each shows, what is kept of them."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tempfile
import threading
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sidlsg import distributed
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.evaluation import chunks, pictures, weights
from sidlsg.evaluation import run as evaluation
from sidlsg.evaluation.networks import Clip, resize_bicubic
from sidlsg.evaluation.picture_file import load_rgb, read_header
from sidlsg.evaluation.pictures import find_pictures, match_captions, to_protocol
from sidlsg.evaluation.protocol import get_protocol
from sidlsg.evaluation.reference import CODE, cache_key, load_reference
from sidlsg.evaluation.scorer import Scorer
from support.scoring import results
from support.terminal import one_line

CPU = torch.device("cpu")
GIGAGAN, SID, EMBEDDED = (get_protocol(name) for name in ("gigagan", "sid-lsg", "embedded"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names or links")
few = settings(max_examples=40, deadline=None)


def noise(size: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def save(path: Path, size: int = 8, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(size, seed).save(path, format="PNG")
    return path


def names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in find_pictures(folder).files]


# -- which files a folder holds --------------------------------------------------------------------------------------------

WORDS = ("a", "B", "10", "9", "n01440764", "été", ".hidden", "__MACOSX", "@eaDir", ".ipynb_checkpoints")
FILES = ("0.png", "10.PNG", "9.Jpeg", "._0.png", ".DS_Store", "Thumbs.db", "notes.txt", "x.tif", "y.webp.part", "z.bmp")


def walked(folder: Path, root: Path, above: tuple[str, ...] = ()) -> set[str]:
    """The real paths of the pictures below a folder, by the definition: no hidden names, links followed."""
    real = os.path.realpath(folder)
    if real in above or os.path.realpath(root).startswith(real + os.sep):
        return set()
    found = set()
    for path in folder.iterdir():
        if path.name[0] == "." or path.name in ("__MACOSX", "@eaDir"):
            continue
        if path.is_dir():
            found |= walked(path, root, (*above, real))
        elif path.suffix.lower() in (".png", ".jpeg", ".tif", ".bmp"):
            found.add(os.path.realpath(path))
    return found


@few
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(WORDS), max_size=3), st.sampled_from(FILES)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(WORDS), st.integers(0, 20)), max_size=4),
)
def test_a_folder_holds_its_pictures_once_wherever_links_lead(files, links) -> None:
    with tempfile.TemporaryDirectory() as base:
        root = Path(base) / "root"
        root.mkdir()
        (Path(base) / "beside.png").write_bytes(b"x")
        for parents, name in files:
            path = root.joinpath(*parents, name)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
        folders = [Path(base), *(path for path in [root, *sorted(root.rglob("*"))] if path.is_dir())]
        for place, name, target in links if sys.platform != "win32" else []:
            link = folders[1:][place % (len(folders) - 1)] / f"{name}-link"
            if not link.is_symlink():
                link.symlink_to(folders[target % len(folders)], target_is_directory=True)
        expected = walked(root, root)
        if not expected:
            with pytest.raises(UsageError, match="holds no pictures"):
                find_pictures(root)
            return
        found = [os.path.realpath(file) for file in find_pictures(root).files]
        assert sorted(found) == sorted(expected)


def test_the_order_is_natural_and_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = [
        "1.png",
        "2/1.png",
        "2/10.png",
        "9.png",
        "10/2.png",
        "B.png",
        "a-b/0.png",
        "a/0.png",
        "a1.png",
        "f.png",
        "e\u0301.png",
    ]
    for name in order:
        save(tmp_path / name)
    listed, scandir = names(tmp_path), os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(tmp_path) == listed
    # Numbers before letters, by their values; each part of the path by itself; an accent, however written, after the letters.
    assert listed == [
        *("1.png", "2/1.png", "2/10.png", "9.png", "10/2.png", "B.png"),
        *("a/0.png", "a1.png", "a-b/0.png", "f.png", "e\u0301.png"),
    ]


@linux
def test_a_link_that_leads_nowhere_and_a_pipe_are_named(tmp_path: Path) -> None:
    save(tmp_path / "0.png")
    (tmp_path / "train").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="train is a link that leads nowhere"):
        find_pictures(tmp_path)
    (tmp_path / "train").unlink()
    (tmp_path / "train").symlink_to("train")  # to itself
    with pytest.raises(UsageError, match="train is a link that leads nowhere"):
        find_pictures(tmp_path)
    (tmp_path / "train").unlink()
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(UsageError, match=r"1\.png is neither a file nor a folder"):
        find_pictures(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "0.png")
    save(tmp_path / "locked" / "1.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="locked cannot be read: Permission denied"):
        find_pictures(tmp_path)


def test_class_folders_are_a_reference_though_their_names_repeat(run, tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "real" / f"n0{i % 3}" / f"{i // 3}.JPEG", 64, i)
        save(tmp_path / "flat" / f"{i % 3}{i // 3:02d}.png", 64, i)
    for name in ("real", "flat"):
        command = ["eval", "stats", tmp_path / name, "--protocol", "embedded", "--device", "cpu"]
        code, _, err = run(*command, "--out", tmp_path / f"{name}.npz")
        assert code == 0, err
    nested, flat = (np.load(tmp_path / f"{name}.npz") for name in ("real", "flat"))
    assert int(nested["count"]) == 12
    np.testing.assert_allclose(nested["mu"], flat["mu"], rtol=1e-5, atol=1e-6)


def test_other_kinds_of_pictures_are_left_out_and_said(run, tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", 64, i)
    for name in ("4.avif", "5.GIF"):
        (tmp_path / "in" / name).write_bytes(b"not read")
    code, _, err = run("eval", "--images", tmp_path / "in", "--protocol", "embedded", "--device", "cpu", "--out", "out")
    assert code == 0, err
    found = results(Path("out"))
    assert found["pictures"] == 4
    assert any("2 pictures of kinds that are not read (.avif, .gif)" in text for text in found["warnings"])


@linux
def test_names_that_are_not_utf8_are_scored_and_written(run, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    for i in range(4):
        save(folder / os.fsdecode(b"\xff%d.png" % i), 64, i)
    code, _, err = run("eval", "--images", folder, "--protocol", "embedded", "--device", "cpu")
    assert code == 0, err
    (out,) = (tmp_path / "evals").iterdir()
    assert "fd" in results(out)["scores"]
    assert "caf\\udce9" in (out / "results.md").read_text(encoding="utf-8")


# -- what a file holds -----------------------------------------------------------------------------------------------------


def png(width: int, height: int, kind: int, levels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel; kind 0: grey, 2: RGB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels.reshape(height, -1))
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@few
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "16", "48"]),
)
def test_pixels_are_those_that_were_saved(width: int, height: int, seed: int, mode: str) -> None:
    """In 8 bits; an alpha channel is dropped, a palette looked up, of 16 bits the upper eight are kept."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jpg"  # whatever the suffix says
        if mode in ("16", "48"):
            levels = rng.integers(0, 2**16, (height, width, 1 if mode == "16" else 3))
            path.write_bytes(png(width, height, 0 if mode == "16" else 2, levels))
            expected = levels // 256
        elif mode == "P":
            palette, index = rng.integers(0, 256, (7, 3)), rng.integers(0, 7, (height, width))
            picture = Image.fromarray(index.astype(np.uint8)).convert("L")
            picture.putpalette(palette.astype(np.uint8).tobytes())
            picture.save(path, format="PNG", transparency=0)
            expected = palette[index]
        else:
            channels = len(mode)
            levels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
            Image.fromarray(levels.squeeze(2) if channels == 1 else levels, mode).save(path, format="PNG")
            expected = levels[..., :1] if mode in ("L", "LA") else levels[..., :3]
        found = np.asarray(load_rgb(path))
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
        header = read_header(path)
        assert (header.kind, header.size) == ("PNG", (width, height))
        assert header.alpha == (mode in ("RGBA", "LA", "P"))


def tiff(**tags: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 300, 65535]], np.uint16)).save(buffer, "TIFF")
    content = bytearray(buffer.getvalue())
    for tag, value in tags.items():
        place = content.index(struct.pack("<HHI", int(tag[1:]), 3, 1))
        content[place + 8 : place + 10] = struct.pack("<H", value)
    return bytes(content)


def test_sixteen_bit_tiff_and_pgm_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff())
    (tmp_path / "b.pgm").write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 300, 65535))
    (tmp_path / "c.pgm").write_bytes(b"P5 3 1 1023\n" + struct.pack(">3H", 0, 5, 1023))
    assert np.asarray(load_rgb(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 1, 255]
    assert np.asarray(load_rgb(tmp_path / "b.pgm"))[0, :, 0].tolist() == [0, 1, 255]
    assert np.asarray(load_rgb(tmp_path / "c.pgm"))[0, :, 0].tolist() == [0, 1, 255]


def frames(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise(8).save(buffer, kind, save_all=True, append_images=[noise(8, 1), noise(8, 2)])
    return buffer.getvalue()


def saved(array: np.ndarray, kind: str = "TIFF") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\x89PNG\r\n\x1a\n", "is not a readable picture|is not a picture of a known kind"),
        (b"<svg></svg>", "is not a picture of a known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "is not a picture of a known kind"),
        (saved(np.zeros((2, 2), np.float32)), "floating-point numbers"),
        (saved(np.full((2, 2), 7, np.int32)), "32-bit or signed integers"),
        (tiff(_262=0), "of the mode I;16"),  # white is 0
        (frames("GIF"), "holds 3 frames or pages"),
        (frames("WEBP"), "holds 3 frames or pages"),
        (frames("TIFF"), "holds 3 frames or pages"),
        (frames("PNG"), "holds 3 frames or pages"),
    ],
)
def test_what_cannot_be_read_without_guessing_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "seven.png"
    path.write_bytes(content)
    for read in (load_rgb, read_header):
        with pytest.raises(UsageError, match=rf"seven\.png .*({said})") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@given(st.integers(0, 2000))
@few
def test_a_truncated_picture_is_named(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "7.png", 32)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(UsageError, match=r"7\.png"):
            load_rgb(path)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png")
    folder = find_pictures(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UsageError, match=r"1\.png does not exist"):
        _ = folder.headers


def test_an_enormous_picture_is_refused_in_one_line(tmp_path: Path, monkeypatch, recwarn) -> None:
    save(tmp_path / "0.png", 40)
    for limit in (1500, 700):  # Pillow warns above the limit, and raises above its double
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UsageError, match=r"0\.png is too large to be decoded safely"):
            _ = find_pictures(tmp_path).headers
    assert not recwarn.list


def test_orientation_is_not_applied_and_cmyk_is_converted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture = Image.new("RGB", (16, 8), (200, 30, 60))
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(tmp_path / "print.jpg")
    assert load_rgb(tmp_path / "turned.jpg").size == (16, 8)
    assert np.abs(np.asarray(load_rgb(tmp_path / "print.jpg")).astype(int) - (200, 30, 60)).max() <= 3


def test_the_content_says_what_is_lossy(run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for i in range(4):
        save(folder / f"{i}.png", 64, i)
    noise(64).convert("RGBA").save(folder / "3.png")
    noise(64).save(folder / "1.png", format="JPEG")
    command = ["eval", "--images", folder, "--protocol", "embedded", "--device", "cpu", "--out", "out"]
    code, _, err = run(*command)
    assert code == 0, err
    said = " ".join(results(Path("out"))["warnings"])
    assert "1 of the pictures are JPEG or WebP files (first: 1.png)" in said
    assert "1 of the pictures have an alpha channel or a transparent colour (first: 3.png)" in said


# -- which caption a picture shows -----------------------------------------------------------------------------------------


def folder_of(path: Path, *stems: str, suffix: str = ".png") -> pictures.Folder:
    for stem in stems:
        save(path / f"{stem}{suffix}")
    return find_pictures(path)


def lines(count: int) -> list[str]:
    return [f"caption {i}" for i in range(count)]


def matched(folder: pictures.Folder, captions: list[str]) -> dict[str, int]:
    """Name of each picture that is paired -> number of its caption."""
    return {folder.files[place].stem: number for place, number in match_captions(folder, captions)[0]}


@few
@given(
    st.integers(1, 12),
    st.integers(0, 1),
    st.sampled_from(["", "img_", "COCO_val2014_", "v2-"]),
    st.integers(1, 12),
    st.sets(st.integers(0, 11)),
)
def test_complete_numbers_pair_whatever_stands_before_them(count, first, prefix, width, blank) -> None:
    captions = ["" if i in blank and i < count - 1 else f"caption {i}" for i in range(count)]
    files = tuple(Path(f"{prefix}{i + first:0{width}d}.png") for i in range(count))
    folder = pictures.Folder(Path(), files, tuple(range(first, first + count)))
    expected = {f"{prefix}{i + first:0{width}d}": i for i in range(count)}
    assert matched(folder, captions) == expected
    assert ("numbered from 1" in match_captions(folder, captions)[1]) == bool(first)


@few
@given(
    st.sets(st.integers(0, 40), min_size=1, max_size=10),
    st.integers(1, 30),
    st.sampled_from(["", "img_"]),
    st.sampled_from([3, 12]),
)
@example({1, 3, 5}, 5, "", 3)
@example({1, 3}, 5, "", 3)
@example({0, 3}, 5, "", 3)
@example({2, 3}, 5, "", 3)
@example({0, 1, 2, 3}, 2, "", 3)
@example({1, 2, 3}, 2, "", 3)
@example({1, 3, 5}, 5, "img_", 3)
@example({1, 3, 5}, 5, "", 12)
def test_numbers_pair_only_where_one_reading_is_possible(numbers, count, prefix, width) -> None:
    order = sorted(numbers)
    folder = pictures.Folder(Path(), tuple(Path(f"{prefix}{n:0{width}d}.png") for n in order), tuple(order))
    object.__setattr__(folder, "headers", tuple(pictures.Header("", "PNG", (8, 8), False, None) for _ in order))
    found = {int(stem.removeprefix(prefix)): number for stem, number in matched(folder, lines(count)).items()}
    from_0, from_1 = set(range(count)), set(range(1, count + 1))
    if numbers in (from_0, from_1):
        expected = {n: n - min(numbers) for n in numbers}
    elif prefix or width == 12:  # ids, unless they are complete
        expected = {}
    elif numbers <= from_1 and {1, count} <= numbers:
        expected = {n: n - 1 for n in numbers}
    elif numbers >= from_0 and numbers == set(range(len(numbers))):  # more pictures than captions
        expected = {n: n for n in from_0}
    elif numbers <= from_0 and min(numbers) != 1:
        expected = {n: n for n in numbers}
    else:
        expected = {}
    assert found == expected


@pytest.mark.parametrize(
    ("stems", "count", "said"),
    [
        (["cat", "dog"], 2, "not numbers of captions"),
        (["1", "001"], 2, "not numbers of captions"),
        (["a_0", "b_1"], 2, "not numbers of captions"),
        (["COCO_val2014_000000000042", "COCO_val2014_000000000073"], 30_000, "with a prefix"),
        (["000000000139", "000000000285"], 5_000, "ids of COCO"),
        (["0", "7", "581929"], 30_000, "go to 581,929"),
        (["1", "2", "3"], 10, "whether 1 is the first caption or the second cannot be told"),
    ],
)
def test_what_is_not_paired_is_said(tmp_path: Path, stems: list[str], count: int, said: str) -> None:
    pairs, why = match_captions(folder_of(tmp_path, *stems), lines(count))
    assert pairs == []
    assert said in why


def test_pictures_that_sidlsg_drew_count_from_0(tmp_path: Path) -> None:
    from sidlsg.sampling.pictures import save_png

    for number in (1, 2, 3):
        save_png(noise(), tmp_path / f"{number:06d}.png", prompt="a cat", seed=number, model="m")
    assert matched(find_pictures(tmp_path), lines(10)) == {"000001": 1, "000002": 2, "000003": 3}


def test_pictures_numbered_from_1_are_mapped_and_said(run, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a drawing of thing {i}\n" for i in range(8)), encoding="utf-8")
    scores = []
    for first in (0, 1):
        for i in range(8):
            save(tmp_path / f"from{first}" / f"{i + first}.png", 64, i)
        command = ["eval", "--images", tmp_path / f"from{first}", "--protocol", "embedded", "--only", "clip"]
        code, shown, err = run(*command, "--prompts", captions, "--device", "cpu", "--out", f"out{first}")
        assert code == 0, err
        assert ("numbered from 1" in shown) == bool(first)
        found = results(Path(f"out{first}"))
        assert ("numbered from 1" in found["pairing"]) == bool(first)
        assert ("numbered from 1" in Path(f"out{first}/results.md").read_text(encoding="utf-8")) == bool(first)
        scores.append(found["scores"]["clip"])
    assert scores[0] == scores[1]


def test_without_pairs_the_other_scores_are_given_and_the_reason(run, tmp_path: Path) -> None:
    for number in (42, 73, 74, 133):
        save(tmp_path / "in" / f"COCO_val2014_{number:012d}.png", 64, number)
    command = ["eval", "--images", tmp_path / "in", "--protocol", "embedded", "--device", "cpu", "--out", "out"]
    code, shown, err = run(*command)
    assert code == 0, err
    found = results(Path("out"))
    assert found["scores"]["clip"] is None
    assert found["scores"]["fd"] > 0
    assert "with a prefix" in found["not_given"]["clip"]
    assert "with a prefix" in shown
    code, _, err = run(*command, "--only", "clip")
    assert code == 2
    one_line(err, "COCO_val2014_000000000042", "with a prefix")


def test_a_table_that_names_the_pictures_pairs_those_with_ids(run, tmp_path: Path) -> None:
    ids = (42, 73, 74, 133)
    for number in ids:
        save(tmp_path / "in" / f"{number:012d}.png", 64, number)
    rows = [f"{number:012d}.png,a drawing of thing {number}" for number in reversed(ids)]
    (tmp_path / "table.csv").write_text("\n".join(["file_name,caption", *rows]) + "\n", encoding="utf-8")
    (tmp_path / "lines.txt").write_text("".join(f"a drawing of thing {number}\n" for number in ids), encoding="utf-8")
    for place, number in enumerate(ids):
        save(tmp_path / "numbered" / f"{place}.png", 64, number)
    scores = []
    for folder, options in (("in", ["table.csv", "--file-column", "file_name"]), ("numbered", ["lines.txt"])):
        command = ["eval", "--images", folder, "--protocol", "embedded", "--only", "clip", "--device", "cpu"]
        code, _, err = run(*command, "--out", f"out-{folder}", "--prompts", *options)
        assert code == 0, err
        scores.append(results(Path(f"out-{folder}"))["scores"]["clip"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


# -- what is kept ----------------------------------------------------------------------------------------------------------


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    encode, sizes = Scorer.encode, []

    def counted(self, items, *rest, **options):
        sizes.append(len(items))
        return encode(self, items, *rest, **options)

    monkeypatch.setattr(Scorer, "encode", counted)
    return sizes


def test_features_are_kept_by_content_and_read_once(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are replaced by others of equal size and time are encoded again; the same ones elsewhere are not."""
    real, moved = tmp_path / "real", tmp_path / "moved"

    def fill(folder: Path, seeds: range) -> None:
        for i, seed in enumerate(seeds):
            path = folder / f"{i}.bmp"  # of one size in bytes
            folder.mkdir(exist_ok=True)
            noise(64, seed).save(path)
            os.utime(path, ns=(10**18, 10**18))

    def moments() -> np.ndarray:
        command = [
            "eval",
            "stats",
            folder,
            "--protocol",
            "embedded",
            "--device",
            "cpu",
            "--out",
            tmp_path / "stats.npz",
        ]
        assert run(*command)[0] == 0
        return np.load(tmp_path / "stats.npz")["mu"]

    read, calls = pictures.read_header, []
    monkeypatch.setattr(pictures, "read_header", lambda path: calls.append(path) or read(path))
    sizes = count_encoded(monkeypatch)
    folder = real
    fill(real, range(6))
    first = moments()
    assert sizes == [6]
    assert len(calls) == 6
    fill(moved, range(6))
    folder = moved
    np.testing.assert_array_equal(moments(), first)
    assert sizes == [6]
    fill(real, range(10, 16))
    folder = real
    other = moments()
    assert sizes == [6, 6]
    assert np.abs(other - first).max() > 1e-3


def test_features_of_generated_pictures_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png", 64, i)
    monkeypatch.setattr(chunks, "CHUNK", 2)
    scorer, sizes = Scorer(EMBEDDED, CPU, ("fid",)), count_encoded(monkeypatch)

    def encode() -> torch.Tensor:
        return chunks.encode_files(scorer, find_pictures(tmp_path), True, False, tmp_path / "kept").features

    before = encode()
    assert sizes == [2, 2, 1]
    stat = (tmp_path / "2.png").stat()
    save(tmp_path / "2.png", 64, 77)
    os.utime(tmp_path / "2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = encode()
    assert sizes == [2, 2, 1, 2]
    assert (before != after).any(1).tolist() == [False, False, True, False, False]


def test_a_key_takes_in_code_networks_protocol_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        cache_key(protocol, {"judge": weight}, digests, more)
        for protocol in (EMBEDDED, replace(EMBEDDED, size=65))
        for weight in ("1", "2")
        for digests in (["a", "b"], ["b", "a"], ["a"])
        for more in ("features", "clip")
    ]
    assert len(set(keys)) == len(keys)
    monkeypatch.setattr("sidlsg.evaluation.reference.CODE", CODE + 1)
    assert cache_key(EMBEDDED, {"judge": "1"}, ["a", "b"], "features") not in keys


def test_the_features_of_this_code_are_known(tmp_path: Path) -> None:
    """A change of these values gives other features to the same pictures: raise CODE in evaluation/reference.py and write the new
    values here, so that no kept features of the code before are used."""
    y, x = np.mgrid[0:203, 0:302]
    wave = np.stack([127 + 120 * np.sin(x / 7 + y / 11), 255 * x / 301, 255 * y / 202], 2).astype(np.uint8)
    Image.fromarray(wave).save(tmp_path / "wave.png")
    Image.fromarray(wave[:64, :64]).save(tmp_path / "small.png")
    picture = load_rgb(tmp_path / "wave.png")
    inputs = {protocol.name: to_protocol(picture, protocol) for protocol in (GIGAGAN, SID)}
    resized = resize_bicubic(torch.from_numpy(inputs["gigagan"].copy()).permute(2, 0, 1)[None].float())
    clip = {
        p.name: Clip(torch.nn.Identity(), None, 224, (0.5,) * 3, (0.25,) * 3, "", p.clip_resize, p.clip_truncates)
        for p in (GIGAGAN, SID)
    }
    judged = Scorer(EMBEDDED, CPU, ("fid",)).encode([tmp_path / "small.png"], True, False).features[0]
    found = {
        "gigagan": inputs["gigagan"][7, ::50, 0].tolist(),
        "sid-lsg": inputs["sid-lsg"][7, ::50, 0].tolist(),
        "299": resized[0, 0, 5, ::60].tolist(),
        "clip gigagan": clip["gigagan"].prepare(inputs["gigagan"])[::2, 5, ::75].flatten().tolist(),
        "clip sid-lsg": clip["sid-lsg"].prepare(inputs["sid-lsg"])[::2, 5, ::75].flatten().tolist(),
        "judge": judged[:5].tolist(),
    }
    known = KNOWN[CODE]
    assert found.keys() == known.keys()
    for name, values in known.items():
        assert found[name] == pytest.approx(values, rel=2e-3, abs=2e-3), name


KNOWN = {
    1: {
        "gigagan": [244, 206, 138, 67, 18, 9],
        "sid-lsg": [239, 192, 121, 53, 12, 12],
        "299": [235.547, 200.477, 151.537, 95.405, 46.204],
        "clip gigagan": [1.7804, -1.9059, 1.7961, -1.9216, -1.9216, -1.9216],
        "clip sid-lsg": [1.6731, -1.8774, 1.8499, -1.9080, -1.9080, -1.9080],
        "judge": [-1.0405, -2.9740, -0.7272, 12.0324, 1.4865],
    }
}


# -- statistics files ------------------------------------------------------------------------------------------------------


def covariance(size: int = 6) -> np.ndarray:
    return np.cov(np.random.default_rng(0).normal(size=(50, size)), rowvar=False)


def changed(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(6)}, "it has no sigma"),
        ({"arr_0": np.zeros(3, np.uint8)}, "it has no mu and no sigma"),
        ({"mu": np.zeros(6), "sigma": changed(covariance(), (0, 1), 0.5)}, "sigma is not symmetric"),
        ({"mu": np.zeros(6), "sigma": covariance() - np.eye(6)}, "sigma is not positive semi-definite"),
        ({"mu": np.zeros(6), "sigma": -covariance()}, "sigma is not positive semi-definite"),
        ({"mu": changed(np.zeros(6), (3,), np.nan), "sigma": covariance()}, "mu or sigma is not finite"),
        ({"mu": np.full(6, 1e39), "sigma": covariance()}, "mu or sigma is not finite"),
        ({"mu": np.zeros(6), "sigma": changed(covariance(), (2, 2), np.inf)}, "mu or sigma is not finite"),
        ({"mu": np.zeros((1, 6)), "sigma": covariance()}, r"mu must be a vector, and has the shape \(1, 6\)"),
        ({"mu": np.zeros(5), "sigma": covariance()}, r"sigma must be 5 x 5, as mu has it, and has the shape \(6, 6\)"),
        ({"mu": np.zeros(6), "sigma": covariance().astype(complex)}, "sigma is not made of real numbers"),
        ({"mu": np.zeros(6), "sigma": covariance().astype(object)}, "it holds pickled Python objects"),
        ({"mu": np.zeros(6), "sigma": covariance(), "count": np.array([3, 4])}, "count is no number of pictures"),
        (
            {"mu": np.zeros(6), "sigma": covariance(), "count": np.int64(3), "features": np.zeros((4, 6))},
            "features must be 3 x 6 finite numbers",
        ),
    ],
)
def test_statistics_that_no_pictures_have_are_refused(tmp_path: Path, arrays: dict, said: str) -> None:
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(UsageError, match=rf"stats\.npz is not a statistics file.*{said}"):
        load_reference(tmp_path / "stats.npz", GIGAGAN, None, assume=True)


def test_a_single_array_and_code_of_another_version_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "stats.npy", np.zeros(6))
    with pytest.raises(UsageError, match="single array"):
        load_reference(tmp_path / "stats.npy", GIGAGAN, None, assume=True)
    about = {"protocol": "gigagan", "fingerprint": GIGAGAN.fingerprint, "weights": "", "source": "x", "code": CODE + 1}
    np.savez(tmp_path / "stats.npz", mu=np.zeros(6), sigma=covariance(), about=np.array(json.dumps(about)))
    with pytest.raises(UsageError, match="code of another version"):
        load_reference(tmp_path / "stats.npz", GIGAGAN, None)


@few
@given(st.integers(2, 12), st.integers(2, 30), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1, 1e4]))
def test_statistics_of_any_features_are_accepted_even_when_rounded(
    dim: int, count: int, seed: int, scale: float
) -> None:
    """Also of fewer pictures than features, whose smallest eigenvalues are rounding errors, and with ADM's other arrays."""
    features = scale * np.random.default_rng(seed).normal(size=(count, dim))
    mu, sigma = features.mean(0), np.cov(features, rowvar=False).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stats.npz"
        np.savez(path, arr_0=np.zeros((2, 4, 4, 3), np.uint8), mu=mu, sigma=sigma, mu_s=np.zeros(3), sigma_s=np.eye(3))
        found = load_reference(path, GIGAGAN, None, assume=True)
    np.testing.assert_array_equal(found.moments.sigma, sigma)
    assert (found.assumed, found.moments.count) == (True, 0)


def test_an_assumed_protocol_is_said_in_the_results_and_another_width_is_refused(run, tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", 64, i)
    command = ["eval", "--images", tmp_path / "in", "--protocol", "embedded", "--device", "cpu", "--out", "out"]
    command += ["--assume-protocol", "--reference", "stats.npz"]
    np.savez("stats.npz", mu=np.zeros(128), sigma=np.eye(128))
    code, shown, err = run(*command)
    assert code == 0, err
    said = [text for text in results(Path("out"))["warnings"] if "--assume-protocol" in text]
    assert len(said) == 1
    assert said[0] in shown
    assert said[0] in Path("out/results.md").read_text(encoding="utf-8")
    np.savez("stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    code, _, err = run(*command)
    assert code == 2
    one_line(err, "stats.npz", "2,048 features a picture", "128")


# -- places that cannot be written to, several processes, downloads --------------------------------------------------------


@pytest.mark.parametrize("anywhere", [True, False])
def test_without_a_cache_everything_is_computed(
    run, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, anywhere: bool
) -> None:
    """It is kept in the folder for temporary files or, where that cannot be written to either, not kept."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / "file" / "cache"))
    if not anywhere:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", 64, i)
    command = ["eval", "--images", tmp_path / "in", "--reference", tmp_path / "in", "--protocol", "embedded"]
    code, _, err = run(*command, "--device", "cpu", "--out", "out")
    assert code == 0, err
    assert results(Path("out"))["scores"]["fd"] == pytest.approx(0, abs=1e-3)
    kept = [path.parent.name for path in temporary.rglob("*.npz")]
    if anywhere:
        assert (err, kept) == ("", ["features"])
    else:
        assert err.count("\n") == 1
        assert "features are not cached" in err


def test_results_that_cannot_be_written_are_printed(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", 64, i)
    monkeypatch.setattr("sidlsg.evaluation.results.write_text", full)
    command = ["eval", "--images", tmp_path / "in", "--protocol", "embedded", "--device", "cpu", "--out", "out"]
    code, shown, err = run(*command)
    assert code == 1
    one_line(err, "out", "No space left on device", "printed above")
    assert json.loads(shown[shown.index("{\n") :])["scores"]["fd"] > 0


def test_no_process_waits_while_the_reference_is_encoded(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def noted(module, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (order.append(name), function(*a, **k))[1])

    for i in range(4):
        save(tmp_path / "real" / f"{i}.png", 64, i)
    noted(distributed, "start")
    noted(distributed, "stop")
    noted(evaluation, "encode_folder")
    command = ["eval", "--limit", "4", "--reference", tmp_path / "real", "--device", "cpu", "--out", "out"]
    assert run(*command)[0] == 0
    assert order == ["start", "stop", "encode_folder"]


def test_a_download_that_is_cut_short_is_refused_without_a_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * int(self.path[1:]))

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setenv("SIDLSG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for sent in (400, 1000):
            url = f"http://127.0.0.1:{server.server_port}/{sent}"
            row = weights.WeightFile("inception", "a file", "--inception", f"{sent}.bin", url)
            monkeypatch.setattr(weights, "weight_files", lambda row=row: {"inception": row})
            if sent == 400:
                with pytest.raises(SidlsgError, match="cut short: 400 of 1,000 bytes"):
                    weights.find_weights("inception")
                assert list((tmp_path / "cache" / "weights").iterdir()) == []
            else:
                path = weights.find_weights("inception")
                assert path is not None
                assert path.stat().st_size == 1000
    finally:
        server.shutdown()
        server.server_close()
