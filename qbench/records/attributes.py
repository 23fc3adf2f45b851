"""The values of a record as attributes: each reads one key of its metrics, detail or environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from qbench.records.fits import Fit, fits_of
from qbench.records.metrics import scalar

if TYPE_CHECKING:
    from qbench.records.parts import (
        Alive,
        AllocatorSettings,
        BaseWeights,
        Built,
        Detail,
        Environment,
        Metrics,
        OomFacts,
        PeakAt,
        Quality,
        Skipped,
        StepCounts,
        TimeParts,
        ValidityFinding,
    )
    from qbench.records.ranks import RankMemory


class Attributes:
    """The attributes of a record. What is unknown is None, or empty where there may be several."""

    __slots__ = ()

    metrics: Metrics
    detail: Detail
    environment: Environment

    def value(self, metric: str) -> float | None:
        """Return one number for a metric, the median where raw values are a list; None when unknown.

        Raises KeyError when there is no such metric, and for those that are not one number.
        """
        return scalar(self, metric)

    def raw(self, metric: str) -> list[float | None]:
        """Return the raw values of a metric, step by step; empty where it is one number or unknown."""
        stored = cast(Mapping[str, object], self.metrics).get(metric)
        return stored if isinstance(stored, list) else []

    @property
    def peak_allocated_bytes(self) -> int | None:
        """Largest sum of live tensor storages."""
        return self._bytes("peak_allocated_bytes")

    @property
    def peak_reserved_bytes(self) -> int | None:
        """Largest memory held by CUDA's caching allocator."""
        return self._bytes("peak_reserved_bytes")

    @property
    def device_bytes(self) -> int | None:
        """What nvidia-smi would show: reserved memory and the CUDA context."""
        return self._bytes("device_bytes")

    def _bytes(self, metric: str) -> int | None:
        size = scalar(self, metric)
        return None if size is None else round(size)

    @property
    def device(self) -> str | None:
        """cpu or cuda, whose kernels a plan describes or a measurement ran; null for a null GPU."""
        return self.environment.get("device")

    @property
    def card(self) -> str | None:
        """Card of the catalog that a null GPU was, or that a plan beside one is for; None for any other."""
        return self.environment.get("card")

    @property
    def device_name(self) -> str | None:
        """Name of the GPU or CPU that was measured."""
        return self.environment.get("device_name")

    @property
    def code_id(self) -> str | None:
        """Fingerprint of the code that made the numbers."""
        return self.environment.get("code_id")

    @property
    def qbench_version(self) -> str | None:
        """Version of qbench that made the record."""
        return self.environment.get("qbench")

    @property
    def is_dirty(self) -> bool:
        """Whether the code had uncommitted changes."""
        return bool(self.environment.get("git_dirty"))

    @property
    def versions(self) -> Mapping[str, str | None]:
        """Version of each library by its name, None where it is not installed."""
        return self.environment.get("versions") or {}

    @property
    def breakdown_bytes(self) -> Mapping[str, int]:
        """Bytes by category at the peak; empty when unknown."""
        return self.metrics.get("breakdown_bytes") or {}

    @property
    def static_breakdown_bytes(self) -> Mapping[str, int]:
        """Bytes by category before the first step; empty when unknown."""
        return self.detail.get("static_breakdown_bytes") or {}

    @property
    def fits(self) -> tuple[Fit, ...]:
        """The cards that a plan was checked against, in the order in which they were named."""
        return fits_of(self.detail.get("fits"))

    @property
    def metrics_fit(self) -> Fit | None:
        """The first card with kernels for the plan, whose the metrics are; None where no card was named."""
        return next((fit for fit in self.fits if fit.fits or fit.headroom_bytes is not None), None)

    @property
    def files(self) -> Sequence[str]:
        """Files that a diagnosis wrote."""
        return self.detail.get("files") or ()

    @property
    def caveats(self) -> Sequence[str]:
        """What the numbers leave out or assume."""
        return self.detail.get("caveats") or ()

    @property
    def unmodelled(self) -> Sequence[str]:
        """Settings of the source that affect memory and are not in the numbers."""
        return self.detail.get("unmodelled") or ()

    @property
    def error(self) -> str:
        """Why there is no result; empty where there is one."""
        return self.detail.get("error") or ""

    @property
    def error_line(self) -> str:
        """First line of `error`."""
        return self.error.strip().partition("\n")[0]

    @property
    def stderr_tail(self) -> str:
        """Last lines that a process wrote before it ended without a result; empty if there are none."""
        return self.detail.get("stderr_tail") or ""

    @property
    def repeat(self) -> int | None:
        """Number of a measurement's process among those of its point, from 0."""
        return self.detail.get("repeat")

    @property
    def protocol(self) -> StepCounts | None:
        """How many steps a measurement took."""
        return self.detail.get("protocol")

    @property
    def validity(self) -> Sequence[ValidityFinding]:
        """Findings for and against a measurement."""
        return self.detail.get("validity") or ()

    @property
    def oom(self) -> OomFacts | None:
        """How a measurement ran out of memory."""
        return self.detail.get("oom")

    @property
    def quality(self) -> Quality | None:
        """What a run with trained weights did to them and to the loss."""
        return self.detail.get("quality")

    @property
    def phases(self) -> Mapping[str, int]:
        """Largest allocated bytes by phase; empty when unknown."""
        return self.detail.get("phases") or {}

    @property
    def reserved_phases(self) -> Mapping[str, int]:
        """Largest reserved bytes by phase of a dry run; empty when unknown."""
        return self.detail.get("reserved_phases") or {}

    @property
    def ranks(self) -> Sequence[RankMemory]:
        """Memory of each process on each card, where several train together."""
        return self.detail.get("ranks") or ()

    @property
    def alive(self) -> Sequence[Alive]:
        """Largest places of what was alive at the peak of a dry run."""
        return self.detail.get("alive") or ()

    @property
    def stand_ins(self) -> Sequence[str]:
        """What was missing in a dry run and stood in for."""
        return self.detail.get("stand_ins") or ()

    @property
    def alloc_retries(self) -> int | None:
        """How often the allocator emptied its cache to go on."""
        return self.detail.get("num_alloc_retries")

    @property
    def device_memory_bytes(self) -> int | None:
        """Memory of the card that was measured."""
        return self.environment.get("device_memory_bytes")

    @property
    def model(self) -> Built | None:
        """What was built: counts, sizes and dtypes."""
        return self.detail.get("model")

    @property
    def base_weights(self) -> BaseWeights | None:
        """What the base model of a plan weighs in 16 bit and as built."""
        return self.detail.get("base_weights")

    @property
    def skipped(self) -> Sequence[Skipped]:
        """Weights of a plan that quantization or LoRA left out."""
        return self.detail.get("skipped") or ()

    @property
    def timeline(self) -> Sequence[Sequence[int]]:
        """Live bytes over a step, as [event, bytes]; empty when unknown."""
        return self.detail.get("timeline") or ()

    @property
    def time(self) -> TimeParts | None:
        """Time of a plan without cards, by part."""
        return self.detail.get("time")

    @property
    def compute_capability(self) -> Sequence[int] | None:
        """Of the card whose kernels a plan is of, as [major, minor]."""
        return self.detail.get("compute_capability")

    @property
    def allocator(self) -> AllocatorSettings | None:
        """Settings of CUDA's caching allocator that a plan was made with."""
        return self.detail.get("allocator")

    @property
    def context_bytes(self) -> Sequence[int] | None:
        """Least and most memory of the CUDA context, which is outside the allocator."""
        return self.detail.get("context_bytes")

    @property
    def reconciliation_bytes(self) -> Mapping[str, int | None]:
        """Memory of a measured card, by part; empty when unknown."""
        return self.detail.get("reconciliation_bytes") or {}

    @property
    def readings(self) -> Mapping[str, Mapping[str, float | None] | None]:
        """What a process at the side read of a measured card: a summary of each; empty when unknown."""
        return (self.detail.get("sampled") or {}).get("readings") or {}

    @property
    def energy_j_per_step(self) -> float | None:
        """Energy of a measured step in joules."""
        return self.detail.get("energy_j_per_step")

    @property
    def loss_before(self) -> float | None:
        """Loss over the whole text before the steps of a run, in nats per token."""
        return self.detail.get("loss_before")

    @property
    def loss_after(self) -> float | None:
        """Loss over the whole text after the steps of a run, in nats per token."""
        return self.detail.get("loss_after")

    @property
    def peak_at(self) -> PeakAt | None:
        """Phase, operator and module of the allocation that made the peak."""
        return self.metrics.get("peak_at")
