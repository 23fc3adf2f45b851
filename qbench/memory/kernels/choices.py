"""Which kernel CUDA runs, by compute capability, dtype, mask and head layout: one table, with its sources.

The rows speak for torch 2.13, with the cuDNN that its CUDA 13 wheels require (9.20), and bitsandbytes 0.50.
`SDP` in a source is aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from qbench.catalog.capabilities import multiprocessor
from qbench.units import KIB

Capability = tuple[int, int]
Backend = Literal["cudnn", "flash", "efficient", "math", "flash_attention_2"]
"""Kernels of attention: those of torch, and those of the package flash-attn."""

HALF = (torch.float16, torch.bfloat16)

CUDNN_HEAD_DIM, CUDNN_HEAD_DIM_ON_HOPPER = 128, 256
"""SDP, check_cudnn_tensor_shapes: the limits with cuDNN 9.20; from sm_90 also 192 beside 128 for values."""

FLASH_HEAD_DIM = 256
"""SDP, check_head_dim_size_flash."""

FUSED_MAX_TOKENS = 1536
"""bitsandbytes/backends/cuda/ops.py, _gemm_4bit_custom_max_m: for more, weights are always dequantized."""

NUM_MULTIPROCESSORS: dict[Capability, int] = {
    (6, 0): 56,
    (7, 0): 80,
    (7, 5): 40,
    (8, 0): 108,
    (8, 6): 82,
    (8, 9): 128,
    (9, 0): 132,
    (10, 0): 148,
    (10, 3): 148,
    (12, 0): 170,
    (12, 1): 48,
}
"""Of P100, V100, T4, A100, RTX 3090, RTX 4090, H100 SXM, B200, B300, RTX 5090, GB10 (NVIDIA)."""

HOLDS_128_ROWS = {(7, 0), (8, 0), (8, 7), (9, 0), (10, 0), (10, 3)}
"""Capabilities with shared memory for the 128-row kernels of memory-efficient backward; others run 64 rows.

Source: ATen/native/transformers/cuda/mem_eff_attention/kernels/generate_kernels.py, which keeps 64 rows for
sm_75 and sm_86; blocks of sm_89 and sm_12x have the 99 KiB of sm_86.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What of a GPU, and of the torch that runs on it, decides between kernels."""

    capability: Capability = (8, 0)
    """Compute capability; where no GPU is named, Ampere, the oldest with bf16."""
    has_flash: bool = True
    """Whether torch was built with flash attention; its wheels for Windows are not (USE_FLASH_ATTENTION)."""
    multiprocessors: int | None = None
    """None: those of a typical card."""

    @property
    def num_multiprocessors(self) -> int:
        """Return the multiprocessors of the card."""
        return self.multiprocessors or NUM_MULTIPROCESSORS.get(self.capability, NUM_MULTIPROCESSORS[8, 0])

    @property
    def threads_per_multiprocessor(self) -> int:
        """Return the threads that a multiprocessor holds at a time."""
        return multiprocessor(self.capability).max_threads

    @property
    def prefers_cudnn(self) -> bool:
        """SDP, check_prefer_cudnn_attention: with CUDA 13 wheels all of sm_90 and sm_10x."""
        return self.capability[0] in (9, 10)

    @property
    def workspace_bytes(self) -> int:
        """Return the cuBLAS workspace of a handle and stream: 32 MiB from Hopper on, 8.125 MiB before.

        ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize: `:4096:2:16:8`, or 32 MiB for compute
        capability 9, and since pytorch/pytorch pull request 175344 (2.12) for 10 and 12.
        """
        return 4096 * KIB * 8 if self.capability >= (9, 0) else 4096 * KIB * 2 + 16 * KIB * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """What of a call of scaled_dot_product_attention decides its kernel."""

    dtype: torch.dtype
    heads: tuple[int, int, int]
    """Heads of query, key and value."""
    head_dims: tuple[int, int, int]
    """Last dimension of query, key and value."""
    lengths: tuple[int, int]
    """Tokens of query and key."""
    has_mask: bool = False
    is_causal: bool = False
    enable_gqa: bool = False
    dropout_p: float = 0.0
    requires_grad: bool = True
    contiguous_heads: bool = True
    """Whether the last dimension of query, key, value and mask has stride 1."""


def _equal_heads(call: AttentionCall) -> bool:
    return len(set(call.heads)) == 1


def _grouped(call: AttentionCall) -> bool:
    query, key, value = call.heads
    return call.enable_gqa and key == value and query % key == 0


def _cudnn(call: AttentionCall, card: Card) -> bool:
    query, key = call.lengths
    _, key_dim, value_dim = call.head_dims
    limit = CUDNN_HEAD_DIM_ON_HOPPER if card.capability[0] == 9 else CUDNN_HEAD_DIM
    fits = max(call.head_dims) <= limit or (key_dim, value_dim) == (192, 128)
    return (
        card.prefers_cudnn
        and call.dtype in HALF
        and fits
        and key_dim % 8 == value_dim % 8 == 0
        and (_equal_heads(call) or _grouped(call))
        and key != 1
        and (call.dropout_p == 0 or ((call.dropout_p * 16) % 1 == 0 and query != 1))
        and call.contiguous_heads
    )


def _flash(call: AttentionCall, card: Card) -> bool:
    query, key = call.lengths
    return (
        card.has_flash
        and (8, 0) <= card.capability <= (12, 1)
        and call.dtype in HALF
        and not call.has_mask
        and len(set(call.head_dims)) == 1
        and call.head_dims[0] <= FLASH_HEAD_DIM
        and _flash_backward(call, card)
        and (not call.is_causal or query == key)
        and (_equal_heads(call) or _grouped(call))
        and call.contiguous_heads
    )


def _flash_backward(call: AttentionCall, card: Card) -> bool:
    small_memory = (8, 6) <= card.capability <= (8, 9) or card.capability in ((12, 0), (12, 1))
    if not call.requires_grad or not small_memory:
        return True
    return call.head_dims[0] <= 192 or (call.head_dims[0] > 224 and call.dropout_p == 0)


def _efficient(call: AttentionCall, card: Card) -> bool:
    query_dim, key_dim, value_dim = call.head_dims
    alignment = _gemm_alignment(call.dtype, card.capability)
    dtypes = (torch.float16, torch.float32) + ((torch.bfloat16,) if card.capability >= (8, 0) else ())
    return (
        (5, 0) <= card.capability <= (12, 1)
        and call.dtype in dtypes
        and query_dim == key_dim
        and query_dim % alignment == value_dim % alignment == 0
        and _equal_heads(call)
        and call.contiguous_heads
    )


def _gemm_alignment(dtype: torch.dtype, capability: Capability) -> int:
    """SDP, minimum_gemm_alignment: elements that a tensor core takes at once."""
    half = dtype in HALF
    if capability[0] >= 8 or (capability[0] == 7 and half):
        return 8 if half else 4
    return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRule:
    """One backend of attention: when CUDA can take it, and where that is written."""

    backend: Backend
    takes: Callable[[AttentionCall, Card], bool]
    says: str
    source: str


ATTENTION: tuple[BackendRule, ...] = (
    BackendRule(
        backend="cudnn",
        takes=_cudnn,
        says="sm_90, sm_10x; fp16, bf16; heads of up to 128 (sm_90: 256), in eights; masks and groups; "
        "dropout in 16ths",
        source="SDP, check_prefer_cudnn_attention and can_use_cudnn_attention",
    ),
    BackendRule(
        backend="flash",
        takes=_flash,
        says="sm_80 to sm_121; fp16, bf16; no mask; groups; heads of up to 256, in backward on sm_86, sm_89 "
        "and sm_12x of up to 192, or above 224 without dropout",
        source="SDP, can_use_flash_attention",
    ),
    BackendRule(
        backend="efficient",
        takes=_efficient,
        says="sm_50 to sm_121; fp16, fp32, from sm_80 bf16; masks; equal heads, aligned to 8 (fp32: 4)",
        source="SDP, can_use_mem_efficient_attention; grouped heads came after 2.13 (pull request 191085)",
    ),
    BackendRule(
        backend="math", takes=lambda call, card: True, says="everything", source="SDP, select_sdp_backend"
    ),
)
"""The backends in the order in which torch asks them (SDP, priority_order)."""


Choice = TypeVar("Choice", bound=Callable[..., Any])


class Decisions:
    """What cards were asked to choose while a step was traced, and what was answered.

    A trace depends on its card by these answers and by the size of library workspaces alone. So where another
    card gives the same ones, it would run the same operators.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[Callable[..., Any], tuple[Any, ...]], Any] = {}

    def note(self, choice: Callable[..., Any], arguments: tuple[Any, ...], answer: Any) -> None:
        """Keep an answer; the card is left out of the question."""
        self._answers[choice, tuple(None if isinstance(value, Card) else value for value in arguments)] = (
            answer
        )

    def same_on(self, asked: Card, other: Card) -> bool:
        """Return whether `other` gives every answer that `asked` gave."""
        return asked.workspace_bytes == other.workspace_bytes and all(
            choice(*(other if value is None else value for value in question)) == answer
            for (choice, question), answer in self._answers.items()
        )


_listening: list[Decisions] = []


@contextlib.contextmanager
def heard() -> Iterator[Decisions]:
    """Yield the decisions that are made inside, in this process."""
    decisions = Decisions()
    _listening.append(decisions)
    try:
        yield decisions
    finally:
        _listening.remove(decisions)


def chosen_by_card(choice: Choice) -> Choice:
    """Let `heard` know of each call of a function that chooses by its card."""

    @functools.wraps(choice)
    def told(*arguments: Any) -> Any:
        answer = choice(*arguments)
        for decisions in _listening:
            decisions.note(choice, arguments, answer)
        return answer

    return told  # type: ignore[return-value]


@chosen_by_card
def attention_backend(call: AttentionCall, card: Card) -> Backend:
    """Return the first backend of `ATTENTION` that takes a call on a card."""
    return next(rule.backend for rule in ATTENTION if rule.takes(call, card))


@chosen_by_card
def fuses_4bit(card: Card, dtype: torch.dtype, tokens: int, shape: tuple[int, int], blocksize: int) -> bool:
    """Say whether bitsandbytes multiplies packed 4-bit weights at once, without a 16-bit copy of them.

    `shape` is (out, in) of the weight. Source: bitsandbytes/backends/cuda/ops.py, gemm_4bit: not beyond 1536
    tokens, not where blocks straddle rows, else as its own table of architectures says; training makes no
    difference, since autograd's MatMul4Bit calls the same operator.
    """
    if tokens > FUSED_MAX_TOKENS or shape[1] % blocksize:
        return False
    return _bitsandbytes_rule(card.capability, card.num_multiprocessors)(0, dtype, tokens, *shape)


@chosen_by_card
def adds_up_in_fp32(card: Card, dtype: torch.dtype) -> bool:
    """Say whether cuBLAS adds such products to an fp32 sum (ATen/cuda/CUDABlas.cpp, gemm_internal_cublas)."""
    return dtype != torch.bfloat16 or card.capability >= (8, 0)


@functools.cache
def _bitsandbytes_rule(capability: Capability, num_multiprocessors: int) -> Callable[..., bool]:
    """Return bitsandbytes' own choice between its kernels, as it would be on a card.

    The module that holds it can only be imported where there is CUDA, so the function is taken out of its
    source and told of the card.
    """
    spec = importlib.util.find_spec("bitsandbytes")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "backends/cuda/ops.py").read_text(encoding="utf-8"))
    wanted = {"_gemm_4bit_use_custom_cuda", "_GEMM_4BIT_CUSTOM_FLOOR_M"}
    kept: list[ast.stmt] = [node for node in tree.body if _defined(node) in wanted]
    names: dict[str, Any] = {
        "functools": functools,
        "torch": torch,
        "_gpu_dispatch_props": lambda index: (num_multiprocessors, *capability),
    }
    exec(compile(ast.Module(body=kept, type_ignores=[]), "bitsandbytes", "exec"), names)
    rule: Callable[..., bool] = names["_gemm_4bit_use_custom_cuda"]
    return rule


def _defined(node: ast.stmt) -> str | None:
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None


def kernel_caveats(card: Card, attention: Collection[str], tokens: int, has_4bit: bool) -> Iterator[str]:
    """Yield what cannot be known of the kernels that a step of so many tokens runs."""
    if "flash_attention_2" in attention:
        yield "flash_attention_2: planned with the kernels of flash-attn that torch has built in"
    if "cudnn" in attention:
        yield (
            "cuDNN attention: its workspace is not published; planned as what cudnn-frontend names (row sums "
            "and query gradient in fp32, gradients of all heads where they are grouped)"
        )
    if has_4bit and 4 < tokens <= FUSED_MAX_TOKENS:
        yield (
            f"bitsandbytes chooses its 4-bit product for {tokens} tokens by the multiprocessors of the card; "
            f"planned for {card.num_multiprocessors}"
        )
