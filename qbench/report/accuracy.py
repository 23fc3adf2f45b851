"""The accuracy report: plans beside published measurements, as a table, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from qbench.catalog.predictions import OtherPrediction
from qbench.catalog.published import FIGURES, NotCompared
from qbench.comparison.accuracy import FigureComparison, summarize
from qbench.records.files import write_whole
from qbench.records.frame import rows_csv
from qbench.report.markdown import escaped, table_text
from qbench.report.predictors import beside, predictors_part
from qbench.report.table import Column, Table, plain_table
from qbench.units import GIB, format_value

MODELLED = (
    "Loading counts. transformers takes one block of the size of a quantized model and frees it, holds each "
    "weight in 16 bit beside its packed form, and peft's preparation holds a weight in both precisions. "
    "Later tensors lie where these were, which decides what is reserved and some MiB of what is allocated.",
    "A hand-written loop leaves the key-value cache on. Without checkpointing the model's outputs hold the "
    "keys and values of all layers until the next forward pass has returned.",
    "cuBLAS takes its workspace at the first matrix product of a thread: autograd's after the gradient of "
    "the loss was made.",
    "bitsandbytes multiplies more than 512 tokens by a dequantized copy of a 4-bit weight.",
    "torch's wheels for Windows have no flash attention. Runs measured there are planned with the kernels "
    "that are left; a plan by `qbench plan` has flash attention.",
)
"""What had to be followed for these figures to agree."""

REPEATED = (
    "Qwen2.5-1.5B, NF4 with double quantization, r=16, 2,048 tokens, checkpointed, on RTX 4080 under Windows "
    "(DaoyuanLi2816/can-i-finetune-this, Qwen__Qwen2.5-1.5B-Instruct_qlora_s2048_b1_r16_steps3.json): 7.0977 "
    "GiB were reserved there. Plans were once 1.98 % off. The null GPU reserves 7.0977 GiB, too, with "
    "addresses handed out in either order and with either form of checkpointing, and so does the plan now. "
    "Without flash attention the run holds all scores, and torch's softmax a mask of their size beside them "
    "(ATen/native/SoftMax.cpp, `_safe_softmax`); a plan that leaves out this mask alone is 0.66 % too low.",
)
"""Runs that a null GPU repeated, to tell the measurement's part of a difference from the plan's."""

NOT_MODELLED = (
    "Re-entrant checkpointing, which peft 0.19 and torch 2.6 choose for QLoRA. The plan has the other form, "
    "transformers' default; they differ by about a MiB after backward.",
    "Versions other than the installed ones. transformers 4 loads quantized models without that one block, "
    "so their bytes at rest are planned a little too high.",
    "Padding. With a mask, attention takes another kernel; batches are planned full.",
    "The fused 4-bit product below 512 tokens by architecture; it is taken as fused.",
    "What a checkpoint's conversion or DoRA's initialisation allocates for a moment while loading.",
)
"""What is known to differ."""

_RIGHT = "text"
"""Unit of columns whose numbers are text already: terminals align them to the right."""


def comparison_table(comparisons: Sequence[FigureComparison]) -> Table:
    """Return one row for each figure, narrow enough for a terminal."""
    rows = [
        (
            found.id,
            found.figure,
            amount_text(found.measured, found.unit),
            amount_text(found.planned, found.unit),
            error_text(found.error_percent),
        )
        for found in comparisons
    ]
    numbers = (Column(title, _RIGHT) for title in ("Measured", "Planned", "Error"))
    return Table(columns=(Column("Measurement"), Column("Figure"), *numbers), rows=tuple(rows))


def summary_table(comparisons: Sequence[FigureComparison]) -> Table:
    """Return the median and the worst error of each figure by group."""
    rows = [
        (
            found.group,
            found.figure,
            found.count,
            f"{found.median_percent:.3f} %",
            error_text(found.worst_percent),
        )
        for found in summarize(comparisons)
    ]
    errors = (Column("Median of absolute errors", _RIGHT), Column("Worst error", _RIGHT))
    columns = (Column("Group"), Column("Figure"), Column("Figures", "count"), *errors)
    return Table(columns=columns, rows=tuple(rows))


def amount_text(value: int, unit: str) -> str:
    """Return bytes in GiB with the four decimals that sources print, and counts in full."""
    return f"{value / GIB:.4f} GiB" if unit == "bytes" else format_value(value, unit)


def error_text(percent: float) -> str:
    """Return an error with its sign; a bare 0 is exactly none."""
    text = f"{percent:+.3f}" if percent else "0"
    return f"{text if float(text) or not percent else '0.000'} %"


def markdown_page(
    comparisons: Sequence[FigureComparison],
    left_out: Sequence[NotCompared],
    planned_with: str,
    others: Sequence[OtherPrediction] = (),
) -> str:
    """Return the report as Markdown: summary, every figure by run, what is left out, what is modelled.

    `others` are what other tools predict for some of the figures.
    """
    compared = len({found.source for found in comparisons})
    parts = [
        "# Plans against measurements",
        "Written by `qbench validate`, which plans each step again and compares. "
        f"{len(comparisons)} figures from {compared} sources are compared. No constant of a plan is fitted.",
        f"Planned with {planned_with}. Measured with the versions named below: where they differ, the plan "
        "describes its own. An error is plan less measurement in percent of the measurement.",
        "## Summary",
        table_text(summary_table(comparisons)),
        _bullets(f"`{name}`: {text}" for name, text in FIGURES.items()),
        "## Every figure",
        *_groups(comparisons),
        *predictors_part(beside(comparisons, others)),
        "## Followed in the libraries' sources",
        _bullets(MODELLED),
        "## Repeated on a null GPU",
        _bullets(map(escaped, REPEATED)),
        "## Not modelled",
        _bullets(NOT_MODELLED),
        "## Published, but not compared",
        table_text(_left_out_table(left_out)),
    ]
    return "\n\n".join(parts) + "\n"


def _groups(comparisons: Sequence[FigureComparison]) -> list[str]:
    names = dict.fromkeys(found.group for found in comparisons)
    return [
        part for name in names for part in _group([found for found in comparisons if found.group == name])
    ]


def _group(comparisons: Sequence[FigureComparison]) -> list[str]:
    """Return the part of one group: its table, then runs with what they were measured with."""
    runs: dict[tuple[str, str, str, str], list[FigureComparison]] = {}
    for found in comparisons:
        runs.setdefault((found.run, found.gpu, found.stack, found.conditions), []).append(found)
    parts = [f"### {escaped(comparisons[0].group)}"]
    for (run, gpu, stack, conditions), members in runs.items():
        sources = "; ".join(dict.fromkeys(member.source for member in members))
        parts.append(f"**{escaped(run)}** on {escaped(gpu)}")
        parts.append(escaped(f"{stack}. {conditions}. Source: {sources}"))
        parts.append(table_text(comparison_table(members)))
    return parts


def _left_out_table(left_out: Sequence[NotCompared]) -> Table:
    titles = ("Group", "Which", "Figures", "Source", "Why not")
    rows = [(part.group, part.part or "all", part.rows, part.source, part.reason) for part in left_out]
    return plain_table(titles, rows)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def write_accuracy(
    comparisons: Sequence[FigureComparison],
    left_out: Sequence[NotCompared],
    planned_with: str,
    folder: Path,
    others: Sequence[OtherPrediction] = (),
) -> list[Path]:
    """Write accuracy.md and accuracy.csv; return their paths. Raises RecordError when that fails.

    Where `others` predict any of the figures, predictors.csv is written too.
    """
    texts = {
        "accuracy.md": markdown_page(comparisons, left_out, planned_with, others),
        "accuracy.csv": rows_csv([found.to_dict() for found in comparisons]),
    }
    if answers := beside(comparisons, others):
        texts["predictors.csv"] = rows_csv([answer.to_dict() for answer in answers])
    for name, text in texts.items():
        write_whole(folder / name, text, "name another folder with --out")
    return [folder / name for name in texts]
