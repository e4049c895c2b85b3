"""What each switch of the engine changes on the device at hand: time, memory and share of a matrix product, as a Markdown table.

    python experiments/performance/switches.py            # emoji on a CPU, about three minutes on two cores

Every configuration is measured in turn, several times over, so that a slow moment of a shared machine meets them all; a change is
the median over the turns of its time against the same turn's time of the preset.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

from sidlsg.benchmark.distillation import measure
from sidlsg.config import Config
from sidlsg.devices import device_facts, pick_device
from sidlsg.planning.footprint import footprints
from sidlsg.settings import make_config
from sidlsg.teachers.architectures import build_model

FLIPPED = (
    {"channels_last": False},
    {"attention": "eager"},
    {"lean_adam": False},
    {"two_stage": True},
    {"gradient_checkpointing": True},
    {"offload_optimizer": True},
    {"ema_device": "cpu"},
    {"ema": False},
    {"micro_batch": 16, "fake_micro_batch": 16},
    {"fake_micro_batch": 64, "micro_batch": 32},
    {"compile": True},
    {"precision": "bf16"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--arch", default="emoji")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    base = replace(make_config(args.preset, {}), processes=1)
    device = pick_device(base.device)
    cases: dict[str, Config] = {args.preset: base}
    cases |= {", ".join(f"{k}={v}".lower() for k, v in change.items()): replace(base, **change) for change in FLIPPED}
    gflop = footprints()[args.arch].gflop
    times: dict[str, list[float]] = {name: [] for name in cases}
    memory: dict[str, list[float]] = {name: [] for name in cases}
    shares: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.turns):
        for name, config in cases.items():
            row = measure(name, config, lambda dtype: build_model(args.arch, device, dtype), device, gflop, repeats=2)
            if row.error or row.timing is None:
                print(f"{name}: {row.error}", flush=True)
                continue
            times[name].append(row.timing.median)
            memory[name].append(row.allocated or 0.0)
            shares[name].append(row.gemm_share or 0.0)
    print(device_facts(device))
    print("| configuration | s an iteration | time | GiB | of GEMM |\n|---|---|---|---|---|")
    for name, seconds in times.items():
        if len(seconds) == args.turns:
            ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds, times[args.preset], strict=True))
            cells = f"{statistics.median(seconds):.2f} | {ratio - 1:+.0%} | {statistics.median(memory[name]):.2f}"
            print(f"| `{name}` | {cells} | {statistics.median(shares[name]):.0%} |")


if __name__ == "__main__":
    main()
