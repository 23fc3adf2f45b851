"""The environments: versions, card, and the program that makes a published run in them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qbench.catalog.gpus import find_gpu
from qbench.nullgpu.environment import AddressOrder, card_environment
from qbench.nullgpu.launcher import preload_environment

HERE = Path(__file__).parent
INSIDE = HERE / "inside"
# The default index holds the CUDA builds; pip's own settings may prefer others.
PIP_SETTINGS = {
    "PIP_CONFIG_FILE": os.devnull,
    **dict.fromkeys(("PIP_FIND_LINKS", "PIP_CONSTRAINT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"), ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What one publication ran on and with."""

    name: str
    """Of the files of rows, of pinned versions, and of the report."""
    title: str
    program: str
    """The module of inside/ that makes one run."""
    gpu: str
    """As the catalog names it."""
    context_bytes: int | None = None
    """Bytes taken before the program's own, where they were published; else those of the catalog."""
    orders: tuple[AddressOrder, ...] = ("up",)
    """Of addresses, both where reserved bytes are compared: they can depend on it."""
    stand_ins: bool = False
    """Whether inside/standins is on the path."""

    @property
    def versions_file(self) -> Path:
        return HERE / "environments" / f"{self.name}.txt"

    @property
    def rows_file(self) -> Path:
        return HERE / "rows" / f"{self.name}.csv"

    def make(self, folder: Path) -> Path:
        """Install the environment into a folder unless it is there; return its Python."""
        python = folder / "bin" / "python"
        done = folder / "installed"
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
            settings = {**os.environ, **PIP_SETTINGS}
            subprocess.run([*pip, "--requirement", self.versions_file], check=True, env=settings)
            done.touch()
        return python

    def variables(self, python: Path, order: AddressOrder) -> dict[str, str]:
        """Return the variables under which a program has the null GPU, with that order of addresses."""
        return {
            **os.environ,
            **preload_environment(site=_site(python)),
            **card_environment(find_gpu(self.gpu), order=order, context_bytes=self.context_bytes),
            # Imports look for a GPU; if they asked CUDA, torch would refuse it to this process's children.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "PYTHONPATH": str(INSIDE / "standins") if self.stand_ins else "",
            "HF_HUB_OFFLINE": "1",
        }


def _site(python: Path) -> Path:
    return next(python.parents[1].glob("lib/python3.*/site-packages"))


A100 = "A100-SXM4-80GB"
ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            name="fms",
            title="fms-acceleration on an A100, torch 2.4.1, transformers 4.48.1",
            program="fms",
            gpu=A100,
            stand_ins=True,
        ),
        Environment(
            name="fms-liger",
            title="fms-acceleration with Liger's loss on an A100, torch 2.4.1, transformers 4.45.2",
            program="fms",
            gpu=A100,
            stand_ins=True,
        ),
        Environment(
            name="cift",
            title="can-i-finetune-this on an RTX 4080, torch 2.6.0, transformers 5.8.1",
            program="cift",
            gpu="RTX 4080",
            # Free before the model was loaded: 14.7207 of 15.9917 GiB; a display was attached.
            context_bytes=round((15.9917 - 14.7207) * 2**30),
            orders=("up", "down"),
        ),
    )
}
