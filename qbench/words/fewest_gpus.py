"""The fewest GPUs that hold a step, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qbench.records.record import Record
from qbench.units import format_bytes
from qbench.words.fit_verdict import room_text


def fewest_lines(answers: Iterable[tuple[str, int | None, Sequence[Record]]]) -> list[str]:
    """Return a paragraph for each answer: card, fewest GPUs (None where none suffice) and the plans."""
    return [line for answer in answers for line in _lines(*answer)]


def _lines(gpu: str, fewest: int | None, records: Sequence[Record]) -> Iterator[str]:
    last = records[-1].point
    strategy = "one GPU" if last.distributed is None else last.distributed.strategy
    answer = "no number of GPUs on one node suffices" if fewest is None else f"{fewest} x {gpu}"
    yield f"{last.model.rpartition('/')[2]} {last.precision}, {strategy} on {gpu}: {answer}"
    for record in records:
        fit = next(iter(record.fits), None)
        reserved = record.peak_reserved_bytes
        says = record.error or "no plan" if fit is None or reserved is None else ""
        if fit is not None and reserved is not None:
            says = f"{format_bytes(reserved)} reserved on each, {room_text(fit)}"
        yield f"  {record.point.num_gpus} GPU{'s' if record.point.num_gpus > 1 else ' '}  {says}"
    yield from (f"  {caveat}" for caveat in records[-1].caveats if "sharded" in caveat)
