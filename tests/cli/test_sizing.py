"""`qbench fit`, `qbench rank` and `qbench plan --from`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qbench.catalog.gpus import gpus
from qbench.cli import console
from qbench.cli.main import main
from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("sizing") / "tiny", "HuggingFaceTB/SmolLM2-135M")


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_fit_says_where_the_model_ends(model: str, capsys: pytest.CaptureFixture[str]):
    code, found = document(capsys, "fit", model, "--gpu", "RTX 4090", "--precision", "bf16")
    (fit,) = found["fits"]
    # The tiny model has 256 positions.
    assert (code, fit["largest"], fit["bound_by"], fit["step"]) == (0, 256, "model", 64)
    assert fit["point"]["train"]["seq_len"] == 256


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ("800MiB", "Each of these changes alone makes it fit 800.0 MiB card:"),
        ("560MiB", "No single change makes it fit 560.0 MiB card, these together do: recipe trl, "),
        ("400MiB", "No change of method, batch or rank makes it fit 400.0 MiB card"),
    ],
)
def test_a_plan_that_does_not_fit_ends_with_what_would(
    model: str, memory: str, told: str, capsys: pytest.CaptureFixture[str]
):
    card = ("--gpu-memory", memory, "--compute-capability", "8.9")
    assert main(["plan", model, *card, "--batch", "256", "--seq", "256"]) == 1
    _, found, changes = capsys.readouterr().out.partition(told)
    assert found
    assert ("batch 128, accum 2  frees" in changes) == told.startswith("Each")


def test_fit_prints_what_frees_memory(model: str, capsys: pytest.CaptureFixture[str]):
    card = ("--gpu-memory", "467MiB", "--compute-capability", "8.9")
    code = main(["fit", model, *card, "--precision", "bf16", "--batch", "32"])
    out = capsys.readouterr().out
    assert code == 0
    assert "memory" in out
    assert "sufficient ones first" in out


def test_rank_lists_the_cards_by_cost(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    prices = tmp_path / "prices.csv"
    prices.write_text("gpu,usd_per_hour\nRTX 4090,1.0\nL4,1000\n")
    code, found = document(
        capsys, "rank", model, "--tokens", "1M", "--epochs", "2", "--seq", "128", "--precision", "bf16",
        "--gpu", "L4", "--gpu", "RTX 4090", "--prices", str(prices),
    )  # fmt: skip
    assert code == 0
    assert [card["gpu"] for card in found["cards"]] == ["RTX 4090", "L4"]
    first = found["cards"][0]
    assert first["cost_usd"] == pytest.approx(first["hours"] * 1.0)
    assert first["rate"]["on_demand_from"] == "prices.csv (undated)"
    assert first["bound"] in ("compute", "memory", "host")
    assert 1 / 3 <= first["bound_share"] <= 1
    assert found["workloads"][0]["tokens"] == 2_000_000


def test_rank_prints_a_table_with_sources(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    lengths = tmp_path / "lengths.txt"
    lengths.write_text("100\n20\n300\n")
    arguments = [
        "rank",
        model,
        "--lengths",
        str(lengths),
        "--seq",
        "128",
        "--precision",
        "nf4",
        "--gpu",
        "L4",
    ]
    assert main([*arguments, "--num-gpus", "2", "--sort", "energy"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("qlora nf4", "by energy", "cut to it: 1 sequence.", "communication between"):
        assert text in out


RANK = ("--tokens", "1M", "--seq", "128", "--recipe", "trl", "--precision", "nf4")


def ranked_lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = main(["rank", *arguments])
    return code, capsys.readouterr().out.splitlines()


def test_rank_says_what_is_trained(model: str, capsys: pytest.CaptureFixture[str]):
    code, lines = ranked_lines(capsys, model, *RANK, "--r", "8", "--gpu", "L4", "--sort", "time")
    title = " ".join(" ".join(lines[: lines.index(next(line for line in lines if "GPU" in line))]).split())
    assert (code, title) == (
        0,
        "tiny, nf4, rank 8, batch 1, 128 tokens, checkpointing, recipe trl, autocast bf16; "
        "1,000,000 tokens x 1 epoch in full sequences of 128, by time",
    )


def test_rank_lists_ten_cards_whose_names_are_whole_in_80_columns(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(console, "PIPED_WIDTH", 80)
    names = [gpu.name for gpu in gpus()]
    code, lines = ranked_lines(capsys, model, *RANK, "--sort", "time")
    listed = [name for name in names if any(line.strip().startswith(f"{name}  ") for line in lines)]
    assert (code, len(listed)) == (0, 10)
    assert any("more cards hold it; --all lists them." in line for line in lines)
    assert max(map(len, lines)) <= 80
    _, everything = ranked_lines(capsys, model, *RANK, "--sort", "time", "--all")
    assert sum(any(line.strip().startswith(f"{name}  ") for line in everything) for name in names) > 10


def test_rank_says_which_of_several_points_a_card_holds(model: str, capsys: pytest.CaptureFixture[str]):
    code, lines = ranked_lines(capsys, model, *RANK, "--r", "8", "--r", "4", "--gpu", "L4")
    assert code == 0
    assert "rank" not in lines[0]
    assert any("qlora nf4, r 8 " in line for line in lines)


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        (("L4",), "It does not fit on 1 card in nf4: L4."),
        (("L4", "RTX 4090"), "It does not fit on 2 cards in nf4: L4, RTX 4090."),
    ],
)
def test_rank_prints_no_table_of_nothing(
    model: str, cards: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
):
    # 65,536 sequences of 128 tokens at once are too many for any card.
    arguments = [part for card in cards for part in ("--gpu", card)]
    code, lines = ranked_lines(capsys, model, *RANK, "--batch", "65536", *arguments)
    assert (code, len(lines)) == (1, 2)
    assert lines[0].startswith("tiny, nf4, rank 16, batch 65536, 128 tokens")
    assert lines[1].startswith(told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "gpt2"], "no GPU given: use --gpu NAME"),
        (
            ["fit", "gpt2", "--gpu", "L4", "--seq", "9"],
            "--seq conflicts with --vary seq, because fit searches",
        ),
        (["fit", "gpt2", "--gpu", "L4", "--vary", "rank", "--r", "9"], "--r conflicts with --vary rank"),
        (["fit", "gpt2", "--gpu", "L4", "--vary", "gpu"], "--vary: given 'gpu'; allowed: seq, batch, r"),
        (["fit", "gpt2", "--gpu", "L4", "--step", "0"], "--step: given 0; allowed: 1 to 1,024"),
        (["fit", "gpt2", "--gpu", "L5"], "GPU 'L5' is not in the catalog"),
        (["rank", "gpt2"], "give either --tokens (for example 10M) or --lengths FILE"),
        (["rank", "gpt2", "--tokens", "many"], "--tokens: given 'many'"),
        (["rank", "gpt2", "--tokens", "1M", "--epochs", "0"], "--epochs: given 0"),
        (["rank", "gpt2", "--tokens", "1M", "--num-gpus", "0"], "--num-gpus: given 0"),
        (["rank", "gpt2", "--tokens", "1M", "--packing"], "--packing: given without --lengths"),
        (["rank", "gpt2", "--tokens", "1M", "--gpu", "RTX 2080 Ti"], "no price is known for RTX 2080 Ti"),
        (["rank", "gpt2", "--tokens", "1M", "--prices", "no.csv"], "--prices: no.csv cannot be read"),
        (["plan"], "nothing to plan: give TARGET (a scenario or a model) or --from FILE"),
        (["plan", "gpt2", "--from-format", "trl"], "--from-format trl: needs --from"),
        (["plan", "a.yaml", "--from", "b.yml"], "--from b.yml: conflicts with the scenario a.yaml"),
        (["plan", "--from", "none.yml"], "none.yml: no such file"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_imported_config_is_planned_and_its_scenario_gives_the_same_plan(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    config, saved = tmp_path / "config.yml", tmp_path / "saved.yaml"
    values = {"base_model": model, "adapter": "qlora", "load_in_4bit": True, "lora_r": 4, "sequence_len": 32}
    values |= {"lora_target_linear": True, "bf16": "auto", "sample_packing": True, "torch_compile": True}
    config.write_text(yaml.safe_dump(values))
    code = main(["plan", "--from", str(config), "--save-scenario", str(saved), "--json"])
    first = capsys.readouterr()
    assert code == 0
    told = "not understood, but they affect memory: torch_compile"
    assert told in first.err
    (record,) = json.loads(first.out)["records"]
    assert told in record["detail"]["caveats"]
    code, again = document(capsys, "plan", str(saved))
    assert code == 0
    assert again["records"][0]["point"] == record["point"]
    assert again["records"][0]["metrics"] == record["metrics"]


@pytest.mark.parametrize("command", [["fit"], ["rank", "--tokens", "1M"]])
def test_what_is_not_planned_leaves_answers_unknown(
    command: list[str], model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    config = tmp_path / "config.yml"
    config.write_text(f"base_model: {model}\nadapter: lora\nlora_target_linear: true\nrl: orpo\nbf16: true\n")
    arguments = [*command, "--from", str(config), "--gpu", "L4"]
    arguments += ["--vary", "r", "--step", "16"] if command == ["fit"] else []
    code, found = document(capsys, *arguments)
    (row,) = found["fits" if command == ["fit"] else "cards"]
    assert (code, (row.get("fit") or row)["verdict"], (row.get("fit") or row)["fits"]) == (
        1,
        "unknown",
        False,
    )
    assert (row if command == ["fit"] else found)["unmodelled"] == ["rl"]
    assert main(arguments) == 1
    assert "for the step as planned, which leaves out rl" in " ".join(capsys.readouterr().out.split())
