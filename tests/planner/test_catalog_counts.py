"""Every catalog model, built on meta as the step builds it, has the parameters that its row states."""

from __future__ import annotations

import json

import pytest
import torch

from qbench.catalog.models import ModelSpec, models
from qbench.scenario.schema import Point, TrainSettings
from qbench.step.model import build_base_model, load_config


def twins() -> dict[str, list[ModelSpec]]:
    """Return the catalog by config: base and instruct models share one, and it is built once."""
    groups: dict[str, list[ModelSpec]] = {}
    for spec in models():
        groups.setdefault(json.dumps(spec.config, sort_keys=True), []).append(spec)
    return groups


@pytest.mark.parametrize("specs", twins().values(), ids=lambda specs: specs[0].hub_id)
def test_built_model_has_the_count_of_its_row(specs: list[ModelSpec]) -> None:
    point = Point(model=specs[0].hub_id, train=TrainSettings(seq_len=1))
    model = build_base_model(point, torch.device("meta"), load_config(point))
    num_params = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and "experts" in name
    )
    for spec in specs:
        assert (spec.num_params, spec.expert_params) == (num_params, experts)
