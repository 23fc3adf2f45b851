"""The answer of each tool, made in the process that plans."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.catalog.gpus import GpuSpec, find_gpu
from qbench.catalog.models import catalog_name
from qbench.errors import QbenchError
from qbench.mcp.results import (
    Card,
    Change,
    Comparison,
    Difference,
    Fits,
    Largest,
    OnCard,
    Planned,
    Plans,
    Ranking,
    ReadConfig,
    ReadConfigs,
    Result,
)
from qbench.records.fits import Fit, with_unmodelled
from qbench.records.record import Record, with_left_out
from qbench.runs.usual import language_config, with_usual
from qbench.scenario.expand import point_from
from qbench.scenario.importers.configs import import_config
from qbench.scenario.importers.keys import Effect
from qbench.scenario.schema import Point
from qbench.scenario.settings import by_field, each_value
from qbench.units import MIB, format_bytes
from qbench.words.fit_verdict import reason_text
from qbench.words.settings import change_text, describe_training, short_model

MOST_POINTS = 16
"""Combinations of settings in one call."""

MOST_ROWS = 20
"""Cards of a ranking, and differences of a comparison, that one answer lists."""

MOST_FILES = 100
"""Configs that one call of import reads."""

MOST_FILE_BYTES = 64 * MIB
"""Of records that one call of compare reads."""

DEFAULT_LOOP = (
    "Planned for a training loop of your own (recipe peft, no autocast). Set recipe to trl for TRL, or to "
    "trainer with autocast bf16 for transformers' Trainer: the results differ by gigabytes."
)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no answer: what was given, what is allowed, what to do."""

    text: str


def answer(question: tuple[str, dict[str, Any]]) -> Result | Refused:
    """Return the answer of a tool to its arguments, or why there is none."""
    tool, arguments = question
    try:
        return ANSWERS[tool](**arguments)
    except QbenchError as error:
        return Refused(str(error))


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps that a call is about."""

    points: tuple[Point, ...]
    note: str = ""
    caveats: tuple[str, ...] = ()
    unmodelled: Mapping[str, Effect] | None = None

    def judged(self, record: Record) -> Record:
        return with_left_out(record, self.caveats, self.unmodelled or {})


def _steps(model: str, config: str, settings: Mapping[str, Any], precisions: Sequence[str] = ()) -> _Steps:
    """Return the product of the settings, over a config's where there is one.

    Raises QbenchError where neither a model nor a config is named, or they make too many steps.
    """
    if not model and not config:
        raise QbenchError("give model (a catalog or hub id, or a folder with config.json) or config (a file)")
    found = import_config(Path(config), language_config, model=model) if config else None
    chosen = by_field(settings)
    if found is None and precisions:
        chosen.setdefault("precision", list(precisions))
    base = {"model": catalog_name(model)} if found is None else found.settings
    follow = dict if found is not None else lambda given: with_usual(base["model"], given)
    values = [[(name, each) for each in each_value(name, value)] for name, value in chosen.items()]
    combinations = list(itertools.islice(itertools.product(*values), MOST_POINTS + 1))
    if len(combinations) > MOST_POINTS:
        raise QbenchError(f"settings: more than {MOST_POINTS} combinations; split the call")
    points = tuple(dict.fromkeys(point_from(base, follow(dict(one))) for one in combinations))
    if found is not None:
        return _Steps(points, "", found.caveats, found.unmodelled)
    return _Steps(points, "" if {"recipe", "autocast"} & chosen.keys() else DEFAULT_LOOP)


def plan(model: str, config: str, gpus: Sequence[str], settings: dict[str, Any]) -> Plans:
    """Plan steps, checked against cards."""
    from qbench.measure.known_speed import usable_calibrations
    from qbench.records.plan_cache import PlanCache
    from qbench.runs.plans import PlanFor, plans

    steps = _steps(model, config, settings)
    asked = PlanFor(gpus=_cards(gpus), calibrations=usable_calibrations("cuda"))
    records = [steps.judged(record) for record in plans(steps.points, asked, PlanCache())]
    return Plans(plans=[_planned(record) for record in records], note=steps.note)


def fit(
    model: str, config: str, gpus: Sequence[str], settings: dict[str, Any], vary: str, step: int | None
) -> Fits:
    """Find the largest value of a setting that fits each card."""
    from qbench.runs.sizing import FIT_PRECISIONS, FitFor, fits, varied

    setting = varied(vary)
    if not gpus:
        raise QbenchError("gpus: name at least one card, for example RTX 4090")
    steps = _steps(model, config, settings, FIT_PRECISIONS)
    found, failed = fits(steps.points, FitFor(gpus=_cards(gpus), setting=setting, step=step))
    answers = []
    for each in found:
        record = steps.judged(each.record)
        (card,) = record.fits
        answers.append(
            Largest(
                point=_label(record.point),
                gpu=card.gpu,
                setting=setting,
                value=each.value if card.fits else None,
                limited_by=each.limited_by,
                verdict=card.verdict,
                headroom_bytes=card.headroom_bytes,
                peak_reserved_bytes=record.peak_reserved_bytes,
                fills_bytes=each.fills,
                changes=[
                    Change(
                        settings=change_text(relief.changes),
                        frees_bytes=relief.freed_bytes,
                        is_enough=relief.fits,
                        costs=relief.cost,
                    )
                    for relief in each.reliefs
                ],
            )
        )
    notes = [steps.note, *steps.caveats, *(f"{name}: {why}" for name, why in failed.items())]
    return Fits(answers=answers, note=" ".join(filter(None, notes)))


def rank(
    model: str,
    config: str,
    gpus: Sequence[str],
    settings: dict[str, Any],
    tokens: str,
    epochs: float,
    sort: str,
) -> Ranking:
    """Rank cards for a training."""
    from qbench.catalog.gpus import gpus as all_gpus
    from qbench.catalog.hourly_prices import catalog_hourly_prices
    from qbench.planner.ranking import best_of_each_card, sorted_rows
    from qbench.planner.workload import parse_tokens
    from qbench.runs.sizing import RANK_PRECISIONS, RankFor, ranks

    cards = _cards(gpus) or all_gpus()
    prices = catalog_hourly_prices([card.name for card in cards])
    steps = _steps(model, config, settings, RANK_PRECISIONS)
    asked = RankFor(gpus=cards, tokens=parse_tokens(tokens), epochs=epochs, prices=prices)
    rows = ranks(steps.points, asked)
    held = [row for row in rows if with_unmodelled(row.fit, steps.unmodelled or {}).fits]
    best = sorted_rows(best_of_each_card(held), sort)
    listed = [
        Card(
            gpu=row.gpu.name,
            method=row.point.method,
            precision=row.point.precision,
            hours=row.hours,
            cost_usd=row.cost_usd,
            spot_cost_usd=row.spot_cost_usd,
            energy_kwh=row.energy_kwh,
            step_time_s=row.step_time_s,
        )
        for row in best[:MOST_ROWS]
    ]
    notes = [steps.note, *steps.caveats]
    return Ranking(cards=listed, not_listed=max(len(best) - MOST_ROWS, 0), note=" ".join(filter(None, notes)))


def compare(run: str, baseline: str, tolerances: dict[str, str]) -> Comparison:
    """Compare a run with a baseline as `qbench check` does."""
    from qbench.comparison.check import check
    from qbench.comparison.tolerances import parse_tolerance
    from qbench.records.document import read_any
    from qbench.report.ci.check import outcome_text, point_text, told_findings, verdict_lines
    from qbench.words.verdicts import reason_text as why

    before, now = (read_any(_records_file(name), bulk=False) for name in (baseline, run))
    found = check(before, now, dict(parse_tolerance(f"{key}={value}") for key, value in tolerances.items()))
    code, told = found.exit_code(), told_findings(found)
    return Comparison(
        headline=outcome_text(found, code),
        exit_code=code,
        sentences=verdict_lines(found, code),
        differences=[
            Difference(
                point=point_text(each),
                metric=each.metric,
                unit=each.unit,
                baseline=each.baseline,
                run=each.run,
                verdict=each.verdict,
                fails=each.fails,
                note=why(each.reason),
            )
            for each in told[:MOST_ROWS]
        ],
        not_listed=max(len(told) - MOST_ROWS, 0),
    )


def read_configs(path: str) -> ReadConfigs:
    """Show which keys of configs a plan uses."""
    from qbench.scenario.importers.survey import config_files, survey

    if not Path(path).exists():
        raise QbenchError(f"{path}: no such file or folder")
    files = list(itertools.islice(config_files([Path(path)]), MOST_FILES + 1))
    if not files:
        raise QbenchError(f"{path}: no .yaml, .yml or .json file in it")
    if len(files) > MOST_FILES:
        raise QbenchError(f"{path}: more than {MOST_FILES} configs; name a smaller folder, or one file")
    found = [survey(file, language_config) for file in files]
    return ReadConfigs(
        files=[
            ReadConfig(
                path=str(each.path),
                tool=each.tool,
                model=each.model,
                method=each.method,
                planned=list(each.planned),
                no_effect=list(each.no_effect),
                unmodelled=list(each.unmodelled),
                unknown=list(each.unknown),
                problems=[str(problem) for problem in each.problems],
            )
            for each in found
        ]
    )


ANSWERS: dict[str, Callable[..., Result]] = {
    "plan": plan,
    "fit": fit,
    "rank": rank,
    "compare": compare,
    "import": read_configs,
}
"""The function of each tool."""


def _cards(names: Sequence[str]) -> tuple[GpuSpec, ...]:
    return tuple(dict.fromkeys(map(find_gpu, names)))


def _records_file(name: str) -> Path:
    """Return the file or folder of records. Raises QbenchError for one that is too large for a tool."""
    path = Path(name)
    files = path.glob("*.jsonl") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size > MOST_FILE_BYTES:
        raise QbenchError(
            f"{name}: {format_bytes(size)} of records, allowed: {format_bytes(MOST_FILE_BYTES)}; use "
            "`qbench check` in a terminal"
        )
    return path


def _label(point: Point) -> str:
    return (
        f"{short_model(point.model)}, {point.precision}, {describe_training(point, ('model', 'precision'))}"
    )


def _planned(record: Record) -> Planned:
    peak_at = record.peak_at
    return Planned(
        point=_label(record.point),
        method=record.point.method,
        peak_allocated_bytes=record.peak_allocated_bytes,
        peak_reserved_bytes=record.peak_reserved_bytes,
        device_bytes=record.device_bytes,
        breakdown_bytes={name: size for name, size in record.breakdown_bytes.items() if size},
        peak_phase=peak_at["phase"] if peak_at else None,
        cards=[_on_card(each) for each in record.fits],
        caveats=list(record.caveats),
        unmodelled=list(record.unmodelled),
        error=record.error,
    )


def _on_card(fit: Fit) -> OnCard:
    return OnCard(
        gpu=fit.gpu,
        verdict=fit.verdict,
        reason=reason_text(fit),
        headroom_bytes=fit.headroom_bytes,
        step_time_s=fit.step_time_s,
        usd_per_hour=fit.usd_per_hour,
    )
