"""Data parallelism over processes started by ``torchrun``: each takes an equal slice of every batch.

Gradients are summed over the processes once per update, after all accumulation rounds. DistributedDataParallel is not used: with
tens of rounds, overlapping that one all-reduce with the last backward pass would gain next to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sidlsg.errors import SidlsgError, UsageError, reason

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)  # how long a process waits for the others before it takes them for dead
ASKED_EVERY = 5.0  # seconds, while the main process works alone


@dataclass(frozen=True)
class Processes:
    """The rank of this process among ``world`` processes. ``main`` is the one that writes and prints."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    by_torchrun: bool = False

    @property
    def main(self) -> bool:
        return self.rank == 0


def launched() -> Processes:
    """Read torchrun's environment variables, without starting anything; raises UsageError when they are not integers."""
    if "WORLD_SIZE" not in os.environ:
        return Processes()
    if "RANK" not in os.environ and os.environ["WORLD_SIZE"] != "1":
        raise UsageError("WORLD_SIZE is set, RANK is not; start with torchrun, or unset WORLD_SIZE")
    try:
        rank, world, local_rank = (int(os.environ.get(k, "0")) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError as error:
        raise UsageError(
            f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error}); start with torchrun"
        ) from None
    if not (0 <= rank < world and local_rank >= 0):
        raise UsageError(f"RANK is {rank} and LOCAL_RANK {local_rank} of WORLD_SIZE {world}; start with torchrun")
    return Processes(rank, world, local_rank, by_torchrun=True)


def start(device: torch.device, patience: timedelta = PATIENCE) -> Processes:
    """Join the process group when there is more than one process; ``patience`` is how long each waits for the others, on GPUs
    as on CPUs."""
    import torch.distributed as dist

    processes = launched()
    if processes.world > 1 and not dist.is_initialized():
        # gloo for flags on the CPU, which must not wait for the GPU; nccl for gradients.
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise UsageError(
                f"WORLD_SIZE is {processes.world}, but {' and '.join(missing)} not set; start with torchrun"
            )
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=patience)
        except dist.DistError as error:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            first = (str(error).splitlines() or [""])[0]
            raise SidlsgError(f"the processes cannot reach one another through {address}: {first}") from error
    return processes


def stop() -> None:
    """Leave the process group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def started() -> bool:
    """Whether this process has joined others."""
    import torch.distributed as dist

    return dist.is_initialized()


def by_main(work: Callable[[], object], main: bool) -> None:
    """Do ``work`` on the main process while the others wait, for as long as it takes: beyond ``PATIENCE`` too, since every
    ``ASKED_EVERY`` seconds they ask whether it is done.

    Raises what ``work`` raises; on the other processes a SidlsgError that says the same.
    """
    if not started():
        work()
        return
    with ThreadPoolExecutor(1, "by_main") as thread:
        going = thread.submit(work) if main else None
        done = False
        while not done:
            if going is not None:
                wait([going], ASKED_EVERY)
            (done,) = any_process(going is not None and going.done())
    error = None if going is None else going.exception()
    said = gather(None if error is None else reason(error))[0]
    if error is not None:
        raise error
    if said is not None:
        raise SidlsgError(said)


def all_reduce_sum(tensor: Tensor) -> None:
    """Sum the tensor over all processes, in place."""
    import torch.distributed as dist

    dist.all_reduce(tensor)


def gather(value: T) -> list[T]:
    """The values of all processes, in order of rank, on every process."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Each flag, true on every process when it is true on one; keeps processes from parting ways. Does not wait for a GPU."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return flags
    seen = torch.tensor(flags, dtype=torch.float32)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in seen)


def agree(facts: dict[str, Any]) -> list[str]:
    """The names of the facts on which the processes differ, the same list on every process."""
    everywhere = gather(facts)
    return [name for name in facts if any(other[name] != everywhere[0][name] for other in everywhere)]
