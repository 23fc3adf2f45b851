from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qbench.errors import CatalogError
from qbench.web.uploads import LARGEST_CONFIG, MOST_KEPT, Uploads

CONFIG = {"model_type": "llama", "num_hidden_layers": 2}


def content(**changes: object) -> bytes:
    return json.dumps(CONFIG | changes).encode()


def test_a_dropped_config_is_a_model_by_its_name(tmp_path: Path):
    uploads = Uploads(tmp_path)
    name = uploads.keep(content())
    folder = Path(uploads.resolve(name))
    assert folder.parent == tmp_path
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    assert uploads.keep(content()) == name


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{" + b" " * LARGEST_CONFIG, "the limit is 1,048,576"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"[]", "must be a JSON object with model_type"),
        (b'{"model_type": 3}', "must be a JSON object with model_type"),
        (content(hidden_size=2**40), "hidden_size: a number above"),
        (content(num_hidden_layers=10**6), "at most 512 layers"),
        (content(text_config={"n_layer": 10**6}), "text_config: n_layer: at most 512 layers"),
        (content(layer_types=["full_attention"] * 5000), "a list of 5,000"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, bad: bytes, said: str):
    with pytest.raises(CatalogError, match=said):
        Uploads(tmp_path).keep(bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "/etc",
        ".",
        "..",
        "~",
        "config-../../etc",
        "config-aaaaaaaaaaaa/..",
        "model.gguf",
        "",
        "file:///etc/passwd",
        "x" * 10_000,
    ],
)
def test_no_name_leads_to_a_path(tmp_path: Path, name: str):
    with pytest.raises(CatalogError) as caught:
        Uploads(tmp_path).resolve(name)
    assert "not in the catalog" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_names_of_the_catalog_are_resolved(tmp_path: Path):
    assert Uploads(tmp_path).resolve("llama-3.1-8b") == "meta-llama/Llama-3.1-8B"


def test_a_config_that_is_gone_is_asked_for_again(tmp_path: Path):
    with pytest.raises(CatalogError, match="no longer available here; drop its config"):
        Uploads(tmp_path).resolve("config-0123456789ab")


def test_the_oldest_configs_go(tmp_path: Path):
    uploads = Uploads(tmp_path)
    names = [uploads.keep(content(vocab_size=size)) for size in range(1, MOST_KEPT + 1)]
    for age, name in enumerate(names):
        os.utime(tmp_path / name / "config.json", (age, age))
    uploads.keep(content(vocab_size=10_000))
    kept = {folder.name for folder in tmp_path.iterdir()}
    assert len(kept) == MOST_KEPT
    assert names[0] not in kept
    assert names[1] in kept


def test_an_id_of_the_hub_is_taken_and_a_folder_of_that_name_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert Uploads(tmp_path).resolve("some-org/some-model") == "some-org/some-model"
    (tmp_path / "some-org" / "some-model").mkdir(parents=True)
    with pytest.raises(CatalogError, match="not in the catalog"):
        Uploads(tmp_path).resolve("some-org/some-model")


def test_what_is_not_a_kept_config_is_left_alone_and_blocks_none(tmp_path: Path):
    uploads = Uploads(tmp_path)
    foreign = tmp_path / "config-of-somebody"
    foreign.mkdir()
    (foreign / "config.json").write_text("theirs")
    os.utime(foreign / "config.json", (0, 0))
    names = [uploads.keep(content(vocab_size=size)) for size in range(1, MOST_KEPT + 1)]
    for age, name in enumerate(names):
        os.utime(tmp_path / name / "config.json", (age, age))
    (tmp_path / names[0] / "notes.txt").write_text("a file that was put there")
    name = uploads.keep(content(vocab_size=10_000))
    assert uploads.resolve(name) == str(tmp_path / name)
    assert (tmp_path / names[0] / "notes.txt").exists()
    assert (foreign / "config.json").read_text() == "theirs"
    uploads.keep(content(vocab_size=10_001))
