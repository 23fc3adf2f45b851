"""The one training step of a point: the planner, the CPU and CUDA engines all run this class."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_to_fp32

from qbench.errors import StepError
from qbench.scenario.schema import Point
from qbench.step.adapters import add_adapters
from qbench.step.data import SEED, Batch, make_batches
from qbench.step.model import build_base_model, load_config
from qbench.step.optimizer import is_paged, make_optimizer, managed_bytes
from qbench.step.quantize import is_quantized_weight
from qbench.step.recipe import Context, converts_outputs, finish_adapters, keeps_outputs, prepare_base
from qbench.step.verify import ModelFacts, verify_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PHASES = ("forward", "loss", "backward", "optimizer")
"""Phases of one step in order; `loss` starts where the output head does, so logits belong to it."""

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _ignore_phase(phase: str) -> None:
    """Serve as the phase callback where nobody listens."""


class TrainingStep:
    """A model, its optimizer and its batches; `run` makes one optimizer step.

    `on_phase` is called with the name of each phase as it begins. Under the recipes plain and peft the
    outputs of the last forward pass live until the next one has returned, as in a hand-written loop.
    """

    def __init__(
        self,
        point: Point,
        model: Any,
        optimizer: torch.optim.Optimizer,
        batches: list[Batch],
        facts: ModelFacts,
        meta_autocast: Context | None = None,
    ) -> None:
        self.point = point
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.facts = facts
        self.on_phase: Callable[[str], None] = _ignore_phase
        self._meta_autocast = meta_autocast
        self._outputs: Any = None
        self._micro_steps = 0
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._enter_loss)

    def _enter_loss(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.on_phase("loss")

    def run(self) -> torch.Tensor:
        """Make one optimizer step; return the detached mean loss of its micro-batches, a scalar tensor."""
        accumulation = self.point.train.gradient_accumulation_steps
        losses = [self._forward_backward(accumulation) for _ in range(accumulation)]
        self.on_phase("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses[0] if accumulation == 1 else torch.stack(losses).mean()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean loss over all batches without dropout, in nats per token; nothing is trained.

        Quantized layers stay in training mode: in evaluation mode bitsandbytes repacks 4-bit weights on some
        CPUs for a kernel that has no backward (nn/modules.py, `Linear4bit.forward`).
        """
        self.model.eval()
        for module in self.model.modules():
            if is_quantized_weight(module._parameters.get("weight")):
                module.train()
        losses: list[float] = [self.model(**batch).loss.item() for batch in self.batches]
        self.model.train()
        return sum(losses) / len(losses)

    def _forward_backward(self, accumulation: int) -> torch.Tensor:
        batch = self.batches[self._micro_steps % len(self.batches)]
        self._micro_steps += 1
        self.on_phase("forward")
        with self._autocast():
            if keeps_outputs(self.point.train.recipe):
                self._outputs = self.model(**batch)
                loss = self._outputs.loss
            else:
                loss = self._outputs_for_trainer(batch).loss
        self.on_phase("backward")
        (loss if accumulation == 1 else loss / accumulation).backward()
        detached: torch.Tensor = loss.detach()
        return detached

    def _outputs_for_trainer(self, batch: Batch) -> Any:
        outputs = self.model(**batch)
        return convert_to_fp32(outputs) if converts_outputs(self.point) else outputs

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        name = self.point.train.autocast
        if name == "none":
            return contextlib.nullcontext()
        if self._meta_autocast is not None:
            return self._meta_autocast()
        return torch.autocast(self.batches[0]["input_ids"].device.type, dtype=AUTOCAST_DTYPES[name])

    def static_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (category, tensor) for all that is in memory before the first step."""
        for name, parameter in self.model.named_parameters():
            yield ("adapters" if "lora_" in name else "weights"), parameter
        for buffer in self.model.buffers():
            yield "weights", buffer
        for module in self.model.modules():
            for tensor in _quantization_state(module._parameters.get("weight")):
                yield "quant_state", tensor
        for batch in self.batches[:1]:
            for tensor in batch.values():
                yield "activations", tensor

    def optimizer_tensors(self) -> Iterator[torch.Tensor]:
        """Yield the tensors of the optimizer's state; paged ones are in managed memory and left out."""
        for state in self.optimizer.state.values():
            tensors = (value for value in state.values() if isinstance(value, torch.Tensor))
            yield from (tensor for tensor in tensors if not is_paged(tensor))

    @property
    def managed_bytes(self) -> int:
        """Bytes of paged optimizer state, outside torch's allocator; 0 before the first step."""
        return managed_bytes(self.optimizer)


def _quantization_state(weight: Any) -> Iterator[torch.Tensor]:
    """Yield what bitsandbytes keeps beside a packed weight: absmax, code book, nested state, int8 scales."""
    state = getattr(weight, "quant_state", None)
    nested = getattr(state, "state2", None)
    candidates = (
        getattr(state, "absmax", None),
        getattr(state, "code", None),
        getattr(state, "offset", None),
        getattr(nested, "absmax", None),
        getattr(nested, "code", None),
        getattr(weight, "SCB", None),
    )
    yield from (tensor for tensor in candidates if isinstance(tensor, torch.Tensor))


def build_step(
    point: Point,
    device: str,
    kernels: str | None = None,
    config: PretrainedConfig | None = None,
    meta_autocast: Context | None = None,
) -> TrainingStep:
    """Return the training step of a point on `device`: meta, cpu or cuda.

    `kernels` is the device whose choices are meant when the tensors are on meta (default: `device`);
    `meta_autocast` makes the autocast context of a point that asks for one there, where torch has none.
    Raises StepError when the libraries cannot build it, or built something else than the point says.
    """
    if point.train.recipe == "trl":
        raise StepError("recipe trl is not built yet; use trainer, or peft for a hand-written loop")
    torch.manual_seed(SEED)
    config = config or load_config(point)
    target = torch.device(device)
    built = build_base_model(point, target, config)
    base = prepare_base(built, point, meta_autocast)
    model: Any = base
    if point.lora is not None:
        with target if device == "meta" else contextlib.nullcontext():
            model = add_adapters(base, point.lora)
        finish_adapters(model, point)
    model.train()
    facts = verify_model(model, point)
    optimizer = make_optimizer(point.train.optim, model.parameters(), kernels or device)
    batches = make_batches(point, config, target)
    return TrainingStep(point, model, optimizer, batches, facts, meta_autocast)
