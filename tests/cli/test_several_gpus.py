"""`--gpus` and `--strategy`: bad input is one line and exit 2, and one GPU is as if neither were given."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.cli.main import main
from tests.tiny import FAMILIES, write_tiny_model

WRAPPED = """name: wrapped
question: Does a class that does not exist matter?
base:
  model: {model}
  lora: {{lora_dropout: 0.0}}
  train: {{seq_len: 16}}
  distributed: {{strategy: fsdp2, gpus: 2, transformer_cls_names_to_wrap: NoSuchLayer}}
"""
FULL_4BIT = """name: full
question: Can 4-bit weights be trained?
base: {{model: {model}, precision: nf4, lora: null, distributed: {{strategy: fsdp2, gpus: 2}}}}
"""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "llama", FAMILIES["llama"])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--strategy", "ddp"], "gpus missing"),
        (["--gpus", "2"], "strategy missing"),
        (["--gpus", "9", "--strategy", "ddp"], "given 9; allowed: a whole number from 1 to 8"),
        (["--gpus", "0", "--strategy", "ddp"], "given 0; allowed: a whole number from 1 to 8"),
        (["--gpus", "2", "--strategy", "zero4"], "given 'zero4'"),
        (["--gpus", "2", "--strategy", "fsdp2", "--precision", "int8"], "int8"),
    ],
)
def test_bad_flags_are_one_line(
    tiny_model: str, flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", tiny_model, "--seq", "16", *flags]) == 2
    printed = capsys.readouterr()
    assert problem in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(("text", "problem"), [(WRAPPED, "NoSuchLayer"), (FULL_4BIT, "without an adapter")])
def test_bad_scenarios_are_one_line(
    tiny_model: str, text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text.format(model=tiny_model), encoding="utf-8")
    assert main(["plan", str(file)]) == 2
    printed = capsys.readouterr()
    assert problem in printed.err
    assert "Traceback" not in printed.err


def test_one_gpu_is_as_if_none_were_given(tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", tiny_model, "--seq", "16"]
    assert main(arguments) == 0
    alone = capsys.readouterr().out
    assert main([*arguments, "--gpus", "1", "--strategy", "fsdp2"]) == 0
    assert capsys.readouterr().out == alone
