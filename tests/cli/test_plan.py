"""`qbench plan` on tiny models: what it prints for programs and for people, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_model

from qbench.cli.main import main

MODEL = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("plan") / "tiny", MODEL)


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """Return the records that a plan prints as its only output."""
    main(["plan", *arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["records"]
    records: list[dict[str, Any]] = document["records"]
    return records


def test_bloom_has_as_many_trainable_parameters_as_peft_says(capsys: pytest.CaptureFixture[str]):
    # 24 layers x r 8 x (1,024 in + 3,072 out of query_key_value) = 786,432.
    flags = ("--precision", "nf4-dq", "--r", "8", "--target-modules", "query_key_value")
    (record,) = planned(capsys, "bigscience/bloom-560m", *flags)
    assert record["metrics"]["trainable_params"] == 786_432
    assert record["metrics"]["total_params"] == 560_001_024
    assert record["kind"] == "plan"
    assert record["outcome"] == "ok"


def test_repeated_flags_make_every_combination_once(model: str, capsys: pytest.CaptureFixture[str]):
    flags = ("--r", "4", "--r", "8", "--r", "8", "--precision", "bf16", "--precision", "nf4", "--seq", "16")
    points = [record["point"] for record in planned(capsys, model, *flags)]
    assert [(point["precision"], point["lora"]["r"]) for point in points] == [
        ("bf16", 4),
        ("bf16", 8),
        ("nf4", 4),
        ("nf4", 8),
    ]


def test_every_flag_reaches_the_point(model: str, capsys: pytest.CaptureFixture[str]):
    flags = {
        "--batch": "2",
        "--seq": "16",
        "--optim": "sgd",
        "--recipe": "trainer",
        "--attn": "eager",
        "--target-modules": "q_proj, v_proj",
        "--device": "cpu",
    }
    arguments = [part for flag in flags.items() for part in flag]
    (record,) = planned(capsys, model, *arguments, "--no-gradient-checkpointing")
    assert record["point"]["lora"]["target_modules"] == ["q_proj", "v_proj"]
    assert record["point"]["train"] == {
        "per_device_train_batch_size": 2,
        "seq_len": 16,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "optim": "sgd",
        "attn_implementation": "eager",
        "autocast": "none",
        "recipe": "trainer",
    }
    assert record["environment"]["device"] == "cpu"
    assert "peak_reserved_bytes" not in record["metrics"]


@pytest.mark.parametrize(("memory", "code"), [("24GiB", 0), ("100 MiB", 1)])
def test_a_card_that_is_not_in_the_catalog(
    model: str, capsys: pytest.CaptureFixture[str], memory: str, code: int
):
    card = ("--gpu-memory", memory, "--compute-capability", "8.9")
    assert main(["plan", model, "--seq", "16", *card, "--json"]) == code
    (record,) = json.loads(capsys.readouterr().out)["records"]
    (fit,) = record["detail"]["fits"]
    # The context alone takes more than 100 MiB.
    assert fit["fits"] == (code == 0)
    assert record["detail"]["compute_capability"] == [8, 9]


def test_a_card_of_the_catalog_and_a_described_one_stand_side_by_side(
    model: str, capsys: pytest.CaptureFixture[str]
):
    cards = ("--gpu-memory", "100MiB", "--compute-capability", "8.9", "--gpu", "nvidia rtx 4090")
    assert main(["plan", model, "--seq", "16", *cards]) == 0
    out = capsys.readouterr().out
    assert "100.0 MiB card" in out
    assert "does not fit" in out
    assert "RTX 4090" in out
    assert "fits, " in out


def test_one_point_is_told_at_length_within_100_columns(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", model, "--precision", "nf4-dq", "--seq", "16"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0].startswith("tiny, nf4-dq, rank 16, batch 1, 16 tokens")
    for start in ("Peak allocated", "Peak reserved", "On the device", "At rest", "Trainable", "At the peak:"):
        assert [line for line in lines if line.startswith(start)], start
    assert max(map(len, lines)) <= 100


def test_several_points_are_a_table(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", model, "--seq", "16", "--seq", "32", "--gpu", "T4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if line.startswith("precision"))
    assert header.split()[:3] == ["precision", "tokens", "Peak"]
    assert header.endswith("T4, GiB")
    assert len([line for line in lines if line.startswith("bf16")]) == 2


def test_a_point_that_cannot_be_planned_does_not_hide_the_others(
    model: str, capsys: pytest.CaptureFixture[str]
):
    flags = ("--seq", "16", "--target-modules", "q_proj", "--target-modules", "nowhere", "--json")
    assert main(["plan", model, *flags]) == 0
    captured = capsys.readouterr()
    outcomes = [record["outcome"] for record in json.loads(captured.out)["records"]]
    assert outcomes == ["ok", "error"]
    assert "nowhere" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_when_no_point_can_be_planned_the_exit_code_says_so(model: str, capsys: pytest.CaptureFixture[str]):
    flags = ("--seq", "16", "--seq", "32", "--target-modules", "nowhere")
    assert main(["plan", model, *flags]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_scenario_brings_its_own_gpus(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(
        f"name: s\nquestion: What?\nbase: {{model: {model}, train: {{seq_len: 16}}}}\nplan: {{gpus: [T4]}}\n"
    )
    (record,) = planned(capsys, "s.yaml")
    assert [fit["gpu"] for fit in record["detail"]["fits"]] == ["T4"]
    (record,) = planned(capsys, "s.yaml", "--gpu", "L4")
    assert [fit["gpu"] for fit in record["detail"]["fits"]] == ["L4"]
    (record,) = planned(capsys, "s.yaml", "--device", "cpu")
    assert "fits" not in record["detail"]
