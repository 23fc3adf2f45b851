"""A record names no secret and no folder of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qbench.dryrun.privacy import private_command, private_place, private_text


@pytest.mark.parametrize(
    ("word", "stored"),
    [
        ("/home/me/venv/bin/python train.py --lr 1e-4", "python train.py --lr 1e-4"),
        ("python train.py --hf_token abc --lr 1", "python train.py --hf_token *** --lr 1"),
        ("python train.py --wandb-api-key=abc", "python train.py --wandb-api-key=***"),
        ("env HF_TOKEN=abc python train.py", "env HF_TOKEN=*** python train.py"),
        ("python train.py --max_new_tokens 5", "python train.py --max_new_tokens 5"),
        ("python train.py --tokenizer x", "python train.py --tokenizer x"),
        ("python /data/me/train.py --out=/data/me/out", "python train.py --out=out"),
        ("python train.py hf_abcdefghijklmnopqrst", "python train.py ***"),
        ("python train.py https://me:pw@host/x", "python train.py https://***@host/x"),
    ],
)
def test_arguments(word: str, stored: str) -> None:
    assert " ".join(private_command(word.split())) == stored


def test_the_text_of_a_shell() -> None:
    text = "cd /data/me && HF_TOKEN=abc /opt/venv/bin/python ~/train.py --lr 1 ./a/b"
    stored = ("bash", "-c", "cd me && HF_TOKEN=*** python train.py --lr 1 ./a/b")
    assert private_command(("/bin/bash", "-c", text)) == stored


def test_text_has_no_home() -> None:
    home = os.path.expanduser("~")
    assert private_text(f"error in {home}/x.py") == "error in ~/x.py"


def test_places() -> None:
    here = Path("/proj")
    assert private_place("/v/lib/python3/site-packages/trl/a.py:3 A.b", here) == "trl/a.py:3 A.b"
    assert private_place("/proj/src/train.py:3", here) == "src/train.py:3"
    assert private_place("/home/me/train.py:3", here) == "train.py:3"
    assert private_place('  File "/proj/train.py", line 4, in f\n', here) == "train.py:4 f"
    assert private_place(None, here) is None
