"""Keys that turn Liger's kernels on, for the model at hand: planned, not planned, or without any kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qbench.scenario.importers.reader import Reader
from qbench.scenario.liger import ALL_KERNELS, OTHERS, PLANNED, LigerKernel


def liger_switch(reader: Reader, model: str, *names: str, has_own_loss: bool = False) -> dict[str, Any]:
    """Return loss and kernels where one switch turns all of Liger on.

    `has_own_loss` is of tools that keep their loss (trl 1.16, trainer/sft_trainer.py, `SFTTrainer.__init__`).
    A model type that Liger does not know has none of its kernels, loss included.
    """
    if not reader.is_on(*names):
        return {"loss_type": "auto"}
    name = next(each for each in names if reader.get(each) is not None)
    is_known = reader.of_model(model, "model_type") in {None, *PLANNED, *OTHERS}
    loss = "auto" if has_own_loss or not is_known else "liger"
    return {"loss_type": loss} | liger_layers(reader, model, name, ALL_KERNELS)


def liger_layers(
    reader: Reader, model: str, name: str, kernels: Sequence[LigerKernel]
) -> dict[str, tuple[LigerKernel, ...]]:
    """Return the kernels of layers as a setting; those of models that are not planned are left out.

    `name` is the key that turns them on.
    """
    model_type = reader.of_model(model, "model_type")
    if not kernels or model_type in PLANNED or not model_type:
        return {"liger_kernels": tuple(kernels)} if kernels else {}
    if model_type in OTHERS:
        kept = "not planned; Liger's kernels keep fewer activations"
        reader.leave_out(name, "less", f"{', '.join(kernels)} of {model_type}: {kept}")
    else:
        reader.tell(f"{name}: Liger has no kernels for {model_type}; planned without")
    return {}
