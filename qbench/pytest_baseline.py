"""The baseline of `pytest --qbench-baseline`: read, and what to do where it does not serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qbench.comparison.check import Check
    from qbench.records.record import Record


def refuse_missing(given: str | None) -> None:
    """Raise pytest.UsageError where a baseline was named that is not there."""
    if given and not Path(given).exists():
        raise pytest.UsageError(
            f"--qbench-baseline: there is no {given}; make it with "
            f"`qbench baseline accept RUN --to {given} --reason first`, RUN being what `qbench run` wrote"
        )


def read_baseline(path: Path) -> list[Record]:
    """Return the records of a baseline; the test fails in one line where they cannot be read."""
    from qbench.errors import QbenchError
    from qbench.records.document import read_any

    try:
        return read_any(path)
    except QbenchError as error:
        pytest.fail(f"baseline {error}", pytrace=False)


def no_point_is_gone(gone: tuple[str, ...]) -> None:
    """Fail the test where a baseline holds points that no scenario has."""
    if gone:
        pytest.fail(f"missing: {', '.join(gone)}: in the baseline, not in the scenario", pytrace=False)


def remedies(found: Check) -> list[str]:
    """Return what to do about a baseline that was made for another device; nothing where it was not."""
    from qbench.comparison.verdicts import Unlike

    apart = [each.reason.values for each in found.findings if isinstance(each.reason, Unlike)]
    devices = {values["device"] for values in apart if "device" in values}
    return [
        f"the baseline was made for {before}: run with --qbench-device {before}, or make one for {now}: "
        f"`qbench run SCENARIO --device {now} --out RUN`, then "
        "`qbench baseline accept RUN --to FILE --reason TEXT`"
        for before, now in sorted(devices)
    ]
