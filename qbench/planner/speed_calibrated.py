"""How fast a device is that was calibrated: times of its own kernels, read off between the sizes measured.

A kernel larger than any measured goes on at the rate of the largest; a product smaller than any takes as long
as the smallest. An operator that was not timed takes as long as one of its kind. What has no such stand-in,
as a dtype that was not measured, has no time. Sizes far beyond the measured ones have a time that is none of
this device's; a plan tells its share.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import NamedTuple

from qbench.memory.work.log import Work
from qbench.memory.work.op_costs import OpCost
from qbench.planner.step_time import Bound, KernelSeconds
from qbench.records.calibration import Calibration, KernelTime

ProductShape = tuple[int, int, int]

_STANDS_FOR = {
    "linear": "mm",
    "addmm": "mm",
    "baddbmm": "bmm",
    "stack": "cat",
    "ones": "zero_",
    "zeros": "zero_",
    "zeros_like": "zero_",
    "ones_like": "zero_",
    "full": "zero_",
    "fill_": "zero_",
    "scalar_tensor": "zero_",
    "arange": "zero_",
    "_safe_softmax": "_softmax",
    "_foreach_norm": "linalg_vector_norm",
    "index": "embedding",
    "slice_backward": "clone",
    "select_backward": "clone",
    "elementwise": "add",
    "copy": "clone",
    "reduction": "sum",
}
"""Operator or kind of operators -> the timed operator that is as fast."""


REACH = 8
"""How many times as large as the largest of its kind a kernel may be for its rate to count as measured."""


class CalibratedRates:
    """Rates of a calibrated device."""

    def __init__(self, calibration: Calibration) -> None:
        self.overlaps = calibration.device == "cuda"
        self.source = _source(calibration)
        self._dispatch_s = dict(calibration.dispatch_s)
        self._products: dict[tuple[str, str, str], dict[ProductShape, KernelTime]] = defaultdict(dict)
        self._curves: dict[tuple[str, str, str], list[KernelTime]] = defaultdict(list)
        self._known: dict[OpCost, KernelSeconds | None] = {}
        for timed in sorted(calibration.kernels, key=lambda kernel: kernel.num_bytes):
            if timed.shape:
                self._products[timed.op, timed.dtype, timed.layout][timed.shape[1:]] = timed  # type: ignore[index]
            else:
                self._curves[timed.op, timed.dtype, timed.layout].append(timed)
        self._peaks = _peaks(calibration)
        self._largest: dict[tuple[str, str], float] = defaultdict(float)
        for timed in calibration.kernels:
            of_kind = (timed.kind if timed.shape else "", timed.dtype)
            work = timed.flops if timed.shape else timed.num_bytes
            self._largest[of_kind] = max(self._largest[of_kind], work)

    def kernel_s(self, cost: OpCost) -> KernelSeconds | None:
        """Return the time of an operator's kernel; None where nothing like it was timed."""
        if cost not in self._known:
            seconds = self._product_s(cost) if cost.shape else self._curve_s(cost)
            bound: Bound = "compute" if cost.flops else "memory"
            self._known[cost] = None if seconds is None else KernelSeconds(seconds, bound)
        return self._known[cost]

    def host_s(self, work: Work, is_compiled: bool = False) -> float:
        """Return the host's seconds for one operator; recomputation is a forward pass.

        What launching compiled kernels takes was not timed.
        """
        if is_compiled:
            return 0.0
        is_forward = work.is_recomputed or work.phase == "loss"
        return self._dispatch_s["forward" if is_forward else work.phase]

    def peak_flops(self, dtype: str) -> float | None:
        """Return the rate of the fastest product that was timed."""
        return self._peaks.get(dtype)

    def is_beyond(self, cost: OpCost) -> bool:
        """Return whether a kernel is far larger than any of its kind and dtype that was timed."""
        work = cost.flops if cost.shape else cost.num_bytes
        of_kind = (cost.kind if cost.shape else "", "fp32" if cost.dtype == "other" else cost.dtype)
        return work > REACH * self._largest.get(of_kind, math.inf)

    def _product_s(self, cost: OpCost) -> float | None:
        op = _STANDS_FOR.get(cost.op, cost.op)
        layouts = (cost.layout, "nn", "nt", "")
        grids = (self._products.get((op, cost.dtype, layout)) for layout in layouts)
        grid = next((grid for grid in grids if grid), None)
        if grid is None:
            return None
        batch, *given = cost.shape
        if op != "mm":
            return cost.flops / _rate_nearby(grid, cost.shape[1:])
        sizes: list[float] = [max(size, min(key[axis] for key in grid)) for axis, size in enumerate(given)]
        flops = 2.0 * batch * math.prod(sizes)
        return flops / _rate(grid, sizes)

    def _curve_s(self, cost: OpCost) -> float | None:
        dtype = "fp32" if cost.dtype == "other" else cost.dtype
        for op in _names(cost):
            for layout in (cost.layout, ""):
                curve = self._curves.get((op, dtype, layout))
                if curve:
                    return _on_curve(curve, cost.num_bytes)
        return None


def _source(calibration: Calibration) -> str:
    date = calibration.created_at[:10]
    if not calibration.profile:
        return f"calibrated here on {date}"
    return f"profile {calibration.profile}, measured on {date} with torch {calibration.versions.get('torch')}"


def _peaks(calibration: Calibration) -> dict[str, float]:
    peaks: dict[str, float] = defaultdict(float)
    for timed in calibration.kernels:
        if timed.op == "mm":
            peaks[timed.dtype] = max(peaks[timed.dtype], timed.flops / timed.seconds)
    return peaks


def _names(cost: OpCost) -> list[str]:
    """Return the timed operators that may stand for one, the likest first."""
    plain = cost.op.removeprefix("_foreach_")
    other = plain.removesuffix("_") if plain.endswith("_") else f"{plain}_"
    names = [cost.op, plain, other]
    named = [_STANDS_FOR[name] for name in names if name in _STANDS_FOR]
    if cost.kind in _STANDS_FOR:
        named.append(_STANDS_FOR[cost.kind])
    return [*names, *named]


def _on_curve(curve: list[KernelTime], num_bytes: float) -> float:
    """Return the seconds for so many bytes: between two sizes on a straight line of logarithms."""
    if num_bytes <= 0:
        return 0.0
    above = next((index for index, timed in enumerate(curve) if timed.num_bytes >= num_bytes), None)
    if above is None or above == 0:
        end = curve[-1 if above is None else 0]
        return end.seconds * num_bytes / end.num_bytes
    low, high = curve[above - 1], curve[above]
    share = math.log(num_bytes / low.num_bytes) / math.log(high.num_bytes / low.num_bytes)
    return low.seconds * math.exp(share * math.log(high.seconds / low.seconds))


def _rate_nearby(known: dict[ProductShape, KernelTime], sizes: tuple[int, ...]) -> float:
    """Return operations a second, as a mean of logarithms in which what is twice as near counts 16 times."""
    weighted = total = 0.0
    for key, timed in known.items():
        squared = sum(math.log(one / other) ** 2 for one, other in zip(sizes, key, strict=True))
        if squared < 1e-9:
            return timed.flops / timed.seconds
        weighted += math.log(timed.flops / timed.seconds) / squared**2
        total += 1 / squared**2
    return math.exp(weighted / total)


def _rate(grid: dict[ProductShape, KernelTime], sizes: list[float]) -> float:
    """Return operations a second, interpolated between the corners of the grid's cell in logarithms."""
    brackets = [_bracket(sorted({key[axis] for key in grid}), size) for axis, size in enumerate(sizes)]
    total = 0.0
    for corner in itertools.product((0, 1), repeat=3):
        weight = math.prod(
            around.share if upper else 1 - around.share
            for upper, around in zip(corner, brackets, strict=True)
        )
        if weight:
            m, n, k = (around.corner(upper) for upper, around in zip(corner, brackets, strict=True))
            total += weight * math.log(_known_rate(grid, (m, n, k)))
    return math.exp(total)


class _Bracket(NamedTuple):
    """The known sizes around one, and how far it is from the lower to the upper."""

    low: int
    high: int
    share: float

    def corner(self, upper: int) -> int:
        return self.high if upper else self.low


def _bracket(known: list[int], size: float) -> _Bracket:
    upper = next((index for index, value in enumerate(known) if value >= size), len(known) - 1)
    low, high = known[max(upper - 1, 0)], known[upper]
    if size >= high or low == high:
        return _Bracket(high, high, 0.0)
    return _Bracket(low, high, math.log(size / low) / math.log(high / low))


def _known_rate(grid: dict[ProductShape, KernelTime], key: ProductShape) -> float:
    """Return the rate at a corner; one that was too large to be timed is as fast as one a size smaller."""
    while key not in grid:
        axis = max(range(3), key=lambda index: key[index])
        smaller = max(size[axis] for size in grid if size[axis] < key[axis])
        key = tuple(smaller if index == axis else size for index, size in enumerate(key))  # type: ignore[assignment]
    timed = grid[key]
    return timed.flops / timed.seconds
