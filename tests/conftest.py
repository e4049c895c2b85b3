"""How the suite runs: one thread per worker, workers up to the cores, fixtures in ``support/fixtures.py``."""

from __future__ import annotations

import os

# Before torch is imported, and for the processes that tests start: on tiny tensors a second thread only waits.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

import psutil
import pytest

pytest.register_assert_rewrite("support")

WORKER_GIB = 2.0  # a worker with torch, diffusers, transformers and open_clip, and the largest of its tests


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The value of ``-n auto``: one worker per core that this process may use, and no more than fit into memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().available / 2**30 / WORKER_GIB)))


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, and with them torch, everywhere but in the process that only hands out tests."""
    distributes = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not distributes or config.option.collectonly:
        config.pluginmanager.import_plugin("support.fixtures")
