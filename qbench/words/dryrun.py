"""English about dry runs: whether the program fits, where its memory goes, what was assumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qbench.records.parts import Alive, OomFacts
from qbench.records.record import Record
from qbench.units import format_bytes

LISTED = 8
PHASES = {"load": "loading", "first_step": "the first step", "later_steps": "later steps", "end": "the end"}
NULL_GPU_MAY = (
    "On the null GPU kernels do nothing: a program that checks results, or calls a library of CUDA that is "
    "not answered (a line that begins with nullgpu:), fails here but may run on a GPU."
)


def dry_run_sentence(record: Record) -> str:
    """Return what a dry run found, in one sentence."""
    what = f"{record.point.label} on {record.card} (dry run on a null GPU)"
    if record.outcome == "oom":
        return f"{what} runs out of memory{_shortage(record.oom)}."
    if record.outcome != "ok":
        return f"{what} failed: {record.error_line.rstrip('.')}."
    reserved, allocated = record.peak_reserved_bytes, record.peak_allocated_bytes
    total = record.device_memory_bytes
    of = f" of {format_bytes(total)}" if total else ""
    rank = ", the largest of its ranks" if len(record.ranks) > 1 else ""
    retries = record.alloc_retries
    tight = f", after the allocator emptied its cache {retries} times" if retries else ""
    return (
        f"{what} fits{tight}: peak reserved {format_bytes(reserved)}{of}{rank}, "
        f"allocated {format_bytes(allocated)}."
    )


def _shortage(oom: OomFacts | None) -> str:
    if oom is None:
        return ""
    phase, requested, free = oom.get("phase"), oom.get("requested_bytes"), oom.get("free_bytes")
    when = f" in {PHASES.get(phase, phase)}" if phase else ""
    what = f": {format_bytes(requested)} requested" if requested is not None else ""
    left = f", {format_bytes(free)} free" if free is not None else ""
    place = oom.get("place")
    return f"{when}{what}{left}{f', by {place}' if place else ''}"


def dry_run_lines(record: Record) -> list[str]:
    """Return a dry run as lines for a terminal."""
    return [dry_run_sentence(record), *_details(record)]


def _details(record: Record) -> Iterator[str]:
    user = (record.oom or {}).get("user")
    if user:
        yield f"  your program: {user}"
    allocated, reserved = record.phases, record.reserved_phases
    for name, title in PHASES.items():
        if name in allocated and name != "end":
            yield (
                f"  {title}: allocated {format_bytes(allocated[name])}, "
                f"reserved {format_bytes(reserved.get(name))}"
            )
    yield from _time(record)
    if len(record.ranks) > 1:
        for rank in record.ranks:
            peak = format_bytes(rank.get("peak_reserved_bytes"))
            yield f"  rank {rank['rank']}, GPU {rank.get('device')}: peak reserved {peak}"
    yield from _alive(record)
    for each in record.stand_ins:
        yield f"  stand-in: {each}"
    for each in record.caveats:
        yield f"  note: {each}"
    if record.outcome not in ("ok", "oom") and record.stderr_tail:
        yield from ("Its last lines:", *(f"  {line}" for line in record.stderr_tail.splitlines()))
        yield NULL_GPU_MAY


def _time(record: Record) -> Iterator[str]:
    time = record.time
    if time is not None:
        seconds = sum(time["parts_s"].values())
        least, most = time.get("range_s") or (seconds, seconds)
        between = f"{least:.3g} to {most:.3g} s, mostly {time['bound']}"
        yield f"  planned time of an update, without kernels of Triton: {seconds:.3g} s ({between})"


def _alive(record: Record) -> Iterator[str]:
    parts = sorted(record.breakdown_bytes.items(), key=lambda item: -item[1])
    if parts:
        what = "when memory ran out" if record.outcome == "oom" else "at the peak"
        yield f"Alive {what}:"
        yield "  " + ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
    yield from map(_alive_line, _largest(record.alive))


def _largest(alive: Sequence[Alive]) -> Sequence[Alive]:
    return [each for each in alive if each["category"] in ("activations", "temporaries")][:LISTED]


def _alive_line(each: Alive) -> str:
    how = "backward of " if each["is_backward"] else ""
    where = f" ({each['place']})" if each["place"] else ""
    blocks = f"{each['blocks']} x " if each["blocks"] > 1 else ""
    user = f", from {each['user']}" if each["user"] and each["user"] != each["place"] else ""
    return (
        f"  {format_bytes(each['bytes'])} {each['category']}: {blocks}{how}{each['module'] or 'torch'}"
        f"{where}{user}"
    )
