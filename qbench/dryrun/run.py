"""Runs a command on a null GPU with the agent in its processes, and returns its record."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qbench.catalog.gpus import GpuSpec
from qbench.dryrun.agent import STARTED
from qbench.dryrun.agent.rows import SPEC
from qbench.dryrun.command import Environment, environment_of
from qbench.dryrun.process import run
from qbench.dryrun.result import Ran, read_reports, record_of
from qbench.dryrun.stand_ins import named_models, view_of_datasets, view_of_hub
from qbench.errors import QbenchError
from qbench.nullgpu.environment import card_environment
from qbench.nullgpu.launcher import preload_environment
from qbench.records.record import Record, run_id_of

SITE = Path(__file__).with_name("site")
MOST_GPUS = 8
"""MAX_DEVICES of qbench/nullgpu/shim."""
LOG_FILE = "output.log"
DEFAULT_LENGTH = 512
"""Tokens of a row that stands in for one of a dataset."""
COPIED_BYTES = 4 << 20
"""Largest copy to the card that is made: as many int64 as `agent/values.py` keeps true."""
QUIET: dict[str, str] = {
    "WANDB_MODE": "disabled",
    "COMET_MODE": "disabled",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "MLFLOW_TRACKING_URI": "",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
}
"""Nothing of a dry run is sent to a tracker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What stands in for a dataset that is not on this machine."""

    lengths: Sequence[int] = (DEFAULT_LENGTH,)
    """Tokens of each row, in turn."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File of rows (JSON lines) by the dataset's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A command, and the cards that it is to see."""

    command: Sequence[str]
    gpu: GpuSpec
    gpus: int = 1
    steps: int = 3
    timeout_s: float | None = None
    python: str | None = None
    models: Sequence[str] = ()
    """Ids of the hub that the command loads, beside those that it names."""
    rank_only: bool = False
    """Run the first of `gpus` ranks alone, in one process."""
    synthetic: Rows | None = None
    """Let tokenizers and datasets stand in, too."""


def dry_run(asked: Request, folder: Path, variables: Mapping[str, str] = os.environ) -> Record:
    """Run a command until its last step; return its record. Its output is in output.log of the folder.

    What qbench writes is below the folder. Raises QbenchError where the command cannot be run here.
    """
    if len(asked.command) == 0:
        raise QbenchError("no command; give one after --, for example -- python train.py")
    found = environment_of(asked.command, asked.python, variables)
    preload = preload_environment(variables, found.site)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dryrun-", dir=folder) as work:
        state = Path(work).resolve()
        names = list(dict.fromkeys((*asked.models, *named_models(asked.command))))
        view = view_of_hub(names, found.python, state, variables, synthetic=asked.synthetic is not None)
        changed = {**variables, **_variables(asked, found, state, variables), **preload, **view.variables}
        ended = run(asked.command, changed, folder / LOG_FILE, asked.timeout_s)
        reports, was_followed = read_reports(state), (state / STARTED).exists()
    if not was_followed and ended.exit_code == 0:
        raise QbenchError(
            "no Python of the command read PYTHONPATH, by which a dry run follows it; leave out -I, -E and "
            "-S, and name a command that trains"
        )
    ran = Ran(
        command=asked.command,
        gpu=asked.gpu,
        gpus=asked.gpus,
        steps=asked.steps,
        ended=ended,
        reports=reports,
        stand_ins=view.made,
        rank_only=asked.rank_only,
    )
    return record_of(ran, run_id_of("dryrun"))


def agent_variables(state: Path, steps: int, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which a Python starts the agent; with 0 steps it only keeps values true."""
    before = variables.get("PYTHONPATH")
    return {
        "PYTHONPATH": str(SITE) + (os.pathsep + before if before else ""),
        "QBENCH_DRYRUN_DIR": str(state),
        "QBENCH_DRYRUN_STEPS": str(steps),
        "NULLGPU_COPY": str(COPIED_BYTES),
    }


def _one_rank(ranks: int) -> dict[str, str]:
    """Return the variables of rank 0 of several, as torchrun sets them, for a process without the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = str(ranks)
    return {
        "NULLGPU_ALONE": "1",
        "QBENCH_DRYRUN_RANKS": size,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _variables(
    asked: Request, found: Environment, state: Path, variables: Mapping[str, str]
) -> dict[str, str]:
    made = {
        **agent_variables(state, asked.steps, variables),
        "NULLGPU_STATE": str(state / "cards"),
        # Caches of code that is compiled for a card, which the card's own must not find.
        "TRITON_CACHE_DIR": str(state / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(state / "torchinductor"),
        "UNSLOTH_COMPILE_LOCATION": str(state / "unsloth"),
        "HF_MODULES_CACHE": str(state / "modules"),
        "HF_DATASETS_CACHE": str(view_of_datasets(state, variables)),
        "PYTORCH_KERNEL_CACHE_PATH": str(state / "kernels"),
        **card_environment(asked.gpu, count=min(asked.gpus, MOST_GPUS)),
        **(_one_rank(asked.gpus) if asked.rank_only else {}),
        **({SPEC: json.dumps(asdict(asked.synthetic))} if asked.synthetic is not None else {}),
    }
    own = {"HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1", **QUIET}
    made |= {name: value for name, value in own.items() if name not in variables}
    # Which of the cards of this machine are to be seen says nothing of those that are not there.
    if "CUDA_VISIBLE_DEVICES" in variables:
        made["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(asked.gpus)))
    return made
