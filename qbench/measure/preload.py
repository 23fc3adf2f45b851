"""Imported once by the fork server, so that each worker starts with the heavy libraries in memory."""

from __future__ import annotations

from qbench.measure import nvml
from qbench.quiet import quiet_libraries

quiet_libraries()

import peft  # noqa: E402, F401
import torch  # noqa: E402, F401
from transformers import AutoModelForCausalLM  # noqa: E402, F401

if not nvml.cuda_present():
    # bitsandbytes asks CUDA for the device on import; a forked child could not use the GPU after that.
    import qbench.step.training_step  # noqa: F401
