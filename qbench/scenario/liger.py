"""Which of Liger's layer kernels there are, and in which form each family of models takes them.

Source: liger-kernel 0.8.5, transformers/monkey_patch.py, `MODEL_TYPE_TO_APPLY_LIGER_FN` and its functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LigerKernel = Literal["rope", "rms_norm", "glu"]
"""Rotary embedding, root-mean-square norms, and the gated activation of an MLP (swiglu, geglu)."""

ALL_KERNELS: tuple[LigerKernel, ...] = ("rope", "rms_norm", "glu")


@dataclass(frozen=True, slots=True)
class Norm:
    """How the norms of a family are computed."""

    offset: float = 0.0
    """What is added to the weight."""
    exact: bool = False
    """Whether all is computed in fp32, as in Gemma, and not the root alone."""
    in_place: bool = True
    """Whether the gradient of the output becomes that of the input."""


_LLAMA, _KEPT = Norm(), Norm(in_place=False)

PLANNED: dict[str, Norm] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "granite", "phi3"), _LLAMA),
    **dict.fromkeys(("qwen2", "qwen3", "smollm3"), _LLAMA),
    **dict.fromkeys(("olmo2", "olmo3"), _KEPT),
    "gemma": Norm(1.0, exact=True),
    **dict.fromkeys(("gemma2", "gemma3_text"), Norm(1.0, exact=True, in_place=False)),
}
"""Model types whose kernels are planned."""

_OTHERS = """
    deepseek_v2 deepseek_v3 deepseek_v4 exaone4 falcon_h1 gemma3 gemma4 gemma4_text glm4 glm4v glm4v_moe
    gpt_oss hunyuan_v1_dense hunyuan_v1_moe internvl llama4 llama4_text llava mixtral mllama
    mllama_text_model muse_glimmer nemotron paligemma pixtral qwen2_5_vl qwen2_5_vl_text qwen2_vl
    qwen2_vl_text qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_vl
    qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text smolvlm
"""
OTHERS = frozenset(_OTHERS.split())
"""Other model types that Liger has kernels for; for what is in neither it does nothing."""
