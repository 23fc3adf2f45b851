"""What a record says of a command and its output: no secrets, no folders of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

HIDDEN = "***"
_SECRET_NAME = r"[\w.-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|credential)s?"
_SECRET_FLAG = re.compile(rf"--?{_SECRET_NAME}", re.IGNORECASE)
# Token counts, and files and classes of tokenizers, are no secrets.
_HARMLESS = re.compile(
    r"tokenizer|tokens?_(?:per|len|id)|max_|min_|num_|new_token|pad_|eos_|bos_", re.IGNORECASE
)
_ASSIGNED = re.compile(
    rf"(?<![\w-])((?:--?)?{_SECRET_NAME}\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE
)
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abp]-[\w-]{10,}|AKIA[A-Z0-9]{12,}|[0-9a-f]{40})\b"
)
"""Keys of hubs and trackers by their form; 40 hexadecimal digits are one of Weights & Biases."""
_ABSOLUTE = re.compile(r"(?<![\w.:/~-])[/~][\w./+-]+")
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")


def private_text(text: str) -> str:
    """Return text without secrets and with the home folder as ~."""

    def assigned(match: re.Match[str]) -> str:
        return match[0] if _HARMLESS.search(match[1]) else match[1] + HIDDEN

    text = _LOGIN.sub(f"{HIDDEN}@", _KNOWN.sub(HIDDEN, _ASSIGNED.sub(assigned, text)))
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def private_command(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command as a record has it: names of files in place of absolute paths, no secrets."""
    return tuple(_private_words(command))


def _private_words(command: Sequence[str]) -> Iterator[str]:
    hide = False
    for number, word in enumerate(command):
        if hide and not word.startswith("-"):
            hide = False
            yield HIDDEN
            continue
        hide = bool(_SECRET_FLAG.fullmatch(word)) and not _HARMLESS.search(word)
        if any(letter.isspace() for letter in word):  # A shell's text, after -c.
            yield private_text(_ABSOLUTE.sub(lambda path: os.path.basename(path[0].rstrip("/")), word))
            continue
        name, equals, value = word.partition("=")
        if equals:
            yield private_text(f"{name}={_file_name(value)}")
        else:
            yield os.path.basename(word) if number == 0 else private_text(_file_name(word))


def _file_name(word: str) -> str:
    return os.path.basename(word.rstrip("/")) or word if word.startswith(("/", "~")) else word


def private_place(place: str | None, working_folder: Path) -> str | None:
    """Return a file and line as they stand below the installed packages or the working folder."""
    if place is None:
        return None
    text = re.sub(r'^\s*File "([^"]*)", line (\d+), in (.*?)\s*$', r"\1:\2 \3", place)
    for packages in ("site-packages/", "dist-packages/"):
        if packages in text:
            return text.rpartition(packages)[2]
    file = text.partition(":")[0]
    below = os.path.relpath(file, working_folder) if os.path.isabs(file) else file
    short = os.path.basename(file) if below.startswith("..") else below
    return private_text(short + text[len(file) :])
