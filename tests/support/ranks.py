"""Real processes of one process group, without the seconds that each would need to import everything."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import sidlsg.training.trainer  # noqa: F401 - what the fork server holds ready
from sidlsg import distributed

TESTS = Path(__file__).parents[1]


def fork_server() -> Any:
    """The context whose processes are forked from a clean process that has imported this module: no threads, no locks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.ranks"])
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(TESTS), path] if path else [str(TESTS)]
    )  # it finds the module there
    return context


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def on_ranks(world: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``work(rank, *arguments)`` in ``world`` processes that torchrun's variables describe: what they return, by rank.

    Raises the first exception of any of them. ``work`` is a function of a module.
    """
    port = free_port()
    with ProcessPoolExecutor(world, mp_context=fork_server()) as pool:
        found = [pool.submit(_as_rank, rank, world, port, work, arguments) for rank in range(world)]
        return [future.result() for future in found]


def _as_rank(rank: int, world: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)} | address)
    try:
        return work(rank, *arguments)
    finally:
        distributed.stop()
        sys.stdout.flush()
