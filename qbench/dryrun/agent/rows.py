"""Rows in place of a dataset that is not on this machine: text of a wanted number of tokens.

They have the columns that programs name most: which, depends on the dataset's name (`columns_of`). A
file of sample rows, if one is given for the dataset, comes before them.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SPEC = "QBENCH_DRYRUN_ROWS"
"""Variable that holds {"lengths": tokens of each row in turn, "files": {dataset: file of its rows}}."""
MOST_ROWS, FEWEST_ROWS = 1024, 256
MOST_TOKENS = 1 << 21
PIXELS = 512
"""Side of an image."""
TOKEN = " a"
"""Text that is one token for nearly every tokenizer."""

Row = dict[str, Any]
_PARTS = (
    (re.compile(r"llava|vsft|vqa|vision|image|ocr|multimodal", re.IGNORECASE), "images"),
    (re.compile(r"messages.*dpo", re.IGNORECASE), "conversation"),
    (re.compile(r"kto", re.IGNORECASE), "marked"),
    (re.compile(r"ultrafeedback|binarized", re.IGNORECASE), "answers"),
    (re.compile(r"dpo|orpo|prefer|feedback|pairs|hh-rlhf|reward", re.IGNORECASE), "pairs"),
    (re.compile(r"tome|sharegpt|slimorca|openhermes|guanaco", re.IGNORECASE), "conversations"),
    (re.compile(r"alpaca(?!_messages)|gpt4-llm|platypus|dolly", re.IGNORECASE), "instruction"),
    (re.compile(r"c4|wiki|fineweb|pretrain|tinystories|redpajama", re.IGNORECASE), "text"),
    (re.compile(r"messages|chat|capybara|thinking", re.IGNORECASE), "messages"),
)


def columns_of(name: str) -> str:
    """Return which columns stand in for those of a dataset, by its name; `any` where it says nothing."""
    return next((columns for pattern, columns in _PARTS if pattern.search(name)), "any")


def rows_of(columns: str, lengths: Sequence[int]) -> Iterator[Row]:
    """Yield rows whose text has so many tokens, each length in turn."""
    longest = max(lengths)
    number = max(FEWEST_ROWS, min(MOST_ROWS, MOST_TOKENS // longest), len(lengths))
    for index in range(number):
        yield _MAKERS[columns](lengths[index % len(lengths)], index)


def _parts(tokens: int) -> tuple[str, str]:
    """Return text of a request and its answer."""
    asked = max(1, tokens // 4)
    return TOKEN * asked, TOKEN * max(1, tokens - asked)


def _turns(tokens: int, role: str = "role", content: str = "content") -> list[dict[str, Any]]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: name, content: text} for name, text in zip(names, _parts(tokens), strict=True)]


def _messages(tokens: int, index: int) -> Row:
    return {"messages": _turns(tokens)}


def _conversations(tokens: int, index: int) -> Row:
    return {"conversations": _turns(tokens, "from", "value")}


def _instruction(tokens: int, index: int) -> Row:
    asked, answer = _parts(tokens)
    return {"instruction": asked, "input": "", "output": answer}


def _text(tokens: int, index: int) -> Row:
    return {"text": TOKEN * tokens}


def _pairs(tokens: int, index: int) -> Row:
    asked, answer = _parts(tokens)
    return {"prompt": asked, "question": asked, "input": asked, "chosen": answer, "rejected": answer}


def _answers(tokens: int, index: int) -> Row:
    return {"prompt": _parts(tokens)[0], "chosen": _turns(tokens), "rejected": _turns(tokens)}


def _conversation(tokens: int, index: int) -> Row:
    asked, answer = _turns(tokens)
    return {"conversation": [asked], "chosen": answer, "rejected": answer}


def _marked(tokens: int, index: int) -> Row:
    asked, answer = _parts(tokens)
    return {"prompt": asked, "completion": answer, "label": index % 2 == 0}


def _images(tokens: int, index: int) -> Row:
    from PIL import Image  # type: ignore[import-not-found]

    asked, answer = _parts(tokens)
    text = [{"type": "text", "text": asked, "index": None}, {"type": "image", "text": None, "index": 0}]
    turns = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": [{"type": "text", "text": answer, "index": None}]},
    ]
    image = Image.new("RGB", (PIXELS, PIXELS))
    return {"messages": turns, "images": [image], "image": image, "text": TOKEN * tokens}


def _any(tokens: int, index: int) -> Row:
    asked, answer = _parts(tokens)
    made = _text(tokens, index) | _messages(tokens, index) | _conversations(tokens, index)
    return made | _instruction(tokens, index) | {"question": asked, "answer": answer, "response": answer}


_MAKERS: dict[str, Callable[[int, int], Row]] = {
    "messages": _messages,
    "conversations": _conversations,
    "instruction": _instruction,
    "text": _text,
    "pairs": _pairs,
    "answers": _answers,
    "conversation": _conversation,
    "marked": _marked,
    "images": _images,
    "any": _any,
}


class Rows:
    """Loads a stand-in where `datasets` cannot load what the program names."""

    def __init__(self) -> None:
        spec = json.loads(os.environ.get(SPEC, "{}"))
        self.lengths: list[int] = spec.get("lengths") or []
        self.files: dict[str, str] = spec.get("files") or {}
        self.made: list[str] = []
        """What stands in for something, as the record says it."""

    def follow(self, load: Any) -> None:
        """Let `datasets.load_dataset` fall back to rows that stand in."""
        plain = load.load_dataset

        @functools.wraps(plain)
        def load_dataset(path: str, *args: Any, **kwargs: Any) -> Any:
            if path not in self.files:
                try:
                    return plain(path, *args, **kwargs)
                except Exception:
                    if os.path.exists(path) or "/" not in path:
                        raise
            split = kwargs.get("split", args[4] if len(args) > 4 else None)
            return self._loaded(plain, path, split, bool(kwargs.get("streaming")))

        load.load_dataset = load_dataset

    def _loaded(self, plain: Any, path: str, split: Any, is_streaming: bool) -> Any:
        import datasets  # type: ignore[import-untyped]

        if path in self.files:
            made = plain("json", data_files=self.files[path], split="train")
            self._note(f"rows of {os.path.basename(self.files[path])} for dataset {path}")
        else:
            columns = columns_of(path)
            made = datasets.Dataset.from_list(list(rows_of(columns, self.lengths)))
            least, most = min(self.lengths), max(self.lengths)
            tokens = f"{most:,}" if least == most else f"{least:,} to {most:,}"
            self._note(f"rows of {tokens} tokens for dataset {path} ({', '.join(made.column_names)})")
        if is_streaming:
            made = made.to_iterable_dataset()
        if split is not None:
            return [made] * len(split) if isinstance(split, (list, tuple)) else made
        kind = datasets.IterableDatasetDict if is_streaming else datasets.DatasetDict
        return kind({"train": made, "test": made})

    def _note(self, what: str) -> None:
        if what not in self.made:
            self.made.append(what)
