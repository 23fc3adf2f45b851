"""What CUDA's operators hold while they run: by hand, from the sources that `scratch` names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qbench.memory.history.ledger import Ledger
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.masked import reduce_scratch_bytes, sort_scratch_bytes
from qbench.memory.kernels.replacements import decompositions, kernels_of
from qbench.memory.kernels.scratch import reduction_bytes, scan_scratch_bytes

A100, H100, RTX_3090, T4 = (Card(capability=found) for found in ((8, 0), (9, 0), (8, 6), (7, 5)))


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def events(run: Any, card: Card = RTX_3090) -> list[int]:
    """Return the bytes asked for by each allocation, negative on a free; what is returned stays alive."""
    ledger = Ledger({"meta"}, decompositions("cuda", True, card))
    with kernels_of("cuda", card), ledger:
        kept = run()
    found = [
        size if size < 0 else ledger.allocations[handle].num_bytes for handle, size in list(ledger.events)
    ]
    del kept
    return found


def test_dropout_makes_its_mask_first() -> None:
    values = empty(4, 512)
    # 2048 bools, then 2048 values of two bytes.
    assert events(lambda: torch.native_dropout(values, 0.1, True)) == [2048, 4096]


def test_backward_of_softmax_holds_a_product_of_the_scores() -> None:
    scores = empty(2, 64, 64)
    found = events(lambda: torch._softmax_backward_data(scores, scores, -1, torch.bfloat16))
    assert found == [16_384, 16_384, -16_384]


def test_safe_softmax_looks_for_rows_without_scores() -> None:
    scores = empty(2, 64, 64)
    found = events(lambda: torch._safe_softmax(scores, -1))
    # Result, mask of 8192 scores, one flag for each of 128 rows, a zero.
    assert found[:4] == [16_384, 8192, 128, 2]
    assert sorted(found[4:]) == [-8192, -512, -512]


def test_a_sum_of_one_row_copies_bools_and_keeps_the_states_of_tiles() -> None:
    mask = empty(1, 512, dtype=torch.bool)
    # int64 result and copy; one tile and 32 more of 16 B are 528 B, which are 768; with 256 and 255 more.
    assert events(lambda: mask.cumsum(-1))[:3] == [4096, 4096, 768 + 256 + 255]
    rows = empty(2, 512, dtype=torch.bool)
    assert events(lambda: rows.cumsum(-1)) == [8192, 8192, -8192]  # several rows keep none


@pytest.mark.parametrize(
    ("count", "itemsize", "expected"),
    [
        # 16 tiles of 896: 48 x 16 = 768 B. 19 tiles: 51 x 16 = 816 B, which are 1024.
        (14_336, 8, 1279),
        (16_384, 8, 1535),
        # 35 tiles of 1920: 67 x 8 = 536 B, which are 768.
        (65_536, 4, 1279),
    ],
)
def test_states_of_a_scan(count: int, itemsize: int, expected: int) -> None:
    assert scan_scratch_bytes(count, itemsize) == expected


def test_norms_of_many_tensors_have_a_partial_result_for_each_chunk() -> None:
    tensors = [empty(100, 100), empty(70_000)]
    # Two tensors with room for two chunks of 65,536, in fp32 for 16-bit tensors, too.
    assert events(lambda: torch._foreach_norm(tensors))[:3] == [16, 2, 2]


def test_a_large_reduction_shares_its_work_among_blocks() -> None:
    # 458,752 elements are 896 for each of 512 threads: 56 blocks take 16 each, all within one block of 512 B.
    assert reduction_bytes(458_752, 1, RTX_3090) == (512, 512)
    # 82 multiprocessors hold 3 blocks each: 246 partial results of four bytes.
    assert reduction_bytes(7_340_032, 4, RTX_3090) == (1024, 512)
    assert reduction_bytes(65_536, 4, RTX_3090) == ()


def test_a_mask_that_selects_all() -> None:
    hidden, mask = empty(1, 511, 8), empty(1, 511, dtype=torch.bool)
    # Their number, cub's temporary, 511 positions in both dimensions, cub's states, and what was selected.
    made = [size for size in events(lambda: hidden[mask]) if size > 0]
    assert made[0] == 511  # the mask itself, which the ledger had not seen
    assert made[1:] == [4, 1, 2 * 8 * 511, 1023, 511 * 8 * 2]


def test_counting_and_sorting_many() -> None:
    # 82 multiprocessors, 6 blocks of 256 threads on each, five times: 2460 sums of four bytes.
    assert reduce_scratch_bytes(16_380, RTX_3090) == 9984 + 255
    assert reduce_scratch_bytes(4096, RTX_3090) == 1
    # Copies of keys and values, 2 passes of 256 bins, 2 blocks of 3840 pairs with 256 states, counters.
    assert sort_scratch_bytes(4094, RTX_3090) == 2 * 32_768 + 4096 + 2048 + 256 + 255
    assert sort_scratch_bytes(4094, H100) == 2 * 32_768 + 4096 + 1024 + 256 + 255
    assert sort_scratch_bytes(2000, T4) == 1


def test_indices_of_several_dimensions_get_the_same_strides() -> None:
    mask = empty(1, 512, dtype=torch.bool)
    batch, place = empty(1, 1, dtype=torch.int64), empty(1, 512, dtype=torch.int64)
    # Both indices, which the ledger had not seen; the first, spread over 512 places, is copied; 512 results.
    assert events(lambda: mask[batch, place])[:4] == [8, 4096, 4096, 512]


def test_int8_inputs_are_searched_for_outliers() -> None:
    rows = empty(512, 896, dtype=torch.float16)
    quantize = torch.ops.bitsandbytes.int8_vectorwise_quant
    made = [size for size in events(lambda: quantize(rows, threshold=6.0), RTX_3090) if size > 0]
    # Scales, packed, magnitudes, mask; then any(): its result, partial results and counters; and a zero.
    assert made == [2048, 458_752, 917_504, 458_752, 1, 512, 512, 1]
