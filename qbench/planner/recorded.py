"""Record a point's training step on meta: a few layers and their repetition where that says it all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from qbench.distributed.collectives import Call, of_last_step
from qbench.memory.history.layers import RepeatedLayers
from qbench.memory.history.ledger import History, Ledger
from qbench.memory.history.located_ledger import SitedLedger
from qbench.memory.history.recording import record_steps
from qbench.memory.history.repeat import IrregularError, stretched
from qbench.memory.kernels.autocast import keep_rotary_tables, meta_autocast
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.scratch import multiprocessors_of
from qbench.memory.work.log import CostLog, WorkTable
from qbench.planner.few_layers import Shallow, shallow
from qbench.planner.hardware import library_buffers
from qbench.planner.loading import loads_on_gpu, record_loading
from qbench.records.ranks import Collective
from qbench.scenario.schema import Device, Point
from qbench.step.data import known_values
from qbench.step.dtypes import AUTOCAST_DTYPES
from qbench.step.liger_kernels import MULTIPROCESSORS
from qbench.step.offload import Context
from qbench.step.optimizer import managed_bytes
from qbench.step.preference import has_reference_model
from qbench.step.training_step import TrainingStep, build_step
from qbench.step.verify import ModelFacts, model_facts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from qbench.distributed.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The history of two training steps of a point, and what was built for it."""

    model: torch.nn.Module
    """The model, or one with fewer layers that stands for it."""
    facts: ModelFacts
    history: History
    managed_bytes: int
    collectives: tuple[Collective, ...] = ()
    """What the second step sends between several GPUs."""
    work: WorkTable | None = None
    """What the second step's operators cost and how often each runs; None if it was not requested."""


def record_point(
    point: Point,
    device: Device,
    config: PretrainedConfig,
    card: Card,
    *,
    all_layers: bool = False,
    with_costs: bool = False,
    rank: int = 0,
) -> Recorded:
    """Return the history of a point's training step, the same whether or not layers were left out.

    `all_layers` leaves none out; `with_costs` takes down what operators cost; `rank` is the process to record
    of a point of several GPUs. Raises what the libraries raise
    when they cannot run the step.
    """
    # A second model's layers are not among those that are repeated.
    leaves_none_out = all_layers or _has_buckets(point) or has_reference_model(point)
    leaves_none_out = leaves_none_out or point.train.task == "grpo"  # Generation has layers' caches apart.
    few = None if leaves_none_out else shallow(config)
    if few is not None:
        # The few layers are a shortcut: whatever does not hold of them is asked of all, errors too.
        with contextlib.suppress(Exception):
            return record_few_layers(point, device, few, card, with_costs=with_costs, rank=rank)
    costs = CostLog(point.train.torch_compile) if with_costs else None
    step, ledger, calls = _record(point, device, config, card, Ledger, costs, rank)
    return Recorded(
        model=step.model,
        facts=step.facts,
        history=ledger,
        managed_bytes=managed_bytes(step.optimizer),
        collectives=tuple(of_last_step(calls)),
        work=None if costs is None else costs.work(),
    )


def record_few_layers(
    point: Point, device: Device, few: Shallow, card: Card, *, with_costs: bool = False, rank: int = 0
) -> Recorded:
    """Return what is recorded of a shallow model, its layers repeated.

    Raises IrregularError where they are not alike, and what the libraries raise.
    """
    costs = CostLog(point.train.torch_compile) if with_costs else None
    built: list[tuple[RepeatedLayers, ModelFacts]] = []

    def on_built(model: Any) -> None:
        block = RepeatedLayers(_stack(model, few.depth), few.first, few.period, few.copies)
        built.append((block, model_facts(model, point, block.times)))

    step, ledger, calls = _record(point, device, few.config, card, SitedLedger, costs, rank, on_built)
    assert isinstance(ledger, SitedLedger)
    [(block, facts)] = built
    times = {parameter: block.times(name) for name, parameter in step.model.named_parameters()}
    return Recorded(
        model=step.model,
        facts=facts,
        history=stretched(ledger, block),
        managed_bytes=managed_bytes(step.optimizer, times),
        collectives=tuple(of_last_step(calls, block.times, _growth(times))),
        work=None if costs is None else costs.work(ledger, block, _growth(times)),
    )


def _growth(times: Mapping[torch.Tensor, int]) -> float:
    """Return how many times as many tensors are trained in the deep model."""
    trained = [count for parameter, count in times.items() if parameter.requires_grad]
    return sum(trained) / len(trained)


def _stack(model: torch.nn.Module, depth: int) -> str:
    """Return the path of the only list of so many layers, within the base model."""
    found: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    ]
    if len(found) != 1:
        raise IrregularError(f"{len(found)} lists of {depth} layers")
    return found[0].removeprefix("base_model.model.")


def _record(
    point: Point,
    device: Device,
    config: PretrainedConfig,
    card: Card,
    ledger_type: type[Ledger],
    costs: CostLog | None,
    rank: int,
    on_built: Callable[[Any], None] | None = None,
) -> tuple[TrainingStep, Ledger, list[Call]]:
    autocast = _meta_autocast(point, device)
    # Host tensors (AdamW's step counters) are on the same memory as the model when the CPU trains.
    device_types = {"meta", "cpu"} if device == "cpu" else {"meta"}
    MULTIPROCESSORS.set(partial(multiprocessors_of, card))
    with _session(point, rank, device) as session:
        share = None if session is None else session.share
        step = build_step(
            point,
            "meta",
            kernels=device,
            config=config,
            meta_autocast=autocast,
            share=share,
            on_built=on_built,
        )
        if autocast is not None:
            keep_rotary_tables(step.model)

        def load(ledger: Ledger) -> None:
            if session is not None:
                session.attach(ledger)
            if device == "cuda" and loads_on_gpu(point):
                record_loading(ledger, step.model, point, card)

        recording = record_steps(
            step,
            device_types,
            device,
            library_buffers(card) if device == "cuda" else None,
            load,
            card=card,
            ledger_type=ledger_type,
            costs=costs,
            known=_known(step, config),
        )
    return step, recording.ledger, [] if session is None else session.collectives


def _known(step: TrainingStep, config: PretrainedConfig) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in step.batches:
        for name, values in known_values(batch, step.point, config).items():
            yield batch[name], values


def _has_buckets(point: Point) -> bool:
    """Say whether gradients go in buckets, which hold more or less than a layer's."""
    return point.distributed is not None and point.distributed.strategy != "fsdp2"


def _session(point: Point, rank: int, device: Device) -> contextlib.AbstractContextManager[Session | None]:
    if point.distributed is None:
        return contextlib.nullcontext()
    from qbench.distributed.session import planned_session  # torch.distributed, which one GPU never needs.

    return planned_session(point, rank, device)


def _meta_autocast(point: Point, device: Device) -> Context | None:
    """Return what makes the point's autocast context on meta, None where it asks for none.

    accelerate opens none around DeepSpeed's engine (accelerator.py, `native_amp`).
    """
    name = point.train.autocast
    return (
        None
        if name == "none" or point.runs_in_engine
        else partial(meta_autocast, device, AUTOCAST_DTYPES[name])
    )
