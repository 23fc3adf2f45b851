"""Published throughput beside plans made of datasheet peaks and published efficiencies.

    python -m benchmarks.published_speed --out FOLDER

Nothing of a plan is fitted to these figures. Figures whose conditions cannot be planned are named at the end
of the report, with the reason.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

RATIOS = (("fms-167", "fms-065"), ("cift-007", "cift-001"))
"""QLoRA and LoRA of the same step."""

LEFT_OUT = (
    (
        "fms-acceleration, fused kernels and Liger rows",
        "Triton kernels take the place of transformers' operators.",
    ),
    (
        "fms-acceleration, stock QLoRA (2904 tokens/s)",
        "Norms in fp32 but head in 16 bit: no recipe of qbench prepares a model so.",
    ),
    ("torchtune, optimization table (LoRA 8210, QLoRA 8035 tokens/s)", "torch.compile and offloading."),
    ("torchtune, other tables", "Batches are padded to lengths that the source does not give."),
    ("litgpt, minutes for 1000 iterations", "Alpaca's lengths vary; only the longest, the peak's, is given."),
    ("peft MetaMathQA, seconds for 5000 steps", "Lengths vary, and evaluation is part of the time."),
)


def rows() -> list[dict[str, Any]]:
    """Return planned and measured tokens a second of each published figure."""
    from qbench.catalog.throughput import published_speeds
    from qbench.planner.hardware import card_of
    from qbench.planner.speed_datasheet import DatasheetRates
    from qbench.planner.step_time import step_time
    from qbench.planner.trace import trace
    from qbench.runs.validation import run_of, run_text

    found = []
    for published in published_speeds():
        run = run_of(published.step)
        card = replace(card_of((run.gpu,)), has_flash=run.flash)
        work = trace(run.point, "cuda", card, with_costs=True).work
        assert work is not None
        timed = step_time(work, DatasheetRates(run.gpu))
        assert timed is not None
        found.append(
            {
                "id": published.id,
                "run": run_text(run.point),
                "gpu": run.gpu.name,
                "method": run.point.method,
                "planned": run.point.tokens_per_step / timed.seconds,
                "measured": published.tokens_per_s,
                "bound": timed.bound,
                "source": f"{published.source}; {published.notes}",
            }
        )
    return found


def report(found: list[dict[str, Any]]) -> str:
    """Return the comparison as Markdown."""
    from qbench.report.markdown import table_text
    from qbench.report.table import Column, Table

    errors = [abs(row["planned"] / row["measured"] - 1) for row in found]
    by_id = {row["id"]: row for row in found}
    lines = [
        "# Published throughput beside plans",
        "",
        "`python -m benchmarks.published_speed --out reports/timing`. Plans take datasheet peaks and the "
        "efficiencies of qbench/catalog/data/efficiencies.csv; nothing is fitted to these figures.",
        "",
        f"- {len(errors)} figures: median error {statistics.median(errors):.1%}, largest {max(errors):.1%}.",
    ]
    for method in ("full", "lora", "qlora"):
        of_method = [error for error, row in zip(errors, found, strict=True) if row["method"] == method]
        lines.append(f"- {method}, {len(of_method)}: median error {statistics.median(of_method):.1%}.")
    for qlora, lora in RATIOS:
        planned = by_id[qlora]["planned"] / by_id[lora]["planned"]
        measured = by_id[qlora]["measured"] / by_id[lora]["measured"]
        lines.append(
            f"- QLoRA over LoRA, {qlora} and {lora}: planned {planned:.3f}, measured {measured:.3f} "
            f"({planned / measured - 1:+.1%})."
        )
    columns = (
        *(Column(title) for title in ("Id", "Step", "GPU")),
        Column("Planned", "tokens/s"),
        Column("Measured", "tokens/s"),
        Column("Error", "%"),
        Column("Bound by"),
    )
    rows = (
        (
            *(row[name] for name in ("id", "run", "gpu", "planned", "measured")),
            100 * (row["planned"] / row["measured"] - 1),
            row["bound"],
        )
        for row in found
    )
    lines += ["", table_text(Table(columns=columns, rows=tuple(rows)))]
    lines += ["", "Sources:", "", *(f"- {row['id']}: {row['source']}" for row in found)]
    lines += ["", "Published, but not compared:", "", *(f"- {what}. {why}" for what, why in LEFT_OUT)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Plan each step again and write the report."""
    from qbench.quiet import quiet_libraries

    quiet_libraries()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    text = report(rows())
    (folder / "published.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
