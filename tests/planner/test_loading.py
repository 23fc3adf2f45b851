"""How a model comes into memory: what is loaded in which order, and what is alive beside it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from tiny import FAMILIES, OTHER_FAMILIES, write_tiny_model

from qbench.memory.history.ledger import Ledger
from qbench.planner.trace import Trace, trace
from qbench.scenario.schema import LoraSettings, Point, TrainSettings

# The tiny Llama: two layers of width 64, MLP 160, 4 heads of 16 of which 2 are for keys, vocabulary 512.
LINEAR = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
EMBEDDING, NORMS = 512 * 64, 5 * 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "llama", FAMILIES["llama"])


def traced(model: str, precision: str, device: str = "cuda", **changes) -> Trace:
    lora = changes.pop("lora", LoraSettings(r=4))
    train = TrainSettings(seq_len=16, **changes)
    return trace(Point(model=model, precision=precision, lora=lora, train=train), device)


def peaks(ledger: Ledger) -> dict[str, int]:
    """Return the most bytes above those at the end of each phase before the first step."""
    starts = [*ledger.marks[:3], next(mark for mark in ledger.marks if mark[1] == "forward")]
    above = {}
    for (start, phase), (end, _) in pairwise(starts):
        live = [sum(size for _, size in ledger.events[:event]) for event in range(start + 1, end + 1)]
        above[phase] = max(live, default=0) - (live[-1] if live else 0)
    return above


def test_quantized_model_comes_out_of_one_block_of_its_size(model: str) -> None:
    first = traced(model, "nf4-dq").ledger.allocations[0]
    # Packed in half a byte; everything else in 16 bit, before peft makes it fp32.
    assert first.num_bytes == LINEAR // 2 + 2 * (EMBEDDING + NORMS) == 109_184
    assert (first.op, first.phase, first.category) == ("caching_allocator_warmup", "load", "temporaries")
    assert traced(model, "int8").ledger.allocations[0].num_bytes == LINEAR + 2 * (EMBEDDING + NORMS)


def test_other_models_are_moved_as_they_are(model: str) -> None:
    first = traced(model, "bf16").ledger.allocations[0]
    assert (first.num_bytes, first.category) == (2 * EMBEDDING, "weights")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4", "nf4-dq", "int8"])
def test_nothing_is_left_of_loading_but_the_model(model: str, precision: str) -> None:
    # The CPU's plan does not know of loading: what is there is counted once.
    on_cpu = traced(model, precision, device="cpu").memory.static_breakdown
    ledger = traced(model, precision).ledger
    first_step = next(event for event, phase in ledger.marks if phase == "forward")
    live = {}
    for handle, size in ledger.events[:first_step]:
        live[handle] = live.get(handle, 0) + size
    found = dict.fromkeys(on_cpu, 0)
    for handle, size in live.items():
        found[ledger.allocations[handle].category] += size
    # bitsandbytes keeps a code book of 256 fp32 values for the process.
    found["quant_state"] -= 1024 if precision == "nf4-dq" else 0
    assert found == on_cpu


def test_peft_empties_the_cache_after_its_upcast(model: str) -> None:
    assert [name for _, name in traced(model, "nf4-dq").ledger.marks[:4]] == [
        *("load", "prepare", "empty_cache", "adapters")
    ]
    assert "empty_cache" not in [name for _, name in traced(model, "bf16").ledger.marks]


def test_adapters_of_trl_pass_through_fp32(model: str) -> None:
    ledger = traced(model, "nf4-dq", recipe="trl", autocast="bf16").ledger
    made = [a.num_bytes for a in ledger.allocations if a.phase == "adapters"]
    # 7 layers in 2 blocks, each with two factors: bf16 on arrival, fp32 by peft, bf16 by trl.
    count = 2 * 7 * 2
    assert len(made) >= 3 * count
    assert [2 * size for size in made[:count]] == made[count : 2 * count]
    assert made[:count] == made[2 * count : 3 * count]


def test_preparation_holds_a_weight_in_both_precisions(model: str) -> None:
    above = peaks(traced(model, "nf4-dq").ledger)
    # The embedding comes first: its 16-bit form beside fp32, when the norms have a block of 512 B already.
    assert above["prepare"] == 2 * EMBEDDING


def test_adapters_come_in_16_bit_and_become_fp32(model: str) -> None:
    made = [a for a in traced(model, "nf4-dq").ledger.allocations if a.phase == "adapters"]
    half, full = made[: 2 * 2 * 7], made[2 * 2 * 7 : 2 * 2 * 2 * 7]
    assert {a.category for a in half} == {"temporaries"}
    assert {a.category for a in full} == {"adapters"}
    assert [2 * a.num_bytes for a in half] == [a.num_bytes for a in full]
    # lora_A of the first q_proj.
    assert full[0].num_bytes == 4 * 64 * 4


def test_loading_holds_a_weight_beside_its_packed_form(model: str) -> None:
    ledger = traced(model, "nf4-dq").ledger
    loaded = next(a for a in ledger.allocations if a.phase == "load" and a.num_bytes == 2 * 64 * 160)
    handle = ledger.allocations.index(loaded)
    events = [event for event, (found, _) in enumerate(ledger.events) if found == handle]
    within = [
        ledger.allocations[found].num_bytes
        for found, size in ledger.events[events[0] : events[1]]
        if size > 0
    ]
    scales = 64 * 160 // 64
    # Weight, absmax, packed, code book, its magnitudes and their largest, offset, centred absmax, the code
    # book that bitsandbytes keeps, nested absmax, 8-bit absmax, and the state's copy of that code book.
    kept_by_bitsandbytes = [1024]
    assert within == [
        *(20_480, 4 * scales, 64 * 160 // 2, 64, 64, 4, 4, 4 * scales),
        *kept_by_bitsandbytes,
        *(4, scales, 1024),
    ]


def test_the_mean_of_many_scales_is_taken_in_parts(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "wide", FAMILIES["llama"], intermediate_size=131_072)
    ledger = traced(model, "nf4-dq").ledger
    # 64 x 131,072 weights have 131,072 scales: 256 for each of 512 threads. Three such weights in two layers,
    # with partial results and counters.
    parts = [a.num_bytes for a in ledger.allocations if a.op == "aten.mean.default" and a.phase == "load"]
    assert parts == [512] * 12


def test_full_fine_tuning_has_no_adapters_to_load(model: str) -> None:
    ledger = traced(model, "bf16", lora=None).ledger
    assert {a.phase for a in ledger.allocations if a.category == "weights"} == {"load"}


def test_recipe_without_preparation_loads_what_it_trains(model: str) -> None:
    ledger = traced(model, "nf4-dq", recipe="plain").ledger
    assert peaks(ledger)["prepare"] == 0


def test_load_peak_can_be_the_largest(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "wide", FAMILIES["llama"], vocab_size=65_536)
    memory = traced(model, "nf4-dq").memory
    assert memory.phases["prepare"] > memory.static_bytes
    assert memory.peak_bytes == max(memory.phases.values())


def test_adapters_of_experts_arrive_as_the_experts_are(tmp_path: Path) -> None:
    experts = write_tiny_model(tmp_path / "mixtral", OTHER_FAMILIES["mixtral"][0])
    lora = LoraSettings(r=4, lora_dropout=0)
    # Under NF4 experts stay in 16 bit until peft's preparation, before adapters come.
    for precision, staged in (("bf16", 2), ("nf4", 4)):
        made = [
            allocation
            for allocation in traced(experts, precision, lora=lora).ledger.allocations
            if allocation.phase == "adapters" and ".mlp.experts.lora_A" in allocation.module
        ]
        assert made[0].num_bytes == staged * 4 * 4 * 160  # four experts of rank 4, down from 160
