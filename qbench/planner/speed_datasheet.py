"""How fast a GPU of the catalog is: datasheet peaks, and what others measured kernels to reach of them.

A kernel takes a launch and its arithmetic or its bytes, whichever takes longer; a matrix product has a fixed
time as well. Each figure has its source in the catalog (`efficiencies.csv`, `attention_shares.csv`).
"""

from __future__ import annotations

from typing import Literal

from qbench.catalog.efficiencies import Case, attention_share, efficiency
from qbench.catalog.gpus import GpuSpec
from qbench.memory.work.log import Work
from qbench.memory.work.op_costs import OpCost
from qbench.planner.step_time import Bound, KernelSeconds

_TENSORS_A_LAUNCH = 30
"""Tensors that one multi-tensor kernel takes at least (ATen/native/cuda/MultiTensorApply.cuh, five lists)."""

_LONG = 2**62
"""Tokens of an attention whose shape is not known: its best share is taken."""


class DatasheetRates:
    """Rates of a GPU that was not calibrated here."""

    overlaps = True
    source = "datasheet peaks and published efficiencies"

    def __init__(self, gpu: GpuSpec, case: Case = "value") -> None:
        self.gpu = gpu
        shares = ("matmul", "matmul_fp32", "bandwidth", "eager")
        self._share = {name: efficiency(name, gpu).of(case) for name in shares}
        times = ("launch", "dispatch", "matmul_fixed")
        self._launch_s, self._dispatch_s, self._matmul_s = (efficiency(name, gpu).of(case) for name in times)

    def kernel_s(self, cost: OpCost) -> KernelSeconds | None:
        """Return the time of an operator; None where the card has no figure for its dtype."""
        movement = cost.num_bytes / (self.gpu.memory_bandwidth_bytes_per_s * self._bandwidth_share(cost))
        arithmetic, fixed = 0.0, self._launch_s
        if cost.flops:
            reached = self._attention(cost) if cost.kind == "attention" else self._product(cost)
            if reached is None:
                return None
            arithmetic = cost.flops / reached
            if cost.kind != "attention":
                fixed = max(fixed, self._matmul_s)
        bound: Bound = "compute" if arithmetic > movement else "memory"
        return KernelSeconds(fixed + max(arithmetic, movement), bound)

    def host_s(self, work: Work, is_compiled: bool = False) -> float:
        """Return the host's seconds for an operator; a multi-tensor one launches for many tensors."""
        seconds = 0.0 if is_compiled else self._dispatch_s
        seconds += 0.0 if work.cost.kind == "none" else self._launch_s
        return seconds / (_TENSORS_A_LAUNCH if work.cost.op.startswith("_foreach_") else 1)

    def peak_flops(self, dtype: str) -> float | None:
        """Return the datasheet's dense peak for a dtype; torch multiplies fp32 without TF32 by default."""
        return self.gpu.peak_flops.get(dtype)

    def _bandwidth_share(self, cost: OpCost) -> float:
        """Return the share of the peak; multi-tensor and fused kernels go through large pieces at once."""
        is_eager = cost.kind in ("elementwise", "reduction", "copy") and not cost.op.startswith(
            ("_foreach_", "fused")
        )
        return self._share["bandwidth"] * (self._share["eager"] if is_eager else 1.0)

    def _product(self, cost: OpCost) -> float | None:
        """Return the FLOPs in a second that a matrix product reaches."""
        peak = self.peak_flops(cost.dtype)
        return (
            None if peak is None else peak * self._share["matmul_fp32" if cost.dtype == "fp32" else "matmul"]
        )

    def _attention(self, cost: OpCost) -> float | None:
        """Return the FLOPs in a second that fused attention reaches."""
        peak = self._fp32_attention_peak() if cost.dtype == "fp32" else self.peak_flops(cost.dtype)
        if peak is None:
            return None
        # The memory-efficient kernel has no published figures; it is taken for flash attention.
        kernel: Literal["cudnn", "flash"] = "cudnn" if "cudnn" in cost.op else "flash"
        direction: Literal["backward", "forward"] = "backward" if "backward" in cost.op else "forward"
        tokens = cost.shape[2] if len(cost.shape) > 2 else _LONG
        return peak * attention_share(kernel, direction, self.gpu, tokens)

    def _fp32_attention_peak(self) -> float | None:
        """Return the peak of fused attention in fp32: from Ampere on, three products in TF32 stand for one.

        Source: pytorch/pytorch aten/src/ATen/native/transformers/cuda/mem_eff_attention/gemm_kernel_utils.h
        (DefaultGemmType of float, OpMultiplyAddFastF32); allow_tf32 does not matter to it.
        """
        tf32 = self.gpu.peak_flops.get("tf32")
        if tf32 is None or (self.gpu.compute_capability or (0, 0)) < (8, 0):
            return self.peak_flops("fp32")
        return tf32 / 3
