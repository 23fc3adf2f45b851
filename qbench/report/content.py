"""What every form of a report says, gathered once from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qbench.comparison.capacity import telling
from qbench.comparison.methods import MethodPair, near_results, pair_results
from qbench.comparison.results import Result, gather, planned_for
from qbench.records.parts import Skipped
from qbench.records.record import Record, run_name
from qbench.records.store import collector_paused
from qbench.report import fact_tables, quality, tables
from qbench.report.dryruns import dry_runs_table
from qbench.report.fits import fits_table
from qbench.report.provenance import record_numbers, records_table
from qbench.report.table import Table
from qbench.report.tables import Numbers
from qbench.words.capacity import sentence
from qbench.words.dryrun import dry_run_sentence
from qbench.words.headline import accuracy_sentence, headline
from qbench.words.phrases import Statement, counted, listed
from qbench.words.quality import quality_sentences
from qbench.words.settings import short_model
from qbench.words.unpaired import alone_sentences

LARGE_SHARE = 0.1
"""Share of the base weights from which it is said loudly that quantization does not reach them."""

NAMED_MODELS = 6
LONG_ERROR = 200
"""Characters of an error from which it is cut; the table of failures has all."""

ENOUGH_PROCESSES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Sentences and tables of a report; a table without rows is None."""

    results: Sequence[Result]
    pairs: Sequence[MethodPair]
    scope: str
    """How many records, points and models, and of what time."""
    sentences: list[Statement]
    """Everything that is said first, the most telling at the top: what is unfinished, capacity, headline."""
    unfinished: list[Statement]
    """That plans or measurements failed and why, and that planned points of a run are not measured yet."""
    headline: list[Statement]
    """The methods against each other, or what points need where nothing is compared."""
    capacity: list[Statement]
    """How far the methods get on a card."""
    quality: list[str]
    """What the memory saved costs in quality."""
    accuracy: str | None
    """How well plan and measurement agree, where both are known."""
    warnings: list[str]
    """What must be known before the headline is believed."""
    validity: list[str]
    findings: Table | None
    """What was found against measurements."""
    card: Table | None
    """Where the memory of a GPU went."""
    comparison: Table | None
    near: Table | None
    programs: Table | None
    """Dry runs of programs."""
    points: Table | None
    fits: Table | None
    losses: Table | None
    worst: Table | None
    """Modules that quantization changed most."""
    failures: Table | None
    caveats: Table | None
    skipped: Table | None
    environment: Table | None
    records: Table | None
    """The raw records by number."""
    numbers: Numbers


@collector_paused()
def gather_content(records: Sequence[Record], places: Sequence[str] = ()) -> Content:
    """Return the sentences and tables that the records support.

    `places` says for each record where it is stored, as 'records.jsonl:12'.
    """
    # A program of somebody's own has no settings to compare or to draw: dry runs stand apart.
    programs = [result for result in gather(records) if result.kind == "dryrun"]
    results = gather(record for record in records if record.kind != "dryrun")
    # QLoRA first, as in the sentences.
    pairs = sorted(pair_results(results), key=lambda pair: not pair.is_qlora)
    numbers = record_numbers(records)
    compared = headline(pairs) or alone_sentences(results)
    told = telling(results)
    ahead = [capacity for capacity in told if capacity.differs]
    equal = [capacity for capacity in told if not capacity.differs]
    unfinished = [*_failed(results), *_unfinished(results)]
    return Content(
        results=results,
        pairs=pairs,
        scope=_scope(records),
        sentences=[
            *(Statement(dry_run_sentence(result.latest)) for result in programs),
            *unfinished,
            *map(sentence, ahead),
            *compared,
            *map(sentence, equal),
        ],
        unfinished=unfinished,
        headline=compared,
        capacity=[*map(sentence, ahead), *map(sentence, equal)],
        quality=quality_sentences(pairs),
        accuracy=accuracy_sentence(results),
        warnings=_warnings(results),
        validity=_validity(records, results),
        findings=fact_tables.findings_table(results),
        card=fact_tables.card_table(results),
        comparison=tables.comparison_table(pairs, numbers),
        near=fact_tables.near_table(near_results(results)),
        programs=dry_runs_table(programs, numbers),
        points=tables.points_table(results, numbers),
        fits=fits_table(results, numbers),
        losses=quality.losses_table(results, numbers),
        worst=quality.worst_table(results, numbers),
        failures=fact_tables.failures_table(results),
        caveats=fact_tables.caveats_table(results),
        skipped=fact_tables.skipped_table(results),
        environment=fact_tables.environment_table([*results, *programs]),
        records=records_table(records, places),
        numbers=numbers,
    )


def _scope(records: Sequence[Record]) -> str:
    if not records:
        return "No records."
    kinds = Counter(record.kind for record in records)
    points = len({record.point for record in records})
    models = sorted({short_model(record.point.model) for record in records})
    named = ", ".join(models) if len(models) <= NAMED_MODELS else f"{len(models)} models"
    latest = max(record.created_at for record in records)[:16].replace("T", " ")
    made = [_counted(kinds["plan"], "plan")] if kinds["plan"] else []
    if kinds["dryrun"]:
        made.append(_counted(kinds["dryrun"], "dry run"))
    on_null = sum(record.device == "null" and record.kind == "measurement" for record in records)
    if kinds["measurement"] > on_null:
        made.append(_counted(kinds["measurement"] - on_null, "measured process", "measured processes"))
    if on_null:
        made.append(f"{_counted(on_null, 'process', 'processes')} on a null GPU")
    return f"{_counted(points, 'point')} of {named}: {listed(made)}. Last record: {latest} UTC."


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _failed(results: Sequence[Result]) -> list[Statement]:
    """Say how many plans and how many measurements ended in an error, with the most frequent one."""
    errors: dict[str, Counter[str]] = {"plan": Counter(), "measurement": Counter()}
    for result in results:
        errors[result.kind].update(_error(record) for record in result.records if record.outcome == "error")
    said = []
    for kind, texts in errors.items():
        if texts:
            (first, _), *others = texts.most_common()
            rest = f" (and {counted(len(others), 'other error')})" if others else ""
            said.append(Statement(f"{counted(texts.total(), kind)} failed: {first}{rest}."))
    return said


def _error(record: Record) -> str:
    """Return the first line of a record's error."""
    line = record.error_line.rstrip(". ") or "the error is not known"
    return line if len(line) <= LONG_ERROR else f"{line[:LONG_ERROR]} (shortened)"


def _unfinished(results: Sequence[Result]) -> list[Statement]:
    """Say how many planned points are not measured yet, of runs of which some point is."""
    measured = [result for result in results if result.kind == "measurement"]
    done = {planned_for(result) for result in measured}
    begun = {_run_name(record) for result in measured for record in result.records}
    plans = [(result, _run_name(result.records[0])) for result in results if result.kind == "plan"]
    planned = [(result, name) for result, name in plans if name in begun]
    left = [name for result, name in planned if planned_for(result) not in done]
    if not left:
        return []
    points = f"{len(left):,} of {_counted(len(planned), 'planned point')}"
    return [
        Statement(
            f"Not finished: {points} {'is' if len(left) == 1 else 'are'} not measured yet "
            f"({listed(list(dict.fromkeys(left)))}).",
            "To continue, repeat the qbench run command.",
        )
    ]


def _run_name(record: Record) -> str:
    """Return the name of a record's run without its time, which changes when a run is continued."""
    return run_name(record.run_id)


def _warnings(results: Sequence[Result]) -> list[str]:
    """Say for which models quantization leaves a large share of the weights as they were."""
    worst: dict[str, tuple[float, str]] = {}
    for result in results:
        skipped = result.latest.skipped
        share = sum(item.get("share") or 0 for item in skipped)
        if result.point.method == "qlora" and share > worst.get(result.point.model, (LARGE_SHARE, ""))[0]:
            worst[result.point.model] = share, _largest(skipped)
    by_what: dict[str, list[tuple[str, float]]] = {}
    for model, (share, what) in worst.items():
        by_what.setdefault(what, []).append((short_model(model), share))
    return [f"Quantization leaves out {_named(models)}: {what}." for what, models in by_what.items()]


def _named(models: list[tuple[str, float]]) -> str:
    texts = [f"{100 * share:.0f} % of {model}" for model, share in models[:NAMED_MODELS]]
    texts[0] = f"{100 * models[0][1]:.0f} % of the weights of {models[0][0]}"
    rest = len(models) - NAMED_MODELS
    return listed([*texts, *([f"as much of {rest} more models"] if rest > 0 else [])])


def _largest(skipped: Sequence[Skipped]) -> str:
    """Return as few of the weights left out, the largest first, as make up more than half of them."""
    by_size = sorted(skipped, key=lambda item: -(item.get("share") or 0))
    half = sum(item.get("share") or 0 for item in skipped) / 2
    named: list[str] = []
    while half >= 0:
        item = by_size[len(named)]
        named.append(f"{item['module']} ({item['reason']})")
        half -= item.get("share") or 0
    text = listed(named)
    return text if len(named) == len(by_size) else f"mostly {text}"


def _validity(records: Sequence[Record], results: Sequence[Result]) -> list[str]:
    measured = [result for result in results if result.kind == "measurement"]
    said = [_endings(records), _processes(measured), _checked(measured), _machines(measured), _dirty(records)]
    if not measured and results:
        said.insert(0, "Nothing was measured: every number is planned.")
    return [sentence for sentence in said if sentence]


def _endings(records: Sequence[Record]) -> str:
    counts = Counter(record.outcome for record in records)
    failed = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if outcome != "ok")
    return f"Not all records ended ok: {failed} of {len(records):,}." if failed else "Every record ended ok."


def _processes(measured: Sequence[Result]) -> str:
    if not measured:
        return ""
    counts = [len(result.completed) for result in measured]
    span = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    few = " Fewer than three cannot show how much speed varies." if min(counts) < ENOUGH_PROCESSES else ""
    return f"Each measured point has {span} completed {'process' if span == '1' else 'processes'}.{few}"


def _checked(measured: Sequence[Result]) -> str:
    """Say how many processes passed every check of their validity; nothing where none was checked.

    A note is no failure: the numbers count.
    """
    checked = [record for result in measured for record in result.completed if record.validity]
    if not checked:
        return ""
    verdicts = [{finding["verdict"] for finding in record.validity} for record in checked]
    void = sum("invalid" in seen for seen in verdicts)
    noted = sum("warn" in seen and "invalid" not in seen for seen in verdicts)
    passed = f"{len(checked) - void:,} of {_counted(len(checked), 'process', 'processes')} passed every check"
    notes = f", {noted:,} with notes" if noted else ""
    left_out = (
        f" The speed of {_counted(void, 'process', 'processes')} is not valid and left out." if void else ""
    )
    return f"{passed}{notes}.{left_out}"


def _machines(measured: Sequence[Result]) -> str:
    machines = len({(result.device, result.machine) for result in measured})
    if machines < 2:
        return ""
    return (
        f"Measurements come from {machines} machines or library versions; they are never compared with each "
        f"other, and charts show the one with most points for each device."
    )


def _dirty(records: Sequence[Record]) -> str:
    dirty = sum(record.is_dirty for record in records)
    return f"{_counted(dirty, 'record')} came from code with uncommitted changes." if dirty else ""
