"""Cut the embedded benchmark out of the art: 1,024 drawings on one sheet, and the caption of each.

    python experiments/emoji/make_bench.py --work build/emoji --out sidlsg/assets/emoji-bench

Every second caption names the style of its drawing, as half of the teacher's prompts do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import split_drawings
from fetch_art import SETS, SIZE, STYLE_HINT
from PIL import Image

COLUMNS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"))
    parser.add_argument("--out", type=Path, default=Path("sidlsg/assets/emoji-bench"))
    args = parser.parse_args()

    data = np.load(args.work / "art.npz")
    captions = (args.work / "captions.txt").read_text(encoding="utf-8").splitlines()
    chosen = split_drawings(len(captions))[1].tolist()
    lines = [
        captions[i] + (STYLE_HINT.format(SETS[data["style"][i]][3]) if place % 2 else "")
        for place, i in enumerate(chosen)
    ]
    rows = len(chosen) // COLUMNS
    tiles = data["images"][chosen].reshape(rows, COLUMNS, SIZE, SIZE, 3).swapaxes(1, 2)
    args.out.mkdir(parents=True, exist_ok=True)
    sheet = Image.fromarray(np.ascontiguousarray(tiles.reshape(rows * SIZE, COLUMNS * SIZE, 3)))
    sheet.save(args.out / "reference.png", optimize=True)
    (args.out / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(chosen)} drawings, {len(set(lines))} distinct captions -> {args.out}")


if __name__ == "__main__":
    main()
