"""Keep the libraries' chatter off the terminal: what a program's entry point calls before importing them."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Show only errors of transformers and bitsandbytes, and none of their deprecation notes.

    bitsandbytes warns on import that an optional CPU kernel is missing; transformers that peft still uses
    names which version 6 will drop; tqdm that a notebook lacks its widgets. None of it concerns a user of
    qbench.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns that it cannot time a plan.
    for name in ("bitsandbytes", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="IProgress not found")
