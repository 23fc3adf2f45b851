"""Price files that other tools publish: SkyPilot's (`vms.csv`) and dstack's (gpuhunt), as prices of one GPU.

An instance's price is shared by its GPUs, host included. Cards that the catalog lacks are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from qbench.catalog.gpus import find_gpu
from qbench.catalog.prices import all_prices
from qbench.errors import CatalogError

Line = Mapping[str | None, str | None]


class Offer(NamedTuple):
    """An instance's price for each GPU of it, in USD an hour; None where it is not offered so."""

    gpu: str
    """Name of the catalog."""
    on_demand: float | None
    spot: float | None


def offers_of(columns: Iterable[str]) -> Callable[[Line], Iterator[Offer]] | None:
    """Return what reads a line of a file with these columns; None where the file is of neither tool."""
    given = set(columns)
    if given >= {"AcceleratorName", "AcceleratorCount", "Price"}:
        return _skypilot
    if given >= {"gpu_name", "gpu_count", "price", "spot"}:
        return _dstack
    return None


def _skypilot(line: Line) -> Iterator[Offer]:
    """Read a line of sky/catalog; there A100 is the card with 40 GB, A100-80GB the other."""
    name = line.get("AcceleratorName") or ""
    count = _number(line.get("AcceleratorCount"))
    for gpu in _cards("A100-40GB" if name == "A100" else name):
        yield Offer(gpu, _each(line.get("Price"), count), _each(line.get("SpotPrice"), count))


def _dstack(line: Line) -> Iterator[Offer]:
    """Read a line of gpuhunt (RawCatalogItem of gpuhunt/_internal/models.py)."""
    name, memory = line.get("gpu_name") or "", _number(line.get("gpu_memory"))
    cards = (_cards(f"{name}-{memory:.0f}GB") if memory else ()) or _cards(name)
    price = _each(line.get("price"), _number(line.get("gpu_count")))
    is_spot = (line.get("spot") or "").casefold() == "true"
    for gpu in cards:
        yield Offer(gpu, None if is_spot else price, price if is_spot else None)


def _cards(name: str) -> tuple[str, ...]:
    """Return the cards that a name stands for; those of both slots where the tools do not tell them apart."""
    known = {price.gpu for price in all_prices() if _plain(price.accelerator) == _plain(name)}
    if known or not name:
        return tuple(sorted(known))
    with suppress(CatalogError):
        return (find_gpu(name).name,)
    return ()


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.casefold())


def _each(price: str | None, count: float | None) -> float | None:
    whole = _number(price)
    return None if whole is None or not count else whole / count


def _number(text: str | None) -> float | None:
    """Return a finite number from 0; None for anything else, which tools leave where they know none."""
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
