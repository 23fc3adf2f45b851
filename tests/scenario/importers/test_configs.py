"""Configs of other tools as scenarios: real examples, what is told of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qbench.cli.target import TargetRequest, read_asked
from qbench.errors import ScenarioError
from qbench.scenario.expand import expand, point_from
from qbench.scenario.importers.configs import import_config, scenario_of
from qbench.scenario.importers.defaults import ADAPTED_BY_DEFAULT
from qbench.scenario.liger import ALL_KERNELS
from qbench.scenario.load import load_scenario, scenario_text
from qbench.scenario.schema import Point
from qbench.scenario.settings import point_settings
from tests.scenario.importers.examples import AXOLOTL, LLAMA_FACTORY, TRL
from tests.scenario.importers.script_examples import SFT_SCRIPTS, TRAINER

EXAMPLES = {
    "axolotl": AXOLOTL,
    "llama-factory": LLAMA_FACTORY,
    "trl": TRL | SFT_SCRIPTS,
    "trainer": TRAINER,
}
UNSAID = {"examples/cli_configs/example_config.yaml": "trl"}
"""Files whose keys do not tell the tool."""

CASES = [(form, source) for form, examples in EXAMPLES.items() for source in examples]

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def config_of(model: str) -> dict[str, Any]:
    types = {"gpt2": "gpt2", "a/moe": "mixtral", "a/qwen3": "qwen3"}
    return {"a/half": {"torch_dtype": "float16"}}.get(model, {"model_type": types.get(model)})


def imported(
    tmp_path: Path, values: dict[str, Any], form: str = "", seq_len: int | None = None
) -> tuple[Point, tuple[str, ...]]:
    """Return the point and the caveats of a config."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    found = import_config(file, config_of, form, "", seq_len)
    gpus = {"gpus": 2} if "distributed" in found.settings else {}
    return point_from(found.settings, gpus), found.caveats


# What each example asks for, read off its keys and, for those it leaves out, the tool's defaults.
EXPECTED: dict[str, dict[str, Any]] = {
    "examples/code-llama/7b/qlora.yml": {
        "precision": "nf4-dq", "r": 32, "lora_alpha": 16, "target_modules": "all-linear", "seq_len": 4096,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "optim": "paged_adamw_32bit",
        "autocast": "bf16", "attn_implementation": "flash_attention_2", "gradient_checkpointing": True,
    },
    "examples/gemma3/gemma-3-1b-qlora.yml": {
        "precision": "nf4-dq", "r": 32, "lora_dropout": 0, "seq_len": 2048, "optim": "adamw_8bit",
    },
    # batch_size 2 in micro-batches of 1: two passes for an update.
    "examples/falcon/config-7b-lora.yml": {
        "precision": "int8", "r": 16, "gradient_accumulation_steps": 2, "attn_implementation": "auto",
    },
    "examples/llama-2/fft_optimized.yml": {"precision": "bf16", "r": None, "seq_len": 4096},
    "examples/archived/tiny-llama/lora.yml": {"precision": "int8", "seq_len": 4096},
    # Offloading is not planned: checkpoints on the card stand for it.
    "examples/qwen3/32b-qlora.yaml": {
        "precision": "nf4-dq", "r": 16, "lora_alpha": 32, "lora_dropout": 0, "optim": "adamw_torch_4bit",
        "gradient_checkpointing": True, "attn_implementation": "flash_attention_2",
        "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj"),
        "recipe": "axolotl", "loss_type": "cut_cross_entropy",
    },
    "examples/llama-3/qlora-1b.yml": {
        "precision": "nf4-dq", "r": 32, "per_device_train_batch_size": 2, "optim": "adamw_8bit",
        "attn_implementation": "flash_attention_2", "autocast": "bf16",
    },
    "examples/train_lora/llama3_lora_pretrain.yaml": {"precision": "bf16", "r": 8, "seq_len": 2048},
    "examples/train_lora/qwen3_lora_sft.yaml": {
        "precision": "bf16", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "autocast": "bf16",
    },
    "examples/train_lora/llama3_lora_sft.yaml": {
        "precision": "bf16", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "autocast": "bf16",
        "gradient_accumulation_steps": 8, "gradient_checkpointing": True, "recipe": "llama-factory",
    },
    "examples/train_qlora/llama3_lora_sft_otfq.yaml": {"precision": "nf4-dq", "r": 8, "lora_dropout": 0},
    "examples/extras/fsdp_qlora/llama3_lora_sft.yaml": {
        "precision": "nf4-dq", "autocast": "fp16", "target_modules": ("q_proj", "v_proj"), "seq_len": 1024,
    },
    "examples/extras/pissa/llama3_lora_sft.yaml": {"precision": "bf16", "r": 8},
    "examples/full_multi_gpu/llama3_full_sft.yaml": {"precision": "fp32", "r": None, "autocast": "fp16"},
    # Nested quantization is off unless use_bnb_nested_quant says so.
    "recipes/zephyr-7b-beta/sft/config_qlora.yaml": {
        "precision": "nf4", "r": 16, "lora_alpha": 16, "target_modules": SEVEN, "seq_len": 2048,
        "per_device_train_batch_size": 4, "recipe": "trl", "autocast": "bf16",
    },
    "recipes/zephyr-7b-beta/sft/config_full.yaml": {
        "precision": "bf16", "r": None, "per_device_train_batch_size": 16, "seq_len": 2048,
    },
    "recipes/smollm2/sft/config.yaml": {"precision": "bf16", "r": None, "seq_len": 8192},
    "recipes/smollm3/sft/sft.yaml": {"precision": "bf16", "seq_len": 65536, "gradient_accumulation_steps": 2},
    # TRL's own defaults: 8 sequences of 1,024 tokens, checkpointing and bf16 on, weights in fp32.
    "examples/cli_configs/example_config.yaml": {
        "precision": "fp32", "r": None, "per_device_train_batch_size": 8, "seq_len": 1024,
        "gradient_checkpointing": True, "autocast": "bf16",
    },
    "huggingface/open-r1@1b6fcac recipes/Qwen2.5-1.5B-Instruct/sft/config_demo.yaml": {
        "precision": "bf16", "r": None, "per_device_train_batch_size": 2, "seq_len": 32768, "recipe": "trl",
        "gradient_accumulation_steps": 1, "attn_implementation": "flash_attention_2", "autocast": "bf16",
    },
    "huggingface/open-r1@809ea6b recipes/R1-Distill-Qwen-Math-7B/sft/config_v00.00.yaml": {
        "precision": "bf16", "r": None, "seq_len": 32768, "gradient_accumulation_steps": 8,
    },
    "huggingface/open-r1@16c2633 recipes/SmolLM2-1.7B-Instruct/sft/config.yaml": {
        "precision": "bf16", "seq_len": 8192, "attn_implementation": "sdpa", "optim": "adamw_torch",
        "per_device_train_batch_size": 4,
    },
    # peft's examples hand a quantized model to SFTTrainer.
    "huggingface/peft@1948110 examples/sft/run_peft.sh": {
        "precision": "nf4-dq", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear",
        "seq_len": 2048, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 8,
        "attn_implementation": "flash_attention_2", "gradient_checkpointing": True, "recipe": "trl",
    },
    "huggingface/peft@1715e06 examples/sft/run_peft_qlora_fsdp.sh": {
        "precision": "nf4-dq", "r": 8, "per_device_train_batch_size": 2, "autocast": "bf16",
    },
    # Trainer's defaults: no checkpointing, weights in fp32; run_clm.py makes blocks of 1,024 tokens.
    "huggingface/transformers@00aff44 examples/pytorch/language-modeling/README.md": {
        "precision": "fp32", "r": None, "per_device_train_batch_size": 8, "seq_len": 1024,
        "gradient_checkpointing": False, "autocast": "none", "recipe": "trainer",
        "optim": "adamw_torch_fused",
    },
    # Firefly's train_mode is qlora unless it is named: nf4 with double quantization, all linear layers.
    "yangjianxin1/Firefly@c561b25 train_args/sft/qlora/llama3-8b-sft-qlora.json": {
        "precision": "nf4-dq", "r": 64, "lora_alpha": 16, "target_modules": "all-linear", "autocast": "fp16",
        "seq_len": 1024, "optim": "paged_adamw_32bit", "gradient_checkpointing": True, "recipe": "trainer",
    },
    "yangjianxin1/Firefly@7f738a1 train_args/sft/lora/qwen1.5-7b-sft-lora.json": {
        "precision": "fp16", "r": 64, "target_modules": "all-linear", "autocast": "fp16",
        "gradient_accumulation_steps": 16,
    },
    "yangjianxin1/Firefly@72e8732 train_args/pretrain/qlora/yi-6b-pretrain-qlora.json": {
        "precision": "nf4-dq", "r": 64, "lora_dropout": 0.05, "seq_len": 2048, "optim": "adamw_torch",
    },
    "yangjianxin1/Firefly@72e8732 train_args/sft/full/bloom-1b1-sft-full.json": {
        "precision": "fp32", "r": None, "autocast": "fp16", "optim": "adamw_torch",
    },
    # train_lora.py adapts q_proj and v_proj, and loads without a dtype.
    "lm-sys/FastChat@5152cbf scripts/train_lora.sh": {
        "precision": "fp32", "r": 8, "target_modules": ("q_proj", "v_proj"), "autocast": "fp16",
        "seq_len": 2048, "per_device_train_batch_size": 2, "gradient_checkpointing": True,
    },
    "lm-sys/FastChat@14adfbb scripts/train_vicuna_7b.sh": {
        "precision": "fp32", "r": None, "seq_len": 2048, "gradient_accumulation_steps": 16,
    },
    # 16 tokens of source and 512 of target; optim is the script's default.
    "artidoro/qlora@0b46ca8 scripts/finetune_guanaco_7b.sh": {
        "precision": "nf4-dq", "r": 64, "lora_dropout": 0.1, "target_modules": "all-linear", "seq_len": 528,
        "per_device_train_batch_size": 4, "optim": "paged_adamw_32bit", "autocast": "bf16",
    },
    "artidoro/qlora@01b0962 scripts/finetune.sh": {
        "precision": "int8", "r": 64, "lora_alpha": 16, "lora_dropout": 0, "seq_len": 1024,
        "gradient_checkpointing": True, "autocast": "none",
    },
}  # fmt: skip

CUT_CROSS_ENTROPY = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
LIGER = "axolotl.integrations.liger.LigerPlugin"

TOLD = {
    "examples/gemma3/gemma-3-1b-qlora.yml": "unfrozen_parameters",
    "examples/falcon/config-7b-lora.yml": "xformers_attention",
    "examples/llama-2/fft_optimized.yml": "flash_attn_fuse_mlp, flash_attn_rms_norm",
    "examples/full_multi_gpu/llama3_full_sft.yaml": "deepspeed",
    "huggingface/peft@1715e06 examples/sft/run_peft_qlora_fsdp.sh": "bnb_4bit_quant_storage_dtype",
    "yangjianxin1/Firefly@c561b25 train_args/sft/qlora/llama3-8b-sft-qlora.json": "use_unsloth",
    "yangjianxin1/Firefly@72e8732 train_args/pretrain/qlora/yi-6b-pretrain-qlora.json": "deepspeed",
    "yangjianxin1/Firefly@72e8732 train_args/sft/full/bloom-1b1-sft-full.json": "deepspeed",
    "lm-sys/FastChat@5152cbf scripts/train_lora.sh": "deepspeed",
}
"""Keys of the examples that affect memory and are not planned."""


@pytest.mark.parametrize(("form", "source"), CASES)
def test_real_examples_become_the_step_they_ask_for(tmp_path: Path, form: str, source: str):
    values = EXAMPLES[form][source]
    point, caveats = imported(tmp_path, values, UNSAID.get(source, ""))
    settings = point_settings(point)
    assert {name: settings[name] for name in EXPECTED[source]} == EXPECTED[source]
    assert point.model == values.get("base_model", values.get("model_name_or_path"))
    moving = [text for text in caveats if text.startswith("not understood")]
    assert moving == ([f"not understood, but they affect memory: {TOLD[source]}"] if source in TOLD else [])
    assert not [text for text in caveats if text.startswith("unknown")]


@pytest.mark.parametrize(("form", "source"), CASES)
def test_the_keys_of_real_examples_tell_the_tool(tmp_path: Path, form: str, source: str):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(EXAMPLES[form][source]))
    assert import_config(file, config_of, UNSAID.get(source, "")).format == form


@pytest.mark.parametrize(("form", "source"), CASES)
def test_a_saved_scenario_has_the_same_point(tmp_path: Path, form: str, source: str):
    point, caveats = imported(tmp_path, EXAMPLES[form][source], UNSAID.get(source, ""))
    saved = tmp_path / "saved.yaml"
    scenario = scenario_of(tmp_path / "config.yaml", [point], ["RTX 4090"])
    saved.write_text(scenario_text(scenario, caveats))
    assert expand(load_scenario(saved)) == (point,)
    assert load_scenario(saved).plan.gpus == ("RTX 4090",)
    assert saved.read_text().startswith("".join(f"# {text}\n" for text in caveats) + "name: config\n")


def test_several_points_are_saved_too(tmp_path: Path):
    points = [
        point_from({"model": "gpt2"}, {"r": r, "precision": precision})
        for r, precision in ((8, "bf16"), (4, "nf4"))
    ]
    points.append(point_from({"model": "gpt2"}, {"lora": None}))
    saved = tmp_path / "saved.yaml"
    saved.write_text(scenario_text(scenario_of(Path("a b.yml"), points, [])))
    assert expand(load_scenario(saved)) == tuple(points)


def test_json_is_read_too(tmp_path: Path):
    file = tmp_path / "args.json"
    file.write_text(
        json.dumps({"do_train": True, "model_name_or_path": "gpt2", "block_size": 512, "fp16": True})
    )
    found = import_config(file, config_of)
    assert found.format == "trainer"
    # Trainer's defaults: 8 sequences, no checkpointing; fp16 is autocast over fp32 weights.
    assert found.settings["train"]["per_device_train_batch_size"] == 8
    assert found.settings["train"]["gradient_checkpointing"] is False
    assert (found.settings["precision"], found.settings["train"]["autocast"]) == ("fp32", "fp16")
    assert found.settings["lora"] is None


def test_keys_are_told_unless_they_are_off_or_harmless(tmp_path: Path):
    values = {
        "base_model": "gpt2", "adapter": "lora", "sample_packing": True, "learning_rate": 1e-4,
        "fsdp": ["full_shard"], "torch_compile": True, "liger_glu_activation": True, "deepspeed": None,
        "lora_modules_to_save": [], "flash_attn_fuse_mlp": False, "frobnicate": 3, "wandb_anything": "x",
    }  # fmt: skip
    _, caveats = imported(tmp_path, values)
    assert caveats == (
        "fsdp: FSDP1 is not planned; set fsdp_version: 2, or use qbench dryrun",
        "not understood, but they affect memory: torch_compile",
        "unknown keys that may affect memory: frobnicate",
    )


@pytest.mark.parametrize(
    ("values", "loss", "kernels"),
    [
        # TRL keeps its own loss beside Liger's layers; others take Liger's.
        (
            {"model_name_or_path": "a/qwen3", "use_liger_kernel": True, "max_length": 9},
            "chunked",
            ALL_KERNELS,
        ),
        ({"model_name_or_path": "a/qwen3", "use_liger_kernel": True, "block_size": 9}, "liger", ALL_KERNELS),
        (
            {"model_name_or_path": "a/qwen3", "enable_liger_kernel": True, "cutoff_len": 9},
            "liger",
            ALL_KERNELS,
        ),
        (
            {"model_name_or_path": "a/qwen3", "enable_liger_kernel": True, "cutoff_len": 9, "stage": "dpo"},
            "full_logits",
            ALL_KERNELS,
        ),
        ({"model_name_or_path": "gpt2", "use_liger_kernel": True, "block_size": 9}, "full_logits", ()),
        (
            {"base_model": "a/qwen3", "plugins": [LIGER], "liger_glu_activation": True, "liger_rope": True},
            "full_logits",
            ("rope", "glu"),
        ),
    ],
)
def test_kernels_of_liger_are_those_of_tool_and_model(
    tmp_path: Path, values: dict[str, Any], loss: str, kernels: tuple[str, ...]
):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    found = import_config(file, config_of)
    point = point_from(found.settings, {})
    assert (point.choices.loss_type, point.train.liger_kernels) == (loss, kernels)
    assert found.unmodelled == {}


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({"base_model": "gpt2", "gradient_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant"),
        ({"base_model": "gpt2", "gradient_checkpointing_kwargs": {"use_reentrant": False}}, "no_reentrant"),
        # What axolotl and LLaMA-Factory do where the file is silent.
        ({"base_model": "gpt2"}, "reentrant"),
        ({"model_name_or_path": "gpt2", "cutoff_len": 9}, "reentrant"),
        ({"model_name_or_path": "gpt2", "cutoff_len": 9, "use_reentrant_gc": False}, "no_reentrant"),
        (TRL["recipes/smollm3/sft/sft.yaml"], "reentrant"),
        (TRL["recipes/smollm2/sft/config.yaml"], "no_reentrant"),
    ],
)
def test_the_form_of_checkpointing_is_read(tmp_path: Path, values: dict[str, Any], form: str):
    point, _ = imported(tmp_path, values)
    assert point.choices.checkpoint_impl == form


@pytest.mark.parametrize(
    ("values", "loss", "left_out"),
    [
        ({"plugins": [CUT_CROSS_ENTROPY]}, "cut_cross_entropy", {}),
        ({"plugins": [CUT_CROSS_ENTROPY], "cut_cross_entropy": False}, "full_logits", {}),
        ({"plugins": [LIGER], "liger_fused_linear_cross_entropy": True}, "liger", {}),
        # A key of a plugin that is not loaded does nothing.
        ({"liger_fused_linear_cross_entropy": True}, "full_logits", {}),
        (
            {"base_model": "a/moe", "plugins": [LIGER], "liger_rope": True},
            "full_logits",
            {"liger_rope": "less"},
        ),
        # Liger has no kernels for gpt2.
        ({"plugins": [LIGER], "liger_rope": True, "liger_layer_norm": True}, "full_logits", {}),
        ({"plugins": ["axolotl.integrations.swanlab.SwanLabPlugin"]}, "full_logits", {}),
        ({"plugins": ["axolotl.integrations.spectrum.SpectrumPlugin"]}, "full_logits", {"plugins": "either"}),
        ({"rl": "orpo"}, "full_logits", {"rl": "more"}),
        ({"rl": "kto", "kto_desirable_weight": 0.2, "micro_batch_size": 2}, "full_logits", {}),
        ({"reward_model": True, "lora_qkv_kernel": False}, "full_logits", {}),
        ({"quantize_moe_experts": True, "load_in_4bit": True, "adapter": "qlora"}, "full_logits", {}),
        (
            {"quantize_moe_experts": True, "load_in_8bit": True},
            "full_logits",
            {"quantize_moe_experts": "less"},
        ),
        ({"gradient_checkpointing": True, "activation_offloading": "legacy"}, "full_logits", {}),
        (
            {"gradient_checkpointing": True, "activation_offloading": True},
            "full_logits",
            {"activation_offloading": "either"},
        ),
        ({"rl": "dpo"}, "full_logits", {}),
        ({"lora_modules_to_save": ["wte"]}, "full_logits", {}),
        ({"lora_target_parameters": ["x"]}, "full_logits", {"lora_target_parameters": "more"}),
        # Misspelt, or what another tool calls it; what nothing is like is reported alone.
        ({"micro_batchsize": 16}, "full_logits", {"micro_batchsize": "either"}),
        ({"lora_rank": 512}, "full_logits", {"lora_rank": "either"}),
        ({"frobnicate": 3}, "full_logits", {}),
        # A version alone shards nothing.
        ({"fsdp_version": 2}, "full_logits", {}),
    ],
)
def test_what_moves_memory_is_planned_or_known_to_be_left_out(
    tmp_path: Path, values: dict[str, Any], loss: str, left_out: dict[str, str]
):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"base_model": "gpt2", "adapter": "lora", "lora_o_kernel": False} | values))
    found = import_config(file, config_of)
    assert found.unmodelled == left_out
    assert point_from(found.settings, {}).choices.loss_type == loss


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({}, "nf4-dq"),
        ({"bnb_4bit_use_double_quant": False}, "nf4"),
        ({"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}, "fp4"),
    ],
)
def test_arguments_of_bitsandbytes_lie_over_axolotls_own(
    tmp_path: Path, given: dict[str, Any], precision: str
):
    values = {"base_model": "gpt2", "adapter": "qlora", "load_in_4bit": True, "bnb_config_kwargs": given}
    assert imported(tmp_path, values)[0].precision == precision


def test_arguments_of_the_model_are_read(tmp_path: Path):
    within = {"dtype": "bfloat16", "attn_implementation": "flash_attention_2", "device_map": "auto"}
    values = {"model_name_or_path": "gpt2", "max_length": 64, "packing": True, "model_init_kwargs": within}
    point, caveats = imported(tmp_path, values)
    assert point.precision == "bf16"
    assert point.train.attn_implementation == "flash_attention_2"
    assert caveats == ("model_init_kwargs.device_map: not understood, and it may affect memory",)


def test_one_text_of_targets_is_a_pattern(tmp_path: Path):
    pattern = r"model.layers.[\d]+.self_attn.(q|k)_proj"
    values = {"base_model": "gpt2", "adapter": "lora", "lora_target_modules": pattern}
    point, _ = imported(tmp_path, values)
    assert point.lora is not None
    assert point.lora.target_modules == pattern


@pytest.mark.parametrize(
    ("values", "tool"),
    [
        ({"task": "llm-sft", "base_model": "gpt2", "project_name": "x", "params": {}}, "AutoTrain"),
        ({"model": "gpt2", "model_class": "llm", "micro_batch_size": 1}, "LLaMA-Factory v1"),
        ({"model": "gpt2", "checkpoint_dir": "x", "lora_r": 8}, "LitGPT"),
        ({"peft_type": "LORA", "r": 8, "target_modules": ["c_attn"]}, "peft"),
        ({"model": {"_component_": "torchtune.models.llama3"}, "epochs": 1}, "torchtune"),
    ],
)
def test_a_tool_that_is_not_read_is_named(tmp_path: Path, values: dict[str, Any], tool: str):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    with pytest.raises(ScenarioError, match=f"a config of {tool}"):
        import_config(file, config_of)


def test_ms_swifts_defaults(tmp_path: Path):
    values = {
        "model": "gpt2",
        "tuner_type": "lora",
        "torch_dtype": "bfloat16",
        "quant_bits": 4,
        "system": "x",
    }
    point, caveats = imported(tmp_path, values | {"max_length": 64, "packing": True})
    # Batches of 16 sequences in micro-batches of one; bnb in nf4 with double quantization.
    assert (point.precision, point.train.gradient_accumulation_steps, point.train.seq_len) == (
        "nf4-dq",
        16,
        64,
    )
    assert point.lora is not None
    assert (point.lora.r, point.lora.lora_alpha, point.lora.target_modules) == (8, 32, "all-linear")
    choices = point.choices
    assert (choices.upcast, choices.checkpoint_impl, choices.loss_type) == (
        "none",
        "reentrant",
        "full_logits",
    )
    assert (point.train.recipe, point.train.autocast, caveats) == ("ms-swift", "bf16", ())


def test_a_key_of_scripts_makes_no_script_of_an_axolotl_file(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"base_model": "gpt2", "full_finetune": True, "sequence_len": 64}))
    assert import_config(file, config_of).format == "axolotl"


@pytest.mark.parametrize(
    ("values", "precision", "told"),
    [
        # The dtype of the checkpoint where the model's config says it, else bf16, and told.
        ({"model_name_or_path": "a/half", "max_length": 9, "dtype": "auto"}, "fp16", ""),
        ({"model_name_or_path": "a/half", "do_train": True, "torch_dtype": "auto"}, "fp16", ""),
        ({"model_name_or_path": "a/b", "max_length": 9, "dtype": "auto"}, "bf16", "dtype: auto is the"),
        (
            {"model_name_or_path": "a/b", "max_length": 9},
            "fp32",
            "no dtype is set: base weights are planned",
        ),
        (
            {"model_name_or_path": "gpt2", "load_in_4bit": True, "use_peft": True},
            "nf4",
            "no dtype is set: TRL would load unquantized weights",
        ),
        (
            {"model_name_or_path": "gpt2", "load_in_4bit": True, "use_peft": True, "dtype": "bfloat16"},
            "nf4",
            "",
        ),
    ],
)
def test_the_dtype_is_the_one_named_or_told(
    tmp_path: Path, values: dict[str, Any], precision: str, told: str
):
    point, caveats = imported(tmp_path, values)
    assert point.precision == precision
    assert [text[: len(told)] for text in caveats if "dtype" in text] == ([told] if told else [])


@pytest.mark.parametrize(
    "values",
    [
        {"model_name_or_path": "gpt2", "max_length": None, "packing": True},
        {"base_model": "gpt2", "sequence_len": None, "sample_packing": True},
        {"model_name_or_path": "gpt2", "do_train": True, "max_seq_length": None, "packing": True},
    ],
)
def test_a_length_without_end_is_asked_for(tmp_path: Path, values: dict[str, Any]):
    with pytest.raises(ScenarioError, match=r": null cuts no sequence, .* give it with --seq$"):
        imported(tmp_path, values)
    point, _ = imported(tmp_path, values, seq_len=384)
    assert point.train.seq_len == 384


def test_an_error_names_the_key_as_the_file_spells_it(tmp_path: Path):
    with pytest.raises(ScenarioError, match="lora_rank: given 'x'"):
        imported(tmp_path, {"model_name_or_path": "gpt2", "train_mode": "lora", "lora_rank": "x"}, "trainer")


def test_an_optimizer_that_is_not_planned_is_told(tmp_path: Path):
    point, caveats = imported(
        tmp_path, {"base_model": "gpt2", "optimizer": "lion_8bit", "sample_packing": True}
    )
    assert point.train.optim == "adamw_torch"
    assert any(text.startswith("optimizer: lion_8bit is not planned") for text in caveats)


def test_modules_that_are_not_named_are_those_that_peft_takes(tmp_path: Path):
    point, _ = imported(tmp_path, {"base_model": "gpt2", "adapter": "lora"})
    assert point.lora is not None
    assert point.lora.target_modules == ("c_attn",)


def test_the_model_can_be_replaced(tmp_path: Path):
    file = tmp_path / "config.yml"
    file.write_text("base_model: NousResearch/Llama-2-7b-hf\n")
    assert (
        import_config(file, config_of, "", "meta-llama/Llama-2-7b-hf").settings["model"]
        == "meta-llama/Llama-2-7b-hf"
    )


@pytest.mark.parametrize(
    ("values", "form", "message"),
    [
        ({"learning_rate": 1}, "", "its keys do not show which tool it is for; name it with --from-format"),
        ({"base_model": "gpt2"}, "axolotle", "given 'axolotle'; did you mean axolotl? allowed: axolotl,"),
        ({"base_model": None}, "", "base_model: not there; allowed: a hub id or a folder"),
        ({"base_model": "gpt2", "adapter": "ia3"}, "", "adapter: given 'ia3'; allowed: lora, qlora"),
        ({"base_model": "gpt2", "micro_batch_size": "two"}, "", "micro_batch_size: given 'two'; allowed:"),
        ({"base_model": "gpt2", "bf16": "maybe"}, "", "bf16: given 'maybe'; allowed: true, false, auto"),
        ({"base_model": "a/b", "adapter": "lora"}, "", "lora_target_modules: missing, and what peft adapts"),
        ({"base_model": "gpt2", "load_in_4bit": True}, "", "precision nf4-dq cannot be trained"),
        ({"model_name_or_path": "gpt2", "finetuning_type": "oft"}, "", "finetuning_type: given 'oft'"),
        ({"model_name_or_path": "gpt2", "cutoff_len": 9, "quantization_bit": 3}, "", "quantization_bit:"),
        ({"base_model": "gpt2", "adapter": "lora", "lora_dropout": 7}, "", "lora_dropout: given 7; allowed"),
    ],
)  # fmt: skip
def test_bad_configs_say_what_is_wrong(tmp_path: Path, values: dict[str, Any], form: str, message: str):
    with pytest.raises(ScenarioError) as raised:
        imported(tmp_path, values, form)
    (problem,) = map(str, raised.value.problems)
    assert message in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yml", "- 1\n- 2\n", "allowed: keys and values"),
        ("a.yml", "a: [1\n", "a.yml:2: not valid YAML"),
        ("a.json", '{"a": }', "a.json:1: not valid JSON"),
        ("a.yml", "", "given null; allowed: keys and values"),
        ("a.yml", "a: !!python/object:os.system x\n", "not valid YAML"),
        ("a.yml", "1: 2\n", "allowed: keys and values"),
    ],
)
def test_unreadable_files_say_where(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ScenarioError, match=r"^[^\n]+$") as raised:
        import_config(tmp_path / name, config_of)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["train.py", "train.ipynb"])
def test_a_script_is_told_what_to_give_instead(tmp_path: Path, name: str):
    (tmp_path / name).write_text("import torch\n")
    with pytest.raises(ScenarioError, match=r"^[^\n]+$") as raised:
        import_config(tmp_path / name, config_of)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / name}: a Python script or notebook cannot be read")
    assert "QbenchCallback (qbench.callback)" in message


def test_what_is_said_to_be_written_instead_of_a_script_is_read(tmp_path: Path):
    values = {
        "model_name_or_path": "gpt2", "use_peft": True, "lora_r": 4, "lora_alpha": 8,
        "lora_target_modules": ["c_attn"], "load_in_4bit": True, "max_length": 128, "bf16": True,
    }  # fmt: skip
    point, caveats = imported(tmp_path, values)
    assert (point.precision, point.train.seq_len, point.train.recipe) == ("nf4", 128, "trl")
    assert point.lora is not None
    assert (point.lora.r, point.lora.lora_alpha) == (4, 8)
    assert not any("unknown" in caveat or "not understood" in caveat for caveat in caveats)


FSDP = {"fsdp": "full_shard auto_wrap", "model_name_or_path": "gpt2", "lora_rank": 8, "cutoff_len": 9}


@pytest.mark.parametrize(
    ("values", "left_out"),
    [
        (FSDP, {}),
        (FSDP | {"fsdp_config": {"fsdp_offload_params": True}}, {"fsdp_config.offload_params": "less"}),
        (FSDP | {"fsdp_config": {"fsdp_frobnicate": 1}}, {"fsdp_config.frobnicate": "either"}),
        # axolotl's own wrapper makes groups of adapters, and without a version it is FSDP1 there.
        (
            {
                "base_model": "gpt2",
                "adapter": "lora",
                "fsdp_version": 2,
                "fsdp": ["full_shard"],
            },
            {"fsdp": "either"},
        ),
    ],
)
def test_a_file_that_shards_is_planned_for_the_gpus_that_are_named(
    tmp_path: Path, values: dict[str, Any], left_out: dict[str, str]
):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    found = import_config(file, config_of)
    assert found.unmodelled == left_out
    shared = point_from(found.settings, {"gpus": 4}).distributed
    assert shared is not None
    assert (shared.strategy, shared.gpus, shared.reshard_after_forward) == ("fsdp2", 4, True)
    with pytest.raises(ScenarioError, match="does not say how many; add --gpus N"):
        read_asked(TargetRequest(name=None, config=file))


def test_settings_of_fsdp_are_those_of_the_scenario(tmp_path: Path):
    config = {
        "transformer_layer_cls_to_wrap": ["GPT2Block"],
        "reshard_after_forward": False,
        "activation_checkpointing": True,
    }
    values = FSDP | {"fsdp_config": config, "disable_gradient_checkpointing": True}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    point = point_from(import_config(file, config_of).settings, {"gpus": 2})
    assert point.distributed is not None
    assert point.distributed.transformer_cls_names_to_wrap == "GPT2Block"
    assert not point.distributed.reshard_after_forward
    assert (point.train.gradient_checkpointing, point.choices.checkpoint_impl) == (True, "no_reentrant")


def test_the_json_of_deepspeed_is_read_from_a_folder_above(tmp_path: Path):
    zero = {
        "stage": 3,
        "overlap_comm": False,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "none"},
    }
    (tmp_path / "engine.json").write_text(
        json.dumps({"zero_optimization": zero, "bf16": {"enabled": "auto"}})
    )
    file = tmp_path / "examples" / "config.json"
    file.parent.mkdir()
    values = {key: value for key, value in FSDP.items() if key != "fsdp"}
    file.write_text(json.dumps(values | {"deepspeed": "engine.json", "optim": "adamw_torch"}))
    found = import_config(file, config_of)
    assert found.unmodelled == {"deepspeed.offload_optimizer": "less"}
    shared = point_from(found.settings, {"gpus": 4}).distributed
    assert shared is not None
    assert (shared.strategy, shared.overlap_comm, shared.sub_group_size) == ("zero3", False, 10**9)
    file.write_text(json.dumps(values | {"deepspeed": "elsewhere.json"}))
    assert import_config(file, config_of).unmodelled == {"deepspeed": "either"}


def test_fsdp1_of_axolotl_is_left_out(tmp_path: Path):
    values = {"base_model": "gpt2", "adapter": "lora", "fsdp_config": {"fsdp_offload_params": True}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    found = import_config(file, config_of)
    assert found.unmodelled == {"fsdp_config": "either"}
    assert "distributed" not in found.settings


@pytest.mark.parametrize(
    ("keys", "form"),
    [
        # A key that another tool has, too, among the keys of TRL.
        ({"lora_rank": 8, "use_peft": True, "max_seq_length": 512}, "trl"),
        ({"template": "qwen", "use_peft": True, "max_length": 512, "packing": True}, "trl"),
        ({"lora_rank": 8, "cutoff_len": 512, "packing": True}, "llama-factory"),
        ({"lora_rank": 8}, "llama-factory"),
    ],
)
def test_a_tool_is_known_by_most_of_its_keys(tmp_path: Path, keys: dict[str, Any], form: str):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_name_or_path": "gpt2", "lora_target_modules": "c_attn", **keys}))
    assert import_config(file, config_of).format == form


@pytest.mark.parametrize(
    ("keys", "task", "sizes"),
    [
        ({"desirable_weight": 1.0}, "kto", (1024, 256)),
        ({"center_rewards_coefficient": 0.01, "max_length": 512}, "reward", (512, 256)),
        ({"beta": 0.1}, "dpo", (1024, 256)),
        ({"num_generations": 8, "max_prompt_length": 300}, "grpo", (812, 512)),
        ({"reward_funcs": ["accuracy"], "max_completion_length": 100}, "grpo", (612, 100)),
        ({"packing": True}, "sft", (1024, 256)),
    ],
)
def test_keys_of_one_trainer_alone_name_the_task(
    tmp_path: Path, keys: dict[str, Any], task: str, sizes: tuple[int, int]
):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_name_or_path": "gpt2", **keys}))
    found = import_config(file, config_of, "trl")
    train = point_from(found.settings, {}).train
    assert (train.task, (train.seq_len, train.max_completion_length)) == (task, sizes)
    assert found.unmodelled == {}


@pytest.mark.parametrize("value", ["offload", "offload_disk", "unsloth"])
def test_checkpoints_that_axolotl_moves_off_the_card_are_told(tmp_path: Path, value: str):
    values = {"base_model": "gpt2", "adapter": "lora", "gradient_checkpointing": value}
    point, caveats = imported(tmp_path, values)
    assert point.train.gradient_checkpointing
    assert (
        f"gradient_checkpointing: {value} moves activations off the card; planned as if they stayed on it"
        in caveats
    )


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(ScenarioError, match="no such file"):
        import_config(tmp_path / "none.yml", config_of)


def test_modules_that_peft_adapts_by_default_are_those_of_the_installed_one():
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_PEFT

    assert {name: tuple(BY_PEFT[name]) for name in ADAPTED_BY_DEFAULT} == ADAPTED_BY_DEFAULT
