"""Configs whose values are of another type than usual: read as what they say, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qbench.errors import ScenarioError, shown
from qbench.scenario.expand import point_from
from qbench.scenario.importers.configs import import_config
from qbench.scenario.settings import point_settings

GPT2 = {"model_type": "gpt2"}
QLORA = {"model_name_or_path": "gpt2", "bits": 4, "source_max_len": 512, "target_max_len": 128}
FIREFLY = {"model_name_or_path": "gpt2", "train_mode": "lora", "max_seq_length": 512}
FASTCHAT = {"model_name_or_path": "gpt2", "q_lora": True, "lora_target_modules": ["c_attn"]}
TRAINER = {"model_name_or_path": "gpt2", "do_train": True, "block_size": 512}
TRL = {"model_name_or_path": "gpt2", "use_peft": True, "max_length": 512, "packing": True}
LLAMA_FACTORY = {"model_name_or_path": "gpt2", "cutoff_len": 512, "quantization_bit": 4}
AXOLOTL = {"base_model": "gpt2", "adapter": "lora", "micro_batch_size": 2, "sample_packing": True}


def imported(
    tmp_path: Path, values: dict[str, Any], seq_len: int | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the settings of the point and the caveats of a config."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    found = import_config(file, lambda model: GPT2, "", "", seq_len)
    return point_settings(point_from(found.settings, {})), found.caveats


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # axolotl's bf16 is auto where no dtype is named.
        (AXOLOTL, {"precision": "bf16", "autocast": "bf16"}),
        (AXOLOTL | {"bf16": None}, {"precision": "bf16", "autocast": "bf16"}),
        (AXOLOTL | {"bf16": False}, {"precision": "fp32", "autocast": "none"}),
        (AXOLOTL | {"fp16": True}, {"precision": "fp16", "autocast": "fp16"}),
        (AXOLOTL | {"float16": True}, {"precision": "fp16", "autocast": "none"}),
        (QLORA | {"bits": "4"}, {"precision": "nf4-dq"}),
        (QLORA | {"bits": " 4 "}, {"precision": "nf4-dq"}),
        (QLORA | {"bits": 4.0}, {"precision": "nf4-dq"}),
        (QLORA | {"bits": "8"}, {"precision": "int8"}),
        (QLORA | {"bits": "16", "bf16": True}, {"precision": "bf16"}),
        # qlora.py loads in float32 where fp16 is on: the products alone are in 16 bit.
        (QLORA | {"bits": 16, "fp16": True}, {"precision": "fp32", "autocast": "fp16"}),
        (QLORA | {"bits": 32, "bf16": "false"}, {"precision": "fp32", "autocast": "none"}),
        (QLORA | {"full_finetune": "False"}, {"precision": "nf4-dq", "r": 64}),
        (QLORA | {"bits": 16, "full_finetune": "True"}, {"precision": "fp32", "r": None}),
        # Null says nothing: the script's own defaults hold, not those of other scripts.
        (
            QLORA | {"lora_r": None, "lora_alpha": None, "lora_dropout": None, "double_quant": None},
            {"r": 64, "lora_alpha": 16, "lora_dropout": 0, "precision": "nf4-dq"},
        ),
        (
            QLORA | {"optim": None, "per_device_train_batch_size": None, "gradient_checkpointing": None},
            {
                "optim": "paged_adamw_32bit",
                "per_device_train_batch_size": 1,
                "gradient_checkpointing": True,
            },
        ),
        (FIREFLY | {"fp16": "false"}, {"precision": "bf16", "autocast": "none"}),
        (FIREFLY | {"lora_rank": None, "lora_alpha": None}, {"r": 64, "lora_alpha": 16}),
        (FASTCHAT | {"q_lora": "False"}, {"precision": "fp32"}),
        (
            FASTCHAT | {"lora_r": None, "lora_target_modules": None},
            {"r": 8, "target_modules": ("q_proj", "v_proj")},
        ),
        (LLAMA_FACTORY | {"quantization_bit": "4"}, {"precision": "nf4-dq"}),
        (LLAMA_FACTORY | {"quantization_bit": "8"}, {"precision": "int8"}),
        (LLAMA_FACTORY | {"lora_rank": "32"}, {"r": 32, "lora_alpha": 64}),
        (
            TRL | {"per_device_train_batch_size": "2", "max_length": "256"},
            {"per_device_train_batch_size": 2, "seq_len": 256},
        ),
        (TRL | {"use_peft": "False", "bf16": "False"}, {"r": None, "autocast": "none"}),
        # 8 sequences for an update, 2 at a time: 4 passes.
        (AXOLOTL | {"batch_size": "8"}, {"gradient_accumulation_steps": 4}),
        (AXOLOTL | {"batch_size": 8.0}, {"gradient_accumulation_steps": 4}),
        (AXOLOTL | {"lora_target_modules": []}, {"target_modules": ("c_attn",)}),
        (LLAMA_FACTORY | {"lora_target": []}, {"target_modules": "all-linear"}),
        # A name beside `all` is one of several names.
        (LLAMA_FACTORY | {"lora_target": "all,c_attn"}, {"target_modules": ("all", "c_attn")}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_what_it_says(
    tmp_path: Path, values: dict[str, Any], expected: dict[str, Any]
):
    settings, _ = imported(tmp_path, values)
    assert {name: settings[name] for name in expected} == expected


BITS = "allowed: 4, 8, 16, 32"
BATCH = "allowed: a whole number from 1 to 1,048,576"
LENGTH = "allowed: a whole number from 1 to 16,777,216"
NAMES = "allowed: names of modules, or all-linear"
DTYPES = "allowed: auto, bfloat16, float16, float32"
SWITCH = "allowed: true, false, auto"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            (QLORA | {"bits": bits}, f"bits: given {shown(bits)}; {BITS}")
            for bits in (3, 0, "x", "4.5", "9" * 5000, True, [4])
        ),
        (QLORA | {"bits": None}, f"bits: given null; {BITS}"),
        (QLORA | {"bits": ""}, f"bits: given ''; {BITS}"),
        (QLORA | {"full_finetune": True}, "bits: given 4 beside full_finetune; allowed: 16, 32"),
        (QLORA | {"full_finetune": "perhaps"}, f"full_finetune: given 'perhaps'; {SWITCH}"),
        (QLORA | {"bf16": True, "fp16": "x"}, f"fp16: given 'x'; {SWITCH}"),
        (QLORA | {"source_max_len": "a"}, f"source_max_len: given 'a'; {LENGTH}"),
        (QLORA | {"source_max_len": None}, "source_max_len: null cuts no sequence"),
        (FIREFLY | {"fp16": "x"}, f"fp16: given 'x'; {SWITCH}"),
        (FASTCHAT | {"model_max_length": None}, "model_max_length: null cuts no sequence"),
        (LLAMA_FACTORY | {"quantization_bit": "x"}, "quantization_bit: given 'x'; allowed: 4, 8"),
        (LLAMA_FACTORY | {"quantization_bit": True}, "quantization_bit: given true; allowed: 4, 8"),
        (LLAMA_FACTORY | {"lora_target": {"c_attn": 1}}, f"lora_target: given {{'c_attn': 1}}; {NAMES}"),
        (LLAMA_FACTORY | {"lora_target": False}, f"lora_target: given false; {NAMES}"),
        (AXOLOTL | {"lora_target_modules": True}, f"lora_target_modules: given true; {NAMES}"),
        (AXOLOTL | {"lora_target_modules": ["c_attn", None]}, "lora_target_modules: given ['c_attn', N"),
        (AXOLOTL | {"lora_target_modules": ""}, f"lora_target_modules: given ''; {NAMES}"),
        (AXOLOTL | {"batch_size": "x"}, f"batch_size: given 'x'; {BATCH}"),
        (AXOLOTL | {"micro_batch_size": "2.5"}, f"micro_batch_size: given '2.5'; {BATCH}"),
        (AXOLOTL | {"adapter": "qlora"}, "adapter: given 'qlora' without load_in_4bit"),
        (AXOLOTL | {"adapter": "qlora", "load_in_4bit": "false"}, "adapter: given 'qlora' without load_in"),
        (TRL | {"lora_target_modules": 3}, f"lora_target_modules: given 3; {NAMES}"),
        (TRL | {"dtype": "half"}, f"dtype: given 'half'; {DTYPES}"),
        (TRL | {"torch_dtype": 16}, f"torch_dtype: given 16; {DTYPES}"),
        (TRAINER | {"torch_dtype": "None"}, f"torch_dtype: given 'None'; {DTYPES}"),
    ],
)  # fmt: skip
def test_a_value_that_says_nothing_known_is_refused(tmp_path: Path, values: dict[str, Any], message: str):
    with pytest.raises(ScenarioError) as raised:
        imported(tmp_path, values)
    (problem,) = map(str, raised.value.problems)
    file = tmp_path / "config.yaml"
    lines = file.read_text().splitlines()
    (line,) = (number for number, text in enumerate(lines, 1) if text.startswith(message.partition(" ")[0]))
    assert problem.startswith(f"{file}:{line}: {message}")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"model_name_or_path": "gpt2", "finetuning_type": "full", "lora_alpha": 0, "lora_dropout": 1}
            | {"lora_rank": "x", "lora_target": False, "use_dora": "x"},
            {"r": None, "precision": "fp32"},
        ),
        (LLAMA_FACTORY | {"quantization_bit": 8, "quantization_type": "fp8"}, {"precision": "int8"}),
        (
            AXOLOTL
            | {"adapter": None, "lora_r": 0, "lora_alpha": 0, "lora_dropout": 1, "peft_use_dora": "x"}
            | {"lora_target_modules": False, "lora_target_linear": "x", "peft_use_rslora": "x"},
            {"r": None, "precision": "bf16"},
        ),
        (TRL | {"bnb_4bit_quant_type": "none"}, {"precision": "fp32"}),
        (TRL | {"bnb_4bit_quant_type": "fp8", "load_in_8bit": True}, {"precision": "int8"}),
        (TRAINER | {"bnb_4bit_quant_type": ""}, {"precision": "fp32"}),
        (QLORA | {"bits": 16, "quant_type": "fp8", "bf16": True}, {"precision": "bf16"}),
    ],
)  # fmt: skip
def test_a_value_that_is_not_used_is_not_refused(
    tmp_path: Path, values: dict[str, Any], expected: dict[str, Any]
):
    settings, caveats = imported(tmp_path, values)
    assert {name: settings[name] for name in expected} == expected
    assert not any("unknown" in text for text in caveats)


@pytest.mark.parametrize(
    ("values", "planned", "told"),
    [
        (AXOLOTL | {"flash_attention": True}, "flash_attention_2", "flash_attention_2 is"),
        (AXOLOTL | {"sdp_attention": True}, "sdpa", "sdpa is"),
        (AXOLOTL | {"eager_attention": True}, "eager", "eager is"),
        (AXOLOTL, "auto", "what transformers would choose is"),
        (TRL, "auto", "what transformers would choose is"),
    ],
)
def test_attention_that_is_not_planned_leaves_the_one_switched_on(
    tmp_path: Path, values: dict[str, Any], planned: str, told: str
):
    settings, caveats = imported(tmp_path, values | {"attn_implementation": "flex_attention"})
    assert settings["attn_implementation"] == planned
    assert f"attn_implementation: flex_attention is not planned; {told}" in caveats


def test_attention_of_no_name_is_not_set(tmp_path: Path):
    without_kernels = {"lora_mlp_kernel": False, "attn_implementation": "", "sdp_attention": True}
    settings, caveats = imported(tmp_path, AXOLOTL | without_kernels)
    assert settings["attn_implementation"] == "sdpa"
    assert caveats == ()


def test_a_length_given_beside_a_file_replaces_that_of_its_parts(tmp_path: Path):
    assert imported(tmp_path, QLORA | {"source_max_len": None}, seq_len=384)[0]["seq_len"] == 384
    settings, caveats = imported(tmp_path, QLORA | {"max_length": 384})
    assert settings["seq_len"] == 384
    assert not any("source_max_len" in text for text in caveats)
    # 512 tokens of source and 128 of target.
    assert imported(tmp_path, QLORA)[0]["seq_len"] == 640


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        ({"use_reentrant": "true"}, "reentrant"),
        ({"use_reentrant": "False"}, "no_reentrant"),
        ('{"use_reentrant": true}', "reentrant"),
        ('{"use_reentrant": false}', "no_reentrant"),
        ({}, "auto"),
    ],
)
def test_arguments_of_checkpointing_as_text(tmp_path: Path, arguments: Any, form: str):
    settings, caveats = imported(
        tmp_path, TRL | {"dtype": "bfloat16", "gradient_checkpointing_kwargs": arguments}
    )
    assert settings["checkpoint_impl"] == form
    assert caveats == ()


@pytest.mark.parametrize("arguments", ["{", "true", 7, ["use_reentrant"], {"use_reentrant": "x"}])
def test_arguments_of_checkpointing_that_are_none_are_refused(tmp_path: Path, arguments: Any):
    with pytest.raises(ScenarioError, match="gradient_checkpointing_kwargs"):
        imported(tmp_path, TRL | {"gradient_checkpointing_kwargs": arguments})


def test_both_half_precisions_are_read(tmp_path: Path):
    _, caveats = imported(tmp_path, TRAINER | {"dtype": "bfloat16", "bf16": True, "fp16": "no"})
    assert caveats == ()
