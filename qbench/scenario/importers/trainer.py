"""Argument files of scripts around transformers' Trainer, as HfArgumentParser.parse_json_file reads them.

Trainer itself says nothing of adapters and quantization: each script has arguments of its own for them. Those
of three well-known ones are known here, by their keys; others are read as if they spelt things as TRL does.

Source: transformers/training_args.py; artidoro/qlora qlora.py, yangjianxin1/Firefly train.py@c561b25 and
lm-sys/FastChat fastchat/train/train_lora.py@02d4581, for what each makes of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qbench.scenario.importers.liger import liger_switch
from qbench.scenario.importers.reader import Reader
from qbench.scenario.importers.sharding import sharded
from qbench.scenario.importers.trl import (
    DTYPE_KEYS,
    PADDED,
    lora_settings,
    quantized_precision,
    train_settings,
    with_model_arguments,
)

_Values = Mapping[str, Any]


def from_trainer(reader: Reader) -> dict[str, Any]:
    """Return the settings of a Trainer file, which hold where the reader has no problems."""
    reader = with_model_arguments(_as_others_spell(reader))
    model = reader.model("model_name_or_path", "model_name")
    bf16, fp16 = reader.is_on("bf16"), reader.is_on("fp16")
    autocast = "bf16" if bf16 else "fp16" if fp16 else "none"
    train = train_settings(reader, checkpointing=False) | {
        "seq_len": _length(reader),
        **liger_switch(reader, model, "use_liger_kernel"),
        "autocast": autocast,
        "recipe": "trainer",
    }
    shards = sharded(reader, unversioned=2)
    return {
        "model": model,
        "precision": _precision(reader, model, "bf16" if autocast == "bf16" else "fp32"),
        "lora": lora_settings(reader, model, _is_adapted(reader)),
        **shards,
        "train": train | shards.get("train", {}),
    }


def _length(reader: Reader) -> int:
    """Return the tokens of a sequence; block_size is of scripts that fill every row."""
    padded = ("max_seq_length", "max_length", "model_max_length")
    if reader.get("block_size") is not None:
        return reader.length("block_size", *padded, default=1024)
    if reader.get(*padded) is None:
        reader.tell("no sequence length is set: planned at 1,024 tokens, the block size of run_clm.py")
    elif not reader.is_on("packing"):
        reader.tell(PADDED)
    return reader.length(*padded, "block_size", default=1024)


def _precision(reader: Reader, model: str, default: str) -> str:
    quantized, given = quantized_precision(reader), reader.dtype(model, *DTYPE_KEYS)
    if quantized is None and given is None:
        reader.tell(f"no dtype is set: base weights are planned in {default}")
    return quantized or given or default


def _is_adapted(reader: Reader) -> bool:
    """Return whether there are adapters: as a switch says, else where their rank is named."""
    switches = ("use_peft", "use_peft_lora", "use_lora")
    if reader.get(*switches) is None:
        return reader.get("lora_r", "lora_rank") is not None
    return reader.is_on(*switches)


def _as_others_spell(reader: Reader) -> Reader:
    """Return the arguments of a known script with what they stand for there in TRL's words."""
    for marks, stand_for in _SCRIPTS:
        if marks & reader.values.keys():
            return reader.spelt_as(stand_for(reader))
    return reader


def _qlora(reader: Reader) -> _Values:
    own = ("bits", "full_finetune", "source_max_len", "target_max_len")
    defaults = {
        "lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.0, "double_quant": True, "quant_type": "nf4",
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "optim": "paged_adamw_32bit",
        "gradient_checkpointing": True,
    }  # fmt: skip
    reader.get("source_max_len", "target_max_len")  # A max_length, as of --seq, stands for both.
    full = reader.is_on("full_finetune")
    bits = reader.bits("bits", (4, 8, 16, 32)) if "bits" in reader.values else 4
    if full and "bits" in reader.values and bits not in (16, 32):
        reader.refuse("bits", f"given {bits} beside full_finetune; allowed: 16, 32")
    bf16, fp16 = reader.is_on("bf16"), reader.is_on("fp16")
    # What is not 4 or 8 bit is loaded in float32 under fp16, too, and all linear layers are adapted.
    return _over(defaults, reader.values, own) | {
        "use_peft": not full,
        "load_in_4bit": not full and bits == 4,
        "load_in_8bit": not full and bits == 8,
        "lora_modules": "all",
        "dtype": "bfloat16" if bf16 and not fp16 else "float32",
        "max_length": reader.values.get("max_length") or _source_and_target(reader),
    }


def _source_and_target(reader: Reader) -> int:
    """Return the tokens of qlora.py's sequences, whose two parts are cut each for itself."""
    return reader.length("source_max_len", default=1024) + reader.length("target_max_len", default=256)


def _over(defaults: _Values, values: _Values, own: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a file says over the defaults of its script, less keys of its `own`; null says nothing."""
    said = {key: value for key, value in values.items() if value is not None or key not in defaults}
    return {**defaults, **{key: value for key, value in said.items() if key not in own}}


def _firefly(reader: Reader) -> _Values:
    mode = reader.choice("train_mode", allowed=("qlora", "lora", "full"), default="qlora")
    defaults = {"lora_rank": 64, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_modules": "all"}
    found = _over(defaults, reader.values, ["train_mode"])
    adapted = {
        "use_peft": True,
        "load_in_4bit": mode == "qlora",
        "double_quant": True,
        "dtype": "float16" if reader.is_on("fp16") else "bfloat16",
    }
    # Full weights in fp16 are left to DeepSpeed there; without it Trainer needs them in fp32.
    return found | (adapted if mode != "full" else {"use_peft": False})


def _fastchat(reader: Reader) -> _Values:
    defaults: dict[str, Any] = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
    defaults["lora_target_modules"] = ["q_proj", "v_proj"]
    # A length of null is no default: it cuts no sequence.
    found = {"model_max_length": 512} | _over(defaults, reader.values, ["q_lora"])
    return found | {"use_peft": True, "load_in_4bit": reader.is_on("q_lora"), "double_quant": True}


_SCRIPTS: tuple[tuple[frozenset[str], Callable[[Reader], _Values]], ...] = (
    (frozenset(["bits", "source_max_len", "target_max_len", "full_finetune"]), _qlora),
    (frozenset(["train_mode", "template_name"]), _firefly),
    (frozenset(["q_lora", "lora_weight_path"]), _fastchat),
)
"""Keys that tell a script, and what its arguments stand for."""

OF_SCRIPTS = frozenset[str]().union(*(marks for marks, _ in _SCRIPTS))
"""All keys that tell one of the scripts known here."""
