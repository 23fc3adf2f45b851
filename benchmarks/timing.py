"""What benchmarks of speed share: times of whole processes, told beside that of importing the libraries.

Machines differ several times over, and one shared with others from minute to minute; the ratio differs less.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from qbench.measure.pool import num_cores
from qbench.records.software import library_versions
from qbench.report.markdown import table_text
from qbench.report.table import Column, Table

COLUMNS = (Column("What"), Column("Time", "s"), Column("Of the imports", "x"))

Row = tuple[str, float]
"""What was timed, and seconds."""


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def command(*arguments: str) -> float:
    """Return how long a process of this Python takes, from start to end; raises CalledProcessError."""
    return seconds_of(
        lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    )


IMPORTS = (
    "-c",
    "import torch, transformers, peft, bitsandbytes; from transformers import AutoModelForCausalLM",
)


def imports_time() -> float:
    """Return how long a process takes that imports the libraries and ends, the least of three."""
    return min(command(*IMPORTS) for _ in range(3))


def beside_imports(*arguments: str) -> tuple[float, float]:
    """Return how long the imports and a process of this Python take, each the least of five in turns."""
    turns = [(command(*IMPORTS), command(*arguments)) for _ in range(5)]
    return min(imports for imports, _ in turns), min(taken for _, taken in turns)


def document(title: str, module: str, rows: Sequence[Row], imports: float) -> str:
    """Return times as a page of Markdown, each also as a multiple of the time of the imports."""
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items() if version)
    listed = [("importing torch, transformers, peft and bitsandbytes", imports), *rows]
    return "\n".join(
        [
            f"# {title}",
            "",
            f"Written by `python -m {module}` on {num_cores()} cores ({platform.machine()}), "
            f"Python {platform.python_version()}; {versions}.",
            "",
            table_text(Table(columns=COLUMNS, rows=tuple((what, s, s / imports) for what, s in listed))),
            "",
        ]
    )
