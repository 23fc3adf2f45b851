"""`qbench import`: what configs are, in JSON, as a text and as a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qbench.cli.main import main

AXOLOTL = (
    "base_model: gpt2\nadapter: lora\nlora_target_linear: true\nsequence_len: 16\nmicro_batch_size: 1\n"
    "output_dir: out\nrl: orpo\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yml").write_text(AXOLOTL)
    (tmp_path / "b.yaml").write_text("model: x\npeft_config: {name: lora}\n")
    (tmp_path / "notes.txt").write_text("base_model: none")
    return tmp_path


def test_a_folder_is_listed_with_what_each_file_is(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["import", str(folder), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["files"]
    assert (first["tool"], first["model"], first["in_catalog"]) == ("axolotl", "gpt2", True)
    assert {"sequence_len", "adapter"} <= set(first["planned"])
    assert (first["no_effect"], first["unmodelled"], first["problems"]) == (["output_dir"], ["rl"], [])
    assert (second["tool"], second["planned"], len(second["problems"])) == ("LLaMA-Factory v1", [], 1)


def test_it_prints_a_table_or_one_file(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["import", str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 files are read; 0 have no key that is left out; the models of 1 are in the catalog." in out
    assert "Left out, by number of files: rl (1)." in out
    assert main(["import", str(folder / "a.yml")]) == 0
    assert "not modelled: rl" in capsys.readouterr().out


def test_nothing_that_could_be_read_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["import", str(folder / "b.yaml")]) == 2
    assert "LLaMA-Factory v1" in capsys.readouterr().out
    assert main(["import", str(folder / "none")]) == 2
    assert main(["import", str(folder / "notes.txt"), str(folder / "none")]) == 2
