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
    steps: int = 3
    seq_len: int = 512
    """Tokens of the rows that stand in for a dataset."""
    models: Sequence[str] = ()
    """Ids of the hub that the program makes up as it runs."""
    published_gib: float | None = None
    """What the framework's own documents say that this config takes."""
    published_load_gib: float | None = None
    """What they say is reserved before the first step."""


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
    config: str, *, gpu: str = "RTX A6000", seq_len: int = 128, published_gib: float | None = None
) -> Case:
    """Return an example; rows of 128 tokens are packed to nearly full sequences."""
    return Case(
        suite="axolotl",
        name=f"axolotl-{Path(config).stem}",
        words=("axolotl", "train", config),
        config=f"examples/{config}",
        gpu=gpu,
        steps=2,
        seq_len=seq_len,
        published_gib=published_gib,
    )


def _unsloth(model: str, gpu: str, load_gib: float, peak_gib: float, *options: str, name: str = "") -> Case:
    """Return a row of Unsloth's notebooks; they load a copy in 4 bits where there is one."""
    copies = [f"{each}-unsloth-bnb-4bit" for each in (model, model.lower())]
    copies += [f"{each}-bnb-4bit" for each in (model, model.lower())]
    return Case(
        suite="unsloth",
        name=f"unsloth-{name or model.rpartition('/')[2]}",
        words=("python", str(PROGRAMS / "train_unsloth.py"), model, *options),
        gpu=gpu,
        steps=2,
        models=copies if "--4bit" in options else (),
        published_load_gib=load_gib,
        published_gib=peak_gib,
    )


_LFM = "q_proj,k_proj,v_proj,out_proj,in_proj,w1,w2,w3"
_A100, _LARGE_A100 = "A100-SXM4-40GB", "A100-SXM4-80GB"

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
    _axolotl("hunyuan/hunyuan-v1-dense-qlora.yaml"),
    _axolotl("seed-oss/seed-oss-36b-qlora.yaml", published_gib=27.7),
    _axolotl("llama-3/lora-1b.yml"),
    _axolotl("llama-3/lora-1b-kernels.yml"),
    _axolotl("qwen2/dpo.yaml", seq_len=1900),
    _axolotl("LiquidAI/lfm2-350m-fft.yaml"),
    _axolotl("LiquidAI/lfm2-8b-a1b-lora.yaml"),
    _axolotl("LiquidAI/lfm2-vl-lora.yaml", seq_len=1900),
    _axolotl("gemma3/gemma-3-1b-qlora.yml"),
    _axolotl("gemma4/31b-qlora.yaml", published_gib=25.2),
    _axolotl("glm47-flash/qlora.yaml", published_gib=24.0),
    _axolotl("qwen3/32b-qlora.yaml"),
    _unsloth("unsloth/LFM2.5-1.2B-Instruct", "L4", 2.230, 3.453, f"--targets={_LFM}"),
    _unsloth("unsloth/Qwen3-32B", _A100, 19.121, 24.529, "--4bit", "--r=32"),
    _unsloth("unsloth/Llama-3.3-70B-Instruct", _LARGE_A100, 39.221, 42.789, "--4bit"),
    _unsloth(
        *("unsloth/functiongemma-270m-it", "Tesla T4", 0.832, 10.66),
        *("--r=128", "--batch=4", "--accumulate=2", "--length=4096"),
    ),
    _unsloth(
        *("unsloth/gemma-3-270m-it", "Tesla T4", 0.832, 4.268),
        *("--loader=model", "--r=128", "--batch=4", "--accumulate=1"),
    ),
    _unsloth("unsloth/gemma-3-27b-it", _A100, 19.074, 25.791, "--4bit", "--loader=model", "--r=8"),
    _unsloth(
        *("LiquidAI/LFM2.5-1.2B-Base", "L4", 2.598, 4.361),
        *(f"--targets={_LFM},embed_tokens,lm_head", "--r=128", "--accumulate=8"),
    ),
    _unsloth("unsloth/Qwen2.5-7B", "Tesla T4", 5.764, 7.893, "--4bit"),
    _unsloth(
        *("unsloth/Qwen2.5-Coder-14B-Instruct", "Tesla T4", 10.287, 13.24),
        *("--4bit", "--batch=1", "--optim=paged_adamw_8bit"),
    ),
    _unsloth("unsloth/Llama-3.2-3B-Instruct", "Tesla T4", 2.635, 6.531, "--4bit"),
    _unsloth("unsloth/Qwen3-14B", "Tesla T4", 11.898, 14.066, "--4bit", "--r=32"),
)
