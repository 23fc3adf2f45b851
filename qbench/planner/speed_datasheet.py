"""How fast a GPU of the catalog is: datasheet peaks, and what others measured kernels to reach of them."""

from __future__ import annotations

from qbench.catalog.efficiencies import efficiency
from qbench.catalog.gpus import GpuSpec
from qbench.memory.work.log import Work
from qbench.memory.work.op_costs import OpCost
from qbench.planner.step_time import Bound, KernelSeconds

_TENSORS_A_LAUNCH = 30
"""Tensors that one multi-tensor kernel takes at least (ATen/native/cuda/MultiTensorApply.cuh, five lists)."""


class DatasheetRates:
    """Rates of a GPU that nobody calibrated here."""

    overlaps = True
    source = "datasheet peaks and published efficiencies"

    def __init__(self, gpu: GpuSpec) -> None:
        self.gpu = gpu
        names = ("matmul", "attention_forward", "attention_backward", "bandwidth")
        self._share = {name: efficiency(name, gpu).value for name in names}
        self._launch_s = efficiency("launch", gpu).value
        self._dispatch_s = efficiency("dispatch", gpu).value

    def kernel_s(self, cost: OpCost) -> KernelSeconds | None:
        """Return the time of an operator; None where the card has no figure for its dtype."""
        movement = cost.num_bytes / (self.gpu.memory_bandwidth_bytes_per_s * self._share["bandwidth"])
        arithmetic = 0.0
        if cost.flops:
            peak = self._attention_peak() if _is_fp32_attention(cost) else self.peak_flops(cost.dtype)
            if peak is None:
                return None
            arithmetic = cost.flops / (peak * self._share[_arithmetic(cost)])
        bound: Bound = "compute" if arithmetic > movement else "memory"
        return KernelSeconds(self._launch_s + max(arithmetic, movement), bound)

    def host_s(self, work: Work) -> float:
        """Return the host's seconds for an operator; a multi-tensor one launches for many tensors."""
        seconds = self._dispatch_s + (0 if work.cost.kind == "none" else self._launch_s)
        return seconds / (_TENSORS_A_LAUNCH if work.cost.op.startswith("_foreach_") else 1)

    def peak_flops(self, dtype: str) -> float | None:
        """Return the datasheet's dense peak for a dtype; torch multiplies fp32 without TF32 by default."""
        return self.gpu.peak_flops.get(dtype)

    def _attention_peak(self) -> float | None:
        """Return the peak of fused attention in fp32: from Ampere on, three products in TF32 stand for one.

        Source: pytorch/pytorch aten/src/ATen/native/transformers/cuda/mem_eff_attention/gemm_kernel_utils.h
        (DefaultGemmType of float, OpMultiplyAddFastF32); allow_tf32 does not matter to it.
        """
        tf32 = self.gpu.peak_flops.get("tf32")
        if tf32 is None or (self.gpu.compute_capability or (0, 0)) < (8, 0):
            return self.peak_flops("fp32")
        return tf32 / 3


def _is_fp32_attention(cost: OpCost) -> bool:
    return cost.kind == "attention" and cost.dtype == "fp32"


def _arithmetic(cost: OpCost) -> str:
    if cost.kind != "attention":
        return "matmul"
    return "attention_backward" if "backward" in cost.op else "attention_forward"
