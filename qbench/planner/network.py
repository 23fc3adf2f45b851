"""What the collectives of a step add to its time: those that no computation hides.

A message goes round a ring of GPUs: each sends (n - 1) / n of it, an all-reduce twice that (NCCL's
performance.md, "bus bandwidth"). DDP and FSDP send a group's weights or gradients while another computes
(arXiv 2304.11277, sections 3.3 and 4.2), so that a phase takes as long as its computation or its messages,
and what comes before the first or after the last of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal

from qbench.catalog.efficiencies import Case, efficiency
from qbench.catalog.gpus import GpuSpec
from qbench.records.ranks import Collective

_TURNS = {"all_reduce": 2.0, "broadcast": 1.0}
"""How many times a message goes round; an all-gather and a reduce-scatter go round once."""

Edge = Literal["first", "last"]
_EDGES: dict[str, Edge] = {"all_gather": "first", "reduce_scatter": "last", "all_reduce": "last"}
"""Which call of a phase nothing hides: the first that brings weights, the last that takes gradients."""


class Network:
    """The GPUs of one node that share a step, and what they send."""

    def __init__(
        self, gpu: GpuSpec, num_gpus: int, collectives: Sequence[Collective], case: Case = "value"
    ) -> None:
        self._num_gpus, self._collectives, self._case = num_gpus, collectives, case
        share = efficiency(gpu.link, gpu).of(case)
        self._bytes_per_s = None if gpu.link_bytes_per_s is None else gpu.link_bytes_per_s * share
        self._fixed_s = efficiency("collective", gpu).of(case)

    def call_s(self, op: str, num_bytes: int) -> float | None:
        """Return the seconds of one collective over so many bytes; None where the card has no known link."""
        if self._bytes_per_s is None:
            return None
        others = (self._num_gpus - 1) / self._num_gpus
        return self._fixed_s + _TURNS.get(op, 1.0) * others * num_bytes / self._bytes_per_s

    def exposed_s(self, busy_s: Mapping[str, float]) -> dict[str, float] | None:
        """Return by phase the seconds that computing, `busy_s` by phase, does not hide.

        The slowest case hides nothing. None where the card has no known link.
        """
        exposed: dict[str, float] = {}
        for phase, sent in groupby(sorted(self._collectives, key=_phase), _phase):
            total = 0.0
            edges: dict[Edge, float] = {}
            for each in sent:
                call_s = self.call_s(each["op"], each["bytes"])
                if call_s is None:
                    return None
                total += each["calls"] * call_s
                edge = _EDGES.get(each["op"])
                if edge == "first":
                    edges.setdefault(edge, call_s)
                elif edge == "last":
                    edges[edge] = call_s
            alone = sum(edges.values())
            hidden = 0.0 if self._case == "slowest" or phase == "optimizer" else busy_s.get(phase, 0.0)
            exposed[phase] = alone + max(0.0, total - alone - hidden)
        return exposed


def _phase(each: Collective) -> str:
    return each["phase"]
