"""Method against method: points of the same settings whose base model differs in precision only.

A pair is found, never asserted: two results are put side by side when kind, device, machine and every
setting but the precision are equal. Whatever else differs all the same is listed with the pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qbench.comparison.intervals import LEAST_PROCESSES
from qbench.comparison.results import MEMORY_METRICS, Result
from qbench.records.facts import environment_facts, named_content
from qbench.scenario.schema import QUANTIZED_PRECISIONS

BASELINE_PRECISIONS = ("bf16", "fp16")
"""Precisions of LoRA that others are compared with, the preferred one first."""

PREFERRED = ("nf4-dq", "nf4", "fp4-dq", "fp4", "int8")
"""Quantized precisions, the one that represents QLoRA first."""

MANY_MODELS = 4
"""Number of models from which they are summarised together."""

STATIC_FACTS = ("dtypes", "upcast", "attention", "adapted_modules")
"""Keys of detail.model that say what was built; a difference there is a factor of its own."""

NEAR_PAIR_LIMIT = 100


class Difference(NamedTuple):
    """A setting or circumstance that is not the same on both sides."""

    name: str
    """Dotted name, such as versions.torch."""
    baseline: Any
    """Value on this side, None where it has none; a tuple where its processes disagree."""
    candidate: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """One memory metric of a pair, in bytes."""

    baseline: float | None
    candidate: float | None

    @property
    def bytes(self) -> float | None:
        """Bytes that the candidate needs less; negative when it needs more."""
        if self.baseline is None or self.candidate is None:
            return None
        return self.baseline - self.candidate

    @property
    def percent(self) -> float | None:
        """The same in percent of the baseline."""
        saved = self.bytes
        return 100 * saved / self.baseline if saved is not None and self.baseline else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPair:
    """A candidate precision compared with 16-bit LoRA with every other setting equal."""

    baseline: Result
    """LoRA on a bf16 base, or on an fp16 base where there is none in bf16."""
    candidate: Result
    """QLoRA, or LoRA on an fp32 base."""
    differs: tuple[Difference, ...]
    """Factors other than precision that differ although the settings are equal."""

    @property
    def savings(self) -> dict[str, Saving]:
        """Bytes and percent saved, by memory metric, where both sides know it."""
        savings = {
            name: Saving(baseline=self.baseline.value(name), candidate=self.candidate.value(name))
            for name in MEMORY_METRICS
        }
        return {name: saving for name, saving in savings.items() if saving.bytes is not None}

    @property
    def peak(self) -> Saving:
        """Peak allocated bytes of both sides."""
        name = "peak_allocated_bytes"
        return Saving(baseline=self.baseline.value(name), candidate=self.candidate.value(name))

    @property
    def has_few_processes(self) -> bool:
        """Say whether a side was measured in fewer processes than it takes to know the noise of a speed."""
        measured = [side for side in (self.baseline, self.candidate) if side.kind == "measurement"]
        return any(len(side.completed) < LEAST_PROCESSES for side in measured)

    @property
    def throughput_ratio(self) -> float | None:
        """Tokens per second of the candidate for each of the baseline; above 1 the candidate is faster.

        Plans that know the speed on cards are compared on `speed_card`, and on no other.
        """
        if self._planned_speeds:
            return next(iter(self._planned_speeds.values()))
        if any(fit.tokens_per_s for fit in self.candidate.fits):
            return None
        baseline, candidate = self.baseline.value("tokens_per_s"), self.candidate.value("tokens_per_s")
        return candidate / baseline if candidate is not None and baseline else None

    @property
    def speed_doubts(self) -> tuple[str, ...]:
        """What speaks against the ratio of measured speeds; nothing for planned ones."""
        return tuple(dict.fromkeys((*self.baseline.speed_doubts, *self.candidate.speed_doubts)))

    @property
    def speed_card(self) -> str | None:
        """The card of the planned speeds, the first that holds both sides; None for measured speeds."""
        return next(iter(self._planned_speeds), None)

    @property
    def _planned_speeds(self) -> dict[str, float]:
        """The ratio of planned speeds on each card that holds both sides: elsewhere neither trains."""
        baseline = {fit.gpu: fit for fit in self.baseline.fits}
        sides = [(fit, baseline[fit.gpu]) for fit in self.candidate.fits if fit.gpu in baseline]
        return {
            ours.gpu: ours.tokens_per_s / theirs.tokens_per_s
            for ours, theirs in sides
            if ours.fits and theirs.fits and ours.tokens_per_s and theirs.tokens_per_s
        }

    @property
    def trainable_params(self) -> tuple[float | None, float | None]:
        """Trainable parameters of baseline and candidate."""
        return self.baseline.value("trainable_params"), self.candidate.value("trainable_params")

    @property
    def is_qlora(self) -> bool:
        """Say whether the candidate's base is quantized."""
        return self.candidate.point.precision in QUANTIZED_PRECISIONS


def speeds_of(pairs: Iterable[MethodPair]) -> tuple[list[float], str | None]:
    """Return the known ratios of speed, and the card that they were planned for; None where it is not one."""
    timed = [pair for pair in pairs if pair.throughput_ratio is not None]
    cards = {pair.speed_card for pair in timed}
    ratios = [pair.throughput_ratio for pair in timed if pair.throughput_ratio is not None]
    return ratios, cards.pop() if len(cards) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NearPair:
    """A QLoRA result without an exact partner, and the 16-bit LoRA result nearest to it: no comparison."""

    baseline: Result
    candidate: Result
    differs: tuple[Difference, ...]
    """Every setting and circumstance besides precision that differs."""


def pair_results(results: Sequence[Result]) -> list[MethodPair]:
    """Return a pair for each QLoRA and fp32 LoRA result that has a 16-bit LoRA partner, in order.

    Two that both ended in an error are not a pair.
    """
    baselines = _baselines(results)
    pairs = []
    for result in results:
        baseline = _exact_partner(result, baselines)
        # An error, unlike running out of memory, says nothing of a method.
        if baseline is not None and not (baseline.failed and result.failed):
            pairs.append(
                MethodPair(baseline=baseline, candidate=result, differs=differences(baseline, result))
            )
    return pairs


def near_results(results: Sequence[Result], limit: int = NEAR_PAIR_LIMIT) -> list[NearPair]:
    """Return up to `limit` QLoRA results without an exact partner, each beside the nearest 16-bit LoRA.

    Only results of the same model and kind count as near; fewest differences win.
    """
    baselines = _baselines(results)
    by_model: dict[tuple[str, bool, str], list[Result]] = {}
    for baseline in baselines.values():
        key = (baseline.kind, baseline.device == "null", baseline.point.model)
        by_model.setdefault(key, []).append(baseline)
    near: list[NearPair] = []
    for result in results:
        choices = by_model.get((result.kind, result.device == "null", result.point.model), [])
        if len(near) == limit or not choices or result.point.precision not in QUANTIZED_PRECISIONS:
            continue
        if _exact_partner(result, baselines) is None:
            near.append(_nearest(result, choices))
    return near


def _baselines(results: Iterable[Result]) -> dict[tuple[Any, ...], Result]:
    return {
        (*_circumstances(result), result.point): result
        for result in results
        if result.point.method == "lora" and result.point.precision in BASELINE_PRECISIONS
    }


def _circumstances(result: Result) -> tuple[Any, ...]:
    return result.kind, result.device, result.machine, named_content(result.records[-1])


def _exact_partner(result: Result, baselines: Mapping[tuple[Any, ...], Result]) -> Result | None:
    if result.point.lora is None or result.point.precision in BASELINE_PRECISIONS:
        return None
    for precision in BASELINE_PRECISIONS:
        twin = result.point.model_copy(update={"precision": precision})
        partner = baselines.get((*_circumstances(result), twin))
        if partner is not None:
            return partner
    return None


def _nearest(result: Result, choices: list[Result]) -> NearPair:
    def distance(choice: Result) -> int:
        ours, theirs = result.settings, choice.settings
        changed = [name for name in ours if ours[name] != theirs.get(name)]
        return len(changed) + (choice.device != result.device) + (choice.machine != result.machine)

    baseline = min(choices, key=distance)
    settings = changed(baseline.settings, result.settings, leave_out={"precision"})
    device = changed({"device": baseline.device}, {"device": result.device})
    return NearPair(
        baseline=baseline, candidate=result, differs=(*settings, *device, *differences(baseline, result))
    )


def differences(baseline: Result, candidate: Result) -> tuple[Difference, ...]:
    """Return what differs besides the settings.

    Compared are how both ended, every text and flag of the environment (library versions, code, machine), and
    for a quantized candidate the static facts of the built model.
    """
    found = list(changed({"outcome": baseline.outcome}, {"outcome": candidate.outcome}))
    first, *others = (record.environment for record in (*baseline.records, *candidate.records))
    if any(environment != first for environment in others):
        found += changed(_environment_facts(baseline), _environment_facts(candidate))
    if candidate.point.precision in QUANTIZED_PRECISIONS:
        ours, theirs = _static_facts(baseline), _static_facts(candidate)
        # A process that failed early has no facts of its model; that is no difference between the models.
        found += changed(ours, theirs) if ours and theirs else []
    return tuple(found)


def changed(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], leave_out: Iterable[str] = ()
) -> list[Difference]:
    """Return the facts, by name, that two sides do not share."""
    names = [name for name in dict.fromkeys((*ours, *theirs)) if name not in set(leave_out)]
    return [
        Difference(name, ours.get(name), theirs.get(name))
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def _environment_facts(result: Result) -> dict[str, Any]:
    """Facts of all records of a result; where its processes disagree, the value is the tuple of all."""
    merged: dict[str, tuple[Any, ...]] = {}
    for record in result.records:
        for name, value in environment_facts(record.environment).items():
            if name != "device" and value not in merged.get(name, ()):
                merged[name] = (*merged.get(name, ()), value)
    return {name: values[0] if len(values) == 1 else values for name, values in merged.items()}


def _static_facts(result: Result) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    built: Mapping[str, object] = result.latest.model or {}
    for name in STATIC_FACTS:
        value = built.get(name)
        if isinstance(value, Mapping):
            facts |= {f"{name}.{inner}": fact for inner, fact in value.items()}
        elif value is not None:
            facts[name] = value
    return facts
