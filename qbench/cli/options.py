"""What commands share: that a single value is given once, and the flags that set up a training step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class OnceCommand(TyperCommand):
    """A command that refuses a second value where it takes one; click would take the last in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return what is left of the arguments; ends the command when a single value is given twice."""
        words = [*args]
        left = super().parse_args(ctx, args)  # It answers --help, and tells other mistakes first.
        _, _, given = self.make_parser(ctx).parse_args(args=[*words])
        for option, times in Counter(given).items():
            if times > 1 and option.param_type_name == "option" and not option.multiple:
                name = "/".join((*option.opts, *option.secondary_opts))
                if not getattr(option, "is_flag", False):
                    ctx.fail(f"{name}: given {times} times; it takes one value, leave out the others")
                if all(flags.intersection(words) for flags in (set(option.opts), set(option.secondary_opts))):
                    ctx.fail(f"{name}: given both ways; leave one out")
        return left


TargetName = Annotated[
    str | None, typer.Argument(help="Scenario file, model of the catalog or hub, or folder with config.json.")
]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Config of axolotl, LLaMA-Factory, TRL or Trainer; TARGET may name its model."
    ),
]
FromFormat = Annotated[
    str, typer.Option(help="axolotl, llama-factory, trl or trainer; without it the file's keys tell.")
]
Precision = Annotated[
    list[str] | None, typer.Option(help="fp32, bf16, fp16, nf4, nf4-dq, fp4, fp4-dq, int8.")
]
Rank = Annotated[list[int] | None, typer.Option("--r", help="Rank of the adapters.")]
TargetModules = Annotated[
    list[str] | None, typer.Option(help="Modules to adapt, separated by commas, or all-linear.")
]
LoraDropout = Annotated[
    list[float] | None, typer.Option(help="Dropout before lora_A; adapted experts allow 0 only.")
]
Batch = Annotated[list[int] | None, typer.Option(help="Sequences in one forward pass.")]
Seq = Annotated[list[int] | None, typer.Option(help="Tokens in one sequence.")]
Checkpointing = Annotated[bool | None, typer.Option(help="Recompute layers in backward.")]
Optim = Annotated[list[str] | None, typer.Option(help="As TrainingArguments.optim.")]
Autocast = Annotated[list[str] | None, typer.Option(help="none, bf16, fp16.")]
Recipe = Annotated[list[str] | None, typer.Option(help="plain, peft, trainer, trl.")]
Attn = Annotated[list[str] | None, typer.Option(help="auto, eager, sdpa, flash_attention_2.")]
Gpu = Annotated[list[str] | None, typer.Option(help="GPU to hold the plan against.")]
GpuMemory = Annotated[str, typer.Option(help="Memory of a card that is not listed, as 24GiB.")]
ComputeCapability = Annotated[str, typer.Option(help="Compute capability of that card, as 8.9.")]
AllocConf = Annotated[
    str, typer.Option(help="CUDA's allocator as PYTORCH_ALLOC_CONF sets it; the environment is not asked.")
]
UseCache = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Take plans made before with the same libraries.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def step_flags(params: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Return the values given for each setting by its short name, out of all parameters of a command."""
    checkpointing = params["gradient_checkpointing"]
    flags: dict[str, Sequence[Any] | None] = {
        "precision": params["precision"],
        "r": params["r"],
        "target_modules": [_modules(text) for text in params["target_modules"] or []],
        "lora_dropout": params["lora_dropout"],
        "per_device_train_batch_size": params["batch"],
        "seq_len": params["seq"],
        "gradient_checkpointing": None if checkpointing is None else [checkpointing],
        "optim": params["optim"],
        "autocast": params["autocast"],
        "recipe": params["recipe"],
        "attn_implementation": params["attn"],
    }
    return {name: values for name, values in flags.items() if values}


def _modules(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",")]
    return names[0] if names == ["all-linear"] else names
