"""Broken configs of other tools: all problems at once, each with its line, and what may be misspelt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.training_args import OptimizerNames

from qbench.errors import ScenarioError
from qbench.scenario.importers.configs import FORMATS, import_config
from qbench.scenario.importers.defaults import OPTIMIZERS
from qbench.scenario.importers.reader import Reader
from qbench.scenario.importers.values import LIKE_VALUE, misspelt

AXOLOTL = """\
base_model: a/b
load_in_4bit: maybe
adapter: qlora
lora_r: banana
lora_alpah: 16
sequence_len: x
optimizer: adamww_8bit
gradient_checkpointing_kwargs:
  use_reentrant: perhaps
lora_dropout: 7
"""
LLAMA_FACTORY = """\
model_name_or_pth: gpt2
finetuning_type: loar
quantization_bit: 5
quantization_type: nf44
lora_rank: 99999999
lora_target: {a: 1}
cutoff_len: null
flash_attn: disable
"""
# Tabs are allowed between the tokens of JSON.
TRL = """\
{
\t"model_name_or_path": "gpt2", "use_peft": "ja",
\t"load_in_4bit": true,
\t"dtype": "bfloat",
\t"max_lenght": 400,
\t"per_device_train_batch_size": 0,
\t"attn_implementation": "flash_attention2"
}
"""
TRAINER = """\
{
  "model_name_or_path": "gpt2",
  "bits": 5,
  "full_finetune": true,
  "source_max_len": "a",
  "target_max_lenn": 7,
  "bf16": "x",
  "gradient_accumulation_steps": 2.5
}
"""
FIREFLY = """\
{ "model_name_or_path": "gpt2", "train_mode": "qlor",
  "lora_rank": -1, "max_seq_length": "?", "lora_alpha": true }
"""
WHOLE = "allowed: a whole number from 1 to"
SWITCH = "allowed: true, false, auto"

BROKEN = {
    # Nothing can be said of `adapter: qlora`, as what load_in_4bit means is not known.
    "axolotl.yml": (
        AXOLOTL,
        [
            ": lora_target_modules: missing, and what peft adapts by default in a/b is not known; name the "
            "modules",
            f":2: load_in_4bit: given 'maybe'; {SWITCH}",
            f":4: lora_r: given 'banana'; {WHOLE} 65,536",
            ":5: lora_alpah: unknown key; did you mean lora_alpha?",
            f":6: sequence_len: given 'x'; {WHOLE} 16,777,216",
            ":7: optimizer: given 'adamww_8bit'; did you mean adamw_8bit?",
            f":8: gradient_checkpointing_kwargs.use_reentrant: given 'perhaps'; {SWITCH}",
            ":10: lora_dropout: given 7; allowed: a number of at least 0 and below 1",
        ],
    ),
    "factory.yaml": (
        LLAMA_FACTORY,
        [
            ": model_name_or_path: not there; allowed: a hub id or a folder with config.json, here or as "
            "TARGET beside --from",
            ":1: model_name_or_pth: unknown key; did you mean model_name_or_path?",
            ":2: finetuning_type: given 'loar'; allowed: lora, full; did you mean lora?",
            ":3: quantization_bit: given 5; allowed: 4, 8",
            ":4: quantization_type: given 'nf44'; allowed: nf4, fp4; did you mean nf4?",
            f":5: lora_rank: given 99999999; {WHOLE} 65,536",
            ":6: lora_target: given {'a': 1}; allowed: names of modules, or all-linear",
            ":7: cutoff_len: null cuts no sequence, and the longest is not known here; give it with --seq",
            ":8: flash_attn: given 'disable'; did you mean disabled?",
        ],
    ),
    "trl.json": (
        TRL,
        [
            f":2: use_peft: given 'ja'; {SWITCH}",
            ":4: dtype: given 'bfloat'; allowed: auto, bfloat16, float16, float32; did you mean bfloat16?",
            ":5: max_lenght: unknown key; did you mean max_length?",
            f":6: per_device_train_batch_size: given 0; {WHOLE} 1,048,576",
            ":7: attn_implementation: given 'flash_attention2'; did you mean flash_attention_2?",
        ],
    ),
    "qlora.json": (
        TRAINER,
        [
            ":3: bits: given 5; allowed: 4, 8, 16, 32",
            f":5: source_max_len: given 'a'; {WHOLE} 16,777,216",
            ":6: target_max_lenn: unknown key; did you mean target_max_len?",
            f":7: bf16: given 'x'; {SWITCH}",
            f":8: gradient_accumulation_steps: given 2.5; {WHOLE} 1,048,576",
        ],
    ),
    "firefly.json": (
        FIREFLY,
        [
            ":1: train_mode: given 'qlor'; allowed: qlora, lora, full; did you mean qlora?",
            ":2: lora_alpha: given true; allowed: a number above 0",
            f":2: lora_rank: given -1; {WHOLE} 65,536",
            f":2: max_seq_length: given '?'; {WHOLE} 16,777,216",
        ],
    ),
}


def config_of(model: str) -> dict[str, Any]:
    return {"gpt2": {"model_type": "gpt2"}}.get(model, {})


def problems_of(file: Path, content: str, **changes: Any) -> list[str]:
    """Return the problems of a config's content, without the name of its file."""
    file.write_text(content)
    with pytest.raises(ScenarioError) as raised:
        import_config(file, config_of, **changes)
    assert all(
        problem.startswith(f"{file}:") and "\n" not in problem for problem in map(str, raised.value.problems)
    )
    return [problem.removeprefix(str(file)) for problem in map(str, raised.value.problems)]


@pytest.mark.parametrize("name", BROKEN)
def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path, name: str):
    content, expected = BROKEN[name]
    assert problems_of(tmp_path / name, content) == expected


def test_a_key_that_is_replaced_is_not_looked_for_in_the_file(tmp_path: Path):
    content = "base_model: gpt2\nsequence_len: 12\nbf16: x\n"
    assert problems_of(tmp_path / "a.yml", content, seq_len=0) == [
        f": sequence_len: given 0; {WHOLE} 16,777,216",
        f":3: bf16: given 'x'; {SWITCH}",
    ]


def test_what_may_be_misspelt_stands_beside_settings_that_do_not_agree(tmp_path: Path):
    first, second = problems_of(tmp_path / "a.yml", "base_model: gpt2\nload_in_4bit: true\nadaptr: lora\n")
    assert first == ":3: adaptr: unknown key; did you mean adapter?"
    assert second.startswith(": precision nf4-dq cannot be trained without an adapter")


def test_a_quantized_base_without_adapters_is_refused_where_the_switch_stands(tmp_path: Path):
    content = "model_name_or_path: gpt2\nload_in_4bit: true\nuse_peft: false\n"
    (problem,) = problems_of(tmp_path / "a.yml", content)
    assert problem.startswith(":3: use_peft: not on; read as TRL's arguments, a quantized base without")


def test_a_switch_that_is_refused_says_nothing_of_what_goes_with_it(tmp_path: Path):
    content = "model_name_or_path: gpt2\nload_in_4bit: true\nuse_peft_lora: ja\n"
    assert problems_of(tmp_path / "a.yml", content) == [f":3: use_peft_lora: given 'ja'; {SWITCH}"]


def test_a_misspelling_alone_is_a_caveat(tmp_path: Path):
    file = tmp_path / "a.yml"
    file.write_text(
        "base_model: gpt2\nadapter: lora\nsample_packing: true\nlora_alpah: 16\noptimizer: adamww_8bit\n"
        "frobnicate: 3\n"
    )
    assert import_config(file, config_of).caveats == (
        "optimizer: adamww_8bit is not planned; planned as AdamW, whose state may be larger",
        "optimizer: given 'adamww_8bit'; did you mean adamw_8bit?",
        "lora_alpah: unknown key; did you mean lora_alpha?",
        "unknown keys that may affect memory: frobnicate",
    )


@pytest.mark.parametrize(
    "line",
    [
        "lora_alpah: null",  # Asks for nothing.
        "attn_implementation: flash_attention_3",  # Not the 2 that is planned, and no misspelling of it.
        "learning_rates: 1",  # Like a key that is harmless, which no importer reads.
        "frobnicate: 1",
    ],
)
def test_other_keys_are_not_taken_for_misspelt_ones(tmp_path: Path, line: str):
    file = tmp_path / "a.yml"
    file.write_text(f"base_model: gpt2\nadapter: lora\n{line}\n")
    assert not any("did you mean" in caveat for caveat in import_config(file, config_of).caveats)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "key",
    [
        "gradient_checkpointing",
        "disable_gradient_checkpointing",
        "no_gradient_checkpointing",
        "flex_attention",
        "sage_attention",
        "use_lora",
        "use_qlora",
        "lora_rank_dropout",
        "max_source_length",
    ],
)
def test_a_key_of_another_meaning_is_no_misspelling(form: str, key: str):
    reader = Reader({"adapter": "lora", key: True}, config_of)
    FORMATS[form](reader)
    assert reader.doubts() == {}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lora_alpah", "lora_alpha"),
        ("optimiser", "optimizer"),
        ("micro_batchsize", "micro_batch_size"),
        ("sequence_lenght", "sequence_len"),
        ("gradient_checkpoint", "gradient_checkpointing"),
    ],
)
def test_a_misspelling_is_told_with_what_is_meant(key: str, meant: str):
    reader = Reader({"adapter": "lora", key: 1}, config_of)
    FORMATS["axolotl"](reader)
    assert reader.doubts() == {key: f"unknown key; did you mean {meant}?"}


@pytest.mark.parametrize("key", ["flex_attention", "sage_attention"])
def test_attention_that_is_switched_on_and_not_planned_is_told(tmp_path: Path, key: str):
    file = tmp_path / "a.yml"
    file.write_text(f"base_model: gpt2\nadapter: lora\n{key}: true\n")
    assert import_config(file, config_of).caveats[-1] == f"not understood, but they affect memory: {key}"


def test_adapters_are_checked_where_a_refused_value_leaves_open_whether_there_are_some(tmp_path: Path):
    content = "base_model: gpt2\nadapter: lra\nlora_r: x\n"
    assert problems_of(tmp_path / "a.yml", content) == [
        ":2: adapter: given 'lra'; allowed: lora, qlora, nothing; did you mean lora?",
        f":3: lora_r: given 'x'; {WHOLE} 65,536",
    ]


def test_a_key_beside_the_one_that_it_is_like_is_no_misspelling(tmp_path: Path):
    file = tmp_path / "a.yml"
    file.write_text("base_model: gpt2\nadapter: lora\nlora_alpha: 16\nlora_alphas: 8\n")
    caveats = import_config(file, config_of).caveats
    assert caveats[-1] == "unknown keys that may affect memory: lora_alphas"


def test_a_caveat_is_told_once(tmp_path: Path):
    file = tmp_path / "a.yml"
    file.write_text(
        "model_name_or_path: gpt2\nuse_peft: true\nload_in_4bit: true\nbnb_4bit_compute_dtype: float32\n"
    )
    caveats = import_config(file, config_of).caveats
    assert len(caveats) == len(set(caveats))


def test_a_config_is_of_axolotl_also_where_its_model_is_misspelt(tmp_path: Path):
    missing, misspelt_key = problems_of(tmp_path / "a.yml", "base_modle: gpt2\nsequence_len: 9\nlora_r: 8\n")
    assert missing.startswith(": base_model: not there")
    assert misspelt_key == ":1: base_modle: unknown key; did you mean base_model?"


@pytest.mark.parametrize("key", ["micro_batch_size", "sequence_len"])
@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("trl", "model_name_or_path: gpt2\nuse_peft: true\nmax_length: 9\n"),
        ("trl", "model_name: gpt2\nuse_peft: true\n"),
        ("llama-factory", "model_name_or_path: gpt2\ncutoff_len: 9\nlora_rank: 8\n"),
        ("axolotl", "base_model: gpt2\nmodel_name: gpt2\nlora_r: 8\n"),
    ],
)
def test_a_key_of_axolotl_does_not_tell_it_where_others_name_the_model(
    tmp_path: Path, form: str, content: str, key: str
):
    file = tmp_path / "a.yml"
    file.write_text(f"{content}{key}: 4\n")
    assert import_config(file, config_of).format == form


def test_keys_that_tell_no_tool_may_be_misspelt(tmp_path: Path):
    (problem,) = problems_of(tmp_path / "a.yml", "base_modle: gpt2\nlearning_rate: 1\n")
    assert problem.startswith(
        ": its keys do not show which tool it is for; name it with --from-format (axolotl,"
    )
    assert problem.endswith("); base_modle: did you mean base_model?")


def test_a_key_of_two_lines_is_told_in_one(tmp_path: Path):
    _, second = problems_of(tmp_path / "a.json", '{"base_model": "a/b", "lora_alph\\na": 1, "bf16": "x"}')
    assert second == r":1: 'lora_alph\na': unknown key; did you mean lora_alpha?"


def test_no_optimizer_of_transformers_is_taken_for_the_misspelling_of_another():
    others = {optimizer.value for optimizer in OptimizerNames} - OPTIMIZERS.keys()
    assert len(others) > 20
    assert {name: misspelt(name, OPTIMIZERS, LIKE_VALUE) for name in others} == dict.fromkeys(others)


@pytest.mark.parametrize("form", ["llama-factory", "trl", "trainer"])
def test_no_argument_of_trainer_is_taken_for_a_misspelling(form: str):
    names = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    reader = Reader(dict.fromkeys(names, True), config_of)
    FORMATS[form](reader)
    assert not [key for key, text in reader.doubts().items() if text.startswith("unknown key")]
