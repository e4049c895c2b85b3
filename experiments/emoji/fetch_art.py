"""Fetch five freely licensed emoji sets, pick the drawings that teach something, render and caption them.

The drawings come as npm packages (one JSON file of SVG bodies each), downloaded with ``npm pack`` at pinned
versions and checked against pinned SHA-256 sums. Output, in the work folder:

* ``art.npz``      ``images`` uint8 [N, 64, 64, 3] on white, ``style`` int64 [N]
* ``captions.txt`` one short caption a line ("red heart"), in the order of ``images``
* ``prompts.txt``  the distinct prompts that the teacher is trained on, short and with style, sorted: those of all drawings but
  the benchmark's reference

    python experiments/emoji/fetch_art.py --work build/emoji
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from common import split_drawings
from PIL import Image

# package, version, SHA-256 of the npm tarball, style word used in the captions
SETS = [
    ("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "noto"),
    ("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37", "blob"),
    ("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175", "fluent"),
    ("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "twitter"),
    ("fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef", "firefox"),
]
SIZE = 64

# What a network of six million parameters cannot learn from 8x8 latents, or learns at the expense of the rest:
# writing, clock faces, flags, arrows, and the many near-copies of the same person.
DROP = re.compile(
    r"skin-tone|-(light|medium|dark)$|-(medium-light|medium-dark)$|flag|keycap|button|letter|oclock|o-clock|thirty"
    r"|regional|input|latin|zodiac|arrow|squared|ideograph|japanese-(?!castle|dolls|goblin|ogre|post)"
    r"|^(man|men|woman|women|boy|girl|people|couple|family|kiss-|deaf|mx-)|-(man|men|woman|women|boy|girl)(-|$)"
    r"|^person-|-person|facing-right|holding-hands|wrestling|bunny-ears|^(pregnant|breast)|older-|old-(man|woman)"
    r"|^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus)$"
    r"|mahjong|tone-\d|^[0-9a-z]$|^\d|hundred|number|symbols?$|sign-of|no-one|trade-mark|copyright|registered"
    r"|input|cjk|katakana|hangul|trigram|alembic-symbol|atm|wavy-dash|curly-loop|part-alternation|information"
    r"|currency-exchange|heavy-dollar|name-badge|restroom|water-closet|passport|customs|baggage|left-luggage"
    r"|black-(small|medium|large)|white-(small|medium|large)|busts?-in|speaking|footprints|mens-room|womens-room"
)
STYLE_HINT = ", {} style"


def fetch(package: str, version: str, sha256: str, cache: Path) -> dict:
    """Download one icon set with npm and return its ``icons.json``; raises SystemExit on a wrong checksum."""
    archive = cache / f"iconify-json-{package}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{package}@{version}"], cwd=cache, check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{archive}: SHA-256 is {found}, expected {sha256}. Delete the file and try again.")
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def render(body: str, left: float, top: float, width: float, height: float) -> np.ndarray | None:
    """SVG body -> uint8 [64, 64, 3] on white, or None when nothing was drawn.

    Rendered at four times the size and reduced with Lanczos, which keeps thin strokes even.
    """
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if picture.getchannel("A").getextrema()[1] == 0:
        return None
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return np.asarray(page.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def split_words(name: str, words: dict[str, int]) -> list[str] | None:
    """Cut a run-together name ("wineglass") into the fewest known words; None when it cannot be done."""
    best: list[list[str] | None] = [[]] + [None] * len(name)
    for end in range(1, len(name) + 1):
        for start in range(max(0, end - 14), end):
            head, word = best[start], name[start:end]
            if head is not None and word in words and (best[end] is None or len(head) + 1 < len(best[end] or [])):
                best[end] = [*head, word]
    return best[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder")
    work = parser.parse_args().work
    (work / "npm").mkdir(parents=True, exist_ok=True)

    images, captions, styles = [], [], []
    words: dict[str, int] = {}
    for style, (package, version, sha256, _) in enumerate(SETS):
        icons = fetch(package, version, sha256, work / "npm")
        kept = 0
        for name, icon in icons["icons"].items():
            if icon.get("hidden") or DROP.search(name):
                continue
            caption = name.replace("-", " ")
            if package == "fxemoji":
                parts = split_words(name.replace("-", ""), words)
                if parts is None or len(parts) > 4:
                    continue
                caption = " ".join(parts)
            width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
            image = render(icon["body"], icon.get("left", 0), icon.get("top", 0), width, height)
            if image is None:
                continue
            images.append(image)
            captions.append(caption)
            styles.append(style)
            kept += 1
            for word in caption.split():
                words[word] = words.get(word, 0) + 1
        print(f"{package} {version}: {kept} of {len(icons['icons'])} drawings kept", flush=True)
        # Only words of three letters and more, and a few short ones, may join names of the run-together set.
        if style == len(SETS) - 2:
            words = {w: n for w, n in words.items() if len(w) > 2 or w in {"of", "in", "on", "up", "ok", "no"}}

    np.savez(work / "art.npz", images=np.stack(images), style=np.array(styles))
    (work / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    learnt = split_drawings(len(captions))[0].tolist()
    with_style = {captions[i] + STYLE_HINT.format(SETS[styles[i]][3]) for i in learnt}
    prompts = sorted({captions[i] for i in learnt}) + sorted(with_style)
    (work / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    print(f"{len(images)} pictures, {len(set(captions))} distinct captions, {len(prompts)} prompts -> {work}")


if __name__ == "__main__":
    main()
