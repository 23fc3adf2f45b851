"""Configs of the hub, from a cache made by hand and from a hub that does not answer."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from qbench.catalog import hub
from qbench.catalog.models import has_experts


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(cache: Path, name: str, **config: object) -> None:
    """Store a config as the hub's client does: refs/main names the revision."""
    model = cache / f"models--{name.replace('/', '--')}"
    folder = model / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    (folder / "config.json").write_text(json.dumps(config))


def test_experts_of_a_hub_model_are_known_from_its_config(cache: Path):
    put(cache, "someone/mixture", model_type="mixtral", num_local_experts=8)
    put(cache, "someone/inner", model_type="x", text_config={"num_experts": 4})
    put(cache, "someone/dense", model_type="llama")
    assert [has_experts(f"someone/{name}") for name in ("mixture", "inner", "dense")] == [True, True, False]


def test_a_hub_that_does_not_answer_is_waited_for_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def refuse(name: str) -> str:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(hub, "_fetched", refuse)
    monkeypatch.setattr(hub, "_refused", {})
    assert not has_experts("someone/away")
    with pytest.raises(OSError, match="no network"):
        hub.hub_config("someone/away")
    assert asked == ["someone/away"]
    put(cache, "someone/away", model_type="mixtral", num_local_experts=8)
    assert has_experts("someone/away")
