"""What the kernels of a device allocate, on meta tensors: the CPU's against real ones, CUDA's by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qbench.memory.history.ledger import Ledger
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.replacements import decompositions, kernels_of

HEADS, TOKENS = 4, 48


def sizes(ledger: Ledger) -> list[int]:
    """Return the bytes of each allocation, and of each free as a negative number, in order."""
    return [size if size < 0 else ledger.allocations[handle].num_bytes for handle, size in ledger.events]


def allocated(ledger: Ledger) -> list[int]:
    return [allocation.num_bytes for allocation in ledger.allocations]


def attention_events(
    device: str,
    kernels: str,
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 64,
    kv_heads: int = HEADS,
    mask: str = "none",
    card: Card | None = None,
) -> Ledger:
    """Return the ledger of attention and its backward; the inputs existed before."""

    def states(heads: int) -> torch.Tensor:
        return torch.ones(2, heads, TOKENS, head_dim, dtype=dtype, device=device, requires_grad=True)

    query, key, value = states(HEADS), states(kv_heads), states(kv_heads)
    bias = None
    if mask != "none":
        kind = dtype if mask == "float" else torch.bool
        bias = torch.ones(2, 1, TOKENS, TOKENS, dtype=kind, device=device)
    ledger = Ledger({device}, decompositions(kernels, device == "meta", card))
    with kernels_of(kernels, card), ledger:
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, is_causal=mask == "none", enable_gqa=kv_heads != HEADS
        )
        output.backward(torch.empty_like(output))
    return ledger


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["equal heads", "grouped heads"])
@pytest.mark.parametrize("mask", ["none", "float", "bool"])
def test_cpu_attention_on_meta_allocates_what_the_cpu_does(
    dtype: torch.dtype, head_dim: int, kv_heads: int, mask: str
) -> None:
    planned = attention_events("meta", "cpu", dtype, head_dim, kv_heads, mask)
    real = attention_events("cpu", "cpu", dtype, head_dim, kv_heads, mask)
    assert sizes(planned) == sizes(real)
    assert len(planned.events) > 4


SCORES = 2 * HEADS * TOKENS * TOKENS
"""Elements of the score matrix, which fused kernels never hold."""

STATE = 2 * HEADS * TOKENS * 64 * 2
"""Bytes of a query in bf16 with heads of 64."""

WINDOWS = Card(capability=(8, 9), has_flash=False)


def test_cuda_flash_attention_keeps_only_the_sums_of_each_row() -> None:
    made = allocated(attention_events("meta", "cuda"))
    # Output in bf16 and a log-sum-exp in fp32 for each row.
    assert made[:2] == [STATE, 2 * HEADS * TOKENS * 4]
    # Backward, after the gradient that the test makes: the gradients of the three states, then in fp32 the
    # row sums and the gradient of the query, with 48 tokens rounded up to 128.
    assert made[-5:] == [STATE, STATE, STATE, 2 * HEADS * 128 * 4, 2 * 128 * HEADS * 64 * 4]


def test_cuda_flash_attention_sums_the_gradients_of_grouped_heads() -> None:
    made = allocated(attention_events("meta", "cuda", kv_heads=2))
    # As above with half as many heads in key and value, and their gradients for every head of the query.
    assert made[-7:-4] == [STATE, STATE // 2, STATE // 2]
    assert made[-2:] == [STATE, STATE]


def test_cuda_cudnn_attention_has_one_workspace() -> None:
    made = allocated(attention_events("meta", "cuda", card=Card(capability=(9, 0))))
    # Row sums and the gradient of the query in fp32: 48 rows of 1 + 64.
    assert made[-4:] == [STATE, STATE, STATE, 4 * 2 * HEADS * TOKENS * 65]
    made = allocated(attention_events("meta", "cuda", kv_heads=2, card=Card(capability=(9, 0))))
    assert made[-4:] == [STATE, STATE // 2, STATE // 2, 4 * 2 * HEADS * TOKENS * 65]


def test_cuda_efficient_attention_adds_up_in_tiles() -> None:
    made = allocated(attention_events("meta", "cuda", mask="float"))
    # A row sum for each token, and for each head one tile of 64 x 64 in fp32 with its lock of 16 bytes.
    at = made.index(2 * HEADS * 4 * (4 + 64 * 64))
    assert made[at - 4 : at] == [STATE, STATE, STATE, 2 * HEADS * TOKENS * 4]


@pytest.mark.parametrize(
    ("capability", "floats"),
    [
        # 128 x 128 tiles where shared memory holds them: one for 48 rows and 128 columns.
        ((8, 0), 4 + 128 * 128),
        # 64 x 64 elsewhere: two of them, and gradients of key and value staged in 64 x 128 each.
        ((8, 9), 2 * (4 + 64 * 64) + 2 * 64 * 128),
    ],
)
def test_cuda_efficient_attention_of_wide_heads_depends_on_shared_memory(
    capability: tuple[int, int], floats: int
) -> None:
    ledger = attention_events("meta", "cuda", head_dim=128, mask="float", card=Card(capability=capability))
    assert 2 * HEADS * 4 * floats in allocated(ledger)


def test_cuda_efficient_attention_pads_a_mask_of_odd_width() -> None:
    states = [torch.ones(1, 2, 12, 64, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bfloat16, device="meta")
    ledger = Ledger({"meta"})
    with kernels_of("cuda"), ledger:
        F.scaled_dot_product_attention(*states, attn_mask=mask)
    # Twelve columns become sixteen.
    assert allocated(ledger)[0] == 12 * 16 * 2


def test_cuda_attention_with_bool_mask_makes_it_additive() -> None:
    made = allocated(attention_events("meta", "cuda", mask="bool"))
    # The scalars 0 and -inf in bf16, then a mask that holds one of them for each pair of tokens.
    assert made[:3] == [2, 2, 2 * TOKENS * TOKENS * 2]
    assert SCORES * 2 not in made


def test_cuda_attention_in_fp32_with_grouped_heads_holds_the_scores() -> None:
    made = allocated(attention_events("meta", "cuda", torch.float32, kv_heads=2))
    assert made.count(SCORES * 4) >= 2


def test_cuda_attention_in_fp32_with_equal_heads_does_not() -> None:
    assert SCORES * 4 not in allocated(attention_events("meta", "cuda", torch.float32))


def test_cuda_without_flash_takes_the_efficient_kernel_or_holds_the_scores_in_fp32() -> None:
    assert SCORES * 4 not in allocated(attention_events("meta", "cuda", card=WINDOWS))
    made = allocated(attention_events("meta", "cuda", kv_heads=2, card=WINDOWS))
    assert made.count(SCORES * 4) >= 2


def test_kernels_leave_real_tensors_alone() -> None:
    inputs = [torch.randn(1, 2, 8, 16) for _ in range(3)]
    expected = F.scaled_dot_product_attention(*inputs, is_causal=True)
    for device in ("cpu", "cuda"):
        with kernels_of(device):
            assert torch.equal(F.scaled_dot_product_attention(*inputs, is_causal=True), expected)


def test_cuda_dropout_keeps_a_mask_of_bools() -> None:
    values = torch.ones(1000, device="meta", requires_grad=True)
    ledger = Ledger({"meta"})
    with kernels_of("cuda"), ledger:
        result = F.dropout(values, 0.1)
    # 1000 fp32 results and 1000 bools, both alive.
    assert sizes(ledger) == [4000, 1000]
    del result


def test_cpu_dropout_keeps_a_mask_of_the_dtype() -> None:
    values = torch.ones(1000, device="meta", requires_grad=True)
    ledger = Ledger({"meta"})
    with kernels_of("cpu"), ledger:
        result = F.dropout(values, 0.1)
    assert 1000 not in allocated(ledger)
    assert sum(size for _, size in ledger.events) == 2 * 4096
    del result


def test_dropout_that_does_nothing_allocates_nothing() -> None:
    values = torch.ones(1000, device="meta")
    ledger = Ledger({"meta"})
    with kernels_of("cuda"), ledger:
        assert F.dropout(values, 0.1, training=False) is values
        assert F.dropout(values, 0.0) is values
    assert ledger.events == []


OUT, IN = 512, 256
BLOCKS = OUT * IN // 64


def gemm_4bit_sizes(tokens: int, double_quant: bool, kernels: str = "cuda") -> list[int]:
    """Return the events of a 4-bit matrix product in bf16, 256 features in and 512 out."""

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    hidden = empty(tokens, IN, dtype=torch.bfloat16)
    packed = empty(OUT * IN // 2, 1, dtype=torch.uint8)
    # Under double quantization the one fp32 absmax is that of the second level, for 256 blocks each.
    absmax = empty(BLOCKS // 256 if double_quant else BLOCKS, dtype=torch.float32)
    nested = ()
    if double_quant:
        nested = (
            empty(BLOCKS, dtype=torch.uint8),
            empty(256, dtype=torch.float32),
            empty(dtype=torch.float32),
        )
    ledger = Ledger({"meta"}, decompositions(kernels, on_meta=True))
    with ledger:
        result = torch.ops.bitsandbytes.gemm_4bit.default(
            hidden, packed, (OUT, IN), absmax, 64, "nf4", None, *nested
        )
    assert result.shape == (tokens, OUT)
    return sizes(ledger)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("tokens", [1, 256])
def test_fused_4bit_product_allocates_its_result_only(tokens: int, double_quant: bool) -> None:
    assert gemm_4bit_sizes(tokens, double_quant) == [tokens * OUT * 2]


def test_4bit_product_of_many_tokens_holds_the_weight_in_16_bit() -> None:
    weight, result = OUT * IN * 2, 513 * OUT * 2
    assert gemm_4bit_sizes(513, double_quant=False) == [weight, result, -weight]


def test_double_quantization_adds_the_absmax_in_fp32() -> None:
    weight, absmax, result = OUT * IN * 2, BLOCKS * 4, 513 * OUT * 2
    # Twice, before and after the mean is added, both until the call returns.
    events = gemm_4bit_sizes(513, double_quant=True)
    assert events[:4] == [absmax, absmax, weight, result]
    assert sorted(events[4:]) == [-weight, -absmax, -absmax]


def test_width_that_is_no_multiple_of_the_block_is_not_fused() -> None:
    hidden = torch.empty(2, 96, dtype=torch.bfloat16, device="meta")
    packed = torch.empty(OUT * 96 // 2, 1, dtype=torch.uint8, device="meta")
    absmax = torch.empty(OUT * 96 // 64, device="meta")
    ledger = Ledger({"meta"}, decompositions("cuda", on_meta=True))
    with ledger:
        torch.ops.bitsandbytes.gemm_4bit.default(hidden, packed, (OUT, 96), absmax, 64, "nf4")
    assert OUT * 96 * 2 in allocated(ledger)


@pytest.mark.parametrize("double_quant", [False, True])
def test_cpu_4bit_product_holds_the_weight_whatever_the_tokens(double_quant: bool) -> None:
    assert OUT * IN * 2 in gemm_4bit_sizes(1, double_quant, kernels="cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_functional_is_restored(device: str) -> None:
    before = (F.scaled_dot_product_attention, F.dropout)
    with kernels_of(device):
        assert F.scaled_dot_product_attention is not before[0]
    assert (F.scaled_dot_product_attention, F.dropout) == before


def stop_inside(device: str) -> None:
    with kernels_of(device):
        raise RuntimeError("stop")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_functional_is_restored_after_an_exception(device: str) -> None:
    before = (F.scaled_dot_product_attention, F.dropout)
    with pytest.raises(RuntimeError, match="stop"):
        stop_inside(device)
    assert (F.scaled_dot_product_attention, F.dropout) == before
