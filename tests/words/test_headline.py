from __future__ import annotations

from dataclasses import replace

import pytest

from qbench.comparison.results import gather
from qbench.units import GIB
from qbench.words.headline import accuracy_sentence, headline
from tests.comparison.hand_made import ENVIRONMENT, finding, make_record, pair_methods


def needs(gib: float, **changes):
    metrics = {"peak_allocated_bytes": int(gib * GIB), **changes.pop("metrics", {})}
    return make_record(metrics=metrics, **changes)


def sentences(*records):
    return headline(pair_methods(records))


def test_a_saving():
    assert sentences(needs(14.02), needs(5.61, precision="nf4-dq")) == [
        "QLoRA (nf4-dq) of Llama-2-7b-hf needs 5.61 GiB where bf16 LoRA needs 14.02 GiB: 60 % less "
        "(planned for cuda; rank 16, batch 1, 2,048 tokens, checkpointing)."
    ]


def test_a_cost_is_said_plainly():
    (sentence,) = sentences(needs(2), needs(2.5, precision="nf4"))
    assert "25 % more" in sentence
    assert sentence.endswith("Here quantization costs memory instead of saving it.")


def test_fp32_costs_more_without_blaming_quantization_and_comes_last():
    first, last = sentences(needs(14), needs(26, precision="fp32"), needs(6, precision="nf4"))
    assert first.startswith("QLoRA (nf4)")
    assert last == "The same with fp32: 26.00 GiB, 86 % more."  # 26 / 14 - 1
    assert "quantization" not in last


def test_equal_needs_are_called_the_same():
    (sentence,) = sentences(needs(10), needs(9.99, precision="nf4"))
    assert "the same within 0.5 %" in sentence


def test_speed_is_given_where_known():
    lora = needs(14, metrics={"tokens_per_s": 1000})
    (sentence,) = sentences(lora, needs(6, precision="nf4", metrics={"tokens_per_s": 780}))
    assert "It trains at 0.78 times the speed." in sentence


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_speed_of_few_processes_is_told_with_a_doubt(processes: int):
    def measured(gib: float, rate: float, **more: str):
        metrics = {"tokens_per_s": rate}
        return [
            replace(needs(gib, kind="measurement", metrics=metrics, **more), detail={"repeat": repeat})
            for repeat in range(processes)
        ]

    (sentence,) = sentences(*measured(14, 1000), *measured(6, 780, precision="nf4"))
    assert "It trains at 0.78 times the speed" in sentence
    assert ("(fewer than 3 processes per side, so its noise is unknown)" in sentence) == (processes < 3)


def test_a_speed_that_is_not_valid_makes_no_ratio_and_is_told():
    fast = {"metrics": {"tokens_per_s": 1000}, "kind": "measurement"}
    void = {"validity": [finding("allocator_retries", "invalid", 1)]}
    (sentence,) = sentences(needs(14, **fast), needs(6, precision="nf4", detail=void, **fast))
    assert "57 % less" in sentence
    assert "times the speed" not in sentence
    assert "Its speed was measured under conditions that do not count (see Validity)." in sentence


BUSY = "other processes used the CPUs during the timed steps"


def test_a_speed_that_its_findings_doubt_is_no_headline():
    fast = {"metrics": {"tokens_per_s": 1000}, "kind": "measurement"}
    noisy = {"validity": [finding("other_cpus_busy", "warn", 1.9, BUSY)]}
    lora, qlora = needs(14, **fast), needs(6, precision="nf4", detail=noisy, **fast)
    (sentence,) = sentences(lora, qlora)
    assert "57 % less" in sentence
    assert "times the speed" not in sentence
    assert f"Its measured speed is in doubt: {BUSY}." in sentence
    # Of two precisions the quiet one keeps its speed.
    _, others = sentences(
        lora, qlora, needs(7, precision="nf4-dq", **fast), needs(30, precision="fp32", **fast)
    )
    assert others.count("1.00 times the speed") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("git_dirty", True), ("foreign_processes", None), ("host_lead_s", 0.1), ("throttling", None)],
)
def test_a_finding_that_says_nothing_of_noise_leaves_the_speed_in_the_headline(name: str, value: object):
    fast = {"metrics": {"tokens_per_s": 1000}, "kind": "measurement"}
    noted = {"validity": [finding(name, "warn", value)]}
    (sentence,) = sentences(needs(14, **fast), needs(6, precision="nf4", detail=noted, **fast))
    assert "It trains at 1.00 times the speed" in sentence


def test_several_settings_give_the_middle_one_and_the_range():
    # Savings: rank 8: 50 %, rank 16: 40 %, rank 64: 20 %.
    pairs = [(8, 10, 5), (16, 10, 6), (64, 10, 8)]
    records = [
        record
        for r, lora, qlora in pairs
        for record in (needs(lora, r=r), needs(qlora, r=r, precision="nf4"))
    ]
    (sentence,) = sentences(*records)
    assert "needs 6.00 GiB" in sentence
    assert "rank 16" in sentence
    assert "Over 3 settings: 20 to 50 % less." in sentence


def test_a_range_over_both_sides_of_zero():
    records = [
        needs(10, r=8),
        needs(5, r=8, precision="nf4"),
        needs(10, r=64),
        needs(11, r=64, precision="nf4"),
    ]
    assert sentences(*records) == [
        "QLoRA (nf4) of Llama-2-7b-hf needs less memory than bf16 LoRA at 1 of 2 settings and more at 1 "
        "(planned for cuda; batch 1, 2,048 tokens, checkpointing). At best 50 % less (5.00 GiB instead of "
        "10.00 GiB; rank 8), at worst 10 % more (11.00 GiB instead of 10.00 GiB; rank 64)."
    ]


def test_the_measured_saving_leads_and_the_planned_one_follows():
    planned = [needs(10), needs(5, precision="nf4")]
    measured = [needs(10, kind="measurement"), needs(6, precision="nf4", kind="measurement")]
    (sentence,) = sentences(*planned, *measured)
    assert "40 % less (measured on NVIDIA A100-SXM4-80GB; rank 16" in sentence
    assert sentence.endswith("Planned: 50 % less.")


def test_two_machines_get_a_sentence_each():
    other = ENVIRONMENT | {"device_name": "NVIDIA L4"}
    records = [
        needs(gib, kind="measurement", precision=precision, environment=environment)
        for environment in (ENVIRONMENT, other)
        for precision, gib in (("bf16", 10), ("nf4", 5))
    ]
    first, second = sentences(*records)
    assert "(measured on NVIDIA A100-SXM4-80GB;" in first
    assert "(measured on NVIDIA L4;" in second


def test_out_of_memory_is_a_result():
    lora = make_record(kind="measurement", outcome="oom", metrics={})
    (sentence,) = sentences(lora, needs(6, kind="measurement", precision="nf4"))
    assert sentence == (
        "QLoRA (nf4) of Llama-2-7b-hf needs 6.00 GiB where bf16 LoRA ran out of memory (measured on "
        "NVIDIA A100-SXM4-80GB; rank 16, batch 1, 2,048 tokens, checkpointing). No saving can be stated."
    )


def test_out_of_memory_on_both_sides():
    gone = {"kind": "measurement", "outcome": "oom", "metrics": {}}
    both = [make_record(precision=p, seq_len=n, **gone) for n in (1024, 2048) for p in ("bf16", "nf4")]
    (sentence,) = sentences(*both)
    assert sentence == (
        "Both QLoRA (nf4) and bf16 LoRA of Llama-2-7b-hf ran out of memory (measured on NVIDIA "
        "A100-SXM4-80GB; rank 16, batch 1, 1,024 tokens, checkpointing). The same holds at 1 other setting."
    )


def test_settings_at_which_a_side_failed_are_counted_beside_the_saving():
    gone = {"kind": "measurement", "outcome": "oom", "metrics": {}}
    records = [
        needs(10, kind="measurement"),
        needs(5, kind="measurement", precision="nf4"),
        make_record(seq_len=4096, **gone),
        needs(7, kind="measurement", precision="nf4", seq_len=4096),
        make_record(seq_len=8192, **gone),
        make_record(seq_len=8192, precision="nf4", **gone),
    ]
    (sentence,) = sentences(*records)
    assert "50 % less" in sentence
    assert "At 1 other setting QLoRA (nf4) runs where bf16 LoRA ran out of memory." in sentence
    assert "At 1 other setting both ran out of memory." in sentence


def test_the_preferred_precision_is_told_and_the_others_in_short():
    speeds = {"bf16": 1000, "nf4": 800, "nf4-dq": 700, "int8": 500}
    peaks = {"bf16": 10, "int8": 12, "nf4": 6, "nf4-dq": 5}
    records = [needs(gib, precision=p, metrics={"tokens_per_s": speeds[p]}) for p, gib in peaks.items()]
    first, others = sentences(*records)
    assert first.startswith("QLoRA (nf4-dq) of Llama-2-7b-hf needs 5.00 GiB")
    assert others == (
        "The same with nf4: 6.00 GiB, 40 % less, 0.80 times the speed; with int8: 12.00 GiB, 20 % more, 0.50 "
        "times the speed."
    )


def test_a_cost_of_more_than_the_whole_is_told_as_a_multiple():
    (sentence,) = sentences(needs(10), needs(31, precision="nf4"))
    assert "needs 31.00 GiB where bf16 LoRA needs 10.00 GiB: 3.1 times as much (" in sentence


def on_cards(gib: float, *cards: tuple[str, bool, float], **changes):
    fits = [{"gpu": gpu, "fits": fits, "tokens_per_s": speed} for gpu, fits, speed in cards]
    return needs(gib, detail={"fits": fits}, metrics={"tokens_per_s": cards[0][2]}, **changes)


def test_planned_speeds_are_compared_on_a_card_that_holds_both():
    lora = on_cards(30, ("L4", False, 100.0), ("A100", True, 1000.0))
    qlora = on_cards(20, ("L4", True, 90.0), ("A100", True, 500.0), precision="nf4")
    (sentence,) = sentences(lora, qlora)
    assert "It trains at 0.50 times the speed on A100." in sentence
    lora = on_cards(30, ("L4", False, 100.0), ("A100", False, 1000.0))
    assert "times the speed" not in sentences(lora, qlora)[0]


def test_a_quantized_base_that_trains_faster_says_why():
    def timed(gib: float, speed: float, matmul_s: float, **changes: str):
        parts = {"matmul": matmul_s, "loss": 0.5, "optimizer": 0.1}
        time = {"parts_s": parts, "bound": "memory", "rates": ""}
        fits = [{"gpu": "L4", "fits": True, "tokens_per_s": speed, "time": time}]
        return needs(gib, detail={"fits": fits}, metrics={"tokens_per_s": speed}, **changes)

    (sentence,) = sentences(timed(20, 100.0, 2.0), timed(9, 120.0, 1.5, precision="nf4"))
    assert "It trains at 1.20 times the speed on L4: matmul takes 1.5 s instead of 2 s." in sentence
    (sentence,) = sentences(timed(20, 100.0, 2.0), timed(9, 90.0, 2.4, precision="nf4"))
    assert "It trains at 0.90 times the speed on L4." in sentence


def test_a_faster_quantized_base_on_a_cpu_says_what_runs_in_fp32():
    def measured(gib: float, rate: float, head: str, **changes: str):
        cpu = ENVIRONMENT | {"device": "cpu"}
        detail = {"model": {"dtypes": {"lm_head": head}}}
        speed = {"tokens_per_s": rate}
        record = needs(gib, kind="measurement", metrics=speed, environment=cpu, detail=detail, **changes)
        return [replace(record, detail={**record.detail, "repeat": repeat}) for repeat in range(3)]

    records = [*measured(10, 100, "bfloat16"), *measured(9, 109, "float32", precision="nf4")]
    (sentence,) = sentences(*records)
    assert "1.09 times the speed: its output head runs in fp32, which a CPU may compute faster" in sentence


def test_two_models_of_one_name_are_two():
    records = [
        needs(gib, model=f"{org}/m", precision=p) for org in "ab" for p, gib in (("bf16", 9), ("nf4", 5))
    ]
    assert len(sentences(*records)) == 2


def test_plans_and_measurements_on_two_devices_are_not_mixed():
    cpu = ENVIRONMENT | {"device": "cpu", "device_name": "AMD EPYC"}
    records = [
        *(needs(gib, precision=p) for p, gib in (("bf16", 10), ("nf4", 5))),
        *(needs(gib, precision=p, environment=cpu) for p, gib in (("bf16", 10), ("nf4", 9))),
    ]
    first, second = sentences(*records)
    assert "50 % less (planned for cuda;" in first
    assert "10 % less (planned for cpu;" in second


def test_other_differences_are_named_with_the_saving():
    versions = {"torch": "2", "peft": "0", "transformers": "5.24.0", "bitsandbytes": "0.50.2"}
    other = {"versions": versions, "python": "3.10", "platform": "x", "qbench": "0"}
    (sentence,) = sentences(needs(10, environment=ENVIRONMENT | other), needs(5, precision="nf4"))
    assert sentence.endswith("Also different: versions (torch, peft), python, platform and 1 more.")


def test_a_difference_of_all_comparisons_is_named_once():
    other = ENVIRONMENT | {"python": "3.10"}
    records = [
        needs(gib, model=model, precision=p, environment=environment)
        for model in ("org/a", "org/b")
        for p, gib, environment in (("bf16", 10, ENVIRONMENT), ("nf4", 5, other))
    ]
    first, second, last = sentences(*records)
    assert "python" not in first + second
    assert last == "Besides the precision, QLoRA points differ from their LoRA points in python."


def test_many_models_are_summed_up_first():
    records = [
        needs(gib, model=f"org/m{i}", precision=p)
        for i in range(4)
        for p, gib in (("bf16", 10), ("nf4", 5 + i))
    ]
    assert sentences(*records) == [
        "QLoRA (nf4) against bf16 LoRA over 4 models (planned for cuda; rank 16, batch 1, 2,048 tokens, "
        "checkpointing): memory 20 % less (m3) to 50 % less (m0)."
    ]


def test_nothing_to_say():
    assert sentences(needs(14), needs(14, precision="nf4", r=8)) == []


def test_accuracy():
    def both(r, planned, measured):
        return [
            make_record(r=r, metrics={"peak_allocated_bytes": planned}),
            make_record(r=r, kind="measurement", metrics={"peak_allocated_bytes": measured}),
        ]

    exact, near, far = both(8, 100, 100), both(16, 101, 100), both(32, 196, 200)
    assert (
        accuracy_sentence(gather(exact))
        == "The planned peak equals the measured one to the byte at the one point that was also measured."
    )
    assert (
        accuracy_sentence(gather(near))
        == "The planned peak is off by 1 % at the one point that was also measured."
    )
    # Errors: 0 %, +1 %, -2 %.
    assert accuracy_sentence(gather([*exact, *near, *far])) == (
        "The planned peak is off by 1 % at the median of 3 points that were also measured, by 2 % at worst, "
        "and equal to the byte at 1."
    )
    assert accuracy_sentence(gather(exact[:1])) is None


def test_another_card_than_that_of_the_first_precision_is_named():
    lora = on_cards(20, ("L4", True, 100.0), ("A100", True, 1000.0))
    qlora = on_cards(10, ("L4", True, 90.0), ("A100", True, 500.0), precision="nf4-dq")
    full = on_cards(40, ("L4", False, 40.0), ("A100", True, 400.0), precision="fp32")
    first, others = sentences(lora, qlora, full)
    assert "It trains at 0.90 times the speed on L4." in first
    assert "with fp32: 40.00 GiB, 2.0 times as much, 0.40 times the speed on A100." in others
