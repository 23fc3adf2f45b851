"""The pytest plugin, in a pytest of its own: points as tests, their times, the gate, the fixture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from tiny import write_tiny_model

from qbench.comparison.check import check
from qbench.pytest_baseline import no_point_is_gone, read_baseline, refuse_missing, remedies
from qbench.pytest_plugin import _GATE, Bench, _Gate
from qbench.records.store import encoded, read_records
from tests.comparison.hand_made import ENVIRONMENT, make_record

pytest_plugins = ["pytester"]

INSTALLED = {entry.name for entry in entry_points(group="pytest11")}
ALREADY = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
PLUGIN = "qbench" if "qbench" in INSTALLED else "qbench.pytest_plugin"
"""A plugin that is installed goes by the name of its entry point, and cannot be loaded twice."""

SCENARIO = """
name: ci
question: Does it still train?
base:
  model: ./model
  train: {{seq_len: 16}}
matrix:
  precision: [{precisions}]
measure: {{warmup_steps: 0, steps: 2, repeats: {repeats}}}
"""

OWN_TEST = """
from dataclasses import replace
from pathlib import Path
import pytest
from qbench.errors import QbenchError
from qbench.records.store import encoded

def test_own(qbench):
    record = qbench.plan("./model", precision="nf4-dq", seq_len=16)
    peak = record.metrics["peak_allocated_bytes"]
    assert 0 < peak < 8 << 20
    assert qbench.check(record) is None
    half = replace(record, metrics=record.metrics | {"peak_allocated_bytes": peak // 2})
    Path("half.jsonl").write_bytes(encoded(half))
    found = qbench.check(record, "half.jsonl", tolerance={"peak_allocated_bytes": "150%"})
    assert found.exit_code() == 0
    with pytest.raises(QbenchError, match="did you mean precision"):
        qbench.plan("./model", precison="nf4")
    # The default allows a MiB, which is more than this model needs.
    qbench.check(record, "half.jsonl", tolerance={"peak_allocated_bytes": "50%"})
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Return a folder with a tiny model, whose pytest knows the plugin and pytest-benchmark."""
    # Inside a worker of pytest-xdist, pytest-benchmark would not time.
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
    write_tiny_model(pytester.path / "model", "meta-llama/Llama-3.2-1B")
    options = f"-p {PLUGIN} -p no:dash --qbench-device cpu"
    pytester.makeini(f"[pytest]\naddopts = {options}\nfilterwarnings =\n error\n {ALREADY}")
    return pytester


def scenario(project: pytest.Pytester, precisions: str, repeats: int = 1) -> None:
    text = SCENARIO.format(precisions=precisions, repeats=repeats)
    (project.path / "ci.yaml").write_text(text, encoding="utf-8")


def test_a_point_is_a_benchmark_and_the_fixture_a_gate(project: pytest.Pytester):
    scenario(project, "bf16", repeats=2)
    project.makepyfile(test_own=OWN_TEST)
    # A process of its own: pytester would load torch twice into this one.
    result = project.runpytest_subprocess(
        "--basetemp=tmp", "--qbench", "ci.yaml", "--benchmark-json=bench.json", "ci.yaml", "test_own.py"
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*  worse *peak_allocated_bytes*", "records: *qbench", "FAILED test_own.py*"]
    )
    (bench,) = json.loads((project.path / "bench.json").read_text())["benchmarks"]
    (folder,) = {file.parent.resolve() for file in project.path.glob("tmp/model*/qbench/records.jsonl")}
    made = [record for record in read_records(folder) if record.kind == "measurement"]
    info = bench["extra_info"]
    # One round for each of two processes, the median of its two steps.
    medians = [sum(record.metrics["step_time_s"]) / 2 for record in made]
    assert bench["stats"]["rounds"] == 2
    assert bench["stats"]["mean"] == pytest.approx(sum(medians) / 2)
    assert info["processes"]["step_time_s"] == [record.metrics["step_time_s"] for record in made]
    # Planned for the CPU and measured there: equal to the byte.
    assert info["peak_allocated_bytes"] == info["planned"]["peak_allocated_bytes"] > 0
    assert info["trainable_params"] == info["planned"]["trainable_params"] > 0
    assert (bench["group"], info["outcome"], info["device"]) == ("ci", "ok", "cpu")
    assert bench["fullname"] == f"ci.yaml::model-bf16-r=16-b=1-s=16[{info['point_id']}]"
    assert compared(project).startswith(bench["fullname"])


def compared(project: pytest.Pytester) -> str:
    """Return the first row that pytest-benchmark's own command makes of the file."""
    command = [sys.executable, "-m", "pytest_benchmark", "compare", "bench.json", "--csv=table.csv"]
    # Other plugins that are installed are no matter of this one.
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=project.path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (project.path / "table.csv").read_text().splitlines()[1]


def gate_of(project: pytest.Pytester, *options: str) -> _Gate:
    return project.parseconfigure("--qbench-baseline", "base.jsonl", *options).stash[_GATE]


def test_a_point_is_held_against_its_own_records_of_the_baseline(project: pytest.Pytester):
    before = [make_record(r=r, metrics={"peak_allocated_bytes": 14 << 30}) for r in (8, 16)]
    (project.path / "base.jsonl").write_bytes(b"".join(map(encoded, before)))
    gate = gate_of(project)
    gate.hold([before[1]], project.path)
    grown = [make_record(r=16, metrics={"peak_allocated_bytes": 15 << 30})]
    with pytest.raises(pytest.fail.Exception, match=r"worse  peak_allocated_bytes  14.00 GiB  15.00 GiB"):
        gate.hold(grown, project.path)
    gate_of(project, "--qbench-tolerance", "peak_allocated_bytes=8%").hold(grown, project.path)
    assert gate.notes == []


def test_a_baseline_that_is_not_there_is_one_line(project: pytest.Pytester):
    with pytest.raises(pytest.UsageError, match=r"there is no gone\.jsonl; make it with `qbench base"):
        refuse_missing("gone.jsonl")
    with pytest.raises(pytest.fail.Exception, match=r"baseline gone\.jsonl: cannot be read") as raised:
        read_baseline(Path("gone.jsonl"))
    assert not raised.value.pytrace


def test_a_baseline_that_cannot_be_read_fails_a_test_of_ones_own_in_one_line(project: pytest.Pytester):
    (project.path / "base.jsonl").write_text("no record\n")
    with pytest.raises(pytest.fail.Exception, match=r"baseline base\.jsonl:1: not JSON") as raised:
        Bench(gate_of(project), project.path).check(make_record())
    assert not raised.value.pytrace
    assert "\n" not in str(raised.value)


def test_a_baseline_of_another_device_says_what_mends_it():
    here = [make_record(environment={**ENVIRONMENT, "device": "cpu"})]
    (told,) = remedies(check([make_record(environment={**ENVIRONMENT, "device": "cuda"})], here))
    assert told.startswith("the baseline was made for cuda: run with --qbench-device cuda, or make one")
    assert remedies(check(here, here)) == []


def test_a_point_that_only_the_baseline_has_fails():
    no_point_is_gone(())
    with pytest.raises(pytest.fail.Exception, match="missing: a, b: in the baseline, not in the scenario"):
        no_point_is_gone(("a", "b"))


def test_a_new_point_is_told_and_fails_when_strict(project: pytest.Pytester):
    (project.path / "base.jsonl").write_text("")
    gate = gate_of(project)
    gate.hold([make_record()], project.path)
    assert gate.notes == ["Llama-2-7b-hf bf16 r=16 b=1 s=2048: new: not in the baseline base.jsonl"]
    with pytest.raises(pytest.fail.Exception, match="new: not in the baseline"):
        gate_of(project, "--qbench-strict").hold([make_record()], project.path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--qbench", "nowhere.yaml"], "*--qbench: there is no file nowhere.yaml*"),
        (["--qbench", "ci.yaml", "-p", "no:benchmark"], "*pip install 'qbench?pytest?'*"),
    ],
)
def test_bad_options_are_one_line(project: pytest.Pytester, options: list[str], words: str):
    scenario(project, "bf16")
    result = project.runpytest_inprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


def test_a_scenario_with_faults_tells_them_all(project: pytest.Pytester):
    scenario(project, "bf17, nf5")
    result = project.runpytest_inprocess("--qbench", "ci.yaml")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ci.yaml:8:*bf17*", "*ci.yaml:8:*nf5*"])


def test_a_path_that_is_named_is_collected_too(project: pytest.Pytester):
    scenario(project, "bf16, nf4")
    project.makepyfile("def test_other(): pass")
    alone = project.runpytest_inprocess("--qbench", "ci.yaml", "--collect-only", "-q")
    assert [line.partition("[")[0] for line in alone.outlines if "::" in line] == [
        "ci.yaml::model-bf16-r=16-b=1-s=16",
        "ci.yaml::model-nf4-r=16-b=1-s=16",
    ]
    both = project.runpytest_inprocess("--qbench", "ci.yaml", "--collect-only", "-q", "ci.yaml", ".")
    assert sum("::" in line for line in both.outlines) == 3


def test_the_plugin_costs_nothing_where_it_is_not_asked():
    options = ["--collect-only", "-q", "-p", PLUGIN, "-p", "no:dash", "/proc/version"]
    heavy = ["torch", "pydantic", "pandas", "yaml", "qbench.errors"]
    seen = f"[name for name in {heavy} if name in sys.modules]"
    code = f"import sys, pytest\npytest.main({options})\nprint({seen})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.stdout.splitlines()[-1] == "[]", child.stdout
