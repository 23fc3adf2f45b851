"""Plans that share work are those of each point on its own; where they could not be, nothing is shared."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_point, write_tiny_model

from qbench.errors import StepError
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.kernels.choices import NUM_MULTIPROCESSORS, Card, fuses_4bit
from qbench.planner import shared
from qbench.planner.account import Account
from qbench.planner.families import resized, sizes_of
from qbench.planner.parts import RecordPoint
from qbench.planner.plan import plan
from qbench.planner.shared import AnyLength, SharedTraces
from qbench.planner.trace import Trace, record_account, trace
from qbench.scenario.schema import Device, Point
from qbench.step.model import load_config

RANKS, LENGTHS = (2, 8, 16, 24, 32), (128, 256, 384, 512, 640, 768)


def family(point: Point) -> list[Point]:
    return [resized(point, (rank, length, 1)) for rank, length in itertools.product(RANKS, LENGTHS)]


def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Return a list that each point is added to when its step is run."""
    ran: list[Point] = []

    def counted(point: Point, *rest: Any, **settings: Any) -> Account:
        ran.append(point)
        return record_account(point, *rest, **settings)

    monkeypatch.setattr(shared, "record_account", counted)
    return ran


def traced(tracer: SharedTraces, point: Point, device: Device, **settings: Any) -> Trace:
    found = tracer(point, device, [Card()], AllocatorConfig(), **settings)[Card()]
    assert isinstance(found, Trace)
    return found


@pytest.mark.parametrize(
    ("hub", "precision", "device", "changes", "num_recorded"),
    [
        ("llama", "nf4-dq", "cuda", {"gradient_checkpointing": True}, 7),
        ("gemma2", "fp32", "cuda", {"recipe": "trainer", "optim": "paged_adamw_32bit"}, 7),
        ("mistral", "nf4", "cuda", {"recipe": "trl", "autocast": "bf16"}, 7),
        # 160 x 24 elements are below the 4096 from which on the state is in 8 bit, 160 x 32 are not: so rank
        # 32 is cut off, which takes more samples.
        ("qwen2", "bf16", "cpu", {"optim": "adamw_8bit"}, 12),
    ],
)
def test_shared_plans_are_those_of_each_point(
    hub: str,
    precision: str,
    device: Device,
    changes: dict[str, Any],
    num_recorded: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = write_tiny_model(tmp_path / "model", FAMILIES[hub], num_hidden_layers=2)
    points = family(tiny_point(model, precision, **changes))
    ran = recordings(monkeypatch)
    tracer = SharedTraces(points)
    # The largest, one between samples of both sizes, and one whose rank is not a multiple of eight.
    chosen = [points[index] for index in (29, 19, 3)]
    together = [plan(point, device, tracer=tracer) for point in chosen]
    assert len(ran) == num_recorded
    for found, point in zip(together, chosen, strict=True):
        alone = plan(point, device)
        assert (found.metrics, found.detail) == (alone.metrics, alone.detail)


@pytest.mark.parametrize(
    ("hub", "precision", "device", "changes", "num_recorded"),
    [
        # As many as without costs: what they cost bends nowhere where memory does not.
        ("llama", "nf4-dq", "cuda", {"gradient_checkpointing": True, "recipe": "trainer"}, 7),
        # Eager attention's products are of the square of the length.
        ("llama", "bf16", "cuda", {"attn_implementation": "eager", "optim": "adamw_8bit"}, 12),
        ("mistral", "nf4", "cuda", {"recipe": "trl", "autocast": "bf16"}, 7),
        ("qwen2", "bf16", "cpu", {"gradient_accumulation_steps": 2}, 7),
    ],
)
def test_shared_costs_are_those_of_each_point(
    hub: str,
    precision: str,
    device: Device,
    changes: dict[str, Any],
    num_recorded: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = write_tiny_model(tmp_path / "model", FAMILIES[hub], num_hidden_layers=5)
    points = family(tiny_point(model, precision, **changes))
    ran = recordings(monkeypatch)
    tracer = SharedTraces(points)
    for index in (29, 19, 3):
        together = traced(tracer, points[index], device, with_costs=True)
        alone = trace(points[index], device, with_costs=True)
        assert together.work == alone.work
        assert together.memory == alone.memory
    assert len(ran) == num_recorded


def test_traces_with_and_without_costs_are_kept_apart(llama: list[Point]) -> None:
    tracer = SharedTraces(llama[:2])
    assert traced(tracer, llama[0], "cuda").work is None
    assert traced(tracer, llama[0], "cuda", with_costs=True).work is not None


def test_full_fine_tuning_has_no_rank_to_vary(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", FAMILIES["llama"], num_hidden_layers=2)
    start = tiny_point(model, "bf16", optim="sgd").model_copy(update={"lora": None})
    points = [resized(start, (0, length, 1)) for length in range(128, 1408, 128)]
    tracer = SharedTraces(points)
    for index in (0, 6):
        together, alone = plan(points[index], "cuda", tracer=tracer), plan(points[index], "cuda")
        assert (together.metrics, together.detail) == (alone.metrics, alone.detail)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return family(tiny_point(write_tiny_model(folder, FAMILIES["llama"]), "nf4"))


_ACCOUNTS: dict[tuple[str, bool], Account] = {}


def recorded(point: Point, with_costs: bool = False) -> Account:
    """Return the account of a point, recorded once for all tests."""
    key = point.point_id, with_costs
    if key not in _ACCOUNTS:
        _ACCOUNTS[key] = record_account(point, "cuda", load_config(point), Card(), with_costs=with_costs)
    return _ACCOUNTS[key]


def counting(record: RecordPoint) -> tuple[RecordPoint, list[Point]]:
    """Return the same function, and the points that it will have been asked for."""
    ran: list[Point] = []

    def counted(point: Point) -> Account:
        ran.append(point)
        return record(point)

    return counted, ran


def as_recorded(points: list[Point], record: RecordPoint) -> list[bool]:
    """Say of each point that is not left to be recorded whether its account is the recorded one."""
    parts = AnyLength(points, record)
    found = ((record(point), parts.account(sizes_of(point))) for point in points)
    return [
        np.array_equal(alone.asked, shared.asked) and alone.outline.same_as(shared.outline)
        for alone, shared in found
        if shared is not None
    ]


def bent(point: Point, change: bool) -> Account:
    """Return an account with 512 B more in one of some ten thousand allocations."""
    account = recorded(point)
    more = np.zeros_like(account.asked)
    more[-1] = 512 * change
    return replace(account, asked=account.asked + more)


@pytest.mark.parametrize("limit", [100, 200, 400, 700], ids=lambda limit: f"{limit} tokens")
def test_one_allocation_out_of_line_and_each_side_is_shared_for_itself(
    llama: list[Point], limit: int
) -> None:
    record, ran = counting(lambda point: bent(point, point.train.seq_len > limit))
    parts = AnyLength(llama, record)
    num_recorded = len(ran)
    assert num_recorded < len(llama)
    accounts = [parts.account(sizes_of(point)) for point in llama]
    for point, account in zip(llama, accounts, strict=True):
        if account is not None:
            assert np.array_equal(account.asked, bent(point, point.train.seq_len > limit).asked)
    assert sum(account is not None for account in accounts) > num_recorded
    assert len(ran) == num_recorded


def slowed(point: Point, more: int) -> Account:
    """Return an account with one operator of the step that reads so many bytes more."""
    account = recorded(point, with_costs=True)
    assert account.work is not None
    sizes = account.work.sizes.copy()
    sizes[-1, 0] += more
    return replace(account, work=account.work.resized(sizes))


@pytest.mark.parametrize("limit", [100, 400, 700], ids=lambda limit: f"{limit} tokens")
def test_one_cost_out_of_line_and_each_side_is_shared_for_itself(llama: list[Point], limit: int) -> None:
    """Memory is the same on both sides, so that only the costs tell."""
    record, ran = counting(lambda point: slowed(point, 16 * (point.train.seq_len > limit)))
    parts = AnyLength(llama, record)
    num_recorded = len(ran)
    assert num_recorded < len(llama)
    for point in llama:
        account = parts.account(sizes_of(point))
        if account is not None:
            alone = record(point).work
            assert account.work is not None
            assert alone is not None
            assert account.work.table() == alone.table()


def test_work_that_runs_another_number_of_times_is_not_shared(llama: list[Point]) -> None:
    def repeated(point: Point) -> Account:
        account = recorded(point, with_costs=True)
        assert account.work is not None
        times = [number + (point.train.seq_len > 400) for number in account.work.times]
        return replace(account, work=replace(account.work, times=times))

    parts = AnyLength(llama, repeated)
    found = [(repeated(point).work, parts.account(sizes_of(point))) for point in llama]
    shared_work = [(alone, account.work) for alone, account in found if account is not None]
    assert len(shared_work) >= 20
    assert all(alone and work and alone.table() == work.table() for alone, work in shared_work)


def test_a_change_at_a_rank_is_cut_there(llama: list[Point]) -> None:
    exact = as_recorded(llama, lambda point: bent(point, sizes_of(point)[0] > 16))
    assert len(exact) >= 20
    assert all(exact)


def test_another_operator_and_each_side_is_shared_for_itself(llama: list[Point]) -> None:
    def renamed(point: Point) -> Account:
        account = recorded(point)
        made = [
            ("forward", *rest[1:]) if point.train.seq_len > 400 else rest for rest in account.outline.made
        ]
        return replace(account, outline=replace(account.outline, made=made))

    exact = as_recorded(llama, renamed)
    assert len(exact) >= 20
    assert all(exact)


def test_changes_at_several_ranks_are_cut_by_rank(llama: list[Point]) -> None:
    """The largest samples are long, too: a cut by length would part the kinds as well, and tell nothing."""

    def renamed(point: Point) -> Account:
        account, rank = recorded(point), sizes_of(point)[0]
        made = [(f"{(rank > 2) + (rank > 16)}", *rest[1:]) for rest in account.outline.made]
        return replace(account, outline=replace(account.outline, made=made))

    # Three kinds of 6, 12 and 12 points; one of six takes at most five samples.
    record, ran = counting(renamed)
    parts = AnyLength(llama, record)
    assert all(parts.account(sizes_of(point)) is not None for point in llama)
    assert len(ran) < 25


def test_two_batch_sizes_are_cut_by_their_tokens(llama: list[Point]) -> None:
    grid = itertools.product((8, 16, 24), (128, 256, 384, 512, 640), (1, 2))
    points = [resized(llama[0], sizes) for sizes in grid]
    exact = as_recorded(points, lambda point: bent(point, point.tokens_per_step > 520))
    assert len(exact) >= 20
    assert all(exact)


def test_few_points_are_not_worth_samples(llama: list[Point]) -> None:
    def unasked(point: Point) -> Account:
        raise AssertionError("nothing is to be recorded for so few")

    assert AnyLength(llama[:4], unasked).account(sizes_of(llama[0])) is None


def test_samples_that_cannot_be_recorded_leave_the_error_to_the_points(llama: list[Point]) -> None:
    def refused(point: Point) -> Account:
        raise StepError("no")

    assert AnyLength(llama, refused).account(sizes_of(llama[0])) is None


def test_sizes_that_rounding_could_tell_apart_are_recorded(llama: list[Point]) -> None:
    found = AnyLength(llama, recorded)
    assert found.account((24, 512, 1)) is not None
    assert found.account((12, 512, 1)) is None  # No multiple of eight, and not sampled.
    assert found.account((24, 512, 2)) is None  # A batch that no sample has.
    assert sizes_of(llama[0]) == (2, 128, 1)


def test_the_choice_of_the_4bit_kernel_changes_once_as_tokens_grow() -> None:
    """So that two samples that agree on it speak for all between them."""
    shapes = [(896, 896), (4864, 896), (896, 4864), (2048, 8192), (14336, 4096), (4096, 14336), (128, 896)]
    for capability, shape in itertools.product(NUM_MULTIPROCESSORS, shapes):
        card = Card(capability=capability)
        for dtype in ("bfloat16", "float16", "float32"):
            chosen = [
                fuses_4bit(card, getattr(torch, dtype), tokens, shape, 64)
                for tokens in (1, 4, 8, 16, 32, 64, 128, 256, 320, 512, 768, 1024, 1536, 1537, 4096)
            ]
            assert chosen == sorted(chosen, reverse=True), (capability, shape, dtype)


@pytest.mark.parametrize(
    ("hub", "precision", "device", "card", "changes", "most_recorded"),
    [
        # Flash attention rounds its scratch up to 128 rows.
        ("llama", "nf4-dq", "cuda", Card(), {"gradient_checkpointing": True}, 11),
        # Memory-efficient attention rounds up to tiles of 64 rows.
        ("llama", "fp32", "cuda", Card(capability=(7, 5)), {"recipe": "trainer"}, 12),
        ("mistral", "bf16", "cpu", Card(), {"attn_implementation": "eager"}, 12),
    ],
)
def test_lengths_of_any_remainder_share(
    hub: str,
    precision: str,
    device: Device,
    card: Card,
    changes: dict[str, Any],
    most_recorded: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = write_tiny_model(tmp_path / "model", FAMILIES[hub], num_hidden_layers=2)
    start = tiny_point(model, precision, **changes)
    lengths = (200, 300, 384, 500, 700, 808, 1000)
    points = [resized(start, (rank, length, 1)) for rank in (8, 16, 32, 64) for length in lengths]
    ran = recordings(monkeypatch)
    tracer = SharedTraces(points)
    for index, point in enumerate(points):
        together = tracer(point, device, [card], AllocatorConfig(), with_costs=True)[card]
        assert isinstance(together, Trace)
        if index % 5 == 0:
            alone = trace(point, device, card, with_costs=True)
            assert (together.work, together.memory) == (alone.work, alone.memory)
            assert together.reserved_bytes == alone.reserved_bytes
    assert len(ran) <= most_recorded
