"""Imported once by the fork server, so that each worker starts with the heavy libraries in memory."""

from __future__ import annotations

import peft  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401
from transformers import AutoModelForCausalLM  # noqa: F401

from qbench.measure import nvml

if not nvml.cuda_present():
    # bitsandbytes asks CUDA for the device on import; a forked child could not use the GPU after that.
    import qbench.step.training_step  # noqa: F401
