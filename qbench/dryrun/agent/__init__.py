"""What follows a training from inside its process; started by `site/sitecustomize.py`.

It imports nothing but Python's own library, and torch once the program has. Whatever fails in it is noted in
its report and does not reach the program.
"""

from __future__ import annotations

import os

STARTED = "agent-started"


def start() -> None:
    """Wait for the program to import torch, and follow it from then on."""
    from . import hub, imports, ranks, rows, saves, watch

    folder = os.environ["QBENCH_DRYRUN_DIR"]
    if os.path.isdir(folder):
        with open(os.path.join(folder, STARTED), "a", encoding="utf-8"):
            pass  # That it is there says that Pythons of the command read PYTHONPATH.
    if ranks.RANKS in os.environ:
        ranks.be_first()
        imports.after("torch.distributed.launcher.api", ranks.start_one)
        imports.after("torch.distributed.rendezvous", ranks.wait_for_none)
    follower = watch.Watch(folder, int(os.environ.get("QBENCH_DRYRUN_STEPS", "3")))
    imports.after("torch", follower.begin)
    imports.after("huggingface_hub.hf_file_system", hub.list_from_cache)
    imports.after("safetensors.torch", saves.save_holes)
    imports.after("torch._inductor.constant_folding", follower.follow_inductor)
    if rows.SPEC in os.environ:
        imports.after("datasets.load", follower.rows.follow)
    imports.after("deepspeed.runtime.engine", follower.follow_deepspeed)
