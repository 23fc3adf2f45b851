from __future__ import annotations

import json
from pathlib import Path

import pytest

from qbench.catalog.prices import cheapest_on_demand
from qbench.cli.main import main
from tests.tiny import FAMILIES, write_tiny_model

SMALL = ("--seq", "32", "--r", "4", "--lora-dropout", "0", "--precision", "bf16")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_tiny_model(tmp_path / "llama", FAMILIES["llama"])


def test_plan_shows_the_ranks(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--gpus", "2", "--strategy", "fsdp2", "--gpu", "RTX 4090", "--json", "--no-cache")
    assert main(["plan", model, *SMALL, *flags]) == 0
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert [rank["rank"] for rank in record["detail"]["ranks"]] == [0, 1]
    assert record["metrics"]["peak_allocated_bytes"] == max(
        rank["peak_allocated_bytes"] for rank in record["detail"]["ranks"]
    )
    assert "step_time_s" not in record["metrics"]


def test_plan_counts_all_gpus_and_their_price(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    price = cheapest_on_demand("RTX 4090")
    assert price is not None
    flags = ("--gpus", "4", "--strategy", "ddp", "--gpu", "RTX 4090", "--no-cache")
    assert main(["plan", model, *SMALL, *flags]) == 0
    said = capsys.readouterr().out
    assert "On 4 GPUs" in said
    assert "a CUDA context and NCCL of up to" in said
    assert f"from ${4 * price.on_demand_usd_per_hour:.2f}/h" in said


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("plan", ("--strategy", "fsdp2"), "distributed.gpus missing"),
        ("plan", ("--gpus", "2", "--strategy", "zero3"), "strategy zero3 is not planned; use ddp or fsdp2"),
        (
            "plan",
            ("--gpus", "16", "--strategy", "ddp"),
            "--gpus: given 16; allowed: a whole number from 1 to 8",
        ),
        ("fit", ("--vary", "gpus", "--gpu", "T4"), "--vary gpus: needs --strategy; give ddp or fsdp2"),
        (
            "rank",
            ("--tokens", "1M", "--num-gpus", "2", "--gpus", "2", "--strategy", "ddp"),
            "--num-gpus conflicts with --gpus",
        ),
    ],
)
def test_bad_flags_are_one_line(
    model: str, capsys: pytest.CaptureFixture[str], command: str, flags: tuple[str, ...], said: str
) -> None:
    assert main([command, model, *SMALL, *flags]) == 2
    assert said in capsys.readouterr().err
