"""The largest value that fits, on plans made by a formula and on plans of a tiny model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from qbench.cli.target import described_gpu
from qbench.errors import QbenchError, StepError
from qbench.planner.fit import Axis, Largest, PlanPoints, axis_of, largest, with_value
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plan_or_error
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Point
from tests.tiny import write_tiny_model

POINT = point_from({"model": "gpt2"}, {})


def by_formula(fits: Callable[[int], bool]) -> PlanPoints:
    """Return a planner whose steps need 1 MiB, and 10 B of logits and 3 B of activations a token.

    Whether they fit has nothing to do with that.
    """

    def planned(points: Sequence[Point]) -> list[Record]:
        return [
            _record(point, 13 * point.train.seq_len, fits(point.train.seq_len), 1 << 40) for point in points
        ]

    return planned


def on_card(growing: Callable[[int], int], edge: int) -> PlanPoints:
    """Return a planner for a card that 1 MiB and the growing bytes fill up at the edge."""

    def planned(points: Sequence[Point]) -> list[Record]:
        lengths = [point.train.seq_len for point in points]
        return [
            _record(point, growing(length), length <= edge, (1 << 20) + growing(edge))
            for point, length in zip(points, lengths, strict=True)
        ]

    return planned


def _record(point: Point, growing: int, fits: bool, memory_bytes: int) -> Record:
    activations = 3 * growing // 13
    breakdown = {"weights": 1 << 20, "logits_loss": growing - activations, "activations": activations}
    fit = {
        "gpu": "card",
        "fits": fits,
        "verdict": "fits" if fits else "does not fit",
        "memory_bytes": memory_bytes,
    }
    return Record(
        run_id="plan",
        point=point,
        kind="plan",
        outcome="ok",
        metrics={
            "breakdown_bytes": breakdown,
            "peak_allocated_bytes": sum(breakdown.values()),
            "peak_reserved_bytes": sum(breakdown.values()),
        },
        detail={"fits": [fit], "context_bytes": [0, 0], "caveats": []},
        environment={"device": "cuda"},
    )


def searched(fits: Callable[[int], bool], limit: int = 1000, step: int = 1) -> Largest:
    axis = Axis(setting="seq_len", step=step, limit=limit, limited_by="model", why="")
    return largest(POINT, axis, by_formula(fits))


@pytest.mark.parametrize("edge", [1, 2, 63, 64, 500, 998, 999])
def test_the_edge_is_found_wherever_it_is(edge: int):
    found = searched(lambda tokens: tokens <= edge)
    assert found.value == edge
    assert found.above is not None
    assert (found.above.value, found.above.fits) == (edge + 1, False)
    assert found.limited_by == "memory"
    assert found.is_monotone
    # 1 and 1,000, at most ten estimates that keep ever farther from both ends and ten halvings, two more on
    # either side of the edge.
    assert len(found.probes) <= 26


@pytest.mark.parametrize("edge", [2, 63, 64, 500, 998])
@pytest.mark.parametrize("power", [1, 2])
def test_where_need_grows_evenly_few_values_are_planned(edge: int, power: int):
    axis = Axis(setting="seq_len", step=1, limit=1000, limited_by="model", why="")
    found = largest(POINT, axis, on_card(lambda tokens: 13 * tokens**power, edge))
    assert (found.value, found.limited_by) == (edge, "memory")
    # 1 and 1,000, the geometric mean 31, the edge with two below and three above, one estimate beside.
    assert len(found.probes) <= 10


@pytest.mark.parametrize("edge", [64, 300, 500, 998])
def test_where_need_jumps_estimates_give_way_to_a_bisection(edge: int):
    axis = Axis(setting="seq_len", step=1, limit=1000, limited_by="model", why="")
    found = largest(POINT, axis, on_card(lambda tokens: tokens // 250 * 1000 + tokens, edge))
    assert found.value == edge
    # Estimates alone would come closer by a value or two at a time: 58 of them for 998.
    assert len(found.probes) <= 20


@pytest.mark.parametrize("edge", [1, 7, 8, 9, 100])
def test_nothing_is_planned_that_is_far_beyond_what_fits(edge: int):
    axis = Axis(setting="seq_len", step=1, limit=1_000_000, limited_by="range", why="")
    found = largest(POINT, axis, on_card(lambda tokens: 13 * tokens, edge))
    assert found.value == edge
    assert max(probe.value for probe in found.probes) <= 8 * edge


def test_the_range_ends_the_search_where_its_last_value_fits():
    axis = Axis(setting="seq_len", step=1, limit=100, limited_by="range", why="")
    found = largest(POINT, axis, by_formula(lambda tokens: True))
    assert (found.value, found.above, found.limited_by) == (100, None, "range")
    assert [probe.value for probe in found.probes] == [1, 8, 64, 100]


def test_the_model_ends_the_search_where_its_longest_sequence_fits():
    found = searched(lambda tokens: True)
    assert (found.value, found.above, found.limited_by, found.reliefs) == (1000, None, "model", ())


def test_nothing_fits():
    found = searched(lambda tokens: False, step=64)
    assert found.value is None
    assert found.above is not None
    assert found.above.value == 64
    assert found.fills["weights"] == 1 << 20


def test_steps_are_kept():
    found = searched(lambda tokens: tokens <= 500, step=64)
    # 7 x 64 = 448 fits, 8 x 64 = 512 does not; 15 x 64 = 960 is the last below 1,000.
    assert (found.value, found.above.value if found.above else None) == (448, 512)
    assert max(probe.value for probe in found.probes) == 960


def test_a_value_that_fits_above_one_that_does_not_is_found_and_told():
    # 502 and 503 fit although 501 does not, as where an allocator packs blocks by luck.
    found = searched(lambda tokens: tokens <= 500 or tokens in (502, 503))
    assert found.value == 503
    assert not found.is_monotone


def test_a_value_that_fits_far_above_the_others_is_luck_and_no_answer():
    # 31, the geometric mean of 1 and 1,000, is tried first.
    found = searched(lambda tokens: tokens <= 20 or tokens == 31)
    assert 31 in [probe.value for probe in found.probes if probe.fits]
    assert (found.value, found.is_monotone) == (20, False)
    assert found.above is not None
    assert (found.above.value, found.above.fits) == (21, False)


@pytest.mark.parametrize("lucky", range(21, 27))
def test_a_lucky_value_close_above_the_others_ends_the_search(lucky: int):
    found = searched(lambda tokens: tokens <= 20 or tokens == lucky)
    # Next to the others, or one apart, it is no luck.
    assert found.value == (lucky if lucky <= 22 else 20)
    assert found.above is not None
    assert not found.above.fits


@pytest.mark.parametrize("period", [2, 3, 4])
def test_need_that_alternates_asks_few_values(period: int):
    found = searched(lambda tokens: tokens <= 2000 or tokens % period == 0, limit=20_003)
    assert found.value is not None
    assert found.value >= 2000
    assert found.above is not None
    assert not found.above.fits
    # Nine edges of at most ten estimates and fifteen halvings; each value in turn would be 18,000.
    assert len(found.probes) <= 225


def test_need_with_noise_ends_at_a_value_that_fits():
    for seed in range(200):
        noise = random.Random(seed)
        jitter = [1 + noise.uniform(-0.05, 0.05) for _ in range(1001)]

        def fits(tokens: int, jitter: list[float] = jitter) -> bool:
            return tokens * jitter[tokens] <= 300

        found = searched(fits)
        assert found.value is not None
        assert found.above is not None
        assert (fits(found.value), found.above.fits) == (True, False)
        assert 285 <= found.value <= 316


def test_what_grows_is_told_for_one_step():
    found = searched(lambda tokens: tokens <= 500, step=10)
    assert (found.grows, found.grows_bytes) == ("logits_loss", 100)


def test_what_grows_is_told_of_the_step_that_does_not_fit():
    axis = Axis(setting="seq_len", step=10, limit=1000, limited_by="model", why="")
    found = largest(point_from({"model": "m"}, {}), axis, on_card(lambda tokens: tokens * tokens, 500))
    # Of 250,000 and 260,100 bytes 3/13 are activations: 57,692 and 60,023, which leaves 192,308 and 200,077.
    assert (found.value, found.grows, found.grows_bytes) == (500, "logits_loss", 7769)


def test_a_point_that_cannot_be_planned_is_an_error():
    def planned(points: Sequence[Point]) -> list[Record]:
        failed = {"outcome": "error", "metrics": {}, "detail": {"error": "no such step"}}
        return [Record(run_id="plan", point=point, kind="plan", environment={}, **failed) for point in points]

    axis = Axis(setting="seq_len", step=1, limit=10, limited_by="model", why="")
    with pytest.raises(StepError, match="no such step"):
        largest(POINT, axis, planned)


def test_limits_come_from_the_model():
    # gpt2's config: n_positions 1024, n_embd 768; at most 2^26 tokens a pass: 2^26 / 2048 = 32768.
    assert axis_of(POINT, "seq_len").limit == 1024
    assert axis_of(POINT, "r").limit == 768
    batch = axis_of(with_value(POINT, "seq_len", 1024), "per_device_train_batch_size")
    assert (batch.limit, batch.limited_by) == (65_536, "range")
    with pytest.raises(QbenchError, match=r"--step: given 2000; allowed: 1 to 1,024"):
        axis_of(POINT, "seq_len", 2000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("fit") / "tiny", "HuggingFaceTB/SmolLM2-135M")


def test_real_plans_agree_with_every_value_tried(model: str):
    # The 400 MB of context (compute capability 8.9) leave 256 MiB of this card.
    card = described_gpu(f"{400_000_000 + 256 * (1 << 20)}B", "8.9")
    plans: dict[Point, Record] = {}

    def planned(points: Sequence[Point]) -> list[Record]:
        for point in points:
            if point not in plans:
                plans[point] = plan_or_error(point, PlanFor(gpus=(card,)))
        return [plans[point] for point in points]

    point = point_from({"model": model}, {"precision": "nf4", "seq_len": 256})
    axis = Axis(setting="per_device_train_batch_size", step=8, limit=64, limited_by="range", why="")
    found = largest(point, axis, planned)
    values = range(8, 65, 8)
    records = planned([with_value(point, axis.setting, value) for value in values])
    fitting = [
        value for value, record in zip(values, records, strict=True) if record.detail["fits"][0]["fits"]
    ]
    assert found.value == max(fitting)
    assert 8 < max(fitting) < 64
    assert found.above is not None
    assert found.above.value not in fitting
    changed = {"recipe": "trainer"}
    (offered,) = (relief for relief in found.reliefs if relief.changes == changed)
    above = with_value(point, axis.setting, found.above.value)
    train = above.train.model_copy(update=changed)
    (own,) = planned([above.model_copy(update={"train": train})])
    assert offered.fits == own.detail["fits"][0]["fits"]


def test_a_rank_needs_adapters():
    with pytest.raises(QbenchError, match="trains every weight"):
        axis_of(point_from({"model": "gpt2"}, {"lora": None}), "r")
