"""How much there is to train on: so many tokens, or sequences of given lengths, padded or packed."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from qbench.errors import QbenchError, shown
from qbench.files import read_text
from qbench.scenario.schema import Point

_LENGTH = re.compile(r"0*[1-9][0-9]{0,11}")
MOST_TOKENS = 10**15
"""Fifty times what any model was trained on."""

_MOST_PROBLEMS = 10
"""Lines of a file of lengths that are reported as invalid one by one; the rest is counted."""

_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Forward and backward passes of a whole training, by their padded length."""

    passes: dict[int, float]
    """Number of passes by the tokens that each sequence of the batch is padded to, all epochs together."""
    tokens: int
    """Tokens that are trained on, padding left out, all epochs together."""
    padded_tokens: int
    """Tokens that are computed."""
    num_truncated: int
    """Sequences that are longer than the point's seq_len, and are cut to it."""
    says: str
    """In words."""


def parse_tokens(text: str) -> int:
    """Return a number of tokens given as 10000000, 10M or 1.5B. Raises QbenchError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmbgt]?)\s*", text.replace("_", ""), re.IGNORECASE)
    count = float(match.group(1)) * _SCALES[match.group(2).lower()] if match else 0
    if not 1 <= round(min(count, 2 * MOST_TOKENS)) <= MOST_TOKENS:
        raise QbenchError(
            f"--tokens: given {shown(text)}; allowed: a number from 1 to 1000T, such as 10M or 1.5B"
        )
    return round(count)


def read_lengths(file: Path) -> list[int]:
    """Return the lengths of a file with one whole number per line.

    Raises QbenchError with the lines that are not numbers, the first of many, and for a file without any.
    """
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise QbenchError(f"--lengths: {file} cannot be read ({reason}); name a text file") from error
    texts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    junk = [(number, text) for number, text in texts if not _LENGTH.fullmatch(text)]
    if junk:
        raise QbenchError(_junk_problems(file, junk))
    if not texts:
        raise QbenchError(f"{file}: no lengths in it; write the tokens of each sequence on a line of its own")
    return [int(text) for _, text in texts]


def _junk_problems(file: Path, junk: list[tuple[int, str]]) -> list[str]:
    told = [
        f"{file}:{number}: given {text[:40]!r}; allowed: the tokens of one sequence, at least 1"
        for number, text in junk[:_MOST_PROBLEMS]
    ]
    left = len(junk) - len(told)
    return [*told, f"{file}: {left:,} more lines are not lengths"] if left else told


def of_tokens(tokens: int, epochs: float, point: Point) -> Workload:
    """Return the passes over so many tokens in full sequences."""
    train = point.train
    total = round(tokens * epochs)
    return Workload(
        passes={train.seq_len: total / (train.per_device_train_batch_size * train.seq_len)},
        tokens=total,
        padded_tokens=total,
        num_truncated=0,
        says=f"{tokens:,} tokens x {_epochs(epochs)} in full sequences of {train.seq_len:,}",
    )


def of_lengths(lengths: list[int], epochs: float, point: Point, *, packing: bool) -> Workload:
    """Return the passes over sequences of these lengths, batched in their order.

    Without packing each batch is padded to its longest sequence; with it sequences follow each other in
    rows of seq_len.
    """
    longest, batch = point.train.seq_len, point.train.per_device_train_batch_size
    cut = [min(length, longest) for length in lengths]
    tokens = round(sum(cut) * epochs)
    if packing:
        passes = {longest: math.ceil(sum(cut) / longest) / batch * epochs}
    else:
        batches = (cut[start : start + batch] for start in range(0, len(cut), batch))
        passes = {length: count * epochs for length, count in Counter(max(part) for part in batches).items()}
    how = "packed" if packing else "padded to the longest of each batch"
    return Workload(
        passes=passes,
        tokens=tokens,
        padded_tokens=round(sum(length * count for length, count in passes.items()) * batch),
        num_truncated=sum(length > longest for length in lengths),
        says=f"{len(lengths):,} sequences x {_epochs(epochs)}, {how}",
    )


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'' if number == 1 else 's'}"
