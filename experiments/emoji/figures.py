"""Draw the pictures of docs/emoji-teacher.md.

python experiments/emoji/figures.py --work build/emoji --run runs/emoji-cpu-long-lsg-1.5
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from sidlsg.data import ASSETS
from sidlsg.prompts import PromptFile
from sidlsg.sampling.draw import draw
from sidlsg.sampling.grid import Block, Row, labelled_grid
from sidlsg.sampling.pictures import make_grid, to_pil
from sidlsg.teachers.loading import load_model

OUT = Path("docs/images")
SCALES = (1.0, 1.5, 3.0, 7.5)


def labelled(rows: list[tuple[str, Image.Image]], beside: bool = False, zoom: int = 1) -> Image.Image:
    """Pictures one below the other (or beside), each under its label."""
    pictures = [(text, p.resize((p.width * zoom, p.height * zoom), Image.Resampling.LANCZOS)) for text, p in rows]
    head, gap = 18, 12
    if beside:
        size = (sum(p.width + gap for _, p in pictures) - gap, max(p.height for _, p in pictures) + head)
    else:
        size = (max(p.width for _, p in pictures), sum(p.height + head for _, p in pictures))
    page, place = Image.new("RGB", size, "white"), 0
    pen = ImageDraw.Draw(page)
    for text, picture in pictures:
        corner = (place, 0) if beside else (0, place)
        pen.text((corner[0] + 2, corner[1] + 2), text, fill="black", font_size=13)
        page.paste(picture, (corner[0], corner[1] + head))
        place += picture.width + gap if beside else picture.height + head
    return page


def teacher_scales(art: dict[str, np.ndarray], captions: list[str]) -> None:
    """Each prompt of the grid: a drawing from the training set, then the teacher at several guidance scales."""
    prompts = list(PromptFile(ASSETS / "emoji-grid.txt"))
    teacher = load_model(str(ASSETS / "emoji"), torch.device("cpu"))
    real = [Image.fromarray(art["images"][captions.index(p)]) for p in prompts]
    rows = [("one of the training pictures", make_grid(real, len(prompts)))]
    for scale in SCALES:
        pictures = list(draw(teacher, prompts, range(len(prompts)), batch=16, steps=25, guidance=scale))
        rows.append((f"teacher, 25 DDIM steps, CFG {scale:g}", make_grid(pictures, len(prompts))))
    labelled(rows).save(OUT / "teacher-cfg.png", optimize=True)


def random_prompts() -> None:
    """Forty prompts that nobody chose, each with its caption: on the left the teacher at CFG 3, on the right the student."""
    captions = [p for p in PromptFile(ASSETS / "emoji-prompts.txt") if not p.endswith(" style")]
    chosen = [captions[i] for i in np.random.default_rng(0).permutation(len(captions))[:40]]
    drawn = []
    for name, options in (("emoji", {"steps": 25, "guidance": 3.0}), ("emoji-student", {})):
        model = load_model(str(ASSETS / name), torch.device("cpu"))
        drawn.append(list(draw(model, chosen, range(40), batch=20, **options)))
    columns, size, head = 5, 96, 22
    page = Image.new("RGB", (columns * (2 * size + 16), 8 * (size + head)), "white")
    pen = ImageDraw.Draw(page)
    for place, (caption, *pictures) in enumerate(zip(chosen, *drawn, strict=True)):
        left, top = place % columns * (2 * size + 16), place // columns * (size + head)
        pen.text((left + 2, top + 4), caption, fill="black", font_size=13)
        for x, picture in zip((left, left + size), pictures, strict=True):
            page.paste(picture.resize((size, size), Image.Resampling.LANCZOS), (x, top + head))
    page.save(OUT / "random-prompts.png", optimize=True)


def reconstructions(art: dict[str, np.ndarray]) -> None:
    """Twenty pictures and what the autoencoder keeps of them."""
    chosen = np.random.default_rng(0).permutation(len(art["images"]))[:20]
    x = torch.from_numpy(art["images"][chosen]).permute(0, 3, 1, 2).float() / 255
    teacher = load_model(str(ASSETS / "emoji"), torch.device("cpu"))
    with torch.no_grad():
        latents = teacher.vae.encode(x * 2 - 1).latent_dist.mean * teacher.vae.config.scaling_factor
    rows = [
        ("training pictures", make_grid(to_pil(x), 20)),
        ("through the VAE", make_grid(to_pil(teacher.decode(latents)), 20)),
    ]
    labelled(rows).save(OUT / "vae.png", optimize=True)


def curves(work: Path) -> None:
    """Training curves of the UNet (epsilon loss) and of the VAE's two phases (mean squared error)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, name, key, title in (
        (axes[0], "teacher", "loss", "UNet: ε mean squared error"),
        (axes[1], "vae", "mse", "VAE: mean squared error on [-1, 1]"),
    ):
        start = 0
        for phase in (name, "decoder") if name == "vae" else (name,):
            if not (work / f"{phase}.log.jsonl").exists():  # the decoder need not be trained further
                continue
            log = [json.loads(line) for line in (work / f"{phase}.log.jsonl").read_text().splitlines()]
            steps = np.array([line["step"] for line in log]) + start
            axis.plot(steps, [line[key] for line in log], label="decoder only" if phase == "decoder" else "both")
            start = steps[-1]
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[1].legend()
    figure.savefig(OUT / "teacher-curves.png", dpi=90)


def cells(grid: Image.Image, count: int, gap: int = 2) -> list[Image.Image]:
    """The pictures of a square grid that ``make_grid`` made."""
    columns = math.ceil(math.sqrt(count))
    size = (grid.width + gap) // columns - gap
    corners = [(i % columns * (size + gap), i // columns * (size + gap)) for i in range(count)]
    return [grid.crop((x, y, x + size, y + size)) for x, y in corners]


def progress(run: Path) -> None:
    """The first eight prompts, a row each, in at most twelve of the run's grids, from image 0 to the last."""
    prompts = list(PromptFile(ASSETS / "emoji-grid.txt"))
    grids = sorted((run / "samples").glob("[0-9]*.png"))
    shown = [grids[round(i)] for i in np.linspace(0, len(grids) - 1, min(12, len(grids)))]
    columns = [cells(Image.open(grid), len(prompts)) for grid in shown]
    rows = [Row([column[i] for column in columns], prompts[i]) for i in range(8)]
    sheet = labelled_grid([Block(rows)], [f"{int(grid.stem):,}" for grid in shown])
    sheet.save(OUT / "progress.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"))
    parser.add_argument("--run", type=Path, default=Path("runs/emoji-cpu-long-lsg-1.5"))
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    art = dict(np.load(args.work / "art.npz"))
    captions = (args.work / "captions.txt").read_text(encoding="utf-8").splitlines()
    teacher_scales(art, captions)
    random_prompts()
    reconstructions(art)
    curves(args.work)
    progress(args.run)


if __name__ == "__main__":
    main()
