"""`qbench models`, `qbench gpus` and `qbench scenarios`: what qbench knows."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_text
from qbench.units import GIB, format_count

Search = Annotated[str, typer.Argument(help="Only rows whose name contains this text; case is ignored.")]


def models_command(search: Search = "", as_json: options.AsJson = False) -> None:
    """List the models of the catalog."""
    from qbench.catalog.models import models

    found = [spec for spec in models() if search.casefold() in spec.hub_id.casefold()]
    if as_json:
        print_json({"models": [_model_row(spec) for spec in found]})
        return
    width = max((len(spec.hub_id) for spec in found), default=0)
    for spec in found:
        print_text(f"{spec.hub_id:<{width}}  {format_count(spec.num_params):>18}  {spec.family}")
    print_text(f"{len(found)} models; any folder with config.json and any hub id work too")


def _model_row(spec: Any) -> dict[str, Any]:
    names = (
        "hub_id",
        "aliases",
        "family",
        "model_class",
        "num_params",
        "expert_params",
        "verified",
        "license",
    )
    return {name: getattr(spec, name) for name in (*names, "source", "notes")}


def gpus_command(search: Search = "", as_json: options.AsJson = False) -> None:
    """List the GPUs of the catalog.

    Memory is what a program can use; the price is the cheapest on demand.
    """
    from qbench.catalog.gpus import gpus

    found = [gpu for gpu in gpus() if search.casefold() in gpu.name.casefold()]
    if as_json:
        print_json({"gpus": [_gpu_row(gpu) for gpu in found]})
        return
    for gpu in found:
        capability = "-" if gpu.compute_capability is None else ".".join(map(str, gpu.compute_capability))
        print_text(
            f"{gpu.name:<36} {gpu.memory_bytes / GIB:>7.2f} GiB  {gpu.architecture:<14} {capability:>5}  "
            f"{_price_text(gpu.name)}"
        )
    print_text(f"{len(found)} GPUs; prices are indicative, see their source and date with --json")


def _price_text(gpu_name: str) -> str:
    from qbench.catalog.prices import cheapest_on_demand

    price = cheapest_on_demand(gpu_name)
    return "n/a" if price is None else f"${price.on_demand_usd_per_hour:.2f}/h {price.cloud}"


def _gpu_row(gpu: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from qbench.catalog.prices import cheapest_on_demand

    price = cheapest_on_demand(gpu.name)
    return asdict(gpu) | {"cheapest_on_demand": None if price is None else asdict(price)}


def scenarios_command(as_json: options.AsJson = False) -> None:
    """List the shipped scenarios and their questions."""
    from qbench.scenario.load import load_scenario, shipped_scenarios

    rows = [(path, load_scenario(path)) for path in shipped_scenarios()]
    if as_json:
        listed = [{"name": s.name, "question": s.question, "path": str(path)} for path, s in rows]
        print_json({"scenarios": listed})
        return
    for path, scenario in rows:
        print_text(f"{path.name:<36} {scenario.question}")
