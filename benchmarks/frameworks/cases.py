"""The programs, each with the settings of the plan that is of the same step, where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "programs"
SMALL, LARGE = "Qwen/Qwen2.5-1.5B", "meta-llama/Llama-3.1-8B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One program."""

    name: str
    words: Sequence[str]
    """Behind the environment's folder of programs: python, torchrun, accelerate."""
    gpu: str = "RTX 4090"
    gpus: int = 1
    rank_only: bool = False
    plan: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the plan of the same step; empty where qbench models none."""


def _trl(kind: str, model: str = SMALL, *more: str, planned: bool = True, **plan: Any) -> Case:
    settings: dict[str, Any] = {
        "model": model,
        "precision": "nf4-dq" if "--4bit" in more else "bf16",
        "recipe": "trl",
        "autocast": "bf16",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "seq_len": 1024,
        "lora_dropout": 0,
        **plan,
    }
    name = "-".join((kind, model.rpartition("/")[2], *(word.strip("-") for word in more)))
    words = ("python", str(PROGRAMS / "train_trl.py"), kind, model, *more)
    return Case(name=name, words=words, plan=settings if planned else {})


def _ranks(kind: str, model: str, ranks: int, gpu: str, *, rank_only: bool = False) -> Case:
    words = ("torchrun", "--standalone", "--nproc-per-node", str(ranks))
    program = (str(PROGRAMS / "train_ranks.py"), kind, model)
    name = f"{kind}-{model.rpartition('/')[2]}-{ranks}-ranks"
    return Case(name=name, words=(*words, *program), gpu=gpu, gpus=ranks, rank_only=rank_only)


CASES = (
    _trl("sft"),
    _trl("sft", SMALL, "--4bit"),
    _trl("sft", LARGE, "--4bit"),
    _trl("liger", SMALL, "--4bit", loss_type="liger"),
    _trl("cce", planned=False),
    _trl("trainer", recipe="trainer"),
    _trl("dpo", planned=False),
    _trl("kto", planned=False),
    _trl("reward", planned=False),
    _trl("grpo", planned=False),
    _ranks("ddp", "Qwen/Qwen2.5-0.5B", 2, "RTX 4090"),
    _ranks("fsdp2", "Qwen/Qwen2.5-0.5B", 2, "RTX 4090"),
    _ranks("fsdp2-lora", "meta-llama/Llama-3.1-70B", 8, "A100-SXM4-80GB", rank_only=True),
)
