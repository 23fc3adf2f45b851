"""Step time as a roofline over the operators of a traced step, and where the time goes.

A kernel takes as long as its arithmetic or its bytes, whichever is longer. A GPU runs while the host
launches what comes next, so that a phase takes as long as its kernels or as the host's work for them; on the
CPU one thing follows the other. Several GPUs also wait for what they send to each other (`network`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from qbench.memory.work.log import Work, WorkTable
from qbench.memory.work.op_costs import OpCost
from qbench.planner.network import Network
from qbench.records.parts import TimeParts

PARTS = (
    "matmul",
    "attention",
    "dequantize",
    "elementwise",
    "recompute",
    "loss",
    "optimizer",
    "launches",
    "network",
)
"""Where time goes, in the order of tables. What checkpointing runs again, the output head with the loss and
the optimizer are parts of their own, whatever they run; `launches` is the time in which kernels wait for the
host, `network` that in which they wait for other GPUs."""


Bound = Literal["compute", "memory", "host", "network"]


class KernelSeconds(NamedTuple):
    """How long a kernel runs, and what it spends that on."""

    seconds: float
    bound: Bound


class Rates(Protocol):
    """How fast a device is."""

    @property
    def source(self) -> str:
        """Where the figures come from, for a person."""

    @property
    def overlaps(self) -> bool:
        """Whether the host runs ahead of the device."""

    def kernel_s(self, cost: OpCost) -> KernelSeconds | None:
        """Return the time of an operator's kernel; None where its rate is not known."""

    def host_s(self, work: Work, is_compiled: bool = False) -> float:
        """Return the host's seconds for one operator; compiled code only launches its kernel."""

    def peak_flops(self, dtype: str) -> float | None:
        """Return the peak arithmetic that MFU is a share of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """The planned time of one optimizer step."""

    seconds: float
    parts: dict[str, float]
    """Seconds by part (PARTS); they sum to `seconds`."""
    bound: Bound
    """What most of the time is spent on."""
    bound_share: float
    """Share of the time that is spent on it."""
    mfu: float | None
    """Useful arithmetic (nothing twice) over what the peak would do in that time; None without a peak."""
    source: str

    def to_values(self) -> TimeParts:
        """Return what a record keeps in its details."""
        return {"parts_s": self.parts, "bound": self.bound, "mfu": self.mfu, "rates": self.source}


def step_time(
    work: WorkTable, rates: Rates, network: Network | None = None, *, is_compiled: bool = False
) -> StepTime | None:
    """Return the time of a step's work; None where a kernel of it or what joins GPUs has no known rate.

    `is_compiled` says that torch.compile made its kernels (`memory.work.fusion`), the optimizer's aside.
    """
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    bounds: dict[Bound, float] = defaultdict(float)
    device: dict[str, float] = defaultdict(float)
    host: dict[str, float] = defaultdict(float)
    for entry, times in work:
        host[entry.phase] += times * rates.host_s(entry, is_compiled and entry.phase != "optimizer")
        if entry.cost.kind == "none":
            continue
        kernel = rates.kernel_s(entry.cost)
        if kernel is None:
            return None
        device[entry.phase] += times * kernel.seconds
        parts[_part(entry)] += times * kernel.seconds
        bounds[kernel.bound] += times * kernel.seconds
    waits = {phase: _wait(device[phase], host[phase], rates.overlaps) for phase in host}
    parts["launches"] = bounds["host"] = sum(waits.values())
    if network is not None:
        exposed = network.exposed_s({phase: device[phase] + waits[phase] for phase in host})
        if exposed is None:
            return None
        parts["network"] = bounds["network"] = sum(exposed.values())
    seconds = sum(parts.values())
    bound = max(bounds, key=lambda name: bounds[name])
    return StepTime(
        seconds=seconds,
        parts=parts,
        bound=bound,
        bound_share=bounds[bound] / seconds if seconds else 0.0,
        mfu=_mfu(work, rates, seconds),
        source=rates.source,
    )


def _part(entry: Work) -> str:
    if entry.phase == "optimizer":
        return "optimizer"
    if entry.is_recomputed:
        return "recompute"
    if entry.in_loss:
        return "loss"
    kind = entry.cost.kind
    if kind == "matmul_4bit":
        return "matmul"
    return kind if kind in ("matmul", "attention", "dequantize") else "elementwise"


def _wait(device_s: float, host_s: float, overlaps: bool) -> float:
    return max(0.0, host_s - device_s) if overlaps else host_s


def _mfu(work: WorkTable, rates: Rates, seconds: float) -> float | None:
    """Return the share of the peak of the dtype that does most of the arithmetic."""
    useful: dict[str, float] = defaultdict(float)
    for entry, times in work:
        if not entry.is_recomputed:
            useful[entry.cost.dtype] += times * entry.cost.flops
    if not useful or not seconds:
        return None
    peak = rates.peak_flops(max(useful, key=lambda dtype: useful[dtype]))
    return None if peak is None else sum(useful.values()) / (seconds * peak)
