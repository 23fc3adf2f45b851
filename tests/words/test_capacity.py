"""How far QLoRA and LoRA get on a card, in sentences of hand-made plans."""

from __future__ import annotations

from typing import Any

import pytest

from qbench.comparison.capacity import telling
from qbench.comparison.results import gather
from qbench.records.record import Record
from qbench.words.capacity import sentence
from tests.comparison.hand_made import make_record

GIB = 1 << 30
CARD = {"gpu": "RTX 4090", "memory_bytes": 23 * GIB + GIB // 2}


def plan(precision: str, fits: bool, speed: float | None = None, **settings: Any) -> Record:
    fit = {**CARD, "fits": fits, "headroom_bytes": GIB if fits else -GIB, "tokens_per_s": speed}
    return make_record(precision=precision, detail={"fits": [fit]}, **settings)


def lengths(precision: str, longest: int, speed: float | None = None) -> list[Record]:
    """Return plans of 1,024 to 8,192 tokens, of which those up to `longest` fit."""
    return [plan(precision, n <= longest, speed, seq_len=n) for n in (1024, 2048, 4096, 8192)]


def said(*records: list[Record]) -> list[str]:
    results = gather([record for listed in records for record in listed])
    return [sentence(capacity) for capacity in telling(results)]


def test_how_far_each_gets_and_what_it_costs():
    # 760 of 1,000 tokens per second: 24 % of the speed.
    (sentence,) = said(lengths("bf16", 1024, 1000), lengths("nf4-dq", 8192, 760))
    assert sentence == (
        "On RTX 4090 (23.5 GiB) QLoRA (nf4-dq) trains Llama-2-7b-hf at 8,192 tokens where bf16 LoRA stops at "
        "1,024 tokens (planned; rank 16, batch 1, checkpointing). QLoRA costs 24 % of the speed at 1,024 "
        "tokens."
    )


def test_a_side_that_never_fits_is_said_to():
    (sentence,) = said(lengths("bf16", 0), lengths("nf4", 2048))
    assert (
        "QLoRA (nf4) trains Llama-2-7b-hf at 2,048 tokens where bf16 LoRA fits at none of the 4 lengths"
        in sentence
    )
    assert "speed" not in sentence


def test_qlora_being_worse_is_said_the_other_way_round():
    (sentence,) = said(lengths("bf16", 4096, 500), lengths("nf4-dq", 2048, 600))
    assert (
        "bf16 LoRA trains Llama-2-7b-hf at 4,096 tokens where QLoRA (nf4-dq) stops at 2,048 tokens"
        in sentence
    )
    assert sentence.endswith("QLoRA is 20 % faster at 2,048 tokens.")


@pytest.mark.parametrize(("longest", "more"), [(8192, ", the largest planned"), (4096, "")])
def test_a_tie(longest: int, more: str):
    (sentence,) = said(lengths("bf16", longest, 1000), lengths("nf4-dq", longest, 995))
    assert f"both QLoRA (nf4-dq) and bf16 LoRA train Llama-2-7b-hf at {longest:,} tokens{more} (" in sentence
    assert sentence.endswith("QLoRA trains at the same speed.")


def test_when_neither_fits():
    assert said(lengths("bf16", 0), lengths("nf4-dq", 0)) == [
        "Neither QLoRA (nf4-dq) nor bf16 LoRA of Llama-2-7b-hf fits on RTX 4090 (23.5 GiB) at any of the 4 "
        "lengths planned."
    ]


ALL = (1024, 2048, 4096, 8192)


def asked(precision: str, longest: int, asked: tuple[int, ...] = ALL, **settings: Any) -> list[Record]:
    """Return plans of some lengths, of which those up to `longest` fit."""
    return [plan(precision, n <= longest, seq_len=n, **settings) for n in asked]


HOW = "(planned; rank 16, batch 1, checkpointing)."


@pytest.mark.parametrize(
    ("qlora", "lora", "expected"),
    [
        # QLoRA was asked for more: it holds that, or it stops.
        (
            asked("nf4", 8192),
            asked("bf16", 8192, ALL[:3]),
            f"both QLoRA (nf4) and bf16 LoRA train Llama-2-7b-hf at 4,096 tokens, the largest planned "
            f"for both {HOW} QLoRA (nf4) also fits at 8,192 tokens, which was not planned for bf16 LoRA.",
        ),
        (
            asked("nf4", 4096),
            asked("bf16", 8192, ALL[:3]),
            f"both QLoRA (nf4) and bf16 LoRA train Llama-2-7b-hf at 4,096 tokens, the largest planned "
            f"for both {HOW} QLoRA (nf4) does not fit at 8,192 tokens, which was not planned for bf16 LoRA.",
        ),
        # LoRA was.
        (
            asked("nf4", 8192, ALL[:2]),
            asked("bf16", 4096),
            f"both QLoRA (nf4) and bf16 LoRA train Llama-2-7b-hf at 2,048 tokens, the largest planned "
            f"for both {HOW} bf16 LoRA also fits at 4,096 tokens, which was not planned for QLoRA (nf4).",
        ),
        # Each for something else.
        (
            asked("nf4", 8192, (1024, 8192)),
            asked("bf16", 2048, (1024, 4096)),
            f"both QLoRA (nf4) and bf16 LoRA train Llama-2-7b-hf at 1,024 tokens, the largest planned "
            f"for both {HOW} QLoRA (nf4) also fits at 8,192 tokens, which was not planned for bf16 LoRA. "
            f"bf16 LoRA does not fit at 4,096 tokens, which was not planned for QLoRA (nf4).",
        ),
        # One stops, and the other goes on beyond what both were asked for.
        (
            asked("nf4", 8192),
            asked("bf16", 1024, ALL[:3]),
            f"QLoRA (nf4) trains Llama-2-7b-hf at 4,096 tokens where bf16 LoRA stops at 1,024 tokens {HOW} "
            f"QLoRA (nf4) also fits at 8,192 tokens, which was not planned for bf16 LoRA.",
        ),
        # In between what both were asked for.
        (
            asked("nf4", 2048),
            asked("bf16", 1024, (1024, 8192)),
            f"both QLoRA (nf4) and bf16 LoRA train Llama-2-7b-hf at 1,024 tokens {HOW} QLoRA (nf4) also fits "
            f"at 2,048 tokens, which was not planned for bf16 LoRA.",
        ),
        # What the side that stops holds alone counts as held.
        (
            asked("nf4", 8192, (1024, 4096)),
            asked("bf16", 2048, ALL[:3]),
            f"QLoRA (nf4) trains Llama-2-7b-hf at 4,096 tokens where bf16 LoRA stops at 2,048 tokens {HOW}",
        ),
        (
            asked("nf4", 8192, (1024, 2048)),
            asked("bf16", 512, (512, 1024, 2048)),
            f"QLoRA (nf4) trains Llama-2-7b-hf at 2,048 tokens where bf16 LoRA stops at 512 tokens {HOW}",
        ),
        # That a side stopped already is not told again, nor is what is smaller than what it trains.
        (
            asked("nf4", 4096, ALL[:3]),
            asked("bf16", 1024),
            f"QLoRA (nf4) trains Llama-2-7b-hf at 4,096 tokens where bf16 LoRA stops at 1,024 tokens {HOW}",
        ),
        (
            asked("nf4", 8192),
            asked("bf16", 8192, (1024, 8192)),
            f"both QLoRA (nf4) and bf16 LoRA train Llama-2-7b-hf at 8,192 tokens, the largest planned {HOW}",
        ),
    ],
)
def test_what_one_side_alone_was_asked_for_is_told(qlora: list[Record], lora: list[Record], expected: str):
    assert said(lora, qlora) == [f"On RTX 4090 (23.5 GiB) {expected}"]


def test_a_length_of_one_side_that_fits_where_none_of_both_does():
    assert said(asked("nf4", 512, (512, 1024, 2048)), asked("bf16", 0, (1024, 2048))) == [
        "Neither QLoRA (nf4) nor bf16 LoRA of Llama-2-7b-hf fits on RTX 4090 (23.5 GiB) at any of the 2 "
        "lengths planned for both. QLoRA (nf4) fits at 512 tokens, which was not planned for bf16 LoRA."
    ]
    # What it does not hold either is not told: it is more than what did not fit.
    assert said(asked("nf4", 512, (512, 1024, 2048)), asked("bf16", 0, (1024,))) == [
        "Neither QLoRA (nf4) nor bf16 LoRA of Llama-2-7b-hf fits on RTX 4090 (23.5 GiB) at 1,024 tokens. "
        "QLoRA (nf4) fits at 512 tokens, which was not planned for bf16 LoRA."
    ]


def test_of_groups_of_equal_size_one_that_differs_is_told():
    same = [*asked("bf16", 8192), *asked("nf4", 8192)]
    larger = [
        *asked("bf16", 2048, per_device_train_batch_size=4),
        *asked("nf4", 4096, per_device_train_batch_size=4),
    ]
    expected = (
        "On RTX 4090 (23.5 GiB) QLoRA (nf4) trains Llama-2-7b-hf at 4,096 tokens where bf16 LoRA stops at "
        "2,048 tokens (planned; rank 16, batch 4, checkpointing)."
    )
    assert said(same, larger) == [expected]
    assert said(larger, same) == [expected]


def test_of_single_settings_one_that_differs_is_told():
    def held(bf16: bool, **settings: Any) -> list[Record]:
        return [plan("bf16", bf16, **settings), plan("nf4", True, **settings)]

    (sentence,) = said(held(True), held(False, gradient_checkpointing=False))
    assert sentence == (
        "On RTX 4090 (23.5 GiB) QLoRA (nf4) trains Llama-2-7b-hf where bf16 LoRA does not fit (planned; rank "
        "16, batch 1, 2,048 tokens, no checkpointing)."
    )


@pytest.mark.parametrize(
    ("bf16", "fp16", "nf4", "nf4_dq", "expected"),
    [
        # bf16 shares 2 lengths with nf4 and 1 with nf4-dq, which is preferred otherwise.
        (
            (1024, 2048),
            (),
            (1024, 2048),
            (1024,),
            "QLoRA (nf4) trains Llama-2-7b-hf at 2,048 tokens where bf16",
        ),
        (
            (1024, 2048),
            (),
            (1024, 2048),
            (4096,),
            "QLoRA (nf4) trains Llama-2-7b-hf at 2,048 tokens where bf16",
        ),
        # nf4 shares 1 length with bf16 and 2 with fp16.
        (
            (1024,),
            (1024, 2048),
            (1024, 2048),
            (),
            "QLoRA (nf4) trains Llama-2-7b-hf at 2,048 tokens where fp16",
        ),
        # All pairs share 1 length: preference decides.
        ((1024,), (1024,), (1024, 2048), (1024,), "both QLoRA (nf4-dq) and bf16 LoRA train Llama-2-7b-hf at"),
    ],
)
def test_the_precisions_with_the_most_in_common_are_told(
    bf16: tuple[int, ...],
    fp16: tuple[int, ...],
    nf4: tuple[int, ...],
    nf4_dq: tuple[int, ...],
    expected: str,
):
    lora = [*asked("bf16", 1024, bf16), *asked("fp16", 1024, fp16)]
    (sentence,) = said(lora, asked("nf4", 8192, nf4), asked("nf4-dq", 8192, nf4_dq))
    assert sentence.startswith(f"On RTX 4090 (23.5 GiB) {expected}")


def test_a_group_is_not_larger_for_what_no_two_precisions_share():
    # bf16 shares 1 length with nf4 and another with nf4-dq; at batch 4 it shares 2 with nf4.
    apart = [*asked("bf16", 8192, ALL[:2]), *asked("nf4", 8192, ALL[:1]), *asked("nf4-dq", 8192, ALL[1:2])]
    both = [
        *asked("bf16", 2048, ALL[:2], per_device_train_batch_size=4),
        *asked("nf4", 2048, ALL[:2], per_device_train_batch_size=4),
    ]
    (sentence,) = said(apart, both)
    assert "at 2,048 tokens, the largest planned (planned; rank 16, batch 4" in sentence


def test_a_group_with_more_that_both_were_asked_for_is_told():
    alone = [*asked("bf16", 1024, (1024,)), *asked("nf4", 8192)]
    both = [
        *asked("bf16", 2048, (1024, 2048), per_device_train_batch_size=4),
        *asked("nf4", 2048, (1024, 2048), per_device_train_batch_size=4),
    ]
    (sentence,) = said(alone, both)
    assert "at 2,048 tokens, the largest planned (planned; rank 16, batch 4" in sentence


def test_a_model_that_one_side_alone_was_asked_for_is_told():
    bf16 = [of_size(size, "bf16", size <= 7) for size in (1, 7, 13)]
    nf4 = [of_size(size, "nf4", size <= 70) for size in (1, 7, 13, 70)]
    # 70B has no LoRA plan, so three models have both sides; a fourth makes them many.
    (sentence,) = said([*bf16, of_size(3, "bf16", True)], [*nf4, of_size(3, "nf4", True)])
    assert sentence.endswith("with m7. QLoRA (nf4) also trains m70, which was not planned for bf16 LoRA.")


def test_a_length_that_was_planned_twice_counts_once():
    def twice(precision: str, fits: bool) -> list[Record]:
        card = {**CARD, "fits": fits}
        return [make_record(precision=precision, seq_len=n, detail={"fits": [card, card]}) for n in ALL[:2]]

    (sentence,) = said(twice("bf16", False), twice("nf4", True))
    assert "where bf16 LoRA fits at none of the 2 lengths (" in sentence
    cpu_and_cuda = [
        plan(precision, precision == "nf4", seq_len=n, environment={"device": device})
        for precision in ("bf16", "nf4")
        for n in ALL[:2]
        for device in ("cpu", "cuda")
    ]
    (sentence,) = said(cpu_and_cuda)
    assert "where bf16 LoRA fits at none of the 2 lengths (" in sentence


def test_models_of_equal_size_are_two_models():
    def of(name: str, billions: int, precision: str, fits: bool) -> Record:
        metrics = {"peak_allocated_bytes": GIB, "total_params": billions * 10**9}
        return plan(precision, fits, model=f"org/{name}", metrics=metrics)

    models = (("m1", 1), ("m7", 7), ("m7-Instruct", 7), ("m13", 13))
    nf4 = [of(name, size, "nf4", True) for name, size in models]
    (sentence,) = said([of(name, size, "bf16", False) for name, size in models], nf4)
    assert "QLoRA (nf4) trains models up to m13 where bf16 LoRA fits at none of the 4 models (" in sentence
    # One side was asked for m70, the other for m70-Instruct: they have no plan in common.
    bf16 = [of(name, size, "bf16", True) for name, size in models]
    apart = [of("m70-Instruct", 70, "bf16", False), of("m70", 70, "nf4", True)]
    (sentence,) = said(bf16, nf4, apart)
    assert "both QLoRA (nf4) and bf16 LoRA train models up to m13, the largest planned for both (" in sentence
    assert sentence.endswith(
        " QLoRA (nf4) also trains m70, which was not planned for bf16 LoRA. bf16 LoRA does not train "
        "m70-Instruct, which was not planned for QLoRA (nf4)."
    )


@pytest.mark.parametrize("only", ["bf16", "nf4-dq", "fp32"])
def test_a_missing_side_says_nothing(only: str):
    assert said(lengths(only, 2048)) == []


def test_plans_that_were_held_against_no_card_say_nothing():
    assert said([make_record(precision="bf16"), make_record(precision="nf4")]) == []


def test_a_single_point_needs_no_length():
    (sentence,) = said([plan("bf16", False)], [plan("nf4-dq", True)])
    assert "QLoRA (nf4-dq) trains Llama-2-7b-hf where bf16 LoRA does not fit (planned; rank 16" in sentence
    (sentence,) = said([plan("bf16", True)], [plan("nf4-dq", True)])
    assert "both QLoRA (nf4-dq) and bf16 LoRA train Llama-2-7b-hf (planned" in sentence


def test_the_rank_is_named_where_it_varies():
    bf16 = [plan("bf16", r <= 16, r=r) for r in (16, 64)]
    nf4 = [plan("nf4", True, r=r) for r in (16, 64)]
    (sentence,) = said(bf16, nf4)
    assert "at rank 64 where bf16 LoRA stops at rank 16 (planned; batch 1" in sentence


def test_the_card_on_which_they_differ_is_told():
    def held(precision: str, fits_small: bool) -> Record:
        fits = [
            {"gpu": "T4", "memory_bytes": 15 * GIB, "fits": False},
            {"gpu": "L4", "memory_bytes": 22 * GIB, "fits": fits_small},
            {"gpu": "A100", "memory_bytes": 79 * GIB, "fits": True},
        ]
        return make_record(precision=precision, detail={"fits": fits})

    (sentence,) = said([held("bf16", False), held("nf4", True)])
    assert sentence.startswith("On L4 (22.0 GiB) QLoRA (nf4) trains")
    (sentence,) = said([held("bf16", True), held("nf4", True)])
    # Where no card tells them apart: the smallest that holds anything, else the largest.
    assert sentence.startswith("On L4 (22.0 GiB) both QLoRA (nf4) and bf16 LoRA train Llama-2-7b-hf")
    nothing = [
        make_record(
            precision=precision,
            detail={
                "fits": [
                    {"gpu": g, "memory_bytes": n * GIB, "fits": False} for g, n in (("T4", 15), ("L4", 22))
                ]
            },
        )
        for precision in ("bf16", "nf4")
    ]
    assert said(nothing) == ["Neither QLoRA (nf4) nor bf16 LoRA of Llama-2-7b-hf fits on L4 (22.0 GiB)."]


def test_each_model_has_a_sentence():
    records = [plan(p, p == "nf4", model=m) for m in ("org/a", "org/b") for p in ("bf16", "nf4")]
    assert [sentence.split("trains ")[1].split()[0] for sentence in said(records)] == ["a", "b"]


def on_two_cards(precision: str, small: int, large: int) -> list[Record]:
    """Return plans of 1,024 to 8,192 tokens, held against a small and a large card."""
    cards = (("RTX 4090", 23, small), ("A100", 79, large))
    return [
        make_record(
            precision=precision,
            seq_len=n,
            detail={"fits": [{"gpu": g, "memory_bytes": m * GIB, "fits": n <= most} for g, m, most in cards]},
        )
        for n in (1024, 2048, 4096, 8192)
    ]


def test_a_card_on_which_lora_gets_further_is_told_too():
    ahead, behind = said(on_two_cards("bf16", 1024, 8192), on_two_cards("nf4-dq", 2048, 4096))
    assert "On RTX 4090 (23.0 GiB) QLoRA (nf4-dq) trains Llama-2-7b-hf at 2,048 tokens where bf16" in ahead
    assert "On A100 (79.0 GiB) bf16 LoRA trains Llama-2-7b-hf at 8,192 tokens where QLoRA" in behind


def of_size(billions: int, precision: str, fits: bool) -> Record:
    metrics = {"peak_allocated_bytes": GIB, "total_params": billions * 10**9}
    return plan(precision, fits, 100.0, model=f"org/m{billions}", metrics=metrics)


def test_of_many_models_the_largest_that_each_trains_is_told():
    bf16 = [of_size(size, "bf16", size <= 7) for size in (1, 7, 13, 70)]
    nf4 = [of_size(size, "nf4", size <= 13) for size in (1, 7, 13, 70)]
    assert said(bf16, nf4) == [
        "On RTX 4090 (23.5 GiB) QLoRA (nf4) trains models up to m13 where bf16 LoRA stops at m7 (planned; "
        "rank 16, batch 1, 2,048 tokens, checkpointing). QLoRA trains at the same speed with m7."
    ]
    (sentence,) = said([of_size(size, "bf16", False) for size in (1, 7, 13, 70)], nf4)
    assert "trains models up to m13 where bf16 LoRA fits at none of the 4 models" in sentence
