"""Changes to a training step that free memory, and what each costs; what it frees is planned, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.errors import ScenarioError
from qbench.records.record import Record
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Relief:
    """One change, planned."""

    changes: dict[str, Any]
    """Settings by short name, as flags and scenarios spell them."""
    cost: str
    """What is given up for it."""
    freed_bytes: int
    """Reserved memory that it frees."""
    fits: bool
    """Whether the point fits the card with it."""
    step_time_ratio: float | None
    """Planned step time over that before; None where time is not planned."""


def reliefs(
    record: Record, varied: str, planned: Callable[[Sequence[Point]], list[Record]]
) -> tuple[Relief, ...]:
    """Return the changes that free memory of a plan, cheapest first; the varied setting is left alone."""
    offers = [offer for offer in _offers(record.point) if varied not in offer[0]]
    tried = [(changes, cost, _changed(record.point, changes)) for changes, cost in offers]
    kept = [(changes, cost, point) for changes, cost, point in tried if point is not None]
    records = planned([point for _, _, point in kept])
    found = [
        _relief(record, new, changes, cost) for (changes, cost, _), new in zip(kept, records, strict=True)
    ]
    return tuple(relief for relief in found if relief is not None and relief.freed_bytes > 0)


MOST_TOGETHER = 20
"""Plans in search of changes that make a step fit together."""


def together(record: Record, planned: Callable[[Sequence[Point]], list[Record]]) -> dict[str, Any] | None:
    """Return changes that together make a plan fit its card, each tried in turn, cheapest first.

    A change stays where it frees memory beside those before. None where all of them do not suffice.
    """
    found: dict[str, Any] = {}
    useless: list[dict[str, Any]] = []
    for _ in range(MOST_TOGETHER):
        changes = next((offer for offer, _ in _offers(record.point) if offer not in useless), None)
        if changes is None:
            return None
        point = _changed(record.point, changes)
        after = planned([point])[0] if point is not None else None
        relief = None if after is None else _relief(record, after, changes, "")
        if after is None or relief is None or relief.freed_bytes <= 0:
            useless.append(changes)
            continue
        found, record = found | changes, after
        if relief.fits:
            return found
    return None


def _changed(point: Point, changes: dict[str, Any]) -> Point | None:
    try:
        return point_from(point.model_dump(), changes)
    except ScenarioError:
        return None


def _relief(before: Record, after: Record, changes: dict[str, Any], cost: str) -> Relief | None:
    """Return a change as planned; None where the step cannot be made with it."""
    if after.outcome != "ok":
        return None
    (held, *_), (holds, *_) = before.fits, after.fits
    # What a step takes on a card that does not hold it tells what the change costs all the same.
    old, new = held.step_time_s, holds.step_time_s
    reserved, less = before.peak_reserved_bytes, after.peak_reserved_bytes
    assert reserved is not None
    assert less is not None
    return Relief(
        changes=changes,
        cost=cost,
        freed_bytes=reserved - less,
        fits=holds.fits,
        step_time_ratio=new / old if old and new else None,
    )


def _offers(point: Point) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield changes and their cost: free ones, slower ones, those that learn something else."""
    yield from _free(point)
    yield from _slower(point)
    yield from _learning_otherwise(point)


def _free(point: Point) -> Iterator[tuple[dict[str, Any], str]]:
    train = point.train
    if train.recipe in ("plain", "peft"):
        yield {"recipe": "trainer"}, "nothing: logits are freed before backward"
    if train.attn_implementation == "eager":
        yield {"attn_implementation": "sdpa"}, "nothing: fused attention"
    if train.recipe == "axolotl" and point.choices.loss_type == "full_logits":
        yield {"loss_type": "cut_cross_entropy"}, "nothing: the loss never has all logits (axolotl's plugin)"
    elif point.choices.loss_type == "full_logits":
        yield {"recipe": "trl"}, "no fp32 copies of norms and head; the loss in tiles, without all logits"


def _slower(point: Point) -> Iterator[tuple[dict[str, Any], str]]:
    train = point.train
    if train.optim in ("adamw_torch", "paged_adamw_32bit"):
        yield {"optim": "adamw_8bit"}, "optimizer state in 8 bit"
    if train.optim != "sgd" and not train.optim.startswith("paged"):
        paged = "paged_adamw_8bit" if train.optim == "adamw_8bit" else "paged_adamw_32bit"
        yield {"optim": paged}, "optimizer state may travel to the host, which costs time"
    if point.precision in ("nf4", "fp4"):
        yield {"precision": f"{point.precision}-dq"}, "scales of the weights in 8 bit, unpacked in each pass"
    batch = train.per_device_train_batch_size
    if batch % 2 == 0:
        halved = {
            "per_device_train_batch_size": batch // 2,
            "gradient_accumulation_steps": 2 * train.gradient_accumulation_steps,
        }
        yield halved, "the same update in twice as many passes of half the size"
    if not train.gradient_checkpointing:
        yield {"gradient_checkpointing": True}, "each layer runs forward twice"


def _learning_otherwise(point: Point) -> Iterator[tuple[dict[str, Any], str]]:
    lora = point.lora
    if lora is None:
        yield {"lora": {}}, "LoRA instead of full fine-tuning: only adapters learn"
        return
    if lora.use_dora:
        yield {"use_dora": False}, "LoRA instead of DoRA"
    if lora.r >= 2:
        yield {"r": lora.r // 2}, "adapters of half the rank"
    if point.precision == "fp32":
        yield {"precision": "bf16"}, "weights with 8 bits of mantissa instead of 24"
    if point.precision in ("fp32", "bf16", "fp16"):
        yield {"precision": "nf4-dq"}, "QLoRA: base weights rounded to 4 bit, unpacked in each pass"
