"""`qbench plan` on tiny models: what it prints for programs and for people, and how it ends."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_model

from qbench.cli.main import main
from qbench.cli.target import Target, TargetRequest

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


def test_what_the_common_recipes_do_to_the_peak_is_said(model: str, capsys: pytest.CaptureFixture[str]):
    def peak(*flags: str) -> int:
        (record,) = planned(capsys, model, *step, *flags)
        return int(record["metrics"]["peak_allocated_bytes"])

    step = ("--seq", "256", "--batch", "64")
    mine, trl = peak(), peak("--recipe", "trl")
    assert abs(trl / mine - 1) > 0.1
    assert main(["plan", model, *step]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    moved = f"{100 * abs(trl / mine - 1):.0f} % {'lower' if trl < mine else 'higher'}"
    assert f"{moved} with TRL's SFTTrainer (--recipe trl)" in line
    # Where the weights are most of it, it does not matter.
    assert main(["plan", "gpt2", "--seq", "8"]) == 0
    assert "within 10 % with TRL's SFTTrainer" in capsys.readouterr().err


def test_the_default_recipe_is_named_after_the_answer(model: str, capsys: pytest.CaptureFixture[str]):
    def told(*flags: str) -> str:
        assert main(["plan", model, "--seq", "16", *flags]) == 0
        return capsys.readouterr().err

    assert (
        "If you use TRL, add `--recipe trl`; if you use Trainer, `--recipe trainer --autocast bf16`"
        in told("--r", "4", "--r", "8")
    )
    assert told("--recipe", "peft") == ""
    assert told("--autocast", "bf16") == ""


def test_plans_made_together_are_one_run_with_its_time(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", model, "--r", "4", "--r", "8", "--seq", "16", "--json"]) == 0
    (run_id,) = {record["run_id"] for record in json.loads(capsys.readouterr().out)["records"]}
    # Another day's plans are another run, which is what `qbench trend` tells runs by.
    assert re.fullmatch(r"plan-\d{8}T\d{6}Z", run_id)


def test_hours_of_a_training_stand_beside_seconds_of_a_step(model: str, capsys: pytest.CaptureFixture[str]):
    job = ["--tokens", "1M", "--epochs", "2", "--eval-tokens", "1k", "--eval-steps", "100"]
    assert main(["plan", model, "--seq", "16", "--gpu", "L4", *job, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    [hours], [fit] = said["jobs"], said["records"][0]["detail"]["fits"]
    # 125,000 steps of 16 tokens; 1,250 evaluations come on top.
    assert hours["hours"] == pytest.approx(125_000 * fit["step_time_s"] / 3600 + hours["eval_hours"])
    assert 0 < hours["eval_hours"] < hours["hours"] / 2
    assert main(["plan", model, "--seq", "16", "--gpu", "L4", *job]) == 0
    assert "Training on 2,000,000 tokens" in capsys.readouterr().out
    assert main(["plan", model, "--save-steps", "5"]) == 2
    assert "need --tokens" in capsys.readouterr().err


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


@pytest.mark.parametrize("memory", ["24GiB", "24GB", "24 gb", "24"])
def test_a_described_card_needs_its_memory_only(memory: str, capsys: pytest.CaptureFixture[str]):
    (card,) = Target(points=(), request=TargetRequest(name=None, gpu_memory=memory), gpus=()).cards()
    assert (card.memory_bytes, card.compute_capability) == (24 << 30, (8, 9))
    assert "24.00 GiB card: assuming compute capability 8.9" in capsys.readouterr().err


def test_numbers_and_cards_as_people_write_them(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", model, "--seq", "2k", "--gpu", "4090", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert record["point"]["train"]["seq_len"] == 2048
    assert record["detail"]["fits"][0]["gpu"] == "RTX 4090"


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
    assert main(["plan", model, "--precision", "nf4-dq", "--seq", "16", "--recipe", "peft"]) == 0
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
    flags = (
        "--recipe",
        "peft",
        "--seq",
        "16",
        "--target-modules",
        "q_proj",
        "--target-modules",
        "nowhere",
        "--json",
    )
    assert main(["plan", model, *flags]) == 2
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


def test_a_snapshot_is_written_for_the_memory_visualizer(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "history.pickle"
    (record,) = planned(capsys, model, "--seq", "16", "--snapshot", str(file))
    (entries,) = pickle.loads(file.read_bytes())["device_traces"]
    live = peak = 0
    for entry in entries:
        live += {"alloc": entry["size"], "free_completed": -entry["size"]}.get(entry["action"], 0)
        peak = max(peak, live)
    assert peak == record["metrics"]["peak_allocated_bytes"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--seq", "16", "--seq", "32", "--snapshot", "s.pickle"),
            "--snapshot: 2 points given, allowed: one",
        ),
        (("--device", "cpu", "--snapshot", "s.pickle"), "omit --device cpu"),
        (("--device", "cpu", "--alloc-conf", "expandable_segments:True"), "omit --device cpu"),
        (("--snapshot", "nowhere/s.pickle"), "there is no folder"),
        (("--alloc-conf", "expandable_segment:True"), "expandable_segments"),
        (("--alloc-conf", "max_split_size_mb:4"), "allowed: 20 MiB or more"),
    ],
)
def test_what_the_allocator_flags_do_not_allow(
    model: str, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["plan", model, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_settings_of_the_allocator_are_those_given_and_never_the_environments(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    point = (model, "--seq", "100", "--batch", "64")
    (native,) = planned(capsys, *point)
    (expandable,) = planned(capsys, *point, "--alloc-conf", "expandable_segments:True")
    assert native["detail"]["allocator"]["expandable_segments"] is False
    assert expandable["detail"]["allocator"]["expandable_segments"] is True
    # Pages put together what segments of fixed sizes keep apart.
    assert expandable["metrics"]["peak_reserved_bytes"] < native["metrics"]["peak_reserved_bytes"]
    assert expandable["metrics"]["peak_allocated_bytes"] <= native["metrics"]["peak_allocated_bytes"]


def test_a_threshold_for_garbage_does_nothing_without_a_memory_fraction(
    model: str, capsys: pytest.CaptureFixture[str]
):
    (record,) = planned(capsys, model, "--seq", "16", "--alloc-conf", "garbage_collection_threshold:0.8")
    assert [text for text in record["detail"]["caveats"] if "memory fraction" in text]


def test_a_card_that_holds_the_step_only_by_releasing_its_cache(
    model: str, capsys: pytest.CaptureFixture[str]
):
    (record,) = planned(capsys, model, "--seq", "200", "--batch", "8")
    metrics, context = record["metrics"], record["detail"]["context_bytes"][-1]
    assert metrics["peak_allocated_bytes"] < metrics["peak_reserved_bytes"] - 2**20
    # One byte less than the step would reserve.
    memory = f"{(metrics['peak_reserved_bytes'] + context - 1) / 2**20}MiB"
    flags = ("--gpu-memory", memory, "--compute-capability", "8.0")
    (record,) = planned(capsys, model, "--seq", "200", "--batch", "8", *flags)
    (fit,) = record["detail"]["fits"]
    assert fit["fits"]
    assert fit["verdict"] == "tight"
    assert fit["num_alloc_retries"] > 0
    assert fit["num_alloc_retries"] >= 1


@pytest.mark.parametrize(("capability", "kernel"), [("8.9", "flash"), ("9.0", "cudnn"), ("7.5", "math")])
def test_the_record_names_the_kernel_of_attention(
    model: str, capability: str, kernel: str, capsys: pytest.CaptureFixture[str]
):
    card = ("--gpu-memory", "24GiB", "--compute-capability", capability)
    (record,) = planned(capsys, model, "--seq", "16", *card)
    assert record["detail"]["attention"] == [kernel]


def test_flash_attention_2_is_planned_without_the_package(model: str, capsys: pytest.CaptureFixture[str]):
    (record,) = planned(capsys, model, "--seq", "16", "--attn", "flash_attention_2")
    assert record["detail"]["attention"] == ["flash_attention_2"]
    assert [text for text in record["detail"]["caveats"] if text.startswith("flash_attention_2")]
    card = ("--gpu-memory", "16GiB", "--compute-capability", "7.5")
    assert main(["plan", model, "--seq", "16", "--attn", "flash_attention_2", *card]) == 2
    assert "needs compute capability 8.0" in capsys.readouterr().err


def test_a_config_that_is_not_planned_in_full_leaves_the_verdict_unknown(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "dpo.yml"
    file.write_text(
        f"base_model: {model}\nadapter: lora\nlora_target_linear: true\nsequence_len: 16\nrl: orpo\n"
        "micro_batch_size: 1\nsample_packing: true\n"
    )
    assert main(["plan", "--from", str(file), "--gpu", "RTX 4090", "--json"]) == 1
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert record["detail"]["unmodelled"] == ["rl"]
    assert record["detail"]["fits"][0]["verdict"] == "unknown"
    assert main(["plan", "--from", str(file), "--gpu", "RTX 4090"]) == 1
    printed = capsys.readouterr().out
    assert "unknown (not in the plan, and they affect memory: rl)" in " ".join(printed.split())
    assert "makes it fit" not in printed
