"""The base of all scenario classes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of all scenario classes: unknown keys are refused, values cannot be changed."""

    # Built when first used: a command uses few of them.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, defer_build=True)
