"""Cards ranked for a training; cards that choose the same kernels share a trace, which is proven here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qbench.catalog.gpus import find_gpu, gpus
from qbench.catalog.hourly_prices import HourlyPrice
from qbench.errors import StepError
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.kernels.choices import Card, heard
from qbench.planner.ranking import (
    Ranked,
    Terms,
    best_of_each_card,
    like_the_first,
    planned_lengths,
    ranked,
    sorted_rows,
)
from qbench.planner.trace import trace
from qbench.planner.workload import Workload, of_lengths, of_tokens
from qbench.records.fits import Fit
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point
from tests.tiny import write_tiny_model

CAPABILITIES = sorted({gpu.compute_capability for gpu in gpus() if gpu.compute_capability is not None})
PRICE = HourlyPrice(on_demand_usd_per_hour=2.0, spot_usd_per_hour=0.5, on_demand_from=None, spot_from=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("ranking") / "tiny", "HuggingFaceTB/SmolLM2-135M")


def test_equal_decisions_mean_equal_histories(model: str):
    settings = {"precision": "nf4", "recipe": "trainer", "gradient_checkpointing": False}
    point = point_from({"model": model}, {"seq_len": 32, **settings})
    heads = []
    for capability in CAPABILITIES:
        card = Card(capability=capability)
        with heard() as decisions:
            events = trace(point, "cuda", card, AllocatorConfig()).ledger.events
        for other, their_decisions, their_events in heads:
            same = their_decisions.same_on(other, card)
            assert same == (events == their_events), (capability, other.capability)
            assert same == decisions.same_on(card, other)
        heads.append((card, decisions, events))
    # Neither is every card alike, nor every one different.
    groups = {min(n for n, (_, _, seen) in enumerate(heads) if seen == events) for _, _, events in heads}
    assert 1 < len(groups) < len(CAPABILITIES)


def test_hours_money_and_energy(model: str):
    point = point_from({"model": model}, {"seq_len": 64, "per_device_train_batch_size": 2})
    gpu = find_gpu("A100-SXM4-80GB")
    (one,) = ranked(
        [point], [gpu], {point: of_tokens(1280, 10, point)}, Terms(hourly_prices={gpu.name: PRICE})
    )
    assert one.fits
    assert one.step_time_s is not None
    assert one.hours is not None
    # 12,800 tokens in steps of 128.
    assert one.hours == pytest.approx(100 * one.step_time_s / 3600)
    assert one.hours_range is not None
    assert one.hours_range[0] < one.hours < one.hours_range[1]
    assert one.cost_usd == pytest.approx(one.hours * 2.0)
    assert one.spot_cost_usd == pytest.approx(one.hours * 0.5)
    assert one.energy_kwh == pytest.approx(one.hours * gpu.tdp_w / 1000)
    (four,) = ranked(
        [point],
        [gpu],
        {point: of_tokens(1280, 10, point)},
        Terms(hourly_prices={gpu.name: PRICE}, num_gpus=4),
    )
    # A quarter of the time on each of four: the same money and energy.
    assert four.hours == pytest.approx(one.hours / 4)
    assert (four.cost_usd, four.energy_kwh) == pytest.approx((one.cost_usd, one.energy_kwh))


def test_short_batches_take_less_time_than_full_ones(model: str):
    point = point_from({"model": model}, {"seq_len": 256})
    gpu = find_gpu("RTX 4090")
    lengths = [256, 16, 17, 18, 250]
    short, full = (
        ranked([point], [gpu], {point: work}, Terms())[0].hours
        for work in (
            of_lengths(lengths, 1, point, packing=False),
            of_lengths([256] * 5, 1, point, packing=False),
        )
    )
    assert short is not None
    assert full is not None
    # A model this small takes as long as its kernels' launches, whatever their length, but for rounding.
    assert short <= full * (1 + 1e-9)


def test_lengths_between_the_planned_ones_are_interpolated(model: str):
    work = Workload(passes={10: 1, 20: 1, 25: 1, 90: 1}, tokens=0, padded_tokens=0, num_truncated=0, says="")
    assert planned_lengths(work) == [10, 50, 90]


def test_a_card_that_runs_no_such_kernel_does_not_end_the_ranking(model: str):
    point = point_from({"model": model}, {"seq_len": 32, "attn_implementation": "flash_attention_2"})
    work = {point: of_tokens(1000, 1, point)}
    try:
        old, new = ranked([point], [find_gpu("T4"), find_gpu("RTX 4090")], work, Terms())
    except StepError as error:
        pytest.skip(f"flash_attention_2 cannot be planned here: {error}")
    assert (old.fits, new.fits) == (False, True)
    assert old.fit.verdict == "unknown"
    assert "compute capability" in (old.fit.error or "")


def row(gpu: str, point: Point, **values: float | None) -> Ranked:
    fields = dict.fromkeys(
        ("step_time_s", "bound", "bound_share", "hours", "cost_usd", "spot_cost_usd", "energy_kwh")
    )
    return Ranked(
        gpu=find_gpu(gpu),
        point=point,
        fit=Fit(gpu=gpu, fits=True, verdict="fits"),
        hourly_price=None,
        **(fields | values),
    )


def test_unknown_values_come_last_and_lora_comes_before_qlora():
    lora, qlora = (point_from({"model": "gpt2"}, {"precision": name}) for name in ("bf16", "nf4"))
    rows = [
        row("T4", lora, hours=1.0, cost_usd=None),
        row("RTX 4090", lora, hours=2.0, cost_usd=3.0),
        row("L4", qlora, hours=9.0, cost_usd=1.0),
        row("RTX 4090", qlora, hours=1.0, cost_usd=0.5),
    ]
    best = best_of_each_card(rows)
    assert [(each.gpu.name, each.point.precision) for each in sorted_rows(best, "cost")] == [
        ("L4", "nf4"),
        ("RTX 4090", "bf16"),
        ("T4", "bf16"),
    ]
    assert math.isclose(sorted_rows(best, "time")[0].hours or 0, 1.0)


def test_cards_within_the_range_of_the_first_may_as_well_be_better():
    point = point_from({"model": "gpt2"}, {})
    first = replace(row("T4", point, hours=1.0, cost_usd=2.0), hours_range=(0.8, 1.5))
    # At 1.5 h the first would cost 3 USD.
    close, far = (
        row("L4", point, hours=2.0, cost_usd=2.9),
        row("A10", point, hours=1.2, cost_usd=3.1),
    )
    assert like_the_first([first, close, far], "cost") == [close]
    assert like_the_first([replace(first, hours_range=None), close], "cost") == []
    assert like_the_first([], "cost") == []


def test_a_point_of_several_gpus_costs_as_many_prices(model: str):
    gpu = find_gpu("A100-SXM4-80GB")
    rows = []
    for changes in ({}, {"strategy": "ddp", "gpus": 4}):
        point = point_from({"model": model}, {"seq_len": 64, **changes})
        work = {point: of_tokens(1280, 10, point)}
        rows += ranked([point], [gpu], work, Terms(hourly_prices={gpu.name: PRICE}))
    one, four = rows
    # Replicas compute a quarter of the passes each; communication is left out.
    assert one.hours is not None
    assert one.cost_usd is not None
    assert four.hours is not None
    assert four.hours == pytest.approx(one.hours / 4, rel=0.1)
    assert four.cost_usd == pytest.approx(four.hours * 4 * 2.0)
