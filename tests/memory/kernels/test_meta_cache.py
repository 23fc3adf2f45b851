"""Operators on meta are answered from memory, with the answer that they would give."""

from __future__ import annotations

from typing import Any

import torch

from qbench.memory.kernels.meta_cache import MetaKernelCache

aten: Any = torch.ops.aten


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def test_calls_of_one_key_give_new_tensors_of_the_same_layout() -> None:
    cache = MetaKernelCache()
    first, key = cache.call(aten.mm.default, (on_meta(2, 3), on_meta(3, 4)), {})
    again, same = cache.call(aten.mm.default, (on_meta(2, 3), on_meta(3, 4)), {})
    assert key == same
    assert (again.shape, again.stride(), again.dtype) == (first.shape, first.stride(), first.dtype)
    assert again.untyped_storage()._cdata != first.untyped_storage()._cdata


def test_an_operator_that_works_in_place_returns_what_it_was_given() -> None:
    cache = MetaKernelCache()
    for _ in range(2):
        written, out = on_meta(2, 3), on_meta(2, 4)
        assert cache.call(aten.add_.Tensor, (written, on_meta(2, 3)), {})[0] is written
        assert cache.call(aten.mm.out, (written, on_meta(3, 4)), {"out": out})[0] is out
        assert cache.call(aten._foreach_add_.Scalar, ([written], 1.0), {})[0] is None


def test_what_takes_effect_runs_each_time() -> None:
    cache = MetaKernelCache()
    for _ in range(2):
        count = torch.zeros(())
        cache.call(aten.add_.Tensor, (count, 1), {})
        assert count.item() == 1
        empty, turned, memory = on_meta(0), on_meta(2, 3), on_meta(2, 3)
        cache.call(aten.mm.out, (on_meta(2, 3), on_meta(3, 4)), {"out": empty})
        assert empty.shape == (2, 4)
        cache.call(aten.t_.default, (turned,), {})
        assert turned.shape == (3, 2)
        cache.call(aten.set_.source_Tensor, (memory, turned), {})
        assert memory.untyped_storage()._cdata == turned.untyped_storage()._cdata


def test_another_shape_of_the_same_memory_is_no_new_tensor() -> None:
    given = on_meta(4, 6)
    out, _ = MetaKernelCache().call(aten._unsafe_view.default, (given, [2, 12]), {})
    assert (out.shape, out.stride()) == ((2, 12), (12, 1))
    assert out.untyped_storage()._cdata == given.untyped_storage()._cdata
