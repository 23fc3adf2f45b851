"""What is said where nothing can be compared."""

from __future__ import annotations

from qbench.comparison.results import gather
from qbench.words.unpaired import alone_sentences
from tests.comparison.hand_made import make_record

GIB = 1 << 30
SHARED = "(planned for cuda; rank 16, batch 1, 2,048 tokens, checkpointing)"
NOTHING = "QLoRA and LoRA are not compared: no QLoRA point has a 16-bit LoRA point of equal settings."


def needs(gib: int, **changes):
    return make_record(metrics={"peak_allocated_bytes": gib * GIB}, **changes)


def said(*records) -> list[str]:
    return alone_sentences(gather(records))


def test_one_record_says_what_it_needs():
    assert said(needs(6, precision="nf4")) == [f"QLoRA (nf4) of Llama-2-7b-hf needs 6.00 GiB {SHARED}."]


def test_qlora_alone_gives_its_range_over_what_varies():
    records = [needs(gib, precision="nf4", seq_len=n) for gib, n in ((6, 1024), (9, 4096))]
    assert said(*records) == [
        "QLoRA (nf4) of Llama-2-7b-hf needs 6.00 GiB to 9.00 GiB over 2 settings (planned for cuda; rank 16, "
        "batch 1, checkpointing).",
        NOTHING,
    ]


def test_a_measurement_stands_for_its_plan():
    (sentence, _) = said(needs(6), needs(7, kind="measurement"))
    assert sentence.startswith("bf16 LoRA of Llama-2-7b-hf needs 7.00 GiB (measured on NVIDIA A100")


def test_many_models_are_one_sentence():
    records = [needs(gib, model=f"org/m{gib}") for gib in (3, 1, 4, 2)]
    assert said(*records) == [
        f"bf16 LoRA needs 1.00 GiB (m1) to 4.00 GiB (m4) over 4 models {SHARED}.",
        NOTHING,
    ]


def test_an_ending_without_a_number():
    (sentence,) = said(make_record(outcome="oom", metrics={}, kind="measurement"))
    assert sentence.startswith("bf16 LoRA of Llama-2-7b-hf ran out of memory (measured on NVIDIA A100")


def ended(outcome: str, **changes):
    return make_record(outcome=outcome, metrics={}, kind="measurement", **changes)


CARD = "measured on NVIDIA A100-SXM4-80GB"


def test_each_ending_is_told_and_how_many_points_had_it():
    records = [
        ended(how, seq_len=n)
        for how, n in (("oom", 8192), ("crashed", 1024), ("oom", 4096), ("timeout", 2048))
    ]
    assert said(*records) == [
        "bf16 LoRA of Llama-2-7b-hf ran out of memory at 2 settings, crashed at 1 and timed out at "
        f"1 ({CARD}; rank 16, batch 1, checkpointing).",
        NOTHING,
    ]
    assert said(*records[::2])[0] == (
        f"bf16 LoRA of Llama-2-7b-hf ran out of memory at 2 settings ({CARD}; rank 16, batch 1, "
        "checkpointing)."
    )


def test_endings_are_told_beside_peaks():
    peaks = [needs(gib, kind="measurement", seq_len=n) for gib, n in ((6, 1024), (9, 2048))]
    needed = (
        f"bf16 LoRA of Llama-2-7b-hf needs 6.00 GiB to 9.00 GiB over 2 settings ({CARD}; rank 16, batch 1, "
        "checkpointing)."
    )
    assert said(*peaks, ended("oom", seq_len=4096)) == [
        f"{needed} At 1 other setting it ran out of memory.",
        NOTHING,
    ]
    bad = [ended(how, seq_len=n) for how, n in (("oom", 4096), ("error", 5000), ("oom", 8192))]
    assert said(*peaks, *bad) == [
        f"{needed} At the others it ran out of memory at 2 settings and failed at 1.",
        NOTHING,
    ]


def test_of_many_models_those_with_a_peak_are_counted():
    peaks = [needs(gib, kind="measurement", model=f"org/m{gib}") for gib in (1, 2, 3)]
    worst = [ended("oom", model="org/m4"), ended("oom", model="org/m5"), ended("crashed", model="org/m6")]
    assert said(*peaks, *worst[:1])[0] == (
        f"bf16 LoRA needs 1.00 GiB (m1) to 3.00 GiB (m3) over 3 models ({CARD}; rank 16, batch 1, 2,048 "
        "tokens, checkpointing). At 1 other point it ran out of memory."
    )
    assert said(*peaks[:1], *worst)[0] == (
        f"bf16 LoRA needs 1.00 GiB (m1) ({CARD}; rank 16, batch 1, 2,048 tokens, checkpointing). At the "
        "others it ran out of memory at 2 points and crashed at 1."
    )
    assert said(ended("oom", model="org/m7"), *worst)[0] == (
        f"bf16 LoRA ran out of memory at 3 points and crashed at 1 ({CARD}; rank 16, batch 1, 2,048 tokens, "
        "checkpointing)."
    )


def test_a_model_of_several_settings_among_many_is_counted_once():
    many = [needs(gib, model=f"org/m{gib}") for gib in (1, 2, 3, 4)]
    assert said(*many, needs(9, model="org/m4", seq_len=4096))[0] == (
        "bf16 LoRA needs 1.00 GiB (m1) to 9.00 GiB (m4) over 4 models (planned for cuda; rank 16, batch 1, "
        "checkpointing)."
    )


def test_where_all_failed_nothing_is_said_and_a_plan_stands_for_its_failed_measurement():
    assert said(ended("error"), ended("error", seq_len=4096), ended("error", precision="nf4")) == []
    assert said(*(ended("error", model=f"org/m{n}") for n in range(4))) == []
    assert said(needs(6, precision="nf4"), ended("error", precision="nf4")) == [
        f"QLoRA (nf4) of Llama-2-7b-hf needs 6.00 GiB {SHARED}."
    ]


def test_nothing_says_nothing():
    assert said() == []
