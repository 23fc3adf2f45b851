"""Which parts of a model that takes images train: the tower and the projector may stay as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qbench.scenario.schema import VisionSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOWERS = ("visual", "vision_tower", "vision_model", "vision_encoder", "audio_tower")
_PROJECTORS = (
    *("multi_modal_projector", "merger", "connector", "embed_vision", "embed_audio", "projector"),
    "mlp_AR",
)
"""Names of modules in transformers 5.24.

As in LLaMA-Factory ff6d4d1, model/model_utils/visual.py, where mergers of inner layers are of the tower.
"""


def frozen_names(vision: VisionSettings | None) -> str | None:
    """Return a pattern of the names of modules and parameters that stay as they are, None for none."""
    if vision is None:
        return None
    projectors = _within(_PROJECTORS)
    if vision.freeze_vision_tower and vision.freeze_multi_modal_projector:
        return _within((*_TOWERS, *_PROJECTORS))
    if vision.freeze_vision_tower:
        return f"(?!{projectors}$){_within(_TOWERS)}"
    return projectors if vision.freeze_multi_modal_projector else None


def freeze_parts(model: PreTrainedModel, vision: VisionSettings | None) -> None:
    """Let the parameters that stay as they are need no gradient."""
    pattern = frozen_names(vision)
    if pattern is not None:
        for name, parameter in model.named_parameters():
            if re.fullmatch(pattern, name):
                parameter.requires_grad_(False)


def _within(names: tuple[str, ...]) -> str:
    return rf"(.*\.)?({'|'.join(names)})(\..*)?"
