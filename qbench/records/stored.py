"""Types of stored values, as pydantic checks them where a line is read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
"""A time, a speed, a price, work: none is below zero, and a comparison would take it for an improvement."""
# A bound on the length, whichever, makes pydantic read the text and refuse half of a surrogate pair.
Words = Annotated[str, Field(strict=True, min_length=0)]
Flag = Annotated[bool, Field(strict=True)]
Pair = Annotated[list[Whole], Field(min_length=2, max_length=2)]
