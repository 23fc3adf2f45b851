"""A plan held against several cards says of each what a plan for it alone says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.catalog.gpus import find_gpu
from qbench.errors import StepError
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.shared_by_card import ByCard
from qbench.planner import shared, trace
from qbench.planner.account import Account
from qbench.planner.families import resized
from qbench.planner.plan import plan
from qbench.planner.shared import SharedTraces
from qbench.planner.trace import record_account
from qbench.scenario.schema import Point
from tests.memory.kernels.test_choices import backend

CARDS = ("RTX 4090", "A100-SXM4-80GB", "H100 SXM", "B200", "T4", "MI300X")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(
        tmp_path_factory.mktemp("cards") / "model", FAMILIES["llama"], num_hidden_layers=2
    )


def fits(point: Point, *names: str, **settings: Any) -> dict[str, dict[str, Any]]:
    record = plan(point, "cuda", [find_gpu(name) for name in names], **settings)
    return {fit["gpu"]: fit for fit in record.detail["fits"]}


@pytest.mark.parametrize("changes", [{}, {"recipe": "trl", "autocast": "bf16"}])
def test_each_card_is_planned_with_its_own_kernels(model: Path, changes: dict[str, Any]) -> None:
    point = tiny_point(model, "nf4", seq_len=64, **changes)
    # trl's loss in bf16 has no kernel below 8.0, as on a T4.
    cards = [name for name in CARDS if name != "T4" or not changes]
    together = fits(point, *cards)
    assert together == {name: fits(point, name)[name] for name in cards}
    # From Hopper on cuBLAS has 32 MiB for a handle instead of 8.125, so they are not all alike.
    assert len({fit["peak_reserved_bytes"] for fit in together.values()}) > 1


def test_each_card_of_shared_plans_is_planned_with_its_own_kernels(model: Path) -> None:
    lengths = range(128, 1408, 128)
    points = [resized(tiny_point(model, "nf4"), (8, length, 1)) for length in lengths]
    tracer = SharedTraces(points)
    for point in (points[0], points[6], points[-1]):
        assert fits(point, *CARDS, tracer=tracer) == {name: fits(point, name)[name] for name in CARDS}


@pytest.mark.parametrize(("names", "num_recorded"), [(("A100-SXM4-80GB", "A40"), 1), (("A100", "H100"), 2)])
def test_cards_that_run_the_same_kernels_share_the_work(
    model: Path, names: tuple[str, ...], num_recorded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Card] = []

    def counted(point: Point, device: Any, config: Any, card: Card, **settings: Any) -> Account:
        ran.append(card)
        return record_account(point, device, config, card, **settings)

    point = tiny_point(model, "bf16")
    monkeypatch.setattr(trace, "record_account", counted)
    monkeypatch.setattr(shared, "record_account", counted)
    alone = fits(point, *names)
    assert len(ran) == num_recorded
    assert fits(point, *names, tracer=SharedTraces([point])) == alone
    assert len(ran) == 2 * num_recorded


def test_a_card_without_a_kernel_is_an_answer_and_the_others_are_planned(model: Path) -> None:
    point = tiny_point(model, "bf16", attn_implementation="flash_attention_2")
    names = [find_gpu(name) for name in ("RTX 4090", "T4")]
    record = plan(point, "cuda", names)
    ada, turing = record.detail["fits"]
    assert (ada["fits"], turing["fits"], turing["headroom_bytes"]) == (True, False, None)
    assert turing["error"] == "flash_attention_2 needs compute capability 8.0 or more; use sdpa"
    assert turing["verdict"] == "unknown"
    assert f"T4: {turing['error']}" in record.detail["caveats"]
    assert turing.get("step_time_s") is None
    together = plan(point, "cuda", names, tracer=SharedTraces([point]))
    assert together.detail == record.detail
    # In whatever order: the numbers are those of the first card that has the kernels.
    reverse = plan(point, "cuda", names[::-1])
    assert reverse.detail["fits"] == record.detail["fits"][::-1]
    assert reverse.metrics == record.metrics
    assert reverse.detail["compute_capability"] == [8, 9]
    with pytest.raises(StepError, match=r"8\.0 or more"):
        plan(point, "cuda", names[1:])


def test_caveats_on_kernels_are_told_of_each_card_once(model: Path) -> None:
    point = tiny_point(model, "bf16")
    names = [find_gpu(name) for name in ("A100-SXM4-80GB", "H100 SXM", "B200")]
    told = [text for text in plan(point, "cuda", names).detail["caveats"] if "cuDNN" in text]
    (text,) = [text for text in plan(point, "cuda", names[1:2]).detail["caveats"] if "cuDNN" in text]
    assert told == [f"H100 SXM: {text}"]


def test_named_cards_are_no_part_of_a_plan_for_the_cpu(model: Path) -> None:
    point = tiny_point(model, "bf16")
    with_card, without = plan(point, "cpu", [find_gpu("T4")]), plan(point, "cpu")
    assert (with_card.metrics, with_card.detail) == (without.metrics, without.detail)


def test_the_first_card_has_the_metrics_and_others_are_told(model: Path) -> None:
    point = tiny_point(model, "bf16")
    hopper, ampere = find_gpu("H100 SXM"), find_gpu("A100-SXM4-80GB")
    record = plan(point, "cuda", [hopper, ampere, find_gpu("MI300X")])
    first, second, amd = record.detail["fits"]
    assert record.metrics["peak_reserved_bytes"] == first["peak_reserved_bytes"]
    assert record.metrics["step_time_s"] == first["step_time_s"]
    assert second["peak_reserved_bytes"] == amd["peak_reserved_bytes"] < first["peak_reserved_bytes"]
    told = [text for text in record.detail["caveats"] if "compute capability" in text]
    assert told == [
        "the numbers are for compute capability 9.0; A100-SXM4-80GB, MI300X would run other kernels; "
        "see its own figures",
        "MI300X: planned with CUDA's kernels of compute capability 8.0; ROCm may choose others",
    ]


def test_a_step_has_no_time_on_a_first_card_that_does_not_hold_it(model: Path) -> None:
    point, large = tiny_point(model, "bf16"), find_gpu("A100-SXM4-80GB")
    needed = fits(point, large.name)[large.name]["peak_reserved_bytes"]
    # As much as is reserved leaves nothing for the context.
    small = replace(find_gpu("A40"), name="small", memory_bytes=needed)
    record = plan(point, "cuda", [small, large])
    first, second = record.detail["fits"]
    assert (first["fits"], second["fits"]) == (False, True)
    assert "step_time_s" not in record.metrics
    assert "tokens_per_s" not in record.metrics
    assert record.metrics["flops"] > 0
    assert second["step_time_s"] > 0


def test_made_once_for_cards_that_answer_alike() -> None:
    made: list[Card] = []

    def make(card: Card) -> str:
        made.append(card)
        return backend(card)

    on_card = ByCard(make)
    ampere, hopper = Card(capability=(8, 0)), Card(capability=(9, 0))
    assert [on_card(ampere), on_card(Card(capability=(8, 6))), on_card(hopper)] == ["flash", "flash", "cudnn"]
    assert on_card(ampere) == "flash"
    assert made == [ampere, hopper]


def test_a_laptop_says_that_its_maker_sets_its_power(model: Path) -> None:
    point = tiny_point(model, "bf16")
    record = plan(point, "cuda", [find_gpu("RTX 4090"), find_gpu("RTX 4090 Laptop")])
    told = [text for text in record.detail["caveats"] if "power limit" in text]
    assert told == ["RTX 4090 Laptop: planned at its full clocks, which the maker's power limit may reduce"]
