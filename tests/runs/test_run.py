"""What a run does, and what it does not do again. Work is trivial here; tests/measure has real processes."""

from __future__ import annotations

import hashlib
import random
import resource
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_model

from benchmarks import kill_trials
from qbench.comparison.check import check
from qbench.comparison.results import gather
from qbench.errors import MeasureError, RecordError, StepError
from qbench.measure import nvml
from qbench.measure.failures import attempt
from qbench.measure.task import Attempt, Measurement, Task
from qbench.records.calibration import Calibration, KernelTime, write_calibration
from qbench.records.record import Record
from qbench.records.software import library_versions
from qbench.records.store import RECORDS_FILE, read_records
from qbench.runs import plans
from qbench.runs.plans import PlanFor, plan_record, with_inputs
from qbench.runs.run import Job, Progress, reasons, run_scenario
from qbench.scenario.expand import expand
from qbench.scenario.load import load_scenario
from qbench.scenario.schema import Device, Point, Scenario

MODEL = "HuggingFaceTB/SmolLM2-135M"


def scenario(**changes: Any) -> Scenario:
    values: dict[str, Any] = {
        "name": "test",
        "question": "Does it run?",
        "base": {"model": MODEL},
        "matrix": {"r": [4, 8]},
        "measure": {"repeats": 2, "steps": 3},
    }
    return Scenario.model_validate(values | changes)


class InThisProcess:
    """Stands where the local executor does, and notes for which device each piece of work was run."""

    def __init__(self) -> None:
        self.devices: list[Device] = []

    def run(self, work: Attempt, timeout_s: float, device: Device) -> Measurement:
        self.devices.append(device)
        return attempt(work)


class Lab:
    """Runs scenarios into one folder and notes what was done, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.executor = InThisProcess()
        self.done: list[tuple[str, int, int | None]] = []
        self.endings: dict[str, Measurement | Exception] = {}

    def run(self, wanted: Scenario, device: Device = "cpu") -> Progress:
        return run_scenario(
            wanted,
            expand(wanted),
            self.folder,
            device,
            self.executor,
            lambda progress, job, record: None,
            engine=self._measure,
            planner=self._plan,
        )

    def _plan(self, points: Sequence[Point], settings: PlanFor) -> Generator[tuple[int, Record]]:
        fits = [{"gpu": gpu.name, "fits": True} for gpu in settings.gpus]
        for index, point in enumerate(points):
            self.done.append(("plan", rank(point), None))
            made = attempt(partial(self._ending, "plan", {"fits": fits} if settings.device == "cuda" else {}))
            yield index, with_inputs(plan_record(point, settings, made))

    def _measure(self, task: Task) -> Measurement:
        self.done.append(("measure", rank(task.point), task.repeat))
        return self._ending("measure", {})

    def _ending(self, kind: str, detail: dict[str, Any]) -> Measurement:
        ending = self.endings.get(kind, Measurement(outcome="ok", metrics={"flops": 1}, detail=detail))
        if isinstance(ending, Exception):
            raise ending
        return ending

    def done_now(self, wanted: Scenario) -> list[tuple[str, int, int | None]]:
        """Return what a run does beyond what was done before."""
        self.done = []
        self.run(wanted)
        return self.done

    def why(self, wanted: Scenario, device: Device = "cpu") -> list[str | None]:
        return [reason for _, reason in reasons(wanted, expand(wanted), self.folder, device)]

    def rewrite(self, change: Callable[[str], str]) -> None:
        """Change the text of the stored records, as if another time or machine had written them."""
        file = self.folder / RECORDS_FILE
        before = file.read_text()
        assert change(before) != before
        file.write_text(change(before))


def rank(point: Point) -> int:
    assert point.lora is not None
    return point.lora.r


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "run")


def test_of_two_files_of_one_name_each_has_its_own_results(lab: Lab, tmp_path: Path):
    texts = [tmp_path / language / "t.txt" for language in ("en", "fr")]
    for text in texts:
        text.parent.mkdir()
        text.write_text(text.parent.name)
    wanted = scenario(
        base={"model": MODEL, "weights": "pretrained"},
        matrix={"data": [str(text) for text in texts]},
        measure={"repeats": 1, "steps": 3},
    )
    lab.run(wanted.model_copy(update={"matrix": {"data": [str(texts[0])]}}))
    assert lab.why(wanted) == [None, "new", None, "new"]
    lab.run(wanted)
    assert lab.why(wanted) == [None] * 4
    assert len(gather(read_records(lab.folder))) == 4
    texts[1].write_text("de")
    french, german = (hashlib.sha256(text).hexdigest()[:12] for text in (b"fr", b"de"))
    assert lab.why(wanted)[1] == f"content of data changed: {french} -> {german}"


def test_plans_come_first_and_repeats_are_the_outer_loop(lab: Lab):
    progress = lab.run(scenario())
    assert lab.done == [
        ("plan", 4, None),
        ("plan", 8, None),
        ("measure", 4, 0),
        ("measure", 8, 0),
        ("measure", 4, 1),
        ("measure", 8, 1),
    ]
    assert (progress.total, progress.done, progress.kept, progress.outcomes) == (6, 6, 0, {"ok": 6})


def test_each_record_says_what_it_is_of(lab: Lab):
    lab.run(scenario())
    records = read_records(lab.folder)
    assert [record.kind for record in records] == ["plan"] * 2 + ["measurement"] * 4
    assert len({record.run_id for record in records}) == 1
    last = records[-1]
    assert last.detail["repeat"] == 1
    assert last.detail["protocol"] == {"warmup_steps": 2, "steps": 3}
    assert last.environment["device"] == "cpu"


def test_nothing_is_done_again(lab: Lab):
    lab.run(scenario())
    assert lab.done_now(scenario()) == []
    assert lab.run(scenario()).kept == 6
    assert lab.why(scenario()) == [None] * 6


def test_a_scenario_that_grew_does_only_what_is_new(lab: Lab):
    lab.run(scenario())
    grown = scenario(matrix={"r": [4, 8, 16]}, measure={"repeats": 3, "steps": 3})
    assert lab.why(grown) == [None, None, "new", None, None, "new", None, None, "new", "new", "new", "new"]
    assert lab.done_now(grown) == [
        ("plan", 16, None),
        ("measure", 16, 0),
        ("measure", 16, 1),
        ("measure", 4, 2),
        ("measure", 8, 2),
        ("measure", 16, 2),
    ]


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (StepError("no such module"), "error"),
        (ZeroDivisionError(), "error"),
        (Measurement(outcome="crashed", detail={"error": "SIGKILL"}), "crashed"),
        (Measurement(outcome="timeout"), "timeout"),
    ],
)
def test_what_failed_is_tried_again(lab: Lab, ending: Measurement | Exception, outcome: str):
    lab.endings["measure"] = ending
    assert lab.run(scenario()).outcomes == {"ok": 2, outcome: 4}
    assert {str(reason).partition(":")[0] for reason in lab.why(scenario())[2:]} == {f"ended in {outcome}"}
    lab.endings = {}
    assert len(lab.done_now(scenario())) == 4
    assert lab.done_now(scenario()) == []


def test_a_plan_that_fails_is_an_outcome_and_the_rest_is_done(lab: Lab):
    lab.endings["plan"] = StepError("no such module")
    assert lab.run(scenario()).outcomes == {"error": 2, "ok": 4}
    assert read_records(lab.folder)[0].detail["error"] == "no such module"
    assert lab.why(scenario())[0] == "ended in error: no such module"


def test_out_of_memory_is_a_result(lab: Lab):
    lab.endings["measure"] = Measurement(outcome="oom")
    lab.run(scenario())
    assert lab.done_now(scenario()) == []


def test_when_no_worker_can_run_at_all_the_run_ends_and_keeps_what_it_has(lab: Lab):
    class Broken(InThisProcess):
        def run(self, work: Attempt, timeout_s: float, device: Device) -> Measurement:
            raise MeasureError("no temporary file")

    lab.executor = Broken()
    with pytest.raises(MeasureError, match="no temporary file"):
        lab.run(scenario())
    assert len(read_records(lab.folder)) == 2


def replaced(before: str, after: str) -> Callable[[str], str]:
    return lambda text: text.replace(before, after)


def present(lab: Lab, *keys: str) -> Any:
    value: Any = read_records(lab.folder)[-1].environment
    for key in keys:
        value = value[key]
    return value


def test_other_code_makes_all_of_it_stale(lab: Lab):
    lab.run(scenario())
    lab.rewrite(replaced(present(lab, "code_id"), "0123456789ab"))
    assert lab.why(scenario()) == ["the code changed"] * 6
    assert len(lab.done_now(scenario())) == 6
    assert lab.done_now(scenario()) == []


def test_another_version_of_a_library_makes_all_of_it_stale(lab: Lab):
    lab.run(scenario())
    now = present(lab, "versions", "peft")
    lab.rewrite(replaced(f'"peft":"{now}"', '"peft":"0.1.0"'))
    assert lab.why(scenario()) == [f"version of peft changed: 0.1.0 -> {now}"] * 6


def test_a_moved_checkout_keeps_its_results_and_no_record_names_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, there = tmp_path / "here", tmp_path / "there"
    write_tiny_model(here / "m", "HuggingFaceTB/SmolLM2-135M")
    (here / "own.yaml").write_text("name: own\nquestion: Which?\nbase: {model: ./m}\nmeasure: {repeats: 1}\n")
    lab = Lab(tmp_path / "run")
    lab.run(load_scenario(here / "own.yaml"))
    here.rename(there)
    monkeypatch.chdir(there)
    moved = load_scenario(there / "own.yaml")
    assert lab.why(moved) == [None, None]
    text = (lab.folder / RECORDS_FILE).read_text()
    assert str(tmp_path) not in text
    (point,) = {record.point for record in read_records(lab.folder)}
    assert point.model.startswith("m@")
    assert point.point_id == expand(moved)[0].point_id
    before = read_records(lab.folder)
    lab.rewrite(lambda _: "")
    lab.run(moved)
    assert check(before, read_records(lab.folder), {}).exit_code(strict=True) == 0


def test_an_edited_library_makes_all_of_it_stale(lab: Lab):
    lab.run(scenario())
    lab.rewrite(replaced('"peft":null', '"peft":"0123456789ab"'))
    assert lab.why(scenario()) == ["the source of peft changed"] * 6


def test_another_machine_makes_measurements_stale_and_no_plan(lab: Lab):
    lab.run(scenario())
    now = present(lab, "device_name")
    lab.rewrite(replaced(f'"device_name":"{now}"', '"device_name":"abacus"'))
    assert lab.why(scenario()) == [None, None, *[f"machine changed: abacus -> {now}"] * 4]


def test_another_setting_of_the_allocator_makes_measurements_stale(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    lab.run(scenario())
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    reason = "PYTORCH_ALLOC_CONF changed: None -> expandable_segments:True"
    assert lab.why(scenario()) == [None, None, *[reason] * 4]


def test_another_device_is_new(lab: Lab):
    lab.run(scenario())
    assert lab.why(scenario(), "cuda") == ["new"] * 6


def test_more_steps_make_measurements_stale(lab: Lab):
    lab.run(scenario())
    longer = scenario(measure={"repeats": 2, "steps": 9})
    assert lab.why(longer) == [None, None, *["steps changed: 3 -> 9"] * 4]


def test_other_gpus_make_plans_stale(lab: Lab):
    lab.run(scenario(plan={"gpus": ["T4"]}), "cuda")
    assert lab.why(scenario(plan={"gpus": ["T4"]}), "cuda") == [None] * 6
    other = scenario(plan={"gpus": ["L4"]})
    assert lab.why(other, "cuda") == [*["GPUs changed: ['T4'] -> ['L4']"] * 2, *[None] * 4]


def test_another_calibration_makes_plans_stale(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QBENCH_CONFIG_DIR", str(tmp_path / "settings"))
    made = "2026-11-30T12:00:00+00:00"
    found = Calibration(
        device="cuda",
        device_name="NVIDIA L4",
        num_threads=None,
        versions=library_versions(),
        dispatch_s={"forward": 1e-6},
        kernels=[KernelTime("mm", "matmul", "bf16", 2e3, 1e3, (1, 10, 10, 10), "nt", 1e-6)],
        created_at=made,
    )
    lab.run(scenario(), "cuda")
    write_calibration(found)
    reason = f"calibrations changed: [] -> ['NVIDIA L4 {made}']"
    assert lab.why(scenario(), "cuda") == [*[reason] * 2, *[None] * 4]
    lab.run(scenario(), "cuda")
    assert lab.why(scenario(), "cuda") == [None] * 6


def test_a_changed_config_makes_all_of_it_stale(lab: Lab, tmp_path: Path):
    model = write_tiny_model(tmp_path / "model", MODEL)
    wanted = scenario(base={"model": model})
    lab.run(wanted)
    assert lab.why(wanted) == [None] * 6
    write_tiny_model(tmp_path / "model", MODEL, hidden_size=128)
    assert lab.why(wanted) == ["new"] * 6


def test_the_latest_failure_does_not_hide_an_earlier_result(lab: Lab):
    lab.run(scenario())
    good = (lab.folder / RECORDS_FILE).read_text()
    lab.rewrite(lambda text: text + good.replace('"outcome":"ok"', '"outcome":"crashed"'))
    assert lab.why(scenario()) == [None] * 6


def test_reasons_for_a_folder_that_is_not_there(lab: Lab):
    assert lab.why(scenario()) == ["new"] * 6
    assert not lab.folder.exists()


def test_plans_are_made_where_no_gpu_is_seen(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvml, "cuda_present", lambda: True)
    monkeypatch.setattr(plans, "_planned_here", None)  # In this process, that is.
    wanted = scenario(base={"model": write_tiny_model(lab.folder.parent / "tiny", MODEL)})
    run_scenario(
        wanted, expand(wanted), lab.folder, "cpu", lab.executor, lambda *_: None, kinds={"plan"}
    )  # fmt: skip
    assert [record.outcome for record in read_records(lab.folder)] == ["ok", "ok"]
    assert lab.executor.devices == []


def test_plans_stand_as_they_come_and_are_taken_from_the_cache(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    wanted = scenario(base={"model": write_tiny_model(lab.folder.parent / "tiny", MODEL)})
    stored: list[int] = []

    def watch(progress: Progress, job: Job, record: Record | None) -> None:
        stored.append(len(read_records(lab.folder)) if (lab.folder / RECORDS_FILE).exists() else 0)

    for name in ("first", "second"):
        lab.folder = lab.folder.parent / name
        run_scenario(wanted, expand(wanted), lab.folder, "cpu", lab.executor, watch, kinds={"plan"})
        monkeypatch.setattr(plans, "_planned_here", None)
    assert stored == [0, 1, 1, 2] * 2


def test_each_job_is_told_before_and_after(lab: Lab):
    told: list[tuple[int, str, str | None]] = []

    def watch(progress: Progress, job: Job, record: Record | None) -> None:
        told.append((progress.done, job.kind, record and record.outcome))

    wanted = scenario(matrix={"r": [4]}, measure={"repeats": 1})
    run_scenario(
        wanted, expand(wanted), lab.folder, "cpu", InThisProcess(), watch,
        engine=lab._measure, planner=lab._plan,
    )  # fmt: skip
    assert told == [
        (0, "plan", None),
        (1, "plan", "ok"),
        (1, "measurement", None),
        (2, "measurement", "ok"),
    ]


def test_the_time_left_is_that_of_the_jobs_left_by_kind():
    progress = Progress(total=10, kept=2, left={"plan": 2, "measurement": 4})  # type: ignore[arg-type]
    assert progress.remaining_s is None
    for kind, seconds in (("plan", 1.0), ("plan", 3.0), ("measurement", 10.0)):
        progress.left[kind] += 1
        progress.begin()
        progress.end(kind, "ok", seconds)
    # 2 plans of 2 s and 4 measurements of 10 s.
    assert progress.remaining_s == 44.0
    assert (progress.done, progress.running, progress.outcomes) == (5, 0, {"ok": 3})
    progress.begin()
    progress.begin()
    # Two at a time take half as long.
    assert progress.remaining_s == 22.0


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Let the system refuse writes beyond a file size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_run_and_loses_nothing(lab: Lab):
    lab.run(scenario(matrix={"r": [4]}))
    size = (lab.folder / RECORDS_FILE).stat().st_size
    with (
        files_no_larger_than(size + 2000),
        pytest.raises(RecordError, match="was not written: File too large; earlier records are safe"),
    ):
        lab.run(scenario())
    kept = len(read_records(lab.folder))
    assert kept >= 3
    assert len(lab.done_now(scenario())) == 6 - kept


def test_bookkeeping_of_a_job_takes_at_most_2_ms(lab: Lab, record_property: Callable[[str, object], None]):
    many = scenario(matrix={"r": list(range(1, 151))}, measure={"repeats": 1})
    lab.run(scenario())  # Looks at machine and code once.
    start = time.process_time()
    lab.run(many)
    per_job = (time.process_time() - start) / 300
    record_property("seconds_per_job", per_job)
    assert per_job < 0.002


def test_memory_does_not_grow_with_the_records(lab: Lab):
    few, many = (scenario(matrix={"r": list(range(1, 4))}, measure={"repeats": n}) for n in (1, 200))
    long = Measurement(outcome="ok", metrics={"step_time_s": [0.123456789] * 500})
    lab.endings["measure"] = long
    lab.run(few)
    for run in ("new", "continued"):
        tracemalloc.start()
        lab.run(many)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # 600 records of 6 kB a line; each holds 500 numbers, 16 kB in memory.
        assert (lab.folder / RECORDS_FILE).stat().st_size > 3_000_000
        assert peak < 1_500_000, run


def test_killed_and_continued_nothing_is_lost_torn_or_doubled(tmp_path: Path):
    expected = kill_trials.undisturbed(tmp_path / "undisturbed")
    assert len(expected) == 18
    chance = random.Random()
    for number, kind in enumerate(kill_trials.DISTURBANCES):
        folder = tmp_path / str(number)
        kill_trials.trial(folder, chance, (kind,))
        assert kill_trials.finished(folder) == expected


def test_other_settings_of_the_allocator_make_plans_stale(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    lab.run(scenario(), "cuda")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    (reason, *_) = lab.why(scenario(), "cuda")
    assert reason == "PYTORCH_ALLOC_CONF changed:  -> expandable_segments:True"
