"""The first iterations of small runs, to the bit: what no redesign may move.

``cd tests && python -m support.pinned`` records them.
Whoever means to move them records them anew and says so in CHANGELOG.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidlsg.method.condition import Condition
from sidlsg.method.generator import Generator
from sidlsg.method.guidance import STRATEGIES
from support.processes import on_ranks
from support.runs import config_for, trainer, write_prompts
from support.tiny import change_json, save_tiny_teacher, shallow_unet

RECORD = Path(__file__).parents[1] / "pinned.json"
ITERATIONS, BATCH = 20, 4
# Adam's eps makes steps smooth in the gradient: with the usual one the first steps are its sign, and another CPU's rounding
# would grow to the size of a step.
SETTINGS: dict[str, Any] = {"batch": BATCH, "adam_eps": 10.0, "lr": 2e-2}
CONFIGURATIONS = {"epsilon": 2, "v-prediction": 4, "two processes": 2}  # and their micro-batches
CASES = [(configuration, strategy) for configuration in CONFIGURATIONS for strategy in STRATEGIES]


def machine() -> dict[str, str]:
    """What bits depend on: the version of torch, and the CPU's kind, by which its libraries choose their kernels."""
    kind = [torch.backends.cpu.get_cpu_capability()]
    with contextlib.suppress(OSError):  # only Linux has it
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        fields = dict(line.replace("\t", "").split(":", 1) for line in lines)
        kind += [fields.get(name, "").strip() for name in ("vendor_id", "cpu family", "model")]
    return {"torch": torch.__version__.split("+")[0], "cpu": " ".join(kind)}


def digest(tensors: Iterable[Tensor]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


class Noted:
    """A generator that keeps its images."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.images = generator, []  # type: ignore[var-annotated]

    def __call__(self, z: Tensor, c: Condition) -> Tensor:
        self.images.append(self.generator(z, c))
        return self.images[-1]


def iterate(
    rank: int, teacher: Path, out: Path, prompts: Path, micro_batch: int, strategies: list[str]
) -> dict[str, dict[str, Any]]:
    """By strategy: losses, norms of gradients and a digest of x_g (of this process's samples) per iteration, and a digest of the
    weights and the average at the end."""
    found = {}
    for strategy in strategies:
        config = config_for(teacher, **SETTINGS, micro_batch=micro_batch, images=ITERATIONS * BATCH, strategy=strategy)
        subject = trainer(config, out / strategy, prompts)
        noted = subject.engine.nets.generator = Noted(subject.engine.nets.generator)  # type: ignore[assignment]
        x_g = []
        for _ in range(ITERATIONS):
            subject.iterate()
            x_g.append(digest(noted.images))
            noted.images.clear()
        found[strategy] = {
            "loss_fake": [psi.loss.item() for psi, _ in subject.window],
            "loss_generator": [theta.loss.item() for _, theta in subject.window],
            "grad_norm_fake": [psi.grad_norm.item() for psi, _ in subject.window],
            "grad_norm_generator": [theta.grad_norm.item() for _, theta in subject.window],
            "x_g": x_g,
            "weights": digest(tensor for group in subject.engine.state().values() for tensor in group.values()),
        }
    return found


def observe(configuration: str, folder: Path, strategies: list[str]) -> dict[str, dict[str, Any]]:
    """``iterate`` in one of the configurations; ``folder`` is empty."""
    teacher, prompts = save_tiny_teacher(folder / "teacher", shallow_unet()), write_prompts(folder / "prompts.txt")
    if configuration == "v-prediction":
        change_json(teacher / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    arguments = (teacher, folder / "run", prompts, CONFIGURATIONS[configuration], strategies)
    return on_ranks(2, iterate, *arguments)[0] if configuration == "two processes" else iterate(0, *arguments)


def main() -> None:
    """Record all configurations on this machine."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine()}
    for configuration in CONFIGURATIONS:
        with tempfile.TemporaryDirectory() as folder:
            record[configuration] = observe(configuration, Path(folder), list(STRATEGIES))
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in record.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
