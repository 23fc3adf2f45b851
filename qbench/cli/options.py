"""What commands share: that a single value is given once, and the flags that set up a training step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class OnceCommand(TyperCommand):
    """A command that refuses a second value where it takes one; click would silently take the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return what is left of the arguments; ends the command when a single value is given twice."""
        words = [*args]
        try:
            left = super().parse_args(ctx, args)  # It answers --help, and tells other mistakes first.
        except Exception as error:
            if flag := self._meant(getattr(error, "option_name", None)):
                ctx.fail(f"No such option: {error.option_name}; use {flag}")  # type: ignore[attr-defined]
            raise
        _, _, given = self.make_parser(ctx).parse_args(args=[*words])
        for option, times in Counter(given).items():
            if times > 1 and option.param_type_name == "option" and not option.multiple:
                name = "/".join((*option.opts, *option.secondary_opts))
                if not getattr(option, "is_flag", False):
                    ctx.fail(f"{name}: given {times} times; allowed: once")
                if all(flags.intersection(words) for flags in (set(option.opts), set(option.secondary_opts))):
                    ctx.fail(f"{name}: given both ways; omit one")
        return left

    def _meant(self, option: str | None) -> str | None:
        """Return the flag of this command for the setting that an unknown option names otherwise."""
        if option is None:
            return None
        from qbench.scenario.settings import flag_of

        name = option.lstrip("-").replace("-", "_")
        flag = f"--{flag_of(name)}"
        taken = {flag for parameter in self.params for flag in parameter.opts}
        if flag in taken:
            return flag
        return _OTHERWISE.get(name) if {"target", "--precision"} <= taken else None


_OTHERWISE = {
    **dict.fromkeys(("load_in_4bit", "use_4bit", "qlora"), "--precision nf4-dq"),
    "load_in_8bit": "--precision int8",
    "bf16": "--precision bf16 for the weights, or --autocast bf16",
    "fp16": "--precision fp16 for the weights, or --autocast fp16",
    **dict.fromkeys(
        ("model", "model_name", "model_name_or_path", "base_model"),
        "the model as the first argument, without a flag",
    ),
    "epochs": "`qbench rank TARGET --tokens 10M --epochs N` for hours and cost",
    "tokens": "`qbench rank TARGET --tokens 10M` for hours and cost",
    "config": "--from",
}
"""What flags of training tools are in commands that take a training step."""


def _models() -> list[str]:
    from qbench.catalog.models import models

    return [model.hub_id for model in models()]


TargetName = Annotated[
    str | None,
    typer.Argument(
        help="Scenario file, model of the catalog or hub, or folder with config.json.", autocompletion=_models
    ),
]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Config of axolotl, LLaMA-Factory, TRL or Trainer; TARGET may name its model."
    ),
]
FromFormat = Annotated[
    str,
    typer.Option(
        help="axolotl, llama-factory, ms-swift, trl or trainer; default: detected from the file's keys."
    ),
]
Gpu = Annotated[list[str] | None, typer.Option(help="GPU to check the plan against; can be repeated.")]
GpuMemory = Annotated[str, typer.Option(help="Memory of a card that is not listed, for example 24GiB.")]
ComputeCapability = Annotated[str, typer.Option(help="Compute capability of that card [default: 8.9].")]
AllocConf = Annotated[
    str, typer.Option(help="Allocator settings in PYTORCH_ALLOC_CONF syntax; the variable itself is ignored.")
]
UseCache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Reuse plans made by the same code and libraries; --no-cache makes them again.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ScenarioName = Annotated[str, typer.Argument(help="Scenario file, or the file name of a shipped one.")]
MaxPoints = Annotated[int, typer.Option(help="Maximum number of points in a scenario.")]
