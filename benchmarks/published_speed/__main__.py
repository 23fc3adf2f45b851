"""Published throughput beside plans made of datasheet peaks and published efficiencies.

    python -m benchmarks.published_speed --out FOLDER

Nothing of a plan is fitted to these figures. Steps, figures and sources are in rows.csv, models that the
catalog lacks in shapes.jsonl, and what cannot be planned, with the reason, in left_out.csv.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

PAIRS = (
    ("fms-mistral-qlora-b4", "fms-mistral-lora-b4"),
    ("fms-mistral-qlora-b8", "fms-mistral-lora-b8"),
    ("fms-power-qlora-b4", "fms-power-lora-b4"),
    ("cift-007", "cift-001"),
)
"""QLoRA and LoRA of the same step."""

KINDS = {
    "eager": "Eager steps on Linux",
    "windows": "Eager steps on Windows, whose host takes longer for an operator than any source says",
    "several": "Several GPUs, FSDP",
    "compiled": "Compiled by torch.compile, on one GPU and several",
    "disturbed": "Kept apart as disturbed: forward took more than 0.7 of the time of backward, which does "
    "twice its arithmetic; in the other rows of that source it took 0.48 to 0.65",
}

MARGIN = 0.2
"""How far the figures of two cards differ from which on their order counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One published figure beside its plan."""

    row: dict[str, str]
    planned: float
    """Tokens a second."""
    between: tuple[float, float]
    """Least and most tokens a second by the spread of published rates."""
    bound: str

    @property
    def measured(self) -> float:
        """Tokens a second."""
        return float(self.row["tokens_per_s"])

    @property
    def error(self) -> float:
        """Planned over measured, less one."""
        return self.planned / self.measured - 1

    @property
    def is_within(self) -> bool:
        """Whether the figure lies between the ends of the plan."""
        return self.between[0] <= self.measured <= self.between[1]


Pair = tuple[Compared, Compared]

OF_CARD = ("id", "gpu", "tokens_per_s", "notes")
"""Columns in which rows of one job differ."""


def read_rows(name: str) -> list[dict[str, str]]:
    """Return the lines of a table beside this module."""
    with (HERE / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def step_of(row: dict[str, str], models: dict[str, str]) -> Any:
    """Return the point of a row; `models` are folders of those that the catalog lacks."""
    from qbench.scenario.expand import point_from

    base: dict[str, Any] = {"model": models.get(row["model"], row["model"])}
    if row["gpus"] != "1":
        base["distributed"] = {"strategy": row["strategy"], "gpus": int(row["gpus"])}
    changes: dict[str, Any] = {
        "precision": row["precision"],
        "per_device_train_batch_size": int(row["batch"]),
        "seq_len": int(row["seq"]),
        "gradient_checkpointing": row["gradient_checkpointing"] == "yes",
        "optim": row["optim"],
        "attn_implementation": row["attn"],
        "autocast": row["autocast"],
        "gradient_accumulation_steps": int(row["gradient_accumulation_steps"]),
        "recipe": row["recipe"],
        "torch_compile": row["kind"] == "compiled",
    }
    if row["loss_type"]:
        changes["loss_type"] = row["loss_type"]
    if row["r"]:
        modules = row["target_modules"]
        targets = modules if modules == "all-linear" else modules.split(";")
        changes |= {"r": int(row["r"]), "target_modules": targets, "lora_dropout": float(row["lora_dropout"])}
    else:
        base["lora"] = None
    return point_from(base, changes)


def compared(rows: Sequence[dict[str, str]]) -> list[Compared]:
    """Return each row beside the plan of its step."""
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for line in (HERE / "shapes.jsonl").read_text(encoding="utf-8").splitlines():
            shape = json.loads(line)
            place = Path(folder, shape["name"])
            place.mkdir()
            (place / "config.json").write_text(json.dumps(shape["config"]), encoding="utf-8")
            models[shape["name"]] = str(place)
        return [_compared(row, step_of(row, models)) for row in rows]


def _compared(row: dict[str, str], point: Any) -> Compared:
    from qbench.catalog.gpus import find_gpu
    from qbench.planner.hardware import card_of
    from qbench.planner.speed_datasheet import DatasheetRates
    from qbench.planner.times_on_cards import seconds_between, step_time_on
    from qbench.planner.trace import trace

    gpu = find_gpu(row["gpu"])
    traced = trace(point, "cuda", card_of(gpu), with_costs=True)
    assert traced.work is not None
    if row["has_optimizer"] == "no":
        work = [(each, times) for each, times in traced.work if each.phase != "optimizer"]
        traced = replace(traced, work=work)
    rates = DatasheetRates(gpu)
    timed, between = step_time_on(traced, gpu, rates), seconds_between(traced, gpu, rates)
    assert timed is not None
    assert between is not None
    tokens = point.num_gpus * point.tokens_per_step
    return Compared(
        row=row,
        planned=tokens / timed.seconds,
        between=(tokens / between[1], tokens / between[0]),
        bound=timed.bound,
    )


def _summary(found: Sequence[Compared]) -> str:
    from qbench.words.phrases import counted

    errors = sorted(abs(each.error) for each in found)
    within = sum(each.is_within for each in found)
    tenth = errors[(9 * len(errors) - 1) // 10]
    cards = {each.row["gpu"] for each in found}
    sources = {each.row["source"].split()[0] for each in found}
    return (
        f"{counted(len(found), 'figure')} of {counted(len(cards), 'card')} and "
        f"{counted(len(sources), 'source')}: median error "
        f"{statistics.median(errors):.1%}, nine of ten within {tenth:.1%}, largest {errors[-1]:.1%}; "
        f"{within} lie within the planned range"
    )


def order_of_cards(found: Sequence[Compared]) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs of cards whose figures of one job differ by more than MARGIN, and the reversed ones.

    A job is the same step of the same source. A pair has the card that was measured faster first.
    """
    jobs: dict[tuple[str, ...], list[Compared]] = defaultdict(list)
    for each in found:
        jobs[tuple(value for key, value in each.row.items() if key not in OF_CARD)].append(each)
    pairs = [
        (one, other)
        for job in jobs.values()
        for one, other in itertools.permutations(job, 2)
        if one.measured > (1 + MARGIN) * other.measured
    ]
    return pairs, [pair for pair in pairs if pair[0].planned <= pair[1].planned]


def _order_text(found: Sequence[Compared]) -> str:
    pairs, reversed_ones = order_of_cards(found)
    named = "".join(f"; {one.row['id']} and {other.row['id']}" for one, other in reversed_ones)
    return (
        f"- Order of cards: {len(pairs)} pairs of cards with the same step of one source differ by more than "
        f"{MARGIN:.0%}; plans reverse {len(reversed_ones)}{named}."
    )


def report(found: Sequence[Compared], left_out: Sequence[dict[str, str]]) -> str:
    """Return the comparison as Markdown."""
    from qbench.report.markdown import table_text
    from qbench.report.table import Column, Table

    by_id = {each.row["id"]: each for each in found}
    lines = [
        "# Published throughput beside plans",
        "",
        "`python -m benchmarks.published_speed --out reports/timing`. Plans take datasheet peaks and the "
        "figures of efficiencies.csv and attention_shares.csv in qbench/catalog/data; nothing is fitted to "
        "these figures. A range is that of the sources.",
        "",
    ]
    for kind, title in KINDS.items():
        lines.append(f"- {title}: {_summary([each for each in found if each.row['kind'] == kind])}.")
    several = [each for each in found if each.row["kind"] in ("several", "compiled")]
    lines.append(f"- Several GPUs and compiled together: {_summary(several)}.")
    eager = [each for each in found if each.row["kind"] == "eager"]
    for bound in sorted({each.bound for each in eager}):
        lines.append(f"- Eager, bound by {bound}: {_summary([one for one in eager if one.bound == bound])}.")
    for qlora, lora in PAIRS:
        planned = by_id[qlora].planned / by_id[lora].planned
        measured = by_id[qlora].measured / by_id[lora].measured
        lines.append(
            f"- QLoRA over LoRA, {qlora} and {lora}: planned {planned:.3f}, measured {measured:.3f} "
            f"({planned / measured - 1:+.1%})."
        )
    lines.append(_order_text([each for each in found if each.row["kind"] != "disturbed"]))
    columns = (
        *(Column(title) for title in ("Id", "GPU")),
        Column("Planned", "tokens/s"),
        Column("From", "tokens/s"),
        Column("To", "tokens/s"),
        Column("Measured", "tokens/s"),
        Column("Error", "%"),
        Column("Bound by"),
    )
    cells = tuple(
        (
            each.row["id"],
            each.row["gpu"],
            each.planned,
            *each.between,
            each.measured,
            100 * each.error,
            each.bound,
        )
        for each in found
    )
    lines += ["", table_text(Table(columns=columns, rows=cells)), "", "Sources and remarks:", ""]
    lines += [f"- {each.row['id']}: {each.row['source']}. {each.row['notes']}".rstrip() for each in found]
    lines += ["", "Published, but not compared:", ""]
    lines += [f"- {row['id']} ({row['gpu']}), {row['source']}: {row['why']}." for row in left_out]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Plan each step and write the report."""
    from qbench.quiet import quiet_libraries

    quiet_libraries()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    text = report(compared(read_rows("rows.csv")), read_rows("left_out.csv"))
    (folder / "published.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
