"""What single values of foreign configs say: numbers, switches and dtypes as text, and misspelt names."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from qbench.errors import nearest, shown

SWITCHES = {"true": True, "yes": True, "auto": True, "1": True, "false": False, "no": False, "0": False}
SWITCHES |= {"": False}
"""What a switch says, also as text; these tools take auto as on."""

LIKE_KEY, LIKE_VALUE = 0.85, 0.9
"""How like a known name (1: equal) an unknown one must be to count as its misspelling: max_source_length is
0.84 like max_seq_length, and another key. Values are more alike among themselves: adamw_torch_npu_fused is
0.89 like adamw_torch_fused, and another optimizer."""


def whole_number(value: Any) -> int | None:
    """Return the number that a value is, or that its text is; None for what is no whole number."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[0-9]{1,15}\s*", value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return None
    return int(value)


def dtype_name(value: Any) -> str | None:
    """Return fp32, bf16 or fp16 for a dtype as torch spells it; None for auto and nothing."""
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "fp32": "fp32"}
    names |= {"bf16": "bf16", "fp16": "fp16"}
    return names.get(str(value).removeprefix("torch."))


def read_json(text: str) -> Any:
    """Return the value of JSON text, None where it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def not_among(allowed: Sequence[str], value: Any) -> str:
    """Return what is wrong with a value that is not an allowed name: given, allowed, nearest."""
    close = nearest(value, allowed, count=1) if isinstance(value, str) else []
    text = f"given {shown(value)}; allowed: {', '.join(name or 'nothing' for name in allowed)}"
    return f"{text}; did you mean {close[0]}?" if close else text


def misspelt(given: str, names: Iterable[str], likeness: float = LIKE_KEY) -> str | None:
    """Return the name that is most likely misspelt, None where none is so like.

    Other digits make another name, and so do words before it: disable_gradient_checkpointing is not misspelt
    for gradient_checkpointing.
    """
    digits = re.sub(r"\D", "", given)
    meant = [name for name in names if re.sub(r"\D", "", name) == digits and not given.endswith(f"_{name}")]
    return next(iter(difflib.get_close_matches(given.casefold(), meant, n=1, cutoff=likeness)), None)
