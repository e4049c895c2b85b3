"""Real processes without the seconds that each would need to import everything: forked from one that has."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import sidlsg.training.trainer  # noqa: F401 - what the fork server holds ready
from sidlsg import cli, distributed

TESTS = Path(__file__).parents[1]


def fork_server() -> Any:
    """The context whose processes are forked from a clean process that has imported this module: no threads, no locks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.processes"])
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


def without_reader(arguments: list[str]) -> tuple[int, str]:
    """The exit code and stderr of `sidlsg ARGUMENTS | head -1`, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=fork_server()) as pool:
        return pool.submit(_into_a_pipe_that_closes, arguments).result()


def _into_a_pipe_that_closes(arguments: list[str]) -> tuple[int, str]:
    torch.set_num_threads(1)
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)

    def read_one_line() -> None:
        while os.read(reading, 1) not in (b"\n", b""):
            pass
        os.close(reading)

    threading.Thread(target=read_one_line).start()
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    sys.stderr = io.StringIO()
    sys.argv = ["sidlsg", *arguments]
    code: int | str | None = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    sys.stdout.flush()  # as Python does at its end
    return int(code or 0), sys.stderr.getvalue()
