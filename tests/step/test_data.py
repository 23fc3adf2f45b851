"""Batches are full sequences: random but always the same, or consecutive blocks of a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.errors import StepError
from qbench.scenario.schema import Point
from qbench.step import data
from qbench.step.data import make_batches
from qbench.step.model import load_config

META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture
def point(tmp_path: Path) -> Point:
    model = write_tiny_model(tmp_path / "model", FAMILIES["llama"])
    return tiny_point(model, per_device_train_batch_size=3, seq_len=20)


@pytest.mark.parametrize("device", [META, CPU], ids=str)
def test_random_batch(point: Point, device: torch.device) -> None:
    (batch,) = make_batches(point, load_config(point), device)
    assert sorted(batch) == ["input_ids", "labels"]
    for tensor in batch.values():
        assert (tuple(tensor.shape), tensor.dtype, tensor.device.type) == ((3, 20), torch.int64, device.type)
    # Labels are tensors of their own: a view would not count as memory.
    assert batch["labels"].untyped_storage()._cdata != batch["input_ids"].untyped_storage()._cdata


def test_random_tokens_are_of_the_vocabulary_and_the_same_each_time(point: Point) -> None:
    config = load_config(point)
    first, second = (make_batches(point, config, CPU)[0]["input_ids"] for _ in range(2))
    assert torch.equal(first, second)
    assert 0 <= first.min() < first.max() < config.vocab_size == 512


def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each number of a text for one token."""

    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    monkeypatch.setattr(data, "_tokenizer", lambda point: tokenizer)


def with_text(point: Point, path: Path) -> Point:
    return point.model_copy(update={"data": str(path), "weights": "pretrained"})


def test_text_becomes_consecutive_full_batches(
    point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words(monkeypatch)
    text = tmp_path / "text.txt"
    # Two batches of 60 tokens, and 59 that are left over.
    text.write_text(" ".join(str(number) for number in range(179)))
    batches = make_batches(with_text(point, text), load_config(point), CPU)
    assert [batch["input_ids"].flatten().tolist() for batch in batches] == [
        list(range(60)),
        list(range(60, 120)),
    ]
    assert all(torch.equal(batch["labels"], batch["input_ids"]) for batch in batches)
    assert batches[0]["input_ids"].untyped_storage().nbytes() == 60 * 8


def test_text_shorter_than_a_batch(point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words(monkeypatch)
    text = tmp_path / "text.txt"
    text.write_text("1 2 3")
    with pytest.raises(StepError, match="has 3 tokens, fewer than one batch of 3 x 20; use a longer text"):
        make_batches(with_text(point, text), load_config(point), CPU)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xfa"], ids=["missing", "not UTF-8"])
def test_text_that_cannot_be_read(point: Point, tmp_path: Path, content: bytes | None) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(StepError, match="cannot be read as UTF-8 text") as caught:
        make_batches(with_text(point, text), load_config(point), CPU)
    assert "\n" not in str(caught.value)


def test_model_without_a_tokenizer(point: Point, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words.")
    with pytest.raises(StepError, match=r"needs the tokenizer of .*; give a folder that holds one") as caught:
        make_batches(with_text(point, text), load_config(point), CPU)
    assert "\n" not in str(caught.value)


def test_plan_needs_no_text(point: Point, tmp_path: Path) -> None:
    (batch,) = make_batches(with_text(point, tmp_path / "missing.txt"), load_config(point), META)
    assert tuple(batch["input_ids"].shape) == (3, 20)
