"""The report on the grid of points that was planned and run on null GPUs: Markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qbench.records.files import write_whole
from qbench.records.frame import rows_csv
from qbench.report.markdown import escaped, table_text
from qbench.report.table import Column, Table

GridValues = dict[str, str | int | bool | None]
"""One point of the grid: its settings, both outcomes, and the bytes of each."""

FIGURES = ("static_bytes", "peak_allocated_bytes", "peak_reserved_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDifference:
    """Why a plan and a null GPU may differ, and where the library says so."""

    operator: str
    source: str
    says: str


KNOWN_DIFFERENCES: tuple[KnownDifference, ...] = (
    KnownDifference(
        operator="aten::addmm with out_dtype",
        source="ATen/cuda/CUDABlas.cpp, gemm_internal_cublas; trl/kernels/chunked_logprob.py:60",
        says="trl's loss adds products of bf16 up in fp32, which cuBLAS refuses below capability 8.0: "
        "the run fails, and the plan refuses the point",
    ),
    KnownDifference(
        operator="autocast in bf16 below capability 8.0",
        source="torch/cuda/__init__.py:217, _check_bf16_tensor_supported",
        says="the first autocast makes and frees one value of 512 B, before any peak",
    ),
    KnownDifference(
        operator="aten::_efficient_attention_backward, heads above 128 on capability 12.0",
        source="ATen/native/transformers/cuda/mem_eff_attention/kernels/cutlassB.h:238",
        says="the 128x64 kernel keeps 1 KiB less of counters than the 64x64 kernel of the plan",
    ),
    KnownDifference(
        operator="cudaMalloc",
        source="c10/cuda/CUDACachingAllocator.cpp, BlockComparatorSize",
        says="among free blocks of one size the lowest address serves; the driver publishes no order of "
        "addresses, and both sides take the lowest free one first",
    ),
)


def write_null_grid(rows: Sequence[GridValues], environment: str, described: str, out: Path) -> Path:
    """Write null_grid.md and null_grid.csv into a folder; return the path of the first.

    `described` says what the points are and how to repeat them.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "null_grid.csv", rows_csv(list(rows)))
    path = out / "null_grid.md"
    write_whole(path, "\n".join(_lines(rows, environment, described)) + "\n")
    return path


def summary_table(rows: Sequence[GridValues]) -> Table:
    """Return for each figure how many points are equal to the byte, and the largest difference."""
    found = []
    for figure in FIGURES:
        both = [
            (row[f"planned_{figure}"], row[f"null_{figure}"]) for row in rows if row["null_outcome"] == "ok"
        ]
        pairs = [(a, b) for a, b in both if isinstance(a, int) and isinstance(b, int)]
        worst = max((abs(a - b) / b * 100 for a, b in pairs), default=0.0)
        found.append((figure, len(pairs), sum(a == b for a, b in pairs), f"{worst:.3f} %"))
    out_of_memory = [row for row in rows if row["null_outcome"] == "oom"]
    equal = sum(row["is_equal"] is True for row in out_of_memory)
    found.append(("oom: phase, bytes asked for, bytes free", len(out_of_memory), equal, ""))
    columns = (Column("On a null GPU"), Column("Points"), Column("Equal"), Column("Largest difference"))
    return Table(columns=columns, rows=tuple(found))


def _lines(rows: Sequence[GridValues], environment: str, described: str) -> Iterator[str]:
    yield "# Plans beside the null GPU"
    yield ""
    yield (
        "Each point was planned, and run on a null GPU: PyTorch's own CUDA code on a card that is not there. "
        "No figure here was measured on a GPU."
    )
    yield ""
    yield f"{described}, both with {escaped(environment)}."
    yield ""
    yield table_text(summary_table(rows))
    yield ""
    yield "## What may differ"
    yield ""
    columns = (Column("Operator"), Column("Source"), Column("What it does"))
    yield table_text(
        Table(columns=columns, rows=tuple((r.operator, r.source, r.says) for r in KNOWN_DIFFERENCES))
    )
    yield ""
    yield "## Points"
    yield ""
    yield table_text(_points_table(rows))


def _points_table(rows: Sequence[GridValues]) -> Table:
    titles = ("GPU", "Point", "Outcome", "Static", "Allocated", "Reserved", "Difference")
    return Table(columns=tuple(map(Column, titles)), rows=tuple(map(_cells, rows)))


def _cells(row: GridValues) -> tuple[str, ...]:
    saved = "checkpointed" if row["checkpointing"] else "saved"
    point = " ".join(
        str(row[name]) for name in ("model", "precision", "recipe", "attn", "r", "seq_len", "batch", "optim")
    )
    outcome = str(row["null_outcome"])
    if row["planned_outcome"] != outcome:
        outcome += f", planned {row['planned_outcome']}"
    bytes_on_null = (str(row[f"null_{figure}"] or "") for figure in FIGURES)
    return (str(row["gpu"]), f"{point} {saved}", outcome, *bytes_on_null, str(row["difference"]))
