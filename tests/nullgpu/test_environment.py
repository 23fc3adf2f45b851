"""A card of the catalog becomes the environment that the shim reads."""

from __future__ import annotations

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.errors import CatalogError
from qbench.nullgpu.environment import card_environment


def test_every_fact_of_a_card_is_there() -> None:
    # 23.56 GiB; the context as in a plan for 8.6; 82 multiprocessors with 100 KiB of shared memory.
    assert card_environment(find_gpu("RTX 3090"), order="down") == {
        "NULLGPU_NAME": "NVIDIA RTX 3090 (null GPU)",
        "NULLGPU_CC": "8.6",
        "NULLGPU_SM": "82",
        "NULLGPU_THREADS_PER_SM": "1536",
        "NULLGPU_SHARED_PER_SM": "102400",
        "NULLGPU_SHARED_PER_BLOCK": "101376",
        "NULLGPU_MEMORY": "25297357373",
        "NULLGPU_CONTEXT": "400000000",
        "NULLGPU_COUNT": "1",
        "NULLGPU_VA": "down",
    }


def test_a_context_that_was_read_counts_before_what_was_reported() -> None:
    assert card_environment(find_gpu("T4"), context_bytes=1)["NULLGPU_CONTEXT"] == "1"


def test_a_card_without_cuda_is_refused() -> None:
    with pytest.raises(CatalogError, match="MI300X has no CUDA; name an NVIDIA GPU"):
        card_environment(find_gpu("MI300X"))
