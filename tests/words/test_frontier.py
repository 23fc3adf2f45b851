"""Sentences on the frontier, from records made by hand."""

from __future__ import annotations

from qbench.comparison.results import gather
from qbench.records.record import Record
from qbench.words.frontier import frontier_sentences
from tests.comparison.hand_made import make_record


def planned(precision: str, seq_len: int, fits: bool, memory_gib: int, speed: float) -> Record:
    metrics = {"peak_reserved_bytes": memory_gib << 30, "tokens_per_s": speed}
    detail = {"fits": [{"gpu": "RTX 4090", "fits": fits, "tokens_per_s": speed}]}
    return make_record(precision=precision, seq_len=seq_len, metrics=metrics, detail=detail)


def test_a_sweep_says_where_qlora_pays_and_what_is_worth_having():
    records = [
        planned("bf16", 1024, True, 18, 1000.0),
        planned("nf4", 1024, True, 8, 750.0),
        planned("bf16", 4096, False, 30, 990.0),
        planned("nf4", 4096, True, 16, 740.0),
    ]
    assert frontier_sentences(gather(records)) == [
        "RTX 4090: Llama-2-7b-hf in nf4 fits at 4,096 tokens, where bf16 does not; where both fit, its speed "
        "is 75 % of bf16.",
        "Best trade-offs (no other point is as fast with less memory): Llama-2-7b-hf nf4 r=16 b=1 s=1024 "
        "(8.00 GiB, 750 tokens/s), Llama-2-7b-hf bf16 r=16 b=1 s=1024 (18.00 GiB, 1,000 tokens/s).",
    ]


def test_a_sweep_without_speed_and_cards_says_nothing():
    assert frontier_sentences(gather([make_record(precision="bf16"), make_record(precision="nf4")])) == []
