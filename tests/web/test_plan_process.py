from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from tiny import tiny_point, write_tiny_model

from qbench.catalog.gpus import find_gpu
from qbench.errors import QbenchError
from qbench.measure import answering
from qbench.runs.plans import PlanFor
from qbench.web.plan_process import PlanProcess, Superseded

SETTINGS = PlanFor(gpus=(find_gpu("RTX 4090"),))


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    return tiny_point(write_tiny_model(folder, "meta-llama/Llama-3.1-8B"), "bf16"), SETTINGS


@pytest.fixture(scope="module")
def long_question(tmp_path_factory: pytest.TempPathFactory):
    """Return a model of so many layers, each another one, that its plan takes a while."""
    folder = tmp_path_factory.mktemp("long")
    return tiny_point(
        write_tiny_model(folder, "meta-llama/Llama-3.1-8B", num_hidden_layers=500), "bf16"
    ), SETTINGS


@pytest.fixture
def process():
    process = PlanProcess(None)
    process.prepare()
    yield process
    process.close()


def always() -> bool:
    return True


def test_a_plan_is_the_plan_and_the_next_comes_from_the_same_process(process: PlanProcess, question):
    record = process.plan(question, always)
    assert record.outcome == "ok"
    assert record.fits[0].fits
    first = process.process._process.pid
    assert process.plan(question, always).metrics == record.metrics
    assert process.process._process.pid == first


def test_a_plan_that_nobody_waits_for_is_ended(
    process: PlanProcess, question, long_question, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(answering, "PATIENCE_S", 0.0)
    process.plan(question, always)
    ended = process.process._process
    with pytest.raises(Superseded):
        process.plan(long_question, lambda: False)
    ended.join(60)
    assert ended.exitcode == -signal.SIGKILL
    assert process.plan(question, always).outcome == "ok"


def test_a_plan_that_takes_too_long_is_ended_and_says_so(process: PlanProcess, question, long_question):
    process.plan(question, always)
    process.process._most_s = 0.2
    with pytest.raises(QbenchError, match=r"no plan within 0\.2 s; change a setting"):
        process.plan(long_question, always)
    process.process._most_s = 60
    assert process.plan(question, always).outcome == "ok"


def test_a_process_that_dies_is_an_error_and_the_next_question_has_another(
    process: PlanProcess, question, long_question
):
    process.plan(question, always)
    threading.Timer(0.3, os.kill, (process.process._process.pid, signal.SIGKILL)).start()
    with pytest.raises(QbenchError, match="the planning process ended"):
        process.plan(long_question, always)
    assert process.plan(question, always).outcome == "ok"


def test_a_process_ends_with_its_page(question):
    process = PlanProcess(None)
    process.prepare()
    process.plan(question, always)
    child = process.process._process
    process.process._connection.close()  # As when the page was killed.
    process.process._connection = None
    deadline = time.monotonic() + 120
    while child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.is_alive()
