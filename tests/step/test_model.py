"""The base model is the one that was named, or the line says why it cannot be built."""

from __future__ import annotations

import ast
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, SMALL, tiny_point, write_tiny_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from qbench.catalog.models import ModelSource
from qbench.errors import StepError
from qbench.step.model import (
    WITH_POSITION_TABLE,
    base_dtype,
    build_base_model,
    load_config,
    model_caveats,
    position_caveat,
)

_NOWHERE = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"

META, CPU = torch.device("meta"), torch.device("cpu")


def folder_with(path: Path, family: str = "llama", **changes: Any) -> str:
    return write_tiny_model(path / family, FAMILIES[family], **changes)


def refusal(model: str, **train: Any) -> str:
    """Return the one line with which a model is refused."""
    point = tiny_point(model, **train)
    with pytest.raises(StepError) as caught:
        build_base_model(point, META, load_config(point))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_model_type(tmp_path: Path) -> None:
    text = refusal(folder_with(tmp_path, model_type="nonesuch"))
    assert text.startswith("model type 'nonesuch' of ")
    assert "transformers" in text


def test_code_of_a_repository_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config of the hub with auto_map would ask on the terminal, and run what it names on a yes."""
    mark = tmp_path / "mark"
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}})
    )
    (folder / "own.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import PretrainedConfig\n"
        "class OwnConfig(PretrainedConfig):\n    model_type = 'own'\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("qbench.step.model.hub_config", lambda name: None)
    # Stands for an id of the hub: what counts is what AutoConfig does with what it fetches.
    source = ModelSource(name=str(folder), kind="hub")
    with pytest.raises(StepError, match="needs code from its repository, which qbench never runs"):
        load_config(tiny_point("someone/own"), source)
    assert not mark.exists()


def test_every_load_by_transformers_refuses_foreign_code() -> None:
    for file in (Path(__file__).parents[2] / "qbench").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and re.match(
                r"Auto(Config|Model|Tok)\w*\.from_", ast.unparse(node.func)
            ):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("trust_remote_code", given.get(None)) in ("False", "arguments"), file


def test_attention_from_a_repository_is_refused(tmp_path: Path) -> None:
    text = refusal(folder_with(tmp_path, attn_implementation="someone/kernels"))
    assert "takes its attention from someone/kernels, code that qbench never runs" in text


def test_hub_id_that_cannot_be_fetched_names_both_ways_out_and_neighbours() -> None:
    text = refusal("meta-llama/Llama-3.1-8b-instrct")
    assert "`qbench models`" in text
    assert "a folder that holds config.json" in text
    assert "nearest in the catalog: meta-llama/Llama-3.1-8B-Instruct" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "x"}, "does not describe a llama model: .* expected int, got str"),
        ({"num_attention_heads": 3}, "does not describe a llama model: .* is not a multiple of"),
        ({"num_attention_heads": 0}, "does not describe a llama model: "),
        ({"torch_dtype": "foo"}, "does not describe a llama model: "),
        ({"vocab_size": 0}, "transformers cannot build "),
        ({"hidden_act": "foo"}, "transformers cannot build .*: KeyError 'foo'"),
        ({"rope_scaling": {"type": "foo"}}, "transformers cannot build .*: KeyError 'foo'"),
        ({"model_type": "vit"}, "is not a text model for transformers"),
    ],
    ids=str,
)
def test_config_that_makes_no_sense(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    model = folder_with(tmp_path, **changes)
    with pytest.raises(StepError, match=message) as caught:
        build_base_model(tiny_point(model), META, load_config(tiny_point(model)))
    assert model in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_that_does_not_answer_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens on port 9 (discard); transformers alone would try for half a minute.
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", _NOWHERE)
    start = time.perf_counter()
    assert "the hub did not give its config" in refusal("nobody/no-model")
    assert time.perf_counter() - start < 15


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
    ],
    ids=["gptq", "nf4", "int8"],
)
def test_checkpoint_that_is_stored_quantized(tmp_path: Path, settings: dict[str, Any], stored: str) -> None:
    point = tiny_point(folder_with(tmp_path, quantization_config=settings), "nf4-dq")
    said = [text for text in model_caveats(load_config(point), point) if "stored" in text]
    assert said == [f"the checkpoint of {point.model} is stored in {stored}; the plan uses nf4-dq"]
    with pytest.raises(StepError, match=f"are stored as {stored}, but the point says precision nf4-dq"):
        load_config(point.model_copy(update={"weights": "pretrained"}))


def test_checkpoint_stored_as_the_point_says(tmp_path: Path) -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    settings["bnb_4bit_use_double_quant"] = True
    point = tiny_point(folder_with(tmp_path, quantization_config=settings), "nf4-dq")
    config = load_config(point.model_copy(update={"weights": "pretrained"}))
    assert list(model_caveats(config, point)) == []
    assert not hasattr(config, "quantization_config")


@pytest.mark.parametrize(
    ("model", "precision", "word"),
    [("Qwen/Qwen3.5-9B", "bf16", "linear attention"), ("Qwen/Qwen3-0.6B", "int8", "outlier columns")],
)
def test_what_is_not_known_is_said(model: str, precision: str, word: str) -> None:
    point = tiny_point(model, precision)
    (said,) = model_caveats(load_config(point), point)
    assert word in said


def test_int8_says_that_checkpointing_does_not_reach_its_inputs() -> None:
    point = tiny_point("Qwen/Qwen3-0.6B", "int8", gradient_checkpointing=True)
    assert any("despite checkpointing" in said for said in model_caveats(load_config(point), point))


@pytest.mark.parametrize(
    ("model", "limit"),
    [("openai-community/gpt2", 1024), ("facebook/opt-125m", 2048), ("EleutherAI/gpt-j-6b", 2048)],
)
def test_table_of_learned_positions_is_a_limit(model: str, limit: int) -> None:
    load_config(tiny_point(model, seq_len=limit))
    assert f"seq_len {limit + 1}" in (text := refusal(model, seq_len=limit + 1))
    assert f"use {limit} or less" in text


def test_rotary_positions_are_a_caveat() -> None:
    # TinyLlama was trained on 2048 positions.
    config = load_config(tiny_point("TinyLlama/TinyLlama-1.1B-Chat-v1.0", seq_len=4096))
    assert position_caveat(config, 2048) is None
    caveat = position_caveat(config, 2049)
    assert caveat is not None
    assert caveat.startswith("seq_len 2049 is beyond the model's 2048 positions")


def test_alibi_has_no_limit() -> None:
    assert position_caveat(load_config(tiny_point("bigscience/bloom-560m", seq_len=99_999)), 99_999) is None


@pytest.mark.parametrize(
    ("recipe", "checkpointing", "cached"),
    [("plain", False, True), ("peft", False, True), ("peft", True, False), ("trainer", False, False)],
)
def test_key_value_cache_is_on_where_a_hand_written_loop_leaves_it(
    tmp_path: Path, recipe: str, checkpointing: bool, cached: bool
) -> None:
    point = tiny_point(folder_with(tmp_path), recipe=recipe, gradient_checkpointing=checkpointing)
    assert load_config(point).use_cache is cached


@pytest.mark.parametrize(("family", "chosen"), [("llama", "sdpa"), ("bloom", "eager"), ("gemma2", "eager")])
def test_auto_is_the_attention_that_transformers_chooses(tmp_path: Path, family: str, chosen: str) -> None:
    point = tiny_point(folder_with(tmp_path, family))
    model = build_base_model(point, META, load_config(point))
    assert model.config._attn_implementation == chosen


def test_attention_that_the_model_lacks(tmp_path: Path) -> None:
    text = refusal(folder_with(tmp_path, "bloom"), attn_implementation="sdpa")
    assert "with attn_implementation sdpa: BloomForCausalLM does not support" in text


def test_attention_that_is_not_installed(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("flash attention may be installed beside a GPU")
    assert "flash_attention_2: " in refusal(folder_with(tmp_path), attn_implementation="flash_attention_2")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", "float32"),
        ("fp16", "float16"),
        ("bf16", "bfloat16"),
        ("nf4-dq", "bfloat16"),
        ("int8", "bfloat16"),
    ],
)
def test_dtype_of_what_stays_unquantized(tmp_path: Path, precision: str, dtype: str) -> None:
    assert base_dtype(precision) == getattr(torch, dtype)
    point = tiny_point(folder_with(tmp_path), precision)
    model = build_base_model(point, META, load_config(point))
    assert model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_random_weights_are_those_of_transformers_initialization(tmp_path: Path) -> None:
    point = tiny_point(folder_with(tmp_path), "fp32")
    config = load_config(point)
    built = build_base_model(point, CPU, config)
    torch.manual_seed(0)
    expected = AutoModelForCausalLM.from_config(config)
    buffers = dict(expected.named_buffers())
    assert buffers
    for name, buffer in built.named_buffers():
        # Rotary frequencies are computed, not random.
        assert torch.equal(buffer, buffers[name])
    for name, parameter in built.named_parameters():
        reference = expected.get_parameter(name)
        assert (parameter.shape, parameter.dtype) == (reference.shape, reference.dtype)
        assert parameter.std().item() == pytest.approx(reference.std().item(), rel=0.1)
        assert parameter.mean().item() == pytest.approx(reference.mean().item(), abs=0.01)
    assert built.lm_head.weight is built.model.embed_tokens.weight


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a saved model in bf16."""
    folder = tmp_path_factory.mktemp("checkpoint")
    point = tiny_point(folder_with(folder))
    build_base_model(point, CPU, load_config(point)).save_pretrained(folder / "saved")
    return str(folder / "saved")


def load(checkpoint: str, precision: str, device: torch.device = CPU) -> Any:
    point = tiny_point(checkpoint, precision).model_copy(update={"weights": "pretrained"})
    return build_base_model(point, device, load_config(point))


def test_pretrained_weights_are_the_saved_ones(checkpoint: str) -> None:
    first, second = load(checkpoint, "bf16"), load(checkpoint, "fp32")
    saved = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for name, parameter in saved.named_parameters():
        assert torch.equal(first.get_parameter(name).float(), parameter)
        assert torch.equal(second.get_parameter(name), parameter)
    assert first.dtype == torch.bfloat16
    assert first.config.use_cache is True


def facts(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (type(tensor), tensor.shape, tensor.dtype) for name, tensor in tensors}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["nf4-dq", "int8"])
def test_planned_model_is_what_from_pretrained_loads(tmp_path: Path, family: str, precision: str) -> None:
    plain = tiny_point(folder_with(tmp_path, family))
    saved = str(tmp_path / "saved")
    build_base_model(plain, CPU, load_config(plain)).save_pretrained(saved)
    assert facts(load(saved, precision, META)) == facts(load(saved, precision))


def test_pretrained_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        StepError, match=r"weights: pretrained, but those of .* could not be loaded"
    ) as caught:
        load(folder_with(tmp_path), "bf16")
    assert "or set weights: random" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["biogpt", "codegen", "ctrl", "gpt2", "gpt_neo", "gptj", "opt"])
def test_models_with_a_table_fail_for_real_beyond_it(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    sizes = SMALL | {
        "max_position_embeddings": 16,
        "n_positions": 16,
        "num_layers": 2,
        "attention_types": [[["global"], 2]],
    }
    for key, value in sizes.items():
        if getattr(config, key, None) is not None:
            setattr(config, key, value)
    if model_type == "gpt_neo":
        config.attention_layers = ["global", "global"]
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model(input_ids=torch.zeros((1, 16), dtype=torch.long))
        with pytest.raises(IndexError):
            model(input_ids=torch.zeros((1, 17), dtype=torch.long))
    assert model_type in WITH_POSITION_TABLE


def test_sizes_that_a_config_leaves_out_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')
    point = tiny_point(str(tmp_path))
    (told,) = model_caveats(load_config(point), point)
    assert told.endswith("planned with the defaults of transformers: hidden_size 768, vocab_size 50257")
    whole = tiny_point(folder_with(tmp_path))
    assert not any("leaves out sizes" in text for text in model_caveats(load_config(whole), whole))


def test_a_model_without_a_class_for_text_alone_is_built_with_its_tower() -> None:
    point = tiny_point("Qwen/Qwen2.5-VL-3B-Instruct")
    config = load_config(point)
    model = build_base_model(point, META, config)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert model.num_parameters() == 3_754_622_976  # The hub's total of its safetensors.
    assert any("planned on text alone" in caveat for caveat in model_caveats(config, point))


def test_a_model_whose_flash_attention_is_on_the_hub_is_planned_with_what_that_keeps() -> None:
    point = tiny_point("openai/gpt-oss-20b", attn_implementation="flash_attention_2")
    model = build_base_model(point, META, load_config(point))
    assert model.config._attn_implementation == "flash_attention_2"
