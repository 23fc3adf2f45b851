"""What CUDA's operators hold while they run: by hand, from the sources that `scratch` names."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations import moe

from qbench.memory.history.ledger import Ledger
from qbench.memory.kernels.autocast import meta_autocast
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.flash_splits import num_splits
from qbench.memory.kernels.indexing import reduce_scratch_bytes, sort_scratch_bytes
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
    assert sort_scratch_bytes(4094, 12, RTX_3090) == 2 * 32_768 + 4096 + 2048 + 256 + 255
    assert sort_scratch_bytes(4094, 12, H100) == 2 * 32_768 + 4096 + 1024 + 256 + 255
    assert sort_scratch_bytes(2000, 11, T4) == 1
    # Eight bits are one pass, without copies; 64 are eight. 400,000 pairs are 143 times 2816.
    assert sort_scratch_bytes(4094, 8, H100) == 2048 + 1024 + 256 + 255
    assert sort_scratch_bytes(400_000, 64, T4) == 2 * 3_200_000 + 16_384 + 143 * 1024 + 256 + 255


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


@pytest.mark.parametrize(
    ("blocks", "keys", "card", "expected"),
    [
        # 2 x 8 heads x 8 blocks of queries on 340 places: 0.38 of a wave; two splits 0.75, and 85 % of that
        # is 0.64.
        (128, 8, Card(capability=(12, 0)), 2),
        # 112 of 216: 0.52; two splits take two waves, which use 0.52 again.
        (112, 2, A100, 1),
        (112, 2, Card(capability=(8, 9)), 2),  # 0.44 and 0.88 of 256 places
        (112, 2, Card(capability=(8, 9), multiprocessors=76), 1),  # 112 of 152; two splits: 224 of 304
        (173, 8, A100, 1),  # 0.8 of 216 places is 172.8
    ],
)
def test_keys_are_split_where_blocks_of_queries_leave_a_card_idle(
    blocks: int, keys: int, card: Card, expected: int
) -> None:
    assert num_splits(blocks, keys, card) == expected


def test_flash_attention_keeps_a_result_for_each_split() -> None:
    query, key = empty(2, 8, 512, 256), empty(2, 1, 512, 256)

    def run() -> Any:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, key, 0.0, True)

    made = [size for size in events(run, Card(capability=(12, 0))) if size > 0]
    # Result and sums; the sums and, in fp32, the results of two splits; the seed.
    sums, result = 2 * 8 * 512 * 4, 2 * 8 * 512 * 256 * 2
    assert made == [result, sums, 2 * sums, 2 * 2 * result, 16, 8]
    # 128 of 164 places are 0.78, and 85 % of the best, 0.89 by eight splits, is 0.76.
    assert len([size for size in events(run, RTX_3090) if size > 0]) == 4


def test_softmax_reads_fp16_and_writes_fp32_at_once() -> None:
    for dtype, expected in ((torch.float16, [16_384]), (torch.bfloat16, [16_384, 16_384, -16_384])):
        scores = empty(64, 64, dtype=dtype)
        assert events(lambda: F.softmax(scores, dim=-1, dtype=torch.float32)) == expected  # noqa: B023


def test_tokens_are_sorted_by_expert() -> None:
    few, many = empty(4096, dtype=torch.int64), empty(5000, dtype=torch.int64)
    # Values, indices, and the positions that a block swaps along.
    assert events(lambda: torch.sort(few)) == [32_768, 32_768, 32_768, -32_768]
    # 40,192 B of keys and of values, 8 passes of 256 bins of 8 B, 2 blocks with 256 states, and counters.
    made = events(lambda: torch.sort(many), H100)
    assert made[:4] == [40_000, 40_000, 40_000, 2 * 40_192 + 16_384 + 2048 + 256 + 255]


def test_rows_that_were_selected_get_their_gradients_in_order() -> None:
    rows, index = empty(512, 8).requires_grad_(), empty(4096, dtype=torch.int64)
    selected = rows[index]
    made = [size for size in events(lambda: selected.sum().backward()) if size > 2]
    # Zeros, which are the gradient; the index, which the ledger had not seen, within bounds and times its
    # stride; the gradient that a sum spread; the index sorted, where each came from and positions; and the
    # temporary: 512 rows have 9 bits, so two passes.
    zeros, spread, longs = 512 * 8 * 2, 4096 * 8 * 2, 4096 * 8
    temporary = 2 * longs + 4096 + 2048 + 256 + 255
    assert made == [zeros, longs, longs, longs, spread, longs, longs, longs, temporary]


@pytest.mark.parametrize(
    ("card", "rows", "expected"),
    [
        # 128 groups: pointers of 8 B, strides of 8 B and sizes of 4 B, three of each. Descriptors by tile.
        (H100, 4096, [7680, 132 * 512]),
        (Card(capability=(10, 0)), 4096, [7680, 148 * 5376]),  # 32 rows a group are few
        (Card(capability=(10, 0)), 32_768, [7680, 148 * 5888]),
        (A100, 4096, []),
    ],
)
def test_grouped_products_keep_tables_of_their_groups(card: Card, rows: int, expected: list[int]) -> None:
    tokens, weight, ends = empty(rows, 64), empty(128, 64, 256), empty(128, dtype=torch.int32)
    made = [size for size in events(lambda: F.grouped_mm(tokens, weight, offs=ends), card) if size > 0]
    assert made == [rows * 256 * 2, *expected]


def test_batched_products_copy_what_cublas_cannot_read() -> None:
    first, second = empty(4, 8, 16), empty(4, 16, 32)
    assert events(lambda: torch.bmm(first, second)) == [2048]
    # Expert last, as peft keeps the second factor: no dimension of a matrix is dense.
    spread = empty(8, 16, 4).permute(2, 0, 1)
    assert events(lambda: torch.bmm(spread, second))[:3] == [2048, 1024, -1024]
    sums = empty(4, 8, 32)
    assert events(lambda: torch.baddbmm(sums, spread, second))[:3] == [2048, 1024, -1024]


def test_experts_are_multiplied_one_by_one_below_compute_capability_8() -> None:
    tokens, weight, ends = empty(64, 32), empty(4, 32, 16), empty(4, dtype=torch.int32)
    for card, expected in ((T4, False), (A100, True)):
        with kernels_of("cuda", card):
            assert moe._can_use_grouped_mm(tokens, weight, ends) is expected
    # Its backward makes the gradient of all experts, trained or not (transformers/integrations/moe.py).
    tokens.requires_grad_()
    with kernels_of("cuda", T4):
        out = moe._grouped_mm(tokens, weight, ends)
    assert weight.numel() * 2 in events(lambda: out.sum().backward(), T4)


def test_linear_attention_solves_matrices_by_pointers_and_convolves_dense_rows() -> None:
    triangles, sides = empty(4, 3, 16, 16, dtype=torch.float32), empty(4, 3, 16, 8, dtype=torch.float32)
    made = events(lambda: torch.linalg.solve_triangular(triangles, sides, upper=False))
    assert made == [12 * 16 * 8 * 4, 12 * 8, 12 * 8, -512, -512]  # two pointers for each of 12 matrices
    rows, taps = empty(1, 40, 32).transpose(1, 2), empty(32, 1, 4)
    found = events(lambda: F.conv1d(rows, taps, padding=3, groups=32))
    # The rows of each channel together, and 40 + 3 places.
    assert found[:3] == [40 * 32 * 2, 43 * 32 * 2, -40 * 32 * 2]


def test_autocast_takes_softmax_to_fp32() -> None:
    scores = empty(64, 64)
    with kernels_of("cuda", A100), meta_autocast("cuda", torch.bfloat16):
        assert F.softmax(scores, dim=-1).dtype == torch.float32
        assert F.softmax(scores, dim=-1, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_int8_products_of_four_dimensions_are_refused() -> None:
    product = torch.ops.bitsandbytes.int8_mixed_scaled_mm
    weight, scales = empty(32, 16, dtype=torch.int8), empty(32, dtype=torch.float32)
    for shape in ((2, 3, 16), (2, 3, 4, 16)):
        rows, packed = empty(*shape, dtype=torch.float16), empty(*shape, dtype=torch.int8)
        stats = empty(rows.numel() // 16, dtype=torch.float32)
        with pytest.raises(ValueError, match="two or three") if len(shape) > 3 else nullcontext():
            events(lambda: product(rows, packed, weight, stats, scales))  # noqa: B023
