"""The project's own gate: what it plans, held by `qbench check` against a baseline in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.cli.main import main

FOLDER = Path(__file__).with_name("own_plans")
SCENARIO, BASELINE = FOLDER / "plans.yaml", FOLDER / "plans.jsonl"

RENEW = (
    "where the plans may change, take the new ones, and look at what git says of them: "
    "qbench plan tests/own_plans/plans.yaml --json > plans.json && "
    'qbench baseline accept plans.json --to tests/own_plans/plans.jsonl --prune --reason "WHY"'
)

# One code and one set of versions plan the same bytes on any machine, so here what moves at all is told.
EXACTLY = ("static_bytes", "peak_allocated_bytes", "peak_reserved_bytes")


def test_this_code_plans_what_the_baseline_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", str(SCENARIO), "--json"]) == 0
    plans = tmp_path / "plans.json"
    plans.write_text(capsys.readouterr().out, encoding="utf-8")
    tolerances = [word for metric in EXACTLY for word in ("--tolerance", f"{metric}=0%")]
    code = main(["check", str(plans), "--baseline", str(BASELINE), "--strict", *tolerances])
    said = capsys.readouterr().out
    assert code == 0, f"{said}\n{RENEW}"
    assert " of 4 points: " in said
