"""The model rows are whole and consistent, and a name resolves to what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qbench.catalog.models import ModelSpec, catalog_name, find_model, has_experts, models, resolve_model
from qbench.errors import CatalogError

BLOOM = "bigscience/bloom-560m"


def model_folder(path: Path, config: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_catalog_holds_338_models_with_different_ids() -> None:
    ids = [spec.hub_id for spec in models()]
    assert len(ids) == 338
    assert len({hub_id.casefold() for hub_id in ids}) == 338


@pytest.mark.parametrize("spec", models(), ids=lambda spec: spec.hub_id)
def test_row_is_whole(spec: ModelSpec) -> None:
    assert spec.source
    assert spec.count_source
    assert spec.license
    assert spec.config["model_type"] in (spec.family, f"{spec.family}_text")
    # Where another class is built than the one that was published, the notes have to say so.
    assert spec.config["architectures"] == [spec.model_class] or "text model only" in spec.notes
    parts = spec.linear_weight_params + spec.expert_params + spec.embedding_params + spec.untied_head_params
    assert 0 < parts <= spec.num_params


@pytest.mark.parametrize("spec", models(), ids=lambda spec: spec.hub_id)
def test_verified_says_how_the_count_compares(spec: ModelSpec) -> None:
    difference = abs(spec.num_params - spec.published_params)
    if spec.verified == "exact":
        assert difference == 0
    elif spec.verified == "explained":
        assert difference > 0
        assert spec.notes
    else:
        assert spec.verified == "rounded"
        assert difference <= 0.012 * spec.num_params


@pytest.mark.parametrize("spec", models(), ids=lambda spec: spec.hub_id)
def test_every_name_finds_its_model_and_no_other(spec: ModelSpec) -> None:
    for name in (spec.hub_id, spec.hub_id.lower(), *spec.aliases):
        assert find_model(name) is spec
        source = resolve_model(name)
        assert (source.kind, source.spec, source.path) == ("catalog", spec, None)
        assert source.config == spec.config
    assert find_model(spec.hub_id.split("/")[1]) is spec


# Counts by hand, with the terms in the order of the model's state dict.
# BLOOM 560M: hidden 1024, 24 layers, vocabulary 250880, tied head (keras-hub preset: 559214592).
BLOOM_560M = 250_880 * 1024 + 2 * 1024 + 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024
# Llama 2 7B: hidden 4096, ffn 11008, 32 layers, vocabulary 32000, own head (hub: 6738415616).
LLAMA_2_7B = 2 * 32_000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096) + 4096
# GPT-2: hidden 768, 12 layers, vocabulary 50257, 1024 positions, tied head (keras-hub preset: 124439808).
GPT_2 = (50_257 + 1024) * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768


@pytest.mark.parametrize(
    ("name", "num_params", "by_hand"),
    [
        ("bigscience/bloom-560m", 559_214_592, BLOOM_560M),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616, LLAMA_2_7B),
        ("openai-community/gpt2", 124_439_808, GPT_2),
    ],
)
def test_parameter_counts_agree_with_hand_arithmetic(name: str, num_params: int, by_hand: int) -> None:
    assert find_model(name).num_params == num_params == by_hand


def test_parts_of_llama_2_7b() -> None:
    spec = find_model("meta-llama/Llama-2-7b-hf")
    assert spec.linear_weight_params == 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert spec.embedding_params == spec.untied_head_params == 32_000 * 4096
    assert spec.expert_params == 0


def test_experts_of_mixtral_are_not_linear_weights() -> None:
    # mistralai/Mixtral-8x7B-v0.1 config.json: 32 layers of 8 experts, three 4096 x 14336 matrices each;
    # attention has 32 heads and 8 key-value heads of 128; the router (8 x 4096) is a plain parameter.
    spec = find_model("mistralai/Mixtral-8x7B-v0.1")
    assert spec.expert_params == 32 * 8 * 3 * 4096 * 14_336
    assert spec.linear_weight_params == 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)


@pytest.mark.parametrize("spec", models(), ids=lambda spec: spec.hub_id)
def test_only_a_mixture_of_experts_has_expert_weights(spec: ModelSpec) -> None:
    assert has_experts(spec.hub_id) == (spec.expert_params > 0)


@pytest.mark.parametrize(
    ("name", "is_moe"),
    [
        ("Qwen/Qwen3.5-9B", False),  # The weights of its linear attention's conv1d are 3-D too.
        ("google/gemma-4-31B", False),  # Its config has num_experts: null and enable_moe_block: false.
        ("google/gemma-4-26B-A4B", True),
        ("openai/gpt-oss-20b", True),
        ("deepseek-ai/DeepSeek-V3", True),
    ],
)
def test_config_says_which_models_are_mixtures_of_experts(name: str, is_moe: bool) -> None:
    assert has_experts(name) is is_moe


def test_experts_of_gemma_4_26b() -> None:
    # Its text config: 30 layers of 128 experts, three 2816 x 704 matrices each. The 3-D position table of
    # the vision tower is no expert.
    assert find_model("google/gemma-4-26B-A4B").expert_params == 30 * 128 * 3 * 2816 * 704


@pytest.mark.parametrize(
    ("alias", "hub_id"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("bloom", "bigscience/bloom"),
        ("llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("Meta-Llama-3.1-405B-Instruct", "meta-llama/Llama-3.1-405B-Instruct"),
    ],
)
def test_former_and_short_names(alias: str, hub_id: str) -> None:
    assert find_model(alias).hub_id == hub_id


@pytest.mark.parametrize("name", ["bloom-560", "Llama", "8B", "llama-2-7b", "", "a\0b", "x" * 5000, "a/b/c"])
def test_part_of_a_name_or_nonsense_is_refused_in_one_line(name: str) -> None:
    for look_up in (find_model, resolve_model):
        with pytest.raises(CatalogError, match="is not in the catalog") as caught:
            look_up(name)
        assert "\n" not in str(caught.value)


def test_miss_names_the_nearest_models() -> None:
    with pytest.raises(CatalogError, match="nearest: bigscience/bloom-560m, ") as caught:
        find_model("blom-560m")
    assert caught.value.exit_code == 2


def test_typo_of_a_hub_id_stays_a_hub_id_with_its_neighbours() -> None:
    source = resolve_model("meta-llama/Llama-3.1-8b-instrct")
    assert (source.kind, source.path, source.spec, source.config) == ("hub", None, None, None)
    assert source.nearest[0] == "meta-llama/Llama-3.1-8B-Instruct"


def test_caller_may_change_a_resolved_config() -> None:
    config = resolve_model("meta-llama/Llama-3.1-8B").config
    assert config is not None
    config["rope_scaling"].clear()
    config["hidden_size"] = 1
    fresh = resolve_model("meta-llama/Llama-3.1-8B").config
    assert fresh is not None
    assert fresh["rope_scaling"]
    assert fresh["hidden_size"] == 4096


@pytest.mark.parametrize("name", ["mine", "./mine", "org/mine", "{cwd}/mine", "gpt2", "dir.gguf"])
def test_folder_with_config_wins_over_catalog_and_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = name.format(cwd=tmp_path)
    model_folder(tmp_path / name, {"model_type": "llama"})
    source = resolve_model(name)
    assert (source.name, source.kind, source.spec) == (name, "folder", None)
    assert source.path is not None
    assert source.path.samefile(tmp_path / name)
    assert source.config == {"model_type": "llama"}


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model_folder(tmp_path / "mine", {"model_type": "llama"})
    assert resolve_model("~/mine").path == tmp_path / "mine"


def test_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    source = resolve_model(str(file))
    assert (source.kind, source.path, source.config) == ("gguf", file, None)


def test_folder_of_a_catalog_name_without_config_does_not_hide_the_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert resolve_model("gpt2").kind == "catalog"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"[]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b"{}", "has no model_type"),
        (b'{"model_type": ""}', "has no model_type"),
        (b'{"model_type": 7}', "has no model_type"),
    ],
)
def test_bad_config_is_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CatalogError, match=message) as caught:
        resolve_model(str(tmp_path))
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./missing", "does not exist"),
        ("missing.gguf", "does not exist"),
        ("./empty", "has no config.json"),
        ("empty", "has no config.json"),
        ("deep/empty", "has no config.json"),
        ("notes.txt", "is a file but not .gguf"),
        ("./blocked", "cannot be read"),
    ],
)
def test_path_without_a_model_is_one_clear_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "blocked" / "config.json").mkdir(parents=True)
    with pytest.raises(CatalogError, match=message) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def test_an_alias_is_told_by_the_hub_id_and_other_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catalog_name("bloom-560m") == catalog_name(BLOOM.upper()) == BLOOM
    assert catalog_name("some/other") == "some/other"
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "bloom-560m", {"model_type": "bloom"})
    # A folder of that name is another model.
    assert catalog_name("bloom-560m") == "bloom-560m"
