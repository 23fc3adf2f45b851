"""What quality costs, in sentences of hand-made records."""

from __future__ import annotations

from typing import Any

from qbench.records.record import Record
from qbench.words.quality import quality_sentences
from tests.comparison.hand_made import make_record, pair_methods

BY_MODULE = {"model.layers.0.mlp.up_proj": 0.08, "model.layers.1.self_attn.q_proj": 0.12, "score": 0.1}


def measured(precision: str, repeat: int = 0, **quality: Any) -> Record:
    detail = {"repeat": repeat, "quality": {"steps": 7, **quality}}
    return make_record(precision=precision, kind="measurement", detail=detail)


def said(*records: Record) -> list[str]:
    return quality_sentences(pair_methods(records))


def test_weights_and_losses():
    base = measured("bf16", loss_before=4.22, loss_after=4.15)
    nf4 = measured("nf4", loss_before=4.41, loss_after=4.29, weight_error=0.0935, by_module=BY_MODULE)
    assert said(base, nf4) == [
        "nf4 changes the quantized weights of Llama-2-7b-hf by 9.3 %, most in "
        "model.layers.1.self_attn.q_proj (12.0 %). On the same text, the base has a loss of 4.220 in bf16 "
        "and 4.410 in nf4; after 7 steps, bf16 LoRA reaches 4.150 and QLoRA 4.290 (0.140 higher)."
    ]


def test_qlora_with_the_lower_loss_and_a_tie():
    base = measured("bf16", loss_before=4.0, loss_after=4.0)
    assert said(base, measured("nf4", loss_before=4.0, loss_after=3.9))[0].endswith("(0.100 lower).")
    assert said(base, measured("nf4", loss_before=4.0, loss_after=4.0))[0].endswith("(the same).")


def test_a_missing_side_or_loss_says_nothing_of_losses():
    nf4 = measured("nf4", loss_before=4.4, loss_after=4.3)
    assert said(nf4) == []
    assert said(measured("bf16"), nf4) == []
    assert said(make_record(precision="bf16", kind="measurement"), nf4) == []
    assert said(make_record(), make_record(precision="nf4")) == []


def test_unequal_steps_are_not_called_equal():
    base = measured("bf16", loss_before=4.0, loss_after=3.9)
    other = measured("nf4", loss_before=4.0, loss_after=3.8, steps=9)
    assert "after unequal numbers of steps" in said(base, other)[0]
