from __future__ import annotations

from qbench.compare.headline import accuracy_sentence, headline
from qbench.compare.methods import pair_methods
from qbench.compare.results import gather
from qbench.units import GIB
from tests.compare.hand_made import ENVIRONMENT, finding, make_record


def needs(gib: float, **changes):
    metrics = {"peak_allocated_bytes": int(gib * GIB), **changes.pop("metrics", {})}
    return make_record(metrics=metrics, **changes)


def sentences(*records):
    return headline(pair_methods(records))


def test_a_saving():
    assert sentences(needs(14.02), needs(5.61, precision="nf4-dq")) == [
        "QLoRA (nf4-dq) of Llama-2-7b-hf needs 5.61 GiB where bf16 LoRA needs 14.02 GiB: 60 % less "
        "(planned for cuda; rank 16, batch 1, 2048 tokens, checkpointing)."
    ]


def test_a_cost_is_said_plainly():
    (sentence,) = sentences(needs(2), needs(2.5, precision="nf4"))
    assert "25 % more" in sentence
    assert sentence.endswith("Here quantization costs memory instead of saving it.")


def test_fp32_costs_more_without_blaming_quantization_and_comes_last():
    first, last = sentences(needs(14), needs(26, precision="fp32"), needs(6, precision="nf4"))
    assert first.startswith("QLoRA (nf4)")
    assert last.startswith("fp32 LoRA")
    assert "86 % more" in last  # 26 / 14 - 1
    assert "quantization" not in last


def test_equal_needs_are_called_the_same():
    (sentence,) = sentences(needs(10), needs(9.99, precision="nf4"))
    assert "the same within 0.5 %" in sentence


def test_speed_is_given_where_known():
    lora = needs(14, metrics={"tokens_per_s": 1000})
    (sentence,) = sentences(lora, needs(6, precision="nf4", metrics={"tokens_per_s": 780}))
    assert "It trains at 0.78 times the speed." in sentence


def test_a_speed_that_is_not_valid_makes_no_ratio_and_is_told():
    fast = {"metrics": {"tokens_per_s": 1000}, "kind": "measurement"}
    void = {"validity": [finding("allocator_retries", "invalid", 1)]}
    (sentence,) = sentences(needs(14, **fast), needs(6, precision="nf4", detail=void, **fast))
    assert "57 % less" in sentence
    assert "times the speed" not in sentence
    assert "Its speed was measured under conditions that do not count (see Validity)." in sentence


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
    (sentence,) = sentences(*records)
    assert "Over 2 settings: 10 % more to 50 % less." in sentence


def test_the_measured_saving_leads_and_the_planned_one_follows():
    planned = [needs(10), needs(5, precision="nf4")]
    measured = [needs(10, kind="measurement"), needs(6, precision="nf4", kind="measurement")]
    (sentence,) = sentences(*planned, *measured)
    assert "40 % less (measured on cuda" in sentence
    assert sentence.endswith("Planned: 50 % less.")


def test_two_machines_get_a_sentence_each():
    other = ENVIRONMENT | {"device_name": "NVIDIA L4"}
    records = [
        needs(gib, kind="measurement", precision=precision, environment=environment)
        for environment in (ENVIRONMENT, other)
        for precision, gib in (("bf16", 10), ("nf4", 5))
    ]
    assert len(sentences(*records)) == 2


def test_out_of_memory_is_a_result():
    lora = make_record(kind="measurement", outcome="oom", metrics={})
    (sentence,) = sentences(lora, needs(6, kind="measurement", precision="nf4"))
    assert sentence == (
        "QLoRA (nf4) of Llama-2-7b-hf needs 6.00 GiB where bf16 LoRA ran out of memory (measured on cuda; "
        "rank 16, batch 1, 2048 tokens, checkpointing). No saving can be stated."
    )


def test_other_differences_are_named_with_the_saving():
    versions = {"torch": "2", "peft": "0", "transformers": "5.24.0", "bitsandbytes": "0.50.2"}
    other = {"versions": versions, "python": "3.10", "platform": "x", "qbench": "0"}
    (sentence,) = sentences(needs(10, environment=ENVIRONMENT | other), needs(5, precision="nf4"))
    assert sentence.endswith(
        "Besides the precision, this differs: versions (torch, peft), python, platform, 1 more."
    )


def test_many_models_are_summed_up_first():
    records = [
        needs(gib, model=f"org/m{i}", precision=p)
        for i in range(4)
        for p, gib in (("bf16", 10), ("nf4", 5 + i))
    ]
    found = sentences(*records)
    assert (
        found[0]
        == "QLoRA (nf4) needs 20 to 50 % less memory than bf16 LoRA over 4 models (planned for cuda)."
    )
    assert len(found) == 5


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
        accuracy_sentence(gather(exact)) == "The planned peak equals the measured one to the byte at 1 point."
    )
    # Errors: 0 %, +1 %, -2 %.
    assert accuracy_sentence(gather([*exact, *near, *far])) == (
        "The planned peak is off by 1 % at the median of 3 points that were also measured, by 2 % at worst, "
        "and equal to the byte at 1."
    )
    assert accuracy_sentence(gather(exact[:1])) is None
