"""The Python API: `qbench.plan`, `fit`, `rank` and `load_run`; `compare` and `figures` are beside it.

Results come as pandas tables, and each shows itself in a notebook.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from qbench.catalog.gpus import GpuSpec, find_gpu, gpus
from qbench.catalog.hourly_prices import catalog_hourly_prices
from qbench.catalog.models import catalog_name, has_experts
from qbench.errors import QbenchError, ScenarioError
from qbench.notebook_results import ROWS_SHOWN, table_html
from qbench.planner.workload import parse_tokens
from qbench.quiet import quiet_libraries
from qbench.records.document import read_any
from qbench.records.plan_cache import PlanCache
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plans
from qbench.runs.sizing import FIT_PRECISIONS, RANK_PRECISIONS, FitFor, RankFor, fits, ranks, varied
from qbench.runs.usual import with_usual
from qbench.scenario.expand import point_from
from qbench.scenario.schema import Device, Point
from qbench.scenario.settings import by_field, each_value

if TYPE_CHECKING:
    import pandas as pd

    from qbench.planner.fit import Largest
    from qbench.planner.ranking import Ranked

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Records(Sequence[Record]):
    """Records of plans or of a run: a sequence, a table (`frame`), and what a notebook shows of it."""

    records: tuple[Record, ...]
    title: str

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each record: settings, each metric as one number (bytes as bytes), breakdown."""
        from qbench.records.frame import records_frame

        return records_frame(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        """Return one record, or a part of them as Records."""
        if isinstance(index, slice):
            return Records(self.records[index], self.title)
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"{self.title}: {len(self)} record{'' if len(self) == 1 else 's'}"

    def _repr_html_(self) -> str:
        from qbench.comparison.results import gather
        from qbench.report.tables import points_table

        return table_html(repr(self), [], points_table(gather(self.records)))


@dataclass(frozen=True, slots=True)
class Answers(Sequence[Answer]):
    """Answers of `fit` or `rank`: a sequence, a table (`frame`), and what a notebook shows of it."""

    answers: tuple[Answer, ...]
    title: str
    rows: tuple[dict[str, Any], ...]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each answer: bytes as bytes, seconds as seconds, unknown as None."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Answer]: ...
    def __getitem__(self, index: int | slice) -> Answer | Sequence[Answer]:
        """Return one answer, or a part of them."""
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        return f"{self.title}: {len(self)} answer{'' if len(self) == 1 else 's'}"

    def _repr_html_(self) -> str:
        return str(self.frame.to_html(index=False, max_rows=ROWS_SHOWN))


def plan(
    model: str,
    *,
    gpu: str | Sequence[str] = (),
    device: Device = "cuda",
    cache: bool = True,
    **settings: Any,
) -> Records:
    """Return the plan of a training step, or of every combination where settings are lists.

        qbench.plan("meta-llama/Llama-3.1-8B", precision=["bf16", "nf4-dq"], r=16, seq="4k", gpu="RTX 4090")

    `settings` have the names of the flags of `qbench plan` (precision, r, target_modules, batch, seq, optim,
    ...); any other setting of a scenario goes by its own name (lora_alpha). A list of module names is one
    value of target_modules or modules_to_save; a list of such lists is several. `gpu` names cards to check
    the plan against; `device` selects the kernels to plan for. Sizes are bytes, times seconds.

    Raises ScenarioError for a setting and CatalogError for a model or card that is not known, QbenchError
    where the only point cannot be planned; of several, such a record has outcome error.
    """
    quiet_libraries()
    points = _points(model, settings)
    made = plans(points, PlanFor(device=device, gpus=_cards(gpu)), PlanCache(reads=cache))
    if len(made) == 1 and made[0].outcome != "ok":
        raise QbenchError(made[0].error)
    no_dropout = has_experts(catalog_name(model)) and not {"lora_dropout", "lora.lora_dropout"} & set(
        settings
    )
    experts = " (without dropout, with which peft adapts no experts)" if no_dropout else ""
    return Records(tuple(made), f"Plans of {model}{experts}")


def fit(
    model: str,
    gpu: str | Sequence[str],
    *,
    vary: str = "seq",
    step: int | None = None,
    cache: bool = True,
    **settings: Any,
) -> Answers[Largest]:
    """Return the largest sequence, batch or rank with which a step fits each card, as `qbench fit` does.

        qbench.fit("meta-llama/Llama-3.1-8B", "RTX 4090", vary="batch", seq=1024, precision="nf4-dq").frame

    `vary` is seq (tokens), batch (sequences) or r; only multiples of `step` are tried (64 tokens, else 1).
    `settings` are those of `plan`; without a precision, bf16, nf4 and nf4-dq are tried. Each answer is a
    `Largest`: `value` (None where not even one step fits), `limited_by`, `record` (the plan at it), `reliefs`
    (changes that free memory). In the frame sizes are bytes.

    Raises ScenarioError and CatalogError as `plan`, StepError where no point can be planned.
    """
    quiet_libraries()
    setting = varied(vary)
    points = _points(model, {"precision": FIT_PRECISIONS} | settings)
    answers, _ = fits(points, FitFor(gpus=_cards(gpu), setting=setting, step=step, cache=cache))
    rows = (
        {
            "gpu": answer.record.fits[0].gpu,
            "precision": answer.record.point.precision,
            vary: answer.value,
            "limited_by": answer.limited_by,
            "headroom_bytes": answer.record.fits[0].headroom_bytes,
            "peak_reserved_bytes": answer.record.peak_reserved_bytes,
        }
        for answer in answers
    )
    return Answers(tuple(answers), f"Largest {vary} of {model}", tuple(rows))


def rank(
    model: str,
    tokens: int | str,
    *,
    gpu: str | Sequence[str] = (),
    epochs: float = 1.0,
    sort: str = "cost",
    num_gpus: int = 1,
    **settings: Any,
) -> Answers[Ranked]:
    """Return the cards that fit a training run, best first, with hours, cost and energy, as `qbench rank`.

        qbench.rank("meta-llama/Llama-3.1-8B", "10M", epochs=3, sort="time", gpu=["L4", "A100"]).frame

    `tokens` is the size of the dataset, also as text (10M). `sort` is cost, spot, time or energy. `gpu` names
    cards; all of the catalog are ranked without it. `settings` are those of `plan`; without a precision each
    card is planned with bf16 if that fits, else with nf4. Hours are those of wall time, costs USD at the
    lowest price found, energy kWh at the board's power limit; None where they are not known.

    Raises ScenarioError and CatalogError as `plan`, StepError where no point can be planned.
    """
    quiet_libraries()
    from qbench.planner.ranking import SORT_KEYS, best_of_each_card, sorted_rows  # The heavy libraries.

    if sort not in SORT_KEYS:
        raise QbenchError(f"sort: given {sort!r}; allowed: {', '.join(SORT_KEYS)}")
    cards = _cards(gpu) or gpus()
    asked = RankFor(
        gpus=cards,
        tokens=parse_tokens(str(tokens)),
        epochs=epochs,
        prices=catalog_hourly_prices([card.name for card in cards]),
        num_gpus=num_gpus,
    )
    rows = ranks(_points(model, {"precision": RANK_PRECISIONS} | settings), asked)
    best = sorted_rows(best_of_each_card(rows), sort)
    shown = (
        {"gpu": row.gpu.name, "method": row.point.method, "precision": row.point.precision}
        | {name: getattr(row, name) for name in ("hours", "step_time_s", "bound")}
        | {name: getattr(row, name) for name in ("cost_usd", "spot_cost_usd", "energy_kwh")}
        for row in best
    )
    return Answers(tuple(best), f"Cards for {model}, by {sort}", tuple(shown))


def _cards(gpu: str | Sequence[str]) -> tuple[GpuSpec, ...]:
    return tuple(find_gpu(name) for name in ([gpu] if isinstance(gpu, str) else gpu))


def _points(model: str, settings: Mapping[str, Any]) -> list[Point]:
    """Return the product of the settings. Raises ScenarioError where one is an empty list."""
    listed = {name: each_value(name, given) for name, given in settings.items()}
    base = {"model": catalog_name(model)}
    combinations = itertools.product(
        *([(name, value) for value in values] for name, values in listed.items())
    )
    points = [point_from(base, with_usual(base["model"], by_field(dict(chosen)))) for chosen in combinations]
    if not points:
        raise ScenarioError("a setting is an empty list; give at least one value")
    return points


def load_run(path: str | Path) -> Records:
    """Return the records of a run folder, a .jsonl file, or a .json file of `qbench plan --json`.

        qbench.load_run("runs/demo").frame[["precision", "peak_allocated_bytes"]]

    A sequence in the order of the file; `frame` has one row for each, sizes in bytes, times in seconds.
    Raises RecordError where there is no such file, or something in it is not a record.
    """
    return Records(tuple(read_any(Path(path))), Path(path).resolve().name)
