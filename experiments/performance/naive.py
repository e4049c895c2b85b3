"""Images/s of the engine against the naive transcription of Algorithm 1 that the tests use, on the emoji teacher.

    python experiments/performance/naive.py

Both do one iteration of 64 images with LSG and the same UNet, draws and embeddings; the transcription works on one sample at a
time, always with both passes of the guidance, and torch's own Adam.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from naive import NaiveAlgorithm1

from sidlsg.benchmark.distillation import PROMPT
from sidlsg.benchmark.timing import gemm_tflops
from sidlsg.method import draws
from sidlsg.planning.cost import forward_equivalents
from sidlsg.planning.footprint import footprints
from sidlsg.settings import make_config
from sidlsg.teachers.loading import load_model
from sidlsg.training.engine import Engine

CPU = torch.device("cpu")


def main() -> None:
    config = make_config("cpu", {})
    engine = Engine.build(config, load_model("emoji", CPU), CPU)
    naive = NaiveAlgorithm1(
        load_model("emoji", CPU).network.requires_grad_(True), tuple(config.guidance), batch=config.batch
    )
    prompts = [PROMPT.format(i) for i in range(config.batch)]
    first, second = (engine.send(engine.draw(update, 0, prompts)) for update in (draws.FAKE_SCORE, draws.GENERATOR))
    empty = engine.encode.empty["text"]

    def ours() -> None:
        engine.iterate((first, second), 0)

    def theirs() -> None:
        naive.fake_score_step(first.z, first.c["text"], first.t, first.eps, empty)
        naive.generator_step(second.z, second.c["text"], second.t, second.eps, empty)

    rates = {}
    for name, work in (("engine", ours), ("naive transcription", theirs)):
        work()
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begun)
        rates[name] = config.batch / sorted(seconds)[1]
        print(f"{name}: {rates[name]:.2f} images/s ({', '.join(f'{s:.2f}' for s in seconds)} s)")
    print(f"engine / naive: {rates['engine'] / rates['naive transcription']:.2f}")
    gemm = gemm_tflops(CPU, torch.float32)
    share = rates["engine"] * forward_equivalents(config) * footprints()["emoji"].gflop / 1e3 / gemm
    print(f"UNet operations of the engine: {share:.0%} of a {1e3 * gemm:.0f} GFLOP/s fp32 matrix product")


if __name__ == "__main__":
    main()
