"""Each finding on both sides of its limit."""

from __future__ import annotations

import json

import pytest
import torch

from qbench.measure import validity
from qbench.measure.validity import SPEED
from qbench.measure.warmup import WarmUp
from qbench.records.parts import ValidityFinding


def verdict(finding: ValidityFinding | None) -> str | None:
    return None if finding is None else finding["verdict"]


@pytest.mark.parametrize(
    ("retries", "ooms", "expected"), [(0, 0, "ok"), (1, 0, "invalid"), (0, 2, "invalid"), (None, 0, "ok")]
)
def test_an_allocator_at_the_cards_limit_voids_the_speed(retries: int | None, ooms: int, expected: str):
    finding = validity.allocator(retries, ooms)
    assert finding["verdict"] == expected
    assert finding["voids"] == ([*SPEED] if expected == "invalid" else [])
    assert finding["value"] == (None if retries is None else retries + ooms)


def test_a_warm_up_that_never_became_steady_is_told():
    assert validity.warm(WarmUp(steady=True))["verdict"] == "ok"
    unsteady = validity.warm(WarmUp(steady=False))
    assert unsteady["verdict"] == "warn"
    assert "more than 5 %" in unsteady["why"]


def test_uncommitted_code_is_told():
    assert verdict(validity.code(True)) == "warn"
    assert verdict(validity.code(False)) == "ok"
    assert validity.code(None) is None


def test_compiling_within_the_timed_steps_voids_them():
    assert validity.compiled(0, 0) is None
    assert verdict(validity.compiled(3, 3)) == "ok"
    late = validity.compiled(3, 4)
    assert late is not None
    assert (late["verdict"], late["value"], late["voids"]) == ("invalid", 1, [*SPEED])


def test_graphs_of_torch_compile_are_counted():
    before = validity.compiled_graphs()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))
    assert validity.compiled_graphs() == before + 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("busy_cpus", "load", "cpus", "name", "expected"),
    [
        (0.39, 9.0, 4, "other_cpus_busy", "ok"),
        (0.41, 0.0, 4, "other_cpus_busy", "warn"),
        (None, 4.0, 4, "load_average_before", "ok"),
        (None, 4.1, 4, "load_average_before", "warn"),
    ],
)
def test_work_of_others_on_the_cpu(busy_cpus: float | None, load: float, cpus: int, name: str, expected: str):
    finding = validity.others_on_cpu(busy_cpus, load, cpus)
    assert finding is not None
    assert (finding["name"], finding["verdict"]) == (name, expected)


def test_a_load_that_is_not_known_is_no_finding():
    assert validity.others_on_cpu(None, None, 4) is None
    assert validity.others_on_cpu(0.1, None, None) is None


def test_a_driver_that_is_silent_is_told():
    assert validity.driver_answers(5)["verdict"] == "ok"
    assert validity.driver_answers(None)["verdict"] == "warn"


def test_a_doubtful_choice_of_the_card_is_told_in_its_own_words():
    assert validity.device_choice(None) is None
    doubtful = validity.device_choice("counted by PCI bus")
    assert doubtful is not None
    assert (doubtful["verdict"], doubtful["why"]) == ("warn", "counted by PCI bus")


@pytest.mark.parametrize(
    ("seen", "value", "expected"),
    [
        (([], [], []), 0, "ok"),
        (([], [7], []), 1, "warn"),
        (([7], [7, 8], None), 2, "warn"),
        (([], None, []), None, "warn"),
    ],
)
def test_others_on_the_card(seen: tuple[list[int] | None, ...], value: int | None, expected: str):
    finding = validity.foreign_processes(*seen)
    assert (finding["value"], finding["verdict"]) == (value, expected)


def test_each_reason_for_lower_clocks_is_judged_by_its_share():
    counters = {"energy_j": 9.0, "throttled_power_s": 0.019, "throttled_thermal_s": 0.021}
    # 1 % of a window of 2 s is 0.02 s; three reasons are unknown and say nothing.
    found = {finding["name"]: finding["verdict"] for finding in validity.throttled(counters, 2.0)}
    assert found == {"throttled_power_s": "ok", "throttled_thermal_s": "warn"}
    assert list(validity.throttled({}, 2.0)) == []


@pytest.mark.parametrize(
    ("reasons", "value", "why"),
    [
        ([], None, "is unknown: the driver does not report it"),
        (["gpu_idle", "sync_boost"], None, "is unknown: the driver does not report it"),
        (
            ["gpu_idle", "sw_power_cap", "hw_thermal"],
            True,
            "at the start or end of the timed steps: sw_power_cap, hw_thermal",
        ),
    ],
)
def test_throttling_that_a_driver_does_not_count_is_noted(reasons: list[str], value: bool | None, why: str):
    counters = {"energy_j": 9.0, **{f"throttled_{name}_s": None for name in validity.POLICIES}}
    (found,) = validity.throttled(counters, 2.0, reasons)
    assert (found["name"], found["value"], found["verdict"]) == ("throttling", value, "warn")
    assert found["why"].endswith(why)


@pytest.mark.parametrize(
    ("enqueue_s", "window_s", "expected"),
    [
        (0.50, 2.000, "ok"),
        (1.991, 2.000, "warn"),  # The host's lead of 9 ms is under 1 % of a step of 1 s.
        (1.00, 2.019, "ok"),
        (1.00, 2.030, "warn"),  # 30 ms of 2030 were in no step of the GPU.
    ],
)
def test_a_gpu_that_waits_for_the_host_is_told(enqueue_s: float, window_s: float, expected: str):
    assert validity.host_bound([1.0, 1.0], enqueue_s, window_s)["verdict"] == expected


def test_findings_are_stored_as_json():
    finding = validity.allocator(1, 0)
    assert finding == json.loads(json.dumps(finding))
    assert list(finding) == ["name", "value", "verdict", "why", "voids"]
    assert finding["voids"] == ["step_time_s", "tokens_per_s"]
