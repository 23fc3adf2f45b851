"""What CUDA takes beside the tensors, and whether a card holds it."""

from __future__ import annotations

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.plan.hardware import capability_of, fits, headroom_bytes, library_buffers
from qbench.units import MIB


@pytest.mark.parametrize(
    ("capability", "mib"), [((7, 5), 8.125), ((8, 0), 8.125), ((8, 9), 8.125), ((9, 0), 32), ((12, 0), 32)]
)
def test_a_cublas_workspace_for_each_of_the_two_threads(capability: tuple[int, int], mib: float) -> None:
    # Two of 8.125 MiB are the 17.04 MB that published memory_allocated shows beside weights and adapters.
    assert library_buffers(capability) == {"forward": int(mib * MIB), "backward": int(mib * MIB)}


@pytest.mark.parametrize(
    ("names", "capability"), [((), (8, 0)), (("H100 SXM",), (9, 0)), (("RTX 4090", "H100 SXM"), (8, 9))]
)
def test_first_card_decides_the_compute_capability(
    names: tuple[str, ...], capability: tuple[int, int]
) -> None:
    assert capability_of(tuple(find_gpu(name) for name in names)) == capability


def test_a_card_holds_what_torch_reports_and_not_a_byte_more() -> None:
    gpu = find_gpu("RTX 4090")
    assert fits(gpu.memory_bytes, gpu)
    assert not fits(gpu.memory_bytes + 1, gpu)
    assert headroom_bytes(gpu.memory_bytes - 5, gpu) == 5
    assert headroom_bytes(gpu.memory_bytes + 5, gpu) == -5
