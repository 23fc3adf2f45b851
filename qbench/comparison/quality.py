"""What memory saved costs in quality: errors of quantized weights and losses on one text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qbench.comparison.results import Result
from qbench.records.parts import Quality

_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleError:
    """How far quantization moved one module's weight, as a share of 1."""

    module: str
    error: float

    @property
    def block(self) -> int | None:
        """Number of the layer that the module is in; None outside of the layers."""
        found = _BLOCK.search(self.module)
        return int(found.group(1)) if found else None


def quality_of(result: Result) -> Quality:
    """Return detail.quality of the process that compared weights, else of the last one; empty without."""
    found: list[Quality] = [record.quality for record in result.completed if record.quality]
    compared = [quality for quality in found if quality.get("by_module")]
    return (compared or found or [Quality()])[-1]


def module_errors(result: Result) -> list[ModuleError]:
    """Return the error of each quantized module, in the order of the model; empty when not compared."""
    by_module = quality_of(result).get("by_module") or {}
    return [ModuleError(module=name, error=error) for name, error in by_module.items() if error is not None]
