"""Whether colours are too strong: the spread of a model's latents, and its scores when they are shrunk towards their mean.

    python experiments/student/saturation.py emoji-student 1 0.93 0.87       # a run folder, a student, or ...
    python experiments/student/saturation.py emoji --guidance 3              # ... the teacher with 25 steps

Of the embedded benchmark's 1,024 pictures: the standard deviation of the latents, and for each factor the distance, the part
of it that the features' means make (the rest is of their covariances), the trace of their covariance, CLIP score, retrieval. With
``reference`` for a name: of the reference drawings' own latents.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidlsg.evaluation.distance import moments
from sidlsg.evaluation.pictures import load_sheet
from sidlsg.evaluation.protocol import get_protocol
from sidlsg.evaluation.reference import BENCH
from sidlsg.evaluation.scorer import Scorer
from sidlsg.runs.opening import open_model
from sidlsg.sampling.draw import DEFAULT_GUIDANCE, draw
from sidlsg.sampling.pictures import to_pil
from sidlsg.teachers.family import Model
from sidlsg.teachers.loading import load_model

CPU = torch.device("cpu")
BATCH = 64


@torch.no_grad()
def latents_of(
    name: str, guidance: float, captions: Sequence[str], sheet: Sequence[Image.Image]
) -> tuple[Model, Tensor]:
    """The model, and the latents [N, C, h, w] that it draws for the captions (seed i), or that it has for the drawings."""
    model = load_model("emoji", CPU) if name == "reference" else open_model(name, CPU, torch.float32)
    if name == "reference":
        pixels = torch.from_numpy(np.stack([np.array(picture) for picture in sheet])).permute(0, 3, 1, 2)
        scaled = pixels.float() / 127.5 - 1
        return model, model.vae.encode(scaled).latent_dist.mean * model.vae.config.scaling_factor
    decode, seen = model.decode, []

    def keep(latents: Tensor) -> Tensor:
        seen.append(latents)
        return torch.zeros(len(latents), 3, 1, 1)

    model.decode = keep  # type: ignore[method-assign]
    options = {} if model.student else {"steps": 25, "guidance": guidance}
    list(draw(model, captions, range(len(captions)), batch=BATCH, **options))
    model.decode = decode  # type: ignore[method-assign]
    return model, torch.cat(seen)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("factors", nargs="*", type=float, default=[1.0])
    parser.add_argument("--guidance", type=float, default=DEFAULT_GUIDANCE, help="of a teacher")
    options = parser.parse_args()
    protocol = get_protocol("embedded")
    scorer = Scorer(protocol, CPU)
    captions = (BENCH / "captions.txt").read_text(encoding="utf-8").splitlines()
    sheet = load_sheet(BENCH / "reference.png", protocol.size, protocol.reference_images)
    reference = scorer.reference(scorer.encode(sheet, features=True, clip=False).features, "the reference drawings")
    model, latents = latents_of(options.model, options.guidance, captions, sheet)
    print(f"{options.model}: standard deviation of the latents {latents.std():.3f}")
    middle = latents.mean((0, 2, 3), keepdim=True)
    for factor in options.factors:
        shrunk = (middle + factor * (latents - middle)).split(BATCH)
        encoded = scorer.encode([p for part in shrunk for p in to_pil(model.decode(part))], features=True, clip=True)
        scores = scorer.score(encoded, reference, captions, [(i, i) for i in range(len(captions))])
        found = moments(encoded.features, protocol.ddof)
        means = float(((found.mu - reference.moments.mu) ** 2).sum())
        print(
            f"x {factor:g}: fd {scores['fd']:.1f}, of the means {means:.1f}; trace {np.trace(found.sigma):.0f} "
            f"(reference {np.trace(reference.moments.sigma):.0f}); CLIP {scores['clip']:.3f}, retrieval@1 "
            f"{scores['retrieval_top1']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
