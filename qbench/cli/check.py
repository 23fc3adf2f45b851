"""`qbench check`: compare a run with a baseline, and fail if it got worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.cli import options
from qbench.cli.ci_outputs import (
    Annotations,
    AnnotationsOption,
    JunitOption,
    Outputs,
    SarifOption,
    SummaryOption,
    tell,
    tell_failure,
)
from qbench.cli.console import print_note
from qbench.cli.noise import advise
from qbench.errors import NotComparableError

if TYPE_CHECKING:
    from qbench.comparison.check import Check
    from qbench.comparison.verdicts import Tolerance
    from qbench.records.record import Record


def check_command(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder, .jsonl file, JSON of `qbench plan --json`, or a scenario, which is planned now."
        ),
    ],
    baseline: Annotated[Path, typer.Option(help="Run folder or file to compare with.")],
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            help="METRIC=1% or METRIC=8MiB; can be repeated. Also gates metrics that are only shown."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also fail on points that are ambiguous, new or left out.")
    ] = False,
    summary: SummaryOption = None,
    junit: JunitOption = None,
    sarif: SarifOption = None,
    annotations: AnnotationsOption = Annotations.none,
    as_json: options.AsJson = False,
) -> int:
    """Compare a run with a baseline: exit 1 if it regressed, 2 if they are not comparable.

    Parameters and modules must be equal, allocated memory within 1 % or 1 MiB. Speed is judged by an interval
    over processes, and a change counts from 3 %. Reserved memory, energy and loss are shown only. Points that
    the baseline does not have are new, and pass unless --strict is given.
    """
    from qbench.comparison.tolerances import parse_tolerance
    from qbench.records.store import collector_paused

    tolerances = dict(parse_tolerance(text) for text in tolerance or [])
    outputs = Outputs(as_json=as_json, summary=summary, junit=junit, sarif=sarif, annotations=annotations)
    with collector_paused():
        return _told(run, baseline, tolerances, outputs, strict)


def _told(
    run: Path, baseline: Path, tolerances: Mapping[str, Tolerance], outputs: Outputs, strict: bool
) -> int:
    from qbench.comparison.check import check
    from qbench.records.document import read_any
    from qbench.report.ci.check import side_by_side

    before = read_any(baseline, bulk=False)
    now = _planned_now(run, before) if run.suffix in (".yaml", ".yml") else read_any(run, bulk=False)
    try:
        found = check(before, now, tolerances)
    except NotComparableError as error:
        tell_failure(str(error), outputs, side_by_side(before, now))
        raise
    code = found.exit_code(strict)
    tell(found, code, outputs, places=baseline, strict=strict)
    advise(found, now, tolerances)
    _advise_on_missing(found)
    return code


def _planned_now(scenario: Path, before: Sequence[Record]) -> list[Record]:
    """Return the plans of a scenario as they are stored, for the device that the baseline is planned for."""
    from qbench.cli.plan import planned
    from qbench.cli.target import TargetRequest, read_asked
    from qbench.records.record import record_from_dict

    asked = read_asked(TargetRequest(name=str(scenario)))
    made = planned(asked, "cpu" if {record.device for record in before} == {"cpu"} else "cuda")
    # A stored model folder goes by its name and the digest of its config.
    return [record_from_dict(record.to_dict(), str(scenario)) for record in made]


def _advise_on_missing(found: Check) -> None:
    """Say on stderr what to do about points of the baseline that the run does not have."""
    from qbench.words.phrases import counted

    missing = sum(each.metric == "point" and each.verdict == "missing" for each in found.told)
    if missing:
        print_note(
            f"the run lacks {counted(missing, 'point')} of the baseline: plan or measure it again, or drop "
            "obsolete points with `qbench baseline accept --prune`"
        )
