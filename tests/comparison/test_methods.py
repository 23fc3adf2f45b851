from __future__ import annotations

import pytest

from qbench.units import GIB
from tests.comparison.hand_made import ENVIRONMENT, make_record, near_pairs, pair_methods

OTHER_TORCH = ENVIRONMENT | {"versions": ENVIRONMENT["versions"] | {"torch": "2.12.0"}}


def needs(gib: float, **metrics):
    return {"peak_allocated_bytes": int(gib * GIB), **metrics}


def test_a_pair_says_what_is_saved():
    lora = make_record(metrics=needs(14.0, static_bytes=13 * GIB, trainable_params=7))
    qlora = make_record(
        precision="nf4-dq", metrics=needs(5.6, peak_reserved_bytes=6 * GIB, trainable_params=7)
    )
    (pair,) = pair_methods([qlora, lora])
    assert (pair.baseline.point.precision, pair.candidate.point.precision) == ("bf16", "nf4-dq")
    assert pair.peak.bytes == 14 * GIB - int(5.6 * GIB)
    assert pair.peak.percent == pytest.approx(60.0)  # 1 - 5.6 / 14
    assert set(pair.savings) == {"peak_allocated_bytes"}  # only one side knows the others
    assert pair.trainable_params == (7, 7)
    assert pair.differs == ()


def test_needing_more_is_a_negative_saving():
    (pair,) = pair_methods([make_record(metrics=needs(2)), make_record(precision="nf4", metrics=needs(3))])
    assert pair.peak.bytes == -GIB
    assert pair.peak.percent == pytest.approx(-50.0)


def test_the_baseline_is_bf16_and_fp16_where_there_is_none():
    half = make_record(precision="fp16")
    (pair,) = pair_methods([half, make_record(precision="nf4")])
    assert pair.baseline.point.precision == "fp16"
    (pair,) = pair_methods([half, make_record(), make_record(precision="nf4")])
    assert pair.baseline.point.precision == "bf16"


def test_a_pair_is_of_the_same_files():
    texts = [ENVIRONMENT | {"inputs": {"data": digest}} for digest in ("aaaaaaaaaaaa", "bbbbbbbbbbbb")]
    records = [make_record(precision=name, environment=text) for name in ("bf16", "nf4") for text in texts]
    pairs = pair_methods(records)
    assert [pair.baseline.latest.environment for pair in pairs] == texts
    assert [pair.candidate.latest.environment for pair in pairs] == texts
    assert pair_methods([records[0], records[3]]) == []


def test_fp32_lora_is_a_candidate_but_not_a_baseline():
    records = [make_record(precision="fp32"), make_record(), make_record(precision="fp4")]
    pairs = [(pair.candidate.point.precision, pair.is_qlora) for pair in pair_methods(records)]
    assert pairs == [("fp32", False), ("fp4", True)]
    assert pair_methods([make_record(precision="fp32"), make_record(precision="nf4")]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": 512},
        {"r": 8},
        {"gradient_checkpointing": False},
        {"model": "other/model"},
        {"kind": "measurement"},
        {"environment": ENVIRONMENT | {"device": "cpu"}},
    ],
)
def test_no_pair_when_anything_but_precision_differs(change):
    assert pair_methods([make_record(**change), make_record(precision="nf4")]) == []


def test_measurements_of_two_machines_or_library_versions_are_no_pair():
    qlora = make_record(precision="nf4", kind="measurement")
    lora = make_record(kind="measurement", environment=OTHER_TORCH)
    assert pair_methods([lora, qlora]) == []


def test_plans_by_two_library_versions_are_a_pair_that_says_so():
    (pair,) = pair_methods([make_record(environment=OTHER_TORCH), make_record(precision="nf4")])
    assert pair.differs == (("versions.torch", "2.12.0", "2.13.0"),)


def test_code_that_differs_is_named():
    dirty = ENVIRONMENT | {"git_commit": "abc", "git_dirty": True}
    qlora = make_record(precision="nf4", kind="measurement", environment=dirty)
    (pair,) = pair_methods([make_record(kind="measurement"), qlora])
    assert pair.differs == (("git_commit", "d4698f3", "abc"), ("git_dirty", False, True))


def test_readings_of_the_machine_are_no_factor():
    warmer = ENVIRONMENT | {"temperature_c": 71}
    (pair,) = pair_methods([make_record(), make_record(precision="nf4", environment=warmer)])
    assert pair.differs == ()


def test_processes_that_disagree_are_named():
    other = ENVIRONMENT | {"git_commit": "abc"}
    lora = [
        make_record(kind="measurement", environment=e, detail={"repeat": i})
        for i, e in enumerate((ENVIRONMENT, other))
    ]
    (pair,) = pair_methods([*lora, make_record(precision="nf4", kind="measurement")])
    assert pair.differs == (("git_commit", ("d4698f3", "abc"), "d4698f3"),)


def test_an_upcast_is_named_for_qlora_and_the_dtype_of_fp32_is_not():
    def built(precision, dtype):
        return make_record(
            precision=precision, detail={"model": {"dtypes": {"lm_head": dtype, "adapters": "float32"}}}
        )

    records = [built("bf16", "bfloat16"), built("nf4", "float32"), built("fp32", "float32")]
    qlora, fp32 = pair_methods(records)
    assert qlora.differs == (("dtypes.lm_head", "bfloat16", "float32"),)
    assert fp32.differs == ()


def test_an_outcome_that_differs_is_named_and_nothing_is_saved():
    lora = make_record(kind="measurement", outcome="oom", metrics={})
    built = {"model": {"dtypes": {"lm_head": "float32"}}}
    (pair,) = pair_methods([lora, make_record(precision="nf4", kind="measurement", detail=built)])
    assert pair.differs == (("outcome", "oom", "ok"),)
    assert pair.peak.bytes is None
    assert pair.savings == {}


def test_two_errors_are_no_pair_and_one_error_or_out_of_memory_is():
    def ended(outcome: str, precision: str):
        return make_record(outcome=outcome, metrics={}, precision=precision)

    assert pair_methods([ended("error", "bf16"), ended("error", "nf4"), ended("error", "fp32")]) == []
    for ours, theirs in (("oom", "oom"), ("error", "oom"), ("oom", "error")):
        assert len(pair_methods([ended(ours, "bf16"), ended(theirs, "nf4")])) == 1
    assert len(pair_methods([make_record(), ended("error", "nf4")])) == 1
    assert near_pairs([ended("error", "bf16"), ended("error", "nf4")]) == []


def test_throughput_ratio_is_of_medians_over_processes():
    # LoRA: process medians 1.0, 1.0, 5.0 s -> 1.0 s. QLoRA: 2.0 s. Same tokens, so half the speed.
    lora = [
        make_record(kind="measurement", detail={"repeat": i}, metrics={"step_time_s": times})
        for i, times in enumerate(([1.0, 1.0, 9.0], [1.0], [5.0, 5.0]))
    ]
    qlora = make_record(kind="measurement", precision="nf4", metrics={"step_time_s": [2.0]})
    (pair,) = pair_methods([*lora, qlora])
    assert pair.throughput_ratio == pytest.approx(0.5)


def test_a_candidate_without_a_twin_is_listed_with_all_that_differs():
    records = [
        make_record(seq_len=512, gradient_checkpointing=False),
        make_record(seq_len=1024),
        make_record(precision="nf4", seq_len=2048, environment=OTHER_TORCH),
    ]
    assert pair_methods(records) == []
    (near,) = near_pairs(records)
    assert near.baseline.point.train.seq_len == 1024  # one setting differs, not two
    assert near.differs == (("seq_len", 1024, 2048), ("versions.torch", "2.13.0", "2.12.0"))


def test_a_twin_on_another_device_is_near():
    (near,) = near_pairs(
        [make_record(environment=ENVIRONMENT | {"device": "cpu"}), make_record(precision="nf4")]
    )
    assert near.differs == (("device", "cpu", "cuda"),)


def test_another_model_a_twin_or_no_baseline_is_not_near():
    assert near_pairs([make_record(model="other/model"), make_record(precision="nf4")]) == []
    assert near_pairs([make_record(), make_record(precision="nf4")]) == []
    assert near_pairs([make_record(precision="fp32", r=8), make_record(precision="nf4")]) == []


def test_near_pairs_are_limited():
    records = [make_record(r=1), *(make_record(precision="nf4", r=r) for r in range(2, 10))]
    assert len(near_pairs(records, limit=3)) == 3
