"""The one training step of a point: the planner, the CPU and CUDA engines all run this class."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_to_fp32

from qbench.scenario.schema import Point
from qbench.step.adapters import add_adapters
from qbench.step.data import SEED, Batch, batches_held, copies, make_batches, passes_run
from qbench.step.dtypes import AUTOCAST_DTYPES
from qbench.step.fused_head import fuse_head
from qbench.step.fused_layers import fuse_layers
from qbench.step.grpo import generate
from qbench.step.model import build_base_model, load_config
from qbench.step.offload import Context
from qbench.step.optimizer import (
    is_paged,
    keep_embeddings_in_32_bit,
    make_optimizer,
    managed_bytes,
    trainer_groups,
)
from qbench.step.preference import disable_dropout, has_reference_model, reference_model, without_adapters
from qbench.step.quantize import is_quantized_weight
from qbench.step.recipe import (
    check_recipe,
    converts_outputs,
    empties_cache,
    finish_adapters,
    follows_trainer,
    prepare_base,
)
from qbench.step.shared_step import Share, SharedStep, shared_step
from qbench.step.tasks import check_task, keeps_dropout, task_loss
from qbench.step.tensors import model_tensors
from qbench.step.towers import frozen_names
from qbench.step.trainer_loop import TrainerLoop
from qbench.step.verify import ModelFacts, verify_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PHASES = ("forward", "loss", "backward", "optimizer")
"""Phases of one step in order; `loss` starts where the output head does, so logits belong to it."""


def _ignore_phase(phase: str) -> None:
    """Serve as the phase callback without a listener."""


def _ignore_times(times: int) -> None:
    """Serve as the callback for repeated passes without a listener."""


class TrainingStep:
    """A model, its optimizer and its batches; `run` makes one optimizer step.

    `on_phase` is called with the name of each phase as it begins. Under the recipes plain and peft the
    outputs of the last forward pass live until the next one has returned, as in a hand-written loop.
    `on_times` is called with how many micro-batches the pass that begins stands for: on meta a few are run.
    """

    def __init__(
        self,
        point: Point,
        model: Any,
        optimizer: torch.optim.Optimizer,
        batches: list[Batch],
        facts: ModelFacts,
        kernels: str,
        meta_autocast: Context | None = None,
        shared: SharedStep | None = None,
    ) -> None:
        self.point = point
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.facts = facts
        self.on_phase: Callable[[str], None] = _ignore_phase
        self.on_times: Callable[[int], None] = _ignore_times
        self._meta_autocast = meta_autocast
        self._outputs: Any = None
        self._loop: TrainerLoop | None = None
        self._micro_steps = 0
        self._shared = shared
        self._engine = None if shared is None else shared.engine
        self._wrapped = model if shared is None else None
        """What is called in the model's place; None until the first step makes it."""
        self.reference: Any = None
        """The reference model of a loss."""
        self._left_out: list[torch.Tensor] = []
        """Batches of an update that are in memory and not run."""
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._enter_loss)
        base = model.get_base_model() if point.lora is not None else model
        if follows_trainer(point):
            num_ranks = 1 if shared is None else shared.num_ranks
            device = next(iter(batches[0].values())).device
            self._loop = TrainerLoop(base, device, point.train.task, num_ranks)
        if point.choices.loss_type != "full_logits":
            fuse_head(base, point.choices.loss_type, kernels, lambda: self.on_phase("loss"))

    def _enter_loss(self, *_: Any) -> None:
        self.on_phase("loss")

    def run(self) -> torch.Tensor:
        """Make one optimizer step; return the detached mean loss of its micro-batches, a scalar tensor."""
        loss = self._passes()
        self.on_phase("optimizer")
        if self._engine is not None:
            self._engine.update()
        else:
            if self._loop is not None:
                self._loop.clip(self.model.parameters())
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        # Trainer's sum is used again by the next step.
        return loss if self._loop is None else loss.clone()

    def rehearse(self) -> torch.Tensor:
        """Make the passes of a step and train nothing; return as `run` does.

        Weights and optimizer stay, and the next step has the batch and the random numbers that it would
        have had.
        """
        next_batch = self._micro_steps
        with torch.random.fork_rng():
            loss = self._passes()
        self.optimizer.zero_grad(set_to_none=True)
        self._micro_steps = next_batch
        return loss if self._loop is None else loss.clone()

    def _passes(self) -> torch.Tensor:
        """Go forward and backward over the micro-batches of an update; return their detached mean loss."""
        self.prepare()
        wanted, device = self.point.train.gradient_accumulation_steps, self._device
        batches = [self._next_batch() for _ in range(passes_run(self.point, device))]
        left_out = wanted - len(batches)
        if self._loop is None:
            losses: list[torch.Tensor] = []
            for number, batch in enumerate(self._counted(batches, left_out)):
                with self._exchange(number, len(batches)):
                    losses.append(self._pass_by_hand(batch, wanted))
                if left_out and len(losses) == len(batches) - 1:
                    # Each loss is kept until the mean is taken.
                    self.on_phase("loss")
                    left_losses = [loss for _, loss in copies({"loss": losses[0]}, left_out)]
            if left_out and len(left_losses) == left_out:
                losses += left_losses
            return losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        self.on_phase("forward")
        if self.point.train.task == "grpo":
            generate(self._forward, self.model, batches[0], self.point)
        self._loop.begin(self._counted(batches, left_out))
        for number, batch in enumerate(self._counted(batches, left_out)):
            with self._exchange(number, len(batches)):
                loss = self._pass_by_trainer(batch, wanted, self._loop)
            self._loop.add(loss)
        return self._loop.total_loss

    def prepare(self) -> None:
        """Make what replicas have beside the model, where the first step has not yet."""
        if self._wrapped is None and self._shared is not None:
            self.on_phase("prepare")
            self._wrapped = self._shared.make_forward(self.optimizer)

    def _exchange(self, number: int, count: int) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a micro-batch: only the last one of an update exchanges gradients."""
        alone = self._shared is None or number == count - 1
        return contextlib.nullcontext() if alone or self._shared is None else self._shared.no_sync()

    def _counted(self, batches: list[Batch], left_out: int) -> Iterator[Batch]:
        """Yield the batches, and say before the last one that it stands for those left out, too."""
        for number, batch in enumerate(batches, start=1):
            if number == len(batches) and left_out:
                self.on_times(1 + left_out)
            yield batch
        if left_out:
            self.on_times(1)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.batches[0].values())).device

    def _next_batch(self) -> Batch:
        batch = self.batches[self._micro_steps % len(self.batches)]
        self._micro_steps += 1
        return batch

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

    def _pass_by_hand(self, batch: Batch, num_batches: int) -> torch.Tensor:
        self.on_phase("forward")
        with self._autocast():
            self._outputs = self._called(**batch)
        loss: torch.Tensor = self._outputs.loss
        self.on_phase("backward")
        self._backward(loss if num_batches == 1 else loss / num_batches)
        return loss.detach()

    def _pass_by_trainer(self, batch: Batch, num_batches: int, loop: TrainerLoop) -> torch.Tensor:
        self.on_phase("forward")
        if self.point.train.task == "sft":
            loss = loop.loss_of(self._outputs_for_trainer(batch, loop), num_batches)
        else:
            loss = task_loss(self._forward, self._reference, batch, self.point) / num_batches
        self.on_phase("backward")
        # accelerate/accelerator.py, `backward`, divides by its own count, which Trainer leaves at 1.
        divided = loss / 1
        self._backward(divided)
        return loss.detach()

    def _backward(self, loss: torch.Tensor) -> None:
        if self._engine is None:
            loss.backward()
        else:
            self._engine.backward(loss)

    def _outputs_for_trainer(self, batch: Batch, loop: TrainerLoop) -> Any:
        """Return outputs that no other code holds, so that they are freed before backward."""
        return self._forward(**batch, **loop.loss_kwargs(self.point.choices.loss_type))

    def _reference(self, **inputs: Any) -> Any:
        if self.reference is None:
            return without_adapters(self._forward, self.model)(**inputs)
        with torch.no_grad():
            return self._forward(self.reference, **inputs)

    def _forward(self, model: Any = None, **inputs: Any) -> Any:
        with self._autocast():
            outputs = (model or self._called)(**inputs)
        return convert_to_fp32(outputs) if converts_outputs(self.point) else outputs

    @property
    def _called(self) -> Any:
        assert self._wrapped is not None
        return self._wrapped

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        name = self.point.train.autocast
        if name == "none" or self.point.runs_in_engine:
            return contextlib.nullcontext()
        if self._meta_autocast is not None:
            return self._meta_autocast()
        return torch.autocast(self._device.type, dtype=AUTOCAST_DTYPES[name])

    def static_tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Yield (name, category, tensor) for all that is in memory before the first step."""
        yield from model_tensors(self.model)
        if self.reference is not None:
            yield from model_tensors(self.reference)
        for batch in self.batches[: batches_held(self.point)]:
            for name, tensor in batch.items():
                yield name, "activations", tensor
        left_out = batches_held(self.point) - len(self.batches)
        if left_out > 0 and self._device.type == "meta":
            for name, tensor in copies(self.batches[0], left_out):
                self._left_out.append(tensor)
                yield name, "activations", tensor
        if self._loop is not None:
            yield "loss", "logits_loss", self._loop.total_loss

    def optimizer_tensors(self) -> Iterator[torch.Tensor]:
        """Yield the tensors of the optimizer's state; paged ones are in managed memory and left out."""
        for state in self.optimizer.state.values():
            tensors = (value for value in state.values() if isinstance(value, torch.Tensor))
            yield from (tensor for tensor in tensors if not is_paged(tensor))

    @property
    def managed_bytes(self) -> int:
        """Bytes of paged optimizer state, outside torch's allocator; 0 before the first step."""
        return managed_bytes(self.optimizer)


def build_step(
    point: Point,
    device: str,
    kernels: str | None = None,
    config: PretrainedConfig | None = None,
    meta_autocast: Context | None = None,
    share: Share | None = None,
    on_built: Callable[[Any], None] | None = None,
) -> TrainingStep:
    """Return the training step of a point on `device`: meta, cpu or cuda.

    `kernels` is the device whose choices are meant when the tensors are on meta (default: `device`);
    `meta_autocast` makes the autocast context of a point that asks for one there, where torch has none.
    `share` wraps the model of a point of several GPUs; `on_built` is given the model before that.
    Raises StepError when the libraries cannot build it, or built something else than the point says.
    """
    check_task(point)
    torch.manual_seed(SEED)
    config = config or load_config(point)
    target = torch.device(device)
    built = build_base_model(point, target, config)
    base = prepare_base(built, point, meta_autocast)
    model: Any = base
    if point.lora is not None:
        with target if device == "meta" else contextlib.nullcontext():
            model = add_adapters(base, point.lora, frozen_names(point.vision))
        finish_adapters(model, point)
    if empties_cache(point) and target.type == "cuda":
        torch.cuda.empty_cache()
    if not keeps_dropout(point.train.task):
        disable_dropout(model)
    model.train()
    facts = verify_model(model, point)
    check_recipe(model, point)
    if on_built is not None:
        on_built(model)
    shared = shared_step(model, point, target, share)
    kernels = kernels or device
    fuse_layers(model, point, kernels)
    optimizer = make_optimizer(point.train.optim, _optimized(model, point), kernels)
    if point.lora is None and follows_trainer(point):
        keep_embeddings_in_32_bit(optimizer, model)
    batches = make_batches(point, config, target)
    step = TrainingStep(point, model, optimizer, batches, facts, kernels, meta_autocast, shared)
    if has_reference_model(point):
        step.reference = reference_model(point, target, config, kernels)
    return step


def _optimized(model: Any, point: Point) -> Iterable[Any]:
    return trainer_groups(model) if follows_trainer(point) else model.parameters()
