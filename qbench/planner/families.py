"""Points that differ in nothing but rank, sequence length and batch size: their plans can share work."""

from __future__ import annotations

import json

from qbench.scenario.schema import Point

Sizes = tuple[int, int, int]
"""Rank (0 without adapters), tokens of a sequence, sequences of a batch."""

LENGTH_GRAIN = 128
"""Kernels round lengths up to powers of two, 8, 64 and 128 tokens among them, and to no larger one."""

RANK_GRAIN = 8
"""Grouped products pad rows to 16 bytes: ranks between sampled ones must be multiples of this."""


def sizes_of(point: Point) -> Sizes:
    """Return what may differ between the points of a family."""
    rank = 0 if point.lora is None else point.lora.r
    return rank, point.train.seq_len, point.train.per_device_train_batch_size


def resized(point: Point, sizes: Sizes) -> Point:
    """Return the point of the same family with other sizes."""
    rank, seq_len, batch = sizes
    train = point.train.model_copy(update={"seq_len": seq_len, "per_device_train_batch_size": batch})
    lora = None if point.lora is None else point.lora.model_copy(update={"r": rank})
    return point.model_copy(update={"train": train, "lora": lora})


def family_of(point: Point) -> str:
    """Return a name that the points of a family share."""
    same = resized(point, (1, 1, 1)).model_dump(mode="json")
    return json.dumps(same, sort_keys=True)
