"""Make runs one after another, each in a child of this process, which imports what all need once.

    python serve.py PROGRAM < JOBS

PROGRAM is a module of this folder with `run(settings, config, folder) -> figures`. Each line of JOBS is a
JSON object: settings, config, folder. A line of JSON answers each: outcome, and figures where it is ok.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path


def main(program: str) -> None:
    run = importlib.import_module(program).run
    for line in sys.stdin:
        print(json.dumps(in_child(run, json.loads(line))), flush=True)


def in_child(run, job: dict) -> dict:
    """Return what becomes of a job in a child, which is the first to use CUDA."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        # Libraries print what they like; the answers have the first standard output alone.
        os.dup2(2, 1)
        with os.fdopen(sender, "w") as answer:
            json.dump(attempt(run, job), answer)
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"outcome": f"ended with status {status}"}


def attempt(run, job: dict) -> dict:
    import torch

    try:
        return {"outcome": "ok", "figures": run(job["settings"], job["config"], Path(job["folder"]))}
    except torch.cuda.OutOfMemoryError:
        return {"outcome": "oom"}
    except Exception as error:
        traceback.print_exc()
        return {"outcome": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(sys.argv[1])
