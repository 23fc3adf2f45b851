"""The programs, each with the settings of the plan that is of the same step, where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
STAND_INS = HERE / "standins"
"""Packages that are on no index as wheels, on the path of every program."""
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
    suite: str = "trl"
    config: str = ""
    """File of the suite's checkout that the program reads, and of which the plan is."""
    seq_len: int = 512
    """Tokens of the rows that stand in for a dataset."""
    models: Sequence[str] = ()
    """Ids of the hub that the program makes up as it runs."""
    published_gib: float | None = None
    """What the framework's own documents say that this config takes."""


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


def _axolotl(
    config: str, *, gpu: str = "RTX A6000", seq_len: int = 64, published_gib: float | None = None
) -> Case:
    """Return an example; rows of 64 tokens are packed to nearly full sequences."""
    return Case(
        suite="axolotl",
        name=f"axolotl-{Path(config).stem}",
        words=("axolotl", "train", config),
        config=f"examples/{config}",
        gpu=gpu,
        seq_len=seq_len,
        published_gib=published_gib,
    )


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
    _axolotl("plano/plano-4b-qlora.yaml", published_gib=5.1),
    _axolotl("ministral/ministral-small-qlora.yaml", published_gib=8.76),
    _axolotl("arcee/afm-4.5b-qlora.yaml", published_gib=7.8),
    _axolotl("olmo3/olmo3-7b-qlora.yaml", published_gib=11.3),
    _axolotl("hunyuan/hunyuan-v1-dense-qlora.yaml"),
    _axolotl("seed-oss/seed-oss-36b-qlora.yaml", published_gib=27.7),
    _axolotl("llama-3/lora-1b.yml"),
    _axolotl("llama-3/lora-1b-kernels.yml"),
    _axolotl("qwen2/dpo.yaml", seq_len=1900),
    _axolotl("mistral/orpo/mistral-qlora-orpo.yml", seq_len=3900),
    _axolotl("LiquidAI/lfm2-350m-fft.yaml"),
    _axolotl("LiquidAI/lfm2-8b-a1b-lora.yaml"),
    _axolotl("LiquidAI/lfm2-vl-lora.yaml", seq_len=1900),
    _axolotl("gemma3/gemma-3-1b-qlora.yml"),
    _axolotl("gemma4/31b-qlora.yaml", published_gib=25.2),
    _axolotl("glm47-flash/qlora.yaml", published_gib=24.0),
    _axolotl("qwen3/32b-qlora.yaml"),
)
