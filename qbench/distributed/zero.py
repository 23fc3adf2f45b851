"""ZeRO: DeepSpeed's own engine around a model and its optimizer, with the arguments that Trainer gives it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from qbench.errors import StepError, first_line
from qbench.memory.history.ledger import Ledger
from qbench.scenario.distributed import DistributedSettings
from qbench.scenario.schema import FOUR_BIT, Point
from qbench.step.recipe import follows_trainer
from qbench.step.trainer_loop import MAX_GRAD_NORM


def refuse_unplanned(point: Point) -> None:
    """Raise StepError for what DeepSpeed's engine does not take, or what its plan was not compared for."""
    strategy = point.distributed.strategy if point.distributed is not None else ""
    if point.train.optim not in ("adamw_torch", "sgd"):
        raise StepError(
            f"optim {point.train.optim}: strategy {strategy} is planned with adamw_torch and sgd; "
            "use one of them, or strategy ddp"
        )
    if strategy == "zero3" and point.precision in (*FOUR_BIT, "int8"):
        raise StepError(
            f"precision {point.precision}: strategy zero3 is planned without quantized weights; "
            "use zero2 or fsdp2"
        )
    if strategy == "zero3" and point.choices.loss_type in ("liger", "cut_cross_entropy", "chunked"):
        raise StepError(
            f"loss_type {point.choices.loss_type} reads the head's weight outside its module, where strategy "
            "zero3 has partitioned it; use full_logits, or strategy zero2"
        )
    if point.train.autocast == "none" and point.precision != "fp32":
        raise StepError(
            f"strategy {strategy} without bf16 or fp16 takes fp32 weights only (deepspeed, "
            "`_configure_distributed_model`); set autocast bf16, Trainer's bf16=True"
        )


def engine_config(point: Point, settings: DistributedSettings, hidden_size: int) -> dict[str, Any]:
    """Return the config of an engine, with "auto" filled in as Trainer does.

    Source: transformers/integrations/deepspeed.py, `HfTrainerDeepSpeedConfig.trainer_config_finalize`.
    """
    auto = {
        "reduce_bucket_size": hidden_size * hidden_size,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    zero = {
        name: auto.get(name) if value == "auto" else value
        for name, value in settings.engine_settings().items()
        if value != "auto" or name in auto
    }
    train = point.train
    return {
        "train_micro_batch_size_per_gpu": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": MAX_GRAD_NORM if follows_trainer(point) else 0.0,
        "bf16": {"enabled": train.autocast == "bf16"},
        # A fixed scale: how often gradients overflow depends on the data.
        "fp16": {"enabled": train.autocast == "fp16", "loss_scale": 1.0},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": int(settings.strategy[-1]), **zero},
    }


class ZeroEngine:
    """Runs a step's passes and updates in DeepSpeed's engine, as accelerate's wrapper does.

    Source: accelerate/utils/deepspeed.py, `DeepSpeedEngineWrapper.backward`.
    """

    def __init__(self, model: Any, point: Point, settings: DistributedSettings) -> None:
        refuse_unplanned(point)
        self._model = model
        self._config = engine_config(point, settings, _hidden_size(model))
        self._is_boundary = True
        self._engine: Any = None
        if settings.strategy == "zero3":
            # What from_pretrained does under a config of stage 3, weight by weight.
            installed_deepspeed().zero.Init(module=model, config_dict_or_path=self._config)

    def start(self, optimizer: torch.optim.Optimizer, ledger: Ledger | None) -> Any:
        """Return the engine, made for an optimizer; a ledger learns which of its buffers are what."""
        if ledger is not None:
            for name, parameter in self._model.named_parameters():
                shard = getattr(parameter, "ds_tensor", None)
                if shard is not None:
                    ledger.register(shard, "adapters" if "lora_" in name else "weights")
        try:
            self._engine, *_ = installed_deepspeed().initialize(
                model=self._model, optimizer=optimizer, config=self._config
            )
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise StepError(f"DeepSpeed cannot train this model: {first_line(error)}") from error
        if ledger is not None:
            _name_buffers(ledger, self._engine.optimizer)
        return self._engine

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Be in a micro-batch that is not the last of an update."""
        self._is_boundary = False
        try:
            yield
        finally:
            self._is_boundary = True

    def backward(self, loss: torch.Tensor) -> None:
        """Go backward from a loss that is divided by the number of micro-batches already."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=self._is_boundary)
        self._engine.backward(loss, scale_wrt_gas=False)

    def update(self) -> None:
        """Clip, update and clear gradients."""
        self._engine.step()


def _name_buffers(ledger: Ledger, optimizer: Any) -> None:
    """Give what the optimizer of a stage allocated at its start a category."""
    kinds = {
        "single_partition_of_fp32_groups": "optimizer",
        "fp32_partitioned_groups_flat": "optimizer",
        "bit16_groups_flat": "adapters",
        "fp16_partitioned_groups_flat": "adapters",
        "_DeepSpeedZeroOptimizer_Stage3__ipg_bucket_flat_buffer": "buckets",
        "grad_partitions_flat_buffer": "gradients",
    }
    for name, category in kinds.items():
        found = getattr(optimizer, name, None)
        for tensor in found if isinstance(found, list) else [found]:
            if isinstance(tensor, torch.Tensor):
                ledger.register(tensor, category)


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)


def installed_deepspeed() -> Any:
    """Return the module of DeepSpeed, which prints warnings only. Raises StepError where there is none."""
    try:
        import deepspeed
    except ImportError as error:
        raise StepError(
            "strategies zero1, zero2 and zero3 need DeepSpeed: pip install 'qbench[deepspeed]'"
        ) from error
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed
