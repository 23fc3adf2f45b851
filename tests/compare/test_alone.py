"""What is said where nothing can be compared."""

from __future__ import annotations

from qbench.compare.alone import alone_sentences
from qbench.compare.results import gather
from tests.compare.hand_made import make_record

GIB = 1 << 30
SHARED = "(planned for cuda; rank 16, batch 1, 2,048 tokens, checkpointing)"
NOTHING = "No QLoRA point has a 16-bit LoRA point of equal settings, so the two are not compared."


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


def test_nothing_says_nothing():
    assert said() == []
