"""Imported once by the fork server, so that each worker starts with the heavy libraries in memory."""

from __future__ import annotations

import gc

from qbench.measure import nvml
from qbench.measure.environment import environment
from qbench.nullgpu import launcher
from qbench.quiet import quiet_libraries

quiet_libraries()

import accelerate  # noqa: E402, F401
import torch._inductor.compile_fx  # noqa: E402, F401
from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: E402, F401

if not launcher.is_loaded() and not nvml.cuda_present():
    # bitsandbytes, which peft imports, asks CUDA for the device on import, and a forked child could not use
    # the GPU after that. What is imported above calls no function of CUDA; it is most of what takes time.
    import qbench.measure.cpu  # noqa: F401

# Code and versions are those that the server has imported, whatever is written to the disk after it started.
environment("cpu")
# The children leave these objects alone, and so do not copy the pages that they are on.
gc.freeze()
