"""How far a method gets on a card, and which of QLoRA and 16-bit LoRA gets further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qbench.comparison.results import Result
from qbench.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far one precision gets on one card, along one setting."""

    precision: str
    fitting: dict[Any, Result]
    """The plans that the card holds and whose values the other side has plans of, by the value."""
    failing: dict[Any, Result]
    """Those that it does not hold."""
    alone: dict[Any, bool]
    """The values that the other side has no plan of, and whether the card holds their plans."""

    @property
    def asked(self) -> int:
        """The number of values that both sides have plans of."""
        return len(self.fitting.keys() | self.failing.keys())

    @property
    def furthest(self) -> Any:
        """The largest value that fits, of those that both sides have plans of; None when none does."""
        return max(self.fitting, default=None)

    @property
    def rank(self) -> tuple[bool, Any]:
        """What orders two sides by their furthest value; below all others where nothing fits."""
        return self.furthest is not None, self.furthest

    @property
    def stop(self) -> Any:
        """The largest value that fits, those of this side alone included up to what fails; or None."""
        alone = [v for v, fits in self.alone.items() if fits and all(v < failed for failed in self.failing)]
        return max([*self.fitting, *alone], default=None)

    @property
    def beyond(self) -> tuple[Any, bool] | None:
        """What a plan of this side alone adds: a larger value and whether it fits; None where nothing.

        It is the largest that fits, else the smallest that does not, unless the side stopped before.
        """
        larger = {value: fits for value, fits in self.alone.items() if (True, value) > self.rank}
        fitting = [value for value, fits in larger.items() if fits]
        if fitting:
            return max(fitting), True
        return (min(larger), False) if larger and not self.failing else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """QLoRA against 16-bit LoRA on one card, all else equal."""

    model: str
    gpu: str
    memory_bytes: int | None
    axis: str | None
    """The setting that varies; None where a single point was planned for each side."""
    qlora: Reach
    lora: Reach

    @property
    def card(self) -> str:
        """The card with what its memory leaves to a process."""
        return f"{self.gpu} ({self.memory_bytes / GIB:.1f} GiB)" if self.memory_bytes else self.gpu

    @property
    def differs(self) -> bool:
        """Say whether one method gets further than the other."""
        return bool(self.qlora.furthest != self.lora.furthest)

    @property
    def ahead(self) -> str | None:
        """The method that gets further, qlora or lora; None where both get as far."""
        if not self.differs:
            return None
        return "qlora" if self.qlora.rank > self.lora.rank else "lora"
