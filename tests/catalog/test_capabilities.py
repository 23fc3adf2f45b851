"""What cards of one compute capability share."""

from __future__ import annotations

import pytest

from qbench.catalog.capabilities import context_size, multiprocessor
from qbench.catalog.gpus import gpus
from qbench.units import GIB, KIB, MIB

CAPABILITIES = sorted({gpu.compute_capability for gpu in gpus() if gpu.compute_capability is not None})


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_context_is_an_interval_with_a_source(capability: tuple[int, int]) -> None:
    size = context_size(capability)
    assert 250 * MIB < size.least < size.most < 0.6 * GIB
    assert "pull request" in size.source or "issue" in size.source


@pytest.mark.parametrize(
    ("capability", "threads", "shared_kib", "block_kib"),
    # CUDA C++ Programming Guide 13.0, technical specifications per compute capability.
    [((7, 5), 1024, 64, 64), ((8, 0), 2048, 164, 163), ((8, 9), 1536, 100, 99), ((9, 0), 2048, 228, 227)],
)
def test_limits_of_a_multiprocessor(
    capability: tuple[int, int], threads: int, shared_kib: int, block_kib: int
) -> None:
    found = multiprocessor(capability)
    assert found.max_threads == threads
    assert found.shared_bytes == shared_kib * KIB
    assert found.shared_bytes_per_block == block_kib * KIB


def test_a_capability_that_is_not_listed_is_as_the_nearest_older_one() -> None:
    assert multiprocessor((8, 7)) == multiprocessor((8, 6))
    assert multiprocessor((5, 2)) == multiprocessor((6, 0))
