"""Bad input of every kind ends in a clear line on stderr, exit code 2, nothing on stdout, no traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config, write_tiny_model

from qbench.cli.main import main
from qbench.records.store import RECORDS_FILE

MODEL = "HuggingFaceTB/SmolLM2-135M"
HEAD = f"name: x\nquestion: What?\nbase: {{model: {MODEL}}}\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_bad_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds what the arguments below name."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "no_type", "not_json", "no_lm", "no_records"):
        Path(name).mkdir()
    Path("no_type/config.json").write_text("{}")
    Path("not_json/config.json").write_text("{")
    Path("no_lm/config.json").write_text('{"model_type": "clip"}')
    Path("no_records", RECORDS_FILE).write_text("")
    write_tiny_model(Path("good"), MODEL)
    Path("file.txt").write_text("hello\n")
    Path("good.yaml").write_text(HEAD)
    Path("broken.yaml").write_text(HEAD + "matrix: {r: [1, 2")
    Path("misspelt.yaml").write_text(HEAD + "matrix: {precison: [nf4]}\n")
    numbers = list(range(1, 1001))
    Path("million.yaml").write_text(f"{HEAD}matrix: {{r: {numbers}, seq_len: {numbers}}}\n")
    Path("latin1.yaml").write_bytes(HEAD.encode() + b"# caf\xe9\n")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run a command that must be refused; return its lines on stderr, each without its `qbench: `."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert lines
    assert all(line.startswith("qbench: ") for line in lines), lines
    return [line.removeprefix("qbench: ") for line in lines]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good/../nowhere"], ["good/../nowhere"]),
        (["./nowhere"], ["'./nowhere' does not exist", "config.json"]),
        (["bloom-561m"], ["'bloom-561m'", "nearest: bigscience/bloom-560m"]),
        (["empty"], ["'empty' has no config.json"]),
        (["no_type"], ["no model_type"]),
        (["not_json"], ["is not JSON"]),
        (["file.txt"], ["a file but not .gguf"]),
        ([""], ["model: given ''"]),
        (["good", "--r", "0"], ["--r: given 0; allowed: a whole number from 1 to 65,536"]),
        (["good", "--r", "1000000000000000000"], ["--r: given 1000000000000000000; allowed", "65,536"]),
        (["good", "--seq", "1000000000000000000"], ["--seq: given 1000000000000000000; allowed"]),
        (["good", "--seq", "16777216", "--batch", "8"], ["8 x seq_len 16,777,216", "67,108,864"]),
        (["good", "--batch", "-1"], ["--batch: given -1"]),
        (["good", "--seq", "0"], ["--seq: given 0"]),
        (["good", "--r", "many"], ["--r: given 'many'; allowed: a whole number from 1"]),
        (["good", "--precision", "nf44"], ["--precision: given 'nf44'", "did you mean nf4?"]),
        (["good", "--precision", "nf4,bf16"], ["repeat the flag", "--precision nf4 --precision bf16"]),
        (["good", "--optim", "adam"], ["--optim: given 'adam'", "adamw_torch"]),
        (["good", "--attn", "flash"], ["--attn: given 'flash'", "sdpa"]),
        (["good", "--recipe", "x"], ["--recipe: given 'x'", "trainer"]),
        (["good", "--autocast", "fp8"], ["--autocast: given 'fp8'"]),
        (["good", "--target-modules", ""], ["--target-modules: given"]),
        (["good", "--device", "tpu"], ["--device", "'cuda', 'cpu'"]),
        (["good", "--gpu", "RTX 409"], ["'RTX 409'", "nearest: RTX 4090"]),
        (["good", "--device", "cpu", "--gpu", "T4"], ["--device cpu"]),
        (["good", "--compute-capability", "8.9"], ["only with --gpu-memory"]),
        (["good", "--gpu-memory", "24XB", "--compute-capability", "8.9"], ["'24XB' is not a size"]),
        (["good", "--gpu-memory", "24GiB", "--compute-capability", "Ada"], ["'Ada'", "such as 8.9"]),
        (["good", "--nope"], ["No such option: --nope"]),
        (["good", "--rank", "16"], ["No such option: --rank; use --r"]),
        (["good", "--seq-len=64"], ["No such option: --seq-len; use --seq"]),
        (["good", "--load_in_4bit"], ["No such option: --load_in_4bit; use --precision nf4-dq"]),
        (["--model", "good"], ["No such option: --model; use the model as the first argument"]),
        (["good", "--epochs", "3"], ["--epochs, --eval-tokens, --eval-steps and --save-steps need --tokens"]),
        (["good", "--tokens", "1M", "--epochs", "1e999"], ["--epochs: given inf; allowed: a number above 0"]),
        (["good", "--tokens", "1M", "--epochs", "nan"], ["--epochs: given nan"]),
        (["good", "--tokens", "1e30"], ["--tokens"]),
        (["good", "--batch-size", "4"], ["No such option: --batch-size; use --batch"]),
        (["good", "--seq", "4,096"], ["--seq: given '4,096'; write 4096, or repeat the flag"]),
        (["good", "--seq", "4kb"], ["--seq: given '4kb'; allowed: a whole number"]),
        (["good", "--optim", "adamw"], ["--optim: given 'adamw'", "did you mean adamw_torch?"]),
        (["good", "--optim", "adamw_torch_fusd"], ["did you mean adamw_torch_fused?"]),
        (["good", "--optim", "adamw_bnb_8bit"], ["did you mean adamw_8bit?"]),
        (["good", "--precision", "4bit"], ["--precision: given '4bit'", "did you mean nf4?"]),
        (["good", "--precision", "8-bit"], ["did you mean int8?"]),
        (["good", "--attn", "fa2"], ["did you mean flash_attention_2?"]),
        (["good", "--gpu", "24GB"], ["a memory size", "RTX 4090", "--gpu-memory 24GiB"]),
        (["good", "--gpu", "V100-SXM2"], ["could be V100-SXM2-16GB, V100-SXM2-32GB"]),
        (["good.yaml", "--r", "8"], ["--r", "edit its matrix"]),
        (["nope.yaml"], ["nope.yaml: no such file", "demo"]),
        (["broken.yaml"], ["broken.yaml:4: not valid YAML"]),
        (["misspelt.yaml"], ["misspelt.yaml:4", "precison", "precision"]),
        (["latin1.yaml"], ["latin1.yaml:4", "UTF-8"]),
        (["million.yaml"], ["1,000,000 points", "10,000", "--max-points"]),
        (["good.yaml", "--max-points", "0"], ["--max-points: given 0"]),
    ],
)
def test_plan_refuses(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]):
    (line,) = refused(capsys, "plan", *arguments)
    assert all(word in line for word in words), line
    (line,) = refused(capsys, "plan", *arguments, "--json")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no_lm"], ["no_lm", "is not a text model"]),
        (["good", "--target-modules", "query,q_proj"], ["query", "q_proj", "down_proj"]),
        (["good", "--attn", "flash_attention_2", "--precision", "fp32"], ["flash", "float32"]),
    ],
)
def test_plan_refuses_what_only_the_libraries_can_tell(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
):
    (line,) = refused(capsys, "plan", *arguments)
    assert all(word.casefold() in line.casefold() for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope.yaml"], ["nope.yaml: no such file"]),
        (["empty"], ["a folder, not a scenario file"]),
        (["broken.yaml"], ["broken.yaml:4"]),
        (["million.yaml"], ["1,000,000 points", "--max-points"]),
        (["good.yaml", "--max-points", "0"], ["--max-points"]),
        (["good.yaml", "--out", "file.txt"], ["file.txt: cannot be written", "choose another folder"]),
        (["good.yaml", "--out", "file.txt/run"], ["file.txt/run: cannot be written"]),
        (["good.yaml", "--out", "/proc/run"], ["/proc/run: cannot be written"]),
        (["good.yaml", "--executor", "slurm"], ["--executor"]),
        (["good.yaml", "--out", "a\0b"], ["--out", "null"]),
    ],
)
def test_run_refuses(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]):
    (line,) = refused(capsys, "run", *arguments, "--device", "cpu")
    assert all(word in line for word in words), line


def test_run_refuses_a_gpu_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (line,) = refused(capsys, "run", "good.yaml", "--device", "cuda")
    assert "--device cpu or auto" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere: cannot be read", "give a run folder"]),
        (["empty"], ["empty: is not a run folder", RECORDS_FILE, "give a folder"]),
        (["no_records"], ["no records to report on"]),
        (["file.txt"], ["file.txt:1: not JSON"]),
        ([], ["Missing argument"]),
    ],
)
def test_report_refuses(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]):
    (line,) = refused(capsys, "report", *arguments)
    assert all(word in line for word in words), line


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]):
    (line,) = refused(capsys, "plant")
    assert "No such command 'plant'" in line
    assert "`qbench --help` lists all" in line
    (line,) = refused(capsys, "compare", "runs/a", "runs/b")
    assert "Use `qbench check RUN --baseline RUN`" in line


def test_a_missing_argument_points_to_an_example(capsys: pytest.CaptureFixture[str]):
    (line,) = refused(capsys, "check")
    assert line.endswith("Missing argument 'run'. `qbench check --help` has an example.")


def test_all_problems_of_a_scenario_are_told_at_once(capsys: pytest.CaptureFixture[str]):
    Path("three.yaml").write_text(HEAD + "matrix: {precision: [nf5], r: [0]}\nmeasure: {steps: none}\n")
    lines = refused(capsys, "plan", "three.yaml")
    assert [line.split(": ")[0] for line in lines] == ["three.yaml:4", "three.yaml:4", "three.yaml:5"]


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "abc"},
        {"num_attention_heads": 0},
        {"hidden_act": "gelatine"},
        {"text_config": [1, 2]},
        {"text_config": "text"},
        {"text_config": 4},
    ],
)
def test_a_config_that_makes_no_model(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    Path("good/config.json").write_text(json.dumps(tiny_config(MODEL) | changes))
    (line,) = refused(capsys, "plan", "good")
    assert "good" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "./pipes"],
        ["run", "pipes/config.json", "--device", "cpu"],
        ["run-point", "pipes/config.json", "out.json"],
        ["report", "pipes"],
        ["check", "/dev/zero", "--baseline", "pipes"],
        ["check", "pipes", "--baseline", "/dev/zero"],
        ["rank", "./good", "--lengths", "pipes/config.json"],
        ["rank", "./good", "--tokens", "10M", "--prices", "/dev/zero"],
        ["plan", "--from", "pipes/config.json"],
        ["plan", "--from", "/dev/zero"],
        ["plan", "./pipes/pipe.gguf"],
        ["trend", "pipes"],
        ["trend", "/dev/zero"],
        ["run-point", "/dev/zero", "out.json"],
        ["serve", "pipes", "--no-open"],
        ["baseline", "accept", "pipes", "--to", "base.jsonl", "--reason", "x"],
        ["baseline", "accept", "empty_run.jsonl", "--to", "pipes/records.jsonl", "--reason", "x"],
    ],
    ids=" ".join,
)
def test_a_pipe_or_a_device_is_refused_at_once(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    Path("pipes").mkdir()
    for name in ("config.json", RECORDS_FILE, "pipe.gguf"):
        os.mkfifo(Path("pipes", name))
    Path("empty_run.jsonl").touch()
    (line,) = refused(capsys, *arguments)
    assert "it is a pipe or a device, not a file" in line


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["rank", "./good", "--tokens", HUGE], "--tokens"),
        (["rank", "./good", "--tokens", "9" * 18 + "T"], "--tokens"),
        (["rank", "./good", "--tokens", "1M", "--num-gpus", HUGE], "--num-gpus"),
        (["rank", "./good", "--tokens", "1M", "--num-gpus", str(10**9)], "--num-gpus"),
        (["rank", "./good", "--tokens", "1M", "--epochs", "1e999"], "--epochs"),
        (["rank", "./good", "--tokens", "1M", "--epochs", "nan"], "--epochs"),
        (["plan", "./good", "--gpu-memory", f"{HUGE}GiB"], "--gpu-memory"),
        (["fit", "./good", "--gpu-memory", f"{HUGE}GiB"], "--gpu-memory"),
        (["plan", "./good", "--gpu-memory", "1048576GiB"], "--gpu-memory"),
        (["plan", "./good", "--r", HUGE], "--r"),
        (["plan", "./good", "--batch", HUGE], "--batch"),
        (["plan", "./good", "--lora-alpha", HUGE], "--lora-alpha"),
        (["plan", "./good", "--gradient-accumulation-steps", HUGE], "--gradient-accumulation-steps"),
        (["plan", "./good", "--seq", HUGE], "--seq"),
        (["fit", "./good", "--gpu", "RTX 4090", "--step", HUGE], "--step"),
        (["serve", "--port", HUGE], "--port"),
        (["plan", "good.yaml", "--max-points", f"-{HUGE}"], "--max-points"),
        (["check", "no_records", "--baseline", "no_records", "--tolerance", f"step_time_s={HUGE}%"], "--tol"),
        (
            ["check", "no_records", "--baseline", "no_records", "--tolerance", f"static_bytes={HUGE}GiB"],
            "--tol",
        ),
    ],
    ids=lambda value: " ".join(value).replace(HUGE, "HUGE") if isinstance(value, list) else value,
)
def test_a_number_beyond_all_use_is_one_line(
    arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]
):
    (line,) = refused(capsys, *arguments)
    assert flag in line
    assert len(line) < 600


@pytest.mark.parametrize("command", ["report", "run", "plan", "trend"])
def test_a_name_too_long_for_a_file(command: str, capsys: pytest.CaptureFixture[str]):
    (line,) = refused(capsys, command, "a" * 300)
    assert line.endswith(("File name too long", "a .gguf file"))


def test_an_unexpected_error_is_never_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("within")

    monkeypatch.setattr("qbench.cli.console.print_text", fail)
    monkeypatch.setattr("qbench.cli.main.print_text", fail)
    assert main(["--version"]) == 70
    assert "ZeroDivisionError: within" in capsys.readouterr().err
