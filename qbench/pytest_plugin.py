"""Points as tests: `pytest --qbench scenarios/ci.yaml`, and the fixture `qbench` for tests of your own.

Each point is planned, and measured in processes of its own as `qbench run` does. Times go through
pytest-benchmark, one round for each process; everything else is in its extra_info. With a baseline, the
rules of `qbench check` decide whether the test passes. Nothing but pytest is imported before that.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qbench.pytest_baseline import no_point_is_gone, read_baseline, refuse_missing, remedies

if TYPE_CHECKING:
    from qbench.comparison.check import Check
    from qbench.comparison.results import Result
    from qbench.records.record import Kind, Record
    from qbench.scenario.schema import Device, Point, Scenario

BOTH: tuple[Kind, ...] = ("plan", "measurement")
pytest_plugins = ["qbench.pytest_null_gpu"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; each is named after qbench, so that none collides."""
    group = parser.getgroup("qbench", "memory and speed of fine-tuning")
    add = group.addoption
    add("--qbench", action="append", default=[], metavar="SCENARIO", help="Make each point a test.")
    add("--qbench-baseline", metavar="FILE", help="Fail a point that got worse than in this file or run.")
    add("--qbench-device", choices=("auto", "cpu", "cuda"), default="auto", help="Where to measure.")
    add("--qbench-tolerance", action="append", default=[], metavar="METRIC=1%", help="As `check` has it.")
    add("--qbench-strict", action="store_true", help="Also fail on what is ambiguous or new.")


def pytest_configure(config: pytest.Config) -> None:
    """Take the scenarios among the files that are collected; where no path was named, they are all."""
    config.stash[_GATE] = _Gate(config)
    refuse_missing(config.getoption("--qbench-baseline"))
    scenarios = config.getoption("--qbench")
    if not scenarios:
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--qbench needs pytest-benchmark; pip install 'qbench[pytest]'")
    for scenario in scenarios:
        if not Path(scenario).is_file():
            raise pytest.UsageError(f"--qbench: there is no file {scenario}; name a scenario's YAML file")
    named = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else []
    config.args = [*named, *scenarios]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a scenario that was asked for."""
    asked = {Path(scenario).resolve() for scenario in parent.config.getoption("--qbench")}
    return ScenarioFile.from_parent(parent, path=file_path) if file_path.resolve() in asked else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what passed without having been decided."""
    from qbench.units import printable

    if notes := config.stash[_GATE].notes:
        terminalreporter.section("qbench: not decided")
        terminalreporter.write_line("\n".join(map(printable, notes)))


@pytest.fixture
def qbench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Plan, measure and check points in a test."""
    return Bench(request.config.stash[_GATE], tmp_path / "qbench")


class ScenarioFile(pytest.File):
    """A scenario, whose points are the tests."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield a test for each point, and one for what the baseline holds beyond them."""
        from qbench.errors import QbenchError
        from qbench.scenario.load import read_scenario

        gate = self.config.stash[_GATE]
        try:
            scenario, points = read_scenario(self.path)
            known = {record.point_id: record.point for record in gate.baseline}
            # A baseline may hold the points of several scenarios; what none of them has is gone.
            all_points = {
                point.point_id
                for file in self.config.getoption("--qbench")
                for point in read_scenario(Path(file))[1]
            }
        except QbenchError as error:
            raise self.CollectError(str(error)) from error
        for point in points:
            name = f"{point.label.replace(' ', '-')}[{point.point_id}]"
            yield PointItem.of(self, name, scenario, functools.partial(_measure_point, scenario, point))
        if gate.path is not None:
            gone = tuple(sorted(known[each].label for each in known.keys() - all_points))
            call = functools.partial(no_point_is_gone, gone)
            yield ScenarioItem.from_parent(self, name="points-of-the-baseline", callobj=call)


class ScenarioItem(pytest.Function):
    """A test that a scenario implies."""

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return the scenario's file, where a person would look."""
        return self.path, None, self.name


class PointItem(ScenarioItem):
    """The test of one point."""

    @classmethod
    def of(
        cls, parent: pytest.Collector, name: str, scenario: Scenario, measure: Callable[..., None]
    ) -> PointItem:
        """Return the test, its benchmark grouped under the scenario."""
        replay = Replay()
        item: PointItem = cls.from_parent(parent, name=name, callobj=_point_test(measure, replay))
        item.add_marker(pytest.mark.benchmark(group=scenario.name, timer=replay))
        return item


def _point_test(measure: Callable[..., None], replay: Replay) -> Callable[..., None]:
    def test(request: pytest.FixtureRequest, benchmark: Any, tmp_path: Path) -> None:
        measure(request.config.stash[_GATE], benchmark, replay, tmp_path / "qbench")

    return test


class Replay:
    """A clock that runs by times measured elsewhere, as the timer of a benchmark."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def benchmark(self, fixture: Any, times: Iterable[float]) -> None:
        """Give measured times, in seconds, to a pytest-benchmark fixture, a round each."""
        known = list(times)
        left = iter(known)

        def step() -> None:
            self.now += next(left, 0.0)

        fixture.disabled = fixture.disabled or not known  # It must be called, or it warns.
        fixture.pedantic(step, rounds=max(1, len(known)), iterations=1)


def _measure_point(
    scenario: Scenario, point: Point, gate: _Gate, benchmark: Any, replay: Replay, folder: Path
) -> None:
    """Measure a point, hand its times to the benchmark, and hold it against the baseline."""
    from qbench.comparison.results import gather, number_of

    try:
        records = gate.records_of(scenario, point, folder)
    except BaseException:
        replay.benchmark(benchmark, ())  # One that was not called is an error of its own.
        raise
    for result in gather(records):
        if result.kind == "measurement":
            times = [number_of(record, "step_time_s") for record in result.completed]
            replay.benchmark(benchmark, [time for time in times if time is not None])
        benchmark.extra_info |= _extra_info(result)
    gate.hold(records, folder)


def _extra_info(result: Result) -> dict[str, Any]:
    """Return what pytest-benchmark keeps beside the times; a plan's numbers are under `planned`."""
    from qbench.records.metrics import SCALARS

    numbers = {name: value for name in SCALARS if (value := result.value(name)) is not None}
    values: dict[str, Any] = numbers | {"breakdown_bytes": result.breakdown}
    if result.kind == "plan":
        return {"planned": values}
    return {
        "point_id": result.point.point_id,
        "outcome": result.outcome,
        "device": result.device,
        "versions": dict(result.records[-1].versions),
        **values,
        "processes": {"step_time_s": [record.raw("step_time_s") for record in result.records]},
    }


@dataclass(slots=True)
class _Gate:
    """What all points are measured on and compared with."""

    config: pytest.Config
    notes: list[str] = field(default_factory=list)
    """What passed undecided, a line each."""
    _read: list[Record] | None = None

    @property
    def path(self) -> Path | None:
        given = self.config.getoption("--qbench-baseline")
        return Path(given) if given else None

    @property
    def baseline(self) -> list[Record]:
        """The records of the baseline, none where there is no baseline."""
        if self._read is None:
            from qbench.records.document import read_any

            self._read = [] if self.path is None else read_any(self.path)
        return self._read

    @property
    def device(self) -> Device:
        from qbench.measure import nvml
        from qbench.measure.environment import torch_has_cuda

        wanted = self.config.getoption("--qbench-device")
        if wanted == "cpu":
            return "cpu"
        there = nvml.cuda_present() and torch_has_cuda()
        if wanted == "cuda" and not there:
            pytest.fail("--qbench-device cuda: there is no GPU that torch can use", pytrace=False)
        return "cuda" if there else "cpu"

    def records_of(
        self, scenario: Scenario, point: Point, folder: Path, kinds: Collection[Kind] = BOTH
    ) -> list[Record]:
        """Return the records of a point made now, in a new run folder; fails the test where one has none."""
        from qbench.measure.executors.local import LocalExecutor
        from qbench.records.store import read_records
        from qbench.runs.run import FINISHED, run_scenario

        with warnings.catch_warnings():
            # What the libraries warn of is no fault of the test, whose filter may make it an error.
            warnings.simplefilter("ignore")
            executor = LocalExecutor()
            run_scenario(scenario, (point,), folder, self.device, executor, lambda *_: None, kinds=kinds)
        records = read_records(folder)
        for record in records:
            if record.outcome not in FINISHED:
                reason = record.error.strip() or "no reason is known"
                pytest.fail(
                    f"{point.label}: {record.kind} ended in {record.outcome}: {reason}", pytrace=False
                )
        return records

    def hold(self, records: list[Record], folder: Path) -> None:
        """Fail the test where its point got worse than in the baseline, if there is one."""
        points = {record.point for record in records}
        before = [record for record in self.baseline if record.point in points]
        if self.path is None:
            return
        if before:
            self.judge(before, records, self.config.getoption("--qbench-tolerance"), folder)
            return
        text = f"{records[0].point.label}: new: not in the baseline {self.path}"
        if self.config.getoption("--qbench-strict"):
            pytest.fail(text, pytrace=False)
        self.notes.append(text)

    def judge(
        self, before: list[Record], records: list[Record], tolerances: Iterable[str], folder: Path
    ) -> Check:
        """Return the check; fails the test with the check's own lines where it fails."""
        from qbench.comparison.check import check
        from qbench.comparison.tolerances import parse_tolerance
        from qbench.report.ci.check import finding_lines, finding_text, verdict_lines

        strict = self.config.getoption("--qbench-strict")
        kinds = {record.kind for record in records}
        before = [record for record in before if record.kind in kinds]
        found = check(before, records, dict(parse_tolerance(t, "--qbench-tolerance") for t in tolerances))
        code = found.exit_code(strict)
        if code:
            told = [*finding_lines(found), *verdict_lines(found, code)]
            lines = [*told, *remedies(found), f"records: {folder}"]
            pytest.fail("\n".join(lines), pytrace=False)
        open_ends = [finding for finding in found.findings if finding.fails_if(strict=True)]
        self.notes.extend(f"{finding.point.label}: {finding_text(finding)}" for finding in open_ends)
        return found


_GATE = pytest.StashKey[_Gate]()


@dataclass(slots=True)
class Bench:
    """Plans, measures and checks points in a test; points are written as on the command line.

    Settings go by their short names: `qbench.plan("Qwen/Qwen2.5-0.5B", precision="nf4-dq", seq_len=1024)`.
    """

    _gate: _Gate
    _folder: Path
    _runs: int = 0

    def plan(self, model: str, *, gpus: Iterable[str] = (), **settings: Any) -> Record:
        """Return the plan of a point for the device of --qbench-device."""
        (record,) = self._made(model, settings, {"plan": {"gpus": tuple(gpus)}}, "plan")
        return record

    def measure(
        self, model: str, *, warmup_steps: int = 1, steps: int = 5, repeats: int = 1, **settings: Any
    ) -> list[Record]:
        """Return a record for each of `repeats` processes that measured a point."""
        measure = {"warmup_steps": warmup_steps, "steps": steps, "repeats": repeats}
        return self._made(model, settings, {"measure": measure}, "measurement")

    def check(
        self,
        records: Record | Iterable[Record],
        baseline: str | Path | None = None,
        tolerance: Mapping[str, str] | None = None,
    ) -> Check | None:
        """Fail the test where records are worse than in a baseline; return the check where they are not.

        `baseline` is that of --qbench-baseline if none is given; without either nothing is held, and None
        returned. `tolerance` goes by metric: {"peak_allocated_bytes": "2%"}.
        """
        from qbench.records.record import Record

        now = [records] if isinstance(records, Record) else list(records)
        file = self._gate.path if baseline is None else Path(baseline)
        if file is None:
            return None
        before = read_baseline(file)
        points = {record.point for record in now}
        tolerances = [f"{metric}={amount}" for metric, amount in (tolerance or {}).items()]
        return self._gate.judge([r for r in before if r.point in points], now, tolerances, self._folder)

    def _made(
        self, model: str, settings: Mapping[str, Any], how: Mapping[str, Any], kind: Kind
    ) -> list[Record]:
        from qbench.catalog.models import catalog_name
        from qbench.scenario.expand import point_from
        from qbench.scenario.schema import Scenario
        from qbench.scenario.settings import by_field

        point = point_from({"model": catalog_name(model)}, by_field(settings))
        scenario = Scenario.model_validate({"name": "pytest", "question": "One test's.", "base": {}, **how})
        self._runs += 1
        return self._gate.records_of(scenario, point, self._folder / str(self._runs), (kind,))
