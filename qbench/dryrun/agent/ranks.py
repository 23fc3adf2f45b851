"""One rank of several: launchers start a single process, which takes itself for rank 0 of all."""

from __future__ import annotations

import functools
import os
from typing import Any

RANKS = "QBENCH_DRYRUN_RANKS"
"""Number of ranks of which this is the first."""
_SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")


def be_first() -> None:
    """Let a process that a launcher started take itself for the first of all ranks."""
    if "LOCAL_RANK" in os.environ:
        os.environ.update(dict.fromkeys(_SIZES, os.environ[RANKS]))


def start_one(launcher: Any) -> None:
    """Let torchrun, and accelerate by way of it, start one process."""
    plain = launcher.launch_agent

    @functools.wraps(plain)
    def launch_agent(config: Any, *args: Any, **kwargs: Any) -> Any:
        config.nproc_per_node = config.min_nodes = config.max_nodes = 1
        return plain(config, *args, **kwargs)

    launcher.launch_agent = launch_agent


def wait_for_none(rendezvous: Any) -> None:
    """Let the store of a process group open without the other ranks."""
    rendezvous.TCPStore = functools.partial(rendezvous.TCPStore, wait_for_workers=False)
