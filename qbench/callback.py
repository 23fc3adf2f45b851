"""Records of a real training: `callbacks=[QbenchCallback("runs/mine")]` for Trainer or TRL's SFTTrainer."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch  # noqa: TID253 - a callback of transformers exists only beside both
from transformers import TrainerCallback  # noqa: TID253

from qbench.catalog.gpus import find_gpu
from qbench.errors import CatalogError, MeasureError
from qbench.measure.environment import environment
from qbench.measure.failures import failure
from qbench.measure.interpreter import plan_in
from qbench.measure.null import as_null
from qbench.measure.task import Measurement
from qbench.measure.watch_training import Clock, CudaPeaks, LedgerWatch, Shapes
from qbench.nullgpu import launcher
from qbench.records.parts import Detail, Metrics
from qbench.records.record import Record, run_id_of
from qbench.records.store import open_store
from qbench.scenario.schema import Device
from qbench.step.observe import observed_point
from qbench.step.verify import count_parameters

PLAN_TIMEOUT_S = 600.0
SCENARIO_FILE = "scenario.yaml"

_log = logging.getLogger(__name__)


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that gives up with a warning where it fails: an instrument must not end a training."""

    @functools.wraps(hook)
    def call(self: QbenchCallback, *args: Any, **kwargs: Any) -> None:
        if self.problem is not None:
            return
        try:
            hook(self, *args, **kwargs)
        except Exception as error:
            self._give_up(error)

    return call


class QbenchCallback(TrainerCallback):
    """Records memory and time of a training, with the plan of its configuration beside it, in a run folder.

    Memory (bytes) comes from torch's allocator on CUDA. On the CPU it is the ledger of live storages, if
    `ledger` is true, which makes the first two steps slow. Times (seconds) leave out the first `warmup_steps`
    and the steps under the ledger. With `plan`, another process plans the configuration once training has
    ended, which takes seconds. `record` and `plan_record` then hold the two records. If the callback itself
    fails, it warns and the training continues; `problem` says what went wrong.

    A trainer does not notify its callbacks when training fails. Inside `with callback:` a failed training
    leaves a record too, with outcome oom or error and what was measured so far; the error is raised again.
    """

    def __init__(
        self, folder: str | Path, *, warmup_steps: int = 2, ledger: bool = False, plan: bool = True
    ) -> None:
        self.folder = Path(folder).resolve()
        self.warmup_steps = warmup_steps
        self.record: Record | None = None
        self.plan_record: Record | None = None
        self.problem: str | None = None
        self._wants_ledger = ledger
        self._wants_plan = plan
        self._watch: _Watch | None = None
        self._training: tuple[Any, Any, Any] | None = None

    def __enter__(self) -> QbenchCallback:
        """Record the training inside even when it fails."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Write the record of a training that ended in an error."""
        if isinstance(error, Exception):
            self._on_failure(error)

    @_guarded
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the instruments on the model."""
        if not state.is_world_process_zero:
            return
        kind = next(model.parameters()).device.type
        if kind not in ("cpu", "cuda"):
            raise MeasureError(f"the model is on {kind}; only cpu and cuda can be measured")
        self._watch = _Watch(model, cast(Device, kind), self._wants_ledger and kind == "cpu")
        self._training = (model, args, state)

    @_guarded
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the ledger before the first batch is made."""
        if self._watch is not None:
            self._watch.start_ledger()

    @_guarded
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that a step begins."""
        if self._watch is not None:
            self._watch.begin()

    @_guarded
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that the optimizer begins."""
        if self._watch is not None and self._watch.ledger is not None:
            self._watch.ledger.on_phase("optimizer")

    @_guarded
    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Note that the step ends."""
        if self._watch is not None:
            self._watch.end(optimizer)

    @_guarded
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the record of the training, and that of its plan."""
        self._write(Measurement(outcome="ok"))

    @_guarded
    def _on_failure(self, error: Exception) -> None:
        self._write(failure(error))

    def _write(self, ended: Measurement) -> None:
        watch, self._watch = self._watch, None
        if watch is None or self._training is None:
            return
        watch.close()
        measured = self._measured(watch, *self._training)
        detail: Detail = {**measured.detail, **ended.detail}
        self.record = replace(measured, outcome=ended.outcome, detail=detail)
        plan = _plan(self.record, self.folder) if self._wants_plan else None
        if isinstance(plan, str):
            caveats = [*self.record.caveats, f"no plan: {plan}"]
            self.record = replace(self.record, detail={**detail, "caveats": caveats})
        else:
            self.plan_record = plan
        with open_store(self.folder) as store:
            for record in (self.plan_record, self.record):
                if record is not None:
                    store.append(record)

    def _measured(self, watch: _Watch, model: Any, args: Any, state: Any) -> Record:
        shape = watch.shapes.largest
        if shape is None:
            raise MeasureError("no batch with input_ids of shape [sequences, tokens] was seen")
        observed = observed_point(model, args, shape, self.folder, getattr(args, "world_size", 1))
        trainable, total = count_parameters(model)
        metrics, detail = watch.results(self.warmup_steps)
        logged = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
        metrics |= {
            "trainable_params": trainable,
            "total_params": total,
            "loss": [loss for _, loss in logged],
        }
        detail |= {
            "repeat": 0,
            "caveats": [
                *(detail.get("caveats") or ()),
                *(f"not in the plan: {setting}" for setting in observed.unmapped),
            ],
            "arguments": type(args).__name__,
            "unmapped": list(observed.unmapped),
            "loss_steps": [step for step, _ in logged],
        }
        record = Record(
            run_id=run_id_of("training"),
            point=observed.point,
            kind="measurement",
            outcome="ok",
            metrics=metrics,
            detail=detail,
            environment=environment(watch.device),
        )
        return as_null(record) if launcher.is_loaded() else record

    def _give_up(self, error: Exception) -> None:
        self.problem = f"{type(error).__name__}: {error}"
        _log.warning("qbench stopped recording; the training continues (%s)", self.problem)
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()


class _Watch:
    """The instruments on one training."""

    def __init__(self, model: Any, device: Device, wants_ledger: bool) -> None:
        self.device: Device = device
        self.shapes = Shapes(model)
        self.ledger: LedgerWatch | None = None
        self._model = model
        self._wants_ledger = wants_ledger
        self._clock = Clock(device)
        self._peaks = CudaPeaks() if device == "cuda" else None
        self._tokens: list[int] = []

    def start_ledger(self) -> None:
        if self._wants_ledger and self.ledger is None:
            self.ledger = LedgerWatch(self._model)

    def begin(self) -> None:
        self._tokens.append(self.shapes.tokens)
        if self._peaks is not None:
            self._peaks.begin()
        self._clock.begin()

    def end(self, optimizer: Any) -> None:
        self._clock.end()
        if self._peaks is not None:
            self._peaks.end()
        if self.ledger is not None and self.ledger.running:
            self.ledger.end(optimizer)

    def close(self) -> None:
        self.shapes.detach()
        if self.ledger is not None:
            self.ledger.close()

    def results(self, warmup_steps: int) -> tuple[Metrics, Detail]:
        """Return metrics and details of what was seen."""
        times = self._clock.seconds()
        first = warmup_steps + (0 if self.ledger is None else self.ledger.steps)
        edges = [*self._tokens, self.shapes.tokens]
        tokens = [after - before for before, after in itertools.pairwise(edges)]
        rates = [count / seconds for count, seconds in zip(tokens, times, strict=False)]
        metrics: Metrics = {"step_time_s": [*times[first:]], "tokens_per_s": [*rates[first:]]}
        detail: Detail = {
            "warmup_step_time_s": times[:first],
            "batch_shapes": [[*shape, count] for shape, count in sorted(self.shapes.seen.items())],
            "caveats": list(self._shape_caveats()),
        }
        memory, more = self._memory()
        return {**metrics, **memory}, {**detail, **more}

    def _shape_caveats(self) -> list[str]:
        if len(self.shapes.seen) < 2:
            return []
        sequences, tokens = cast(tuple[int, int], self.shapes.largest)
        return [
            f"batches had {len(self.shapes.seen)} shapes; the point is the largest, {sequences} x {tokens}"
        ]

    def _memory(self) -> tuple[Metrics, Detail]:
        if self._peaks is not None:
            peaks = self._peaks
            steps = max(peaks.allocated, default=None)
            allocated = None if steps is None else max(steps, peaks.before_bytes)
            metrics: Metrics = {
                "static_bytes": peaks.static_bytes,
                "peak_allocated_bytes": allocated,
                "peak_reserved_bytes": peaks.reserved,
            }
            phases = (
                {"load": peaks.before_bytes} if steps is None else {"load": peaks.before_bytes, "step": steps}
            )
            return metrics, {"phases": phases, "step_peak_bytes": peaks.allocated}
        memory = None if self.ledger is None else self.ledger.profile()
        if memory is None:
            return {}, {}
        metrics = {
            "static_bytes": memory.static_bytes,
            "peak_allocated_bytes": memory.peak_bytes,
            "breakdown_bytes": memory.breakdown,
            "peak_at": memory.peak_at,
        }
        return metrics, {"phases": memory.phases, "static_breakdown_bytes": memory.static_breakdown}


def _plan(record: Record, folder: Path) -> Record | str:
    """Return the plan of a record's point, made by a process of its own, or why there is none.

    The scenario that it is made from stays in the folder.
    """
    device: Device = "cpu" if record.device == "cpu" else "cuda"
    scenario = folder / SCENARIO_FILE
    folder.mkdir(parents=True, exist_ok=True)
    scenario.write_text(json.dumps(_scenario(record, device), indent=2), encoding="utf-8")
    try:
        (plan,) = plan_in(sys.executable, scenario, device, PLAN_TIMEOUT_S)
    except MeasureError as error:
        return str(error)
    if record.card is not None:
        plan = replace(plan, environment={**plan.environment, "card": record.card})
    return replace(plan, run_id=record.run_id, point=record.point)


def _scenario(record: Record, device: Device) -> dict[str, Any]:
    """Return a scenario of one point; JSON is YAML, too."""
    return {
        "name": "training",
        "question": "What does this training need, and was it planned right?",
        "base": record.point.model_dump(mode="json"),
        "plan": {"gpus": [record.card] if record.card else _card() if device == "cuda" else []},
    }


def _card() -> list[str]:
    try:
        return [find_gpu(torch.cuda.get_device_name()).name]
    except CatalogError:
        return []  # The plan says which compute capability it is for.
