"""What follows a training from inside its process; started by `site/sitecustomize.py`.

It imports nothing but Python's own library, and torch once the program has. Whatever fails in it is noted in
its report and does not reach the program.
"""

from __future__ import annotations

import os


def start() -> None:
    """Wait for the program to import torch, and follow it from then on."""
    from . import imports, ranks, watch

    if ranks.RANKS in os.environ:
        ranks.be_first()
        imports.after("torch.distributed.launcher.api", ranks.start_one)
        imports.after("torch.distributed.rendezvous", ranks.wait_for_none)
    follower = watch.Watch(os.environ["QBENCH_DRYRUN_DIR"], int(os.environ.get("QBENCH_DRYRUN_STEPS", "3")))
    imports.after("torch", follower.begin)
    imports.after("deepspeed.runtime.engine", follower.follow_deepspeed)
