"""The config of a model on the Hugging Face hub, from its cache where it is there."""

from __future__ import annotations

import time

HUB_TIMEOUT_S = 5.0
"""How long a hub that does not answer is waited for."""


ASKED_AGAIN_S = 30.0
"""How long an answer that is no config is kept: what plans a model looks at its config more than once."""

_refused: dict[str, tuple[float, Exception]] = {}


def hub_config(name: str) -> str:
    """Return the file of a hub model's config.json, which is fetched where the hub's cache lacks it.

    Raises what the hub answers, of whatever class, and waits for it once: a download would be tried again for
    half a minute (huggingface_hub/file_download.py, `retry_on_errors`).
    """
    from huggingface_hub import try_to_load_from_cache

    known = try_to_load_from_cache(name, "config.json")
    if isinstance(known, str):
        return known
    when, error = _refused.get(name, (0.0, None))
    if error is not None and time.monotonic() - when < ASKED_AGAIN_S:
        raise error
    try:
        return _fetched(name)
    except Exception as error:
        _refused[name] = time.monotonic(), error
        raise


def _fetched(name: str) -> str:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT_S)
    return hf_hub_download(name, "config.json")
