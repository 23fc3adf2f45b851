"""Rows in place of a dataset that is not on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.dryrun.agent.rows import SPEC, columns_of, rows_of
from qbench.dryrun.run import agent_variables


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("fozziethebeat/alpaca_messages_2k_test", "messages"),
        ("fozziethebeat/alpaca_messages_2k_dpo_test", "conversation"),
        ("mlabonne/FineTome-100k", "conversations"),
        ("teknium/GPT4-LLM-Cleaned", "instruction"),
        ("HuggingFaceH4/llava-instruct-mix-vsft", "images"),
        ("trl-lib/ultrafeedback_binarized", "answers"),
        ("argilla/distilabel-intel-orca-dpo-pairs", "pairs"),
        ("me/mine", "any"),
    ],
)
def test_the_name_of_a_dataset_says_which_columns_it_has(name: str, columns: str) -> None:
    assert columns_of(name) == columns


def test_each_row_has_the_tokens_of_its_turn() -> None:
    rows = list(rows_of("messages", [8, 2000]))
    tokens = [sum(turn["content"].count(" a") for turn in row["messages"]) for row in rows]
    assert tokens[:4] == [8, 2000, 8, 2000]
    assert len(rows) == 1024
    assert len(list(rows_of("text", [4096]))) == (2 << 20) // 4096  # 2 Mi tokens at most
    assert len(list(rows_of("text", [1 << 20]))) == 256


LOADS = """
import json, sys
from datasets import load_dataset
made = load_dataset("me/mine")
train = load_dataset("me/alpaca", split="train[:10%]")
mine = load_dataset("me/of-file", split="train")
streamed = next(iter(load_dataset("me/mine", split="train", streaming=True)))
try:
    load_dataset("json", data_files="/nowhere.json")
except Exception as error:
    missing = type(error).__name__
text = made["train"][0]["text"]
print(json.dumps([sorted(made), text, train.column_names, mine[0], len(streamed), missing]))
"""


def test_what_cannot_be_loaded_comes_as_rows(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    sample = tmp_path / "rows.jsonl"
    sample.write_text(json.dumps({"mine": 7}) + "\n")
    spec = {"lengths": [3], "files": {"me/of-file": str(sample)}}
    variables = agent_variables(tmp_path / "state", 0, os.environ) | {
        SPEC: json.dumps(spec),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADS],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    splits, text, columns, first, number, missing = json.loads(done.stdout.splitlines()[-1])
    assert splits == ["test", "train"]
    assert text == " a a a"
    assert columns == ["instruction", "input", "output"]
    assert first == {"mine": 7}
    assert number == 9
    assert missing == "FileNotFoundError"
