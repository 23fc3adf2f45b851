"""A commit of a git repository, checked out beside the working tree for as long as it is measured."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qbench.errors import QbenchError

GIT_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit of the repository that a folder is in."""

    repository: Path
    """Top of the working tree."""
    name: str
    """As it was given: a branch, a tag, HEAD~1."""
    digest: str


def find_commit(name: str, folder: Path) -> Commit | None:
    """Return the commit that a git ref names in the repository around a folder; None if there is none."""
    top = git(folder, "rev-parse", "--show-toplevel")
    if top is None or name.startswith("-"):
        return None
    digest = git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return None if digest is None else Commit(repository=Path(top), name=name, digest=digest)


@contextlib.contextmanager
def checked_out(commit: Commit) -> Iterator[Path]:
    """Give a folder with the files of a commit; it is gone afterwards, whatever happens.

    Raises QbenchError when git cannot make it.
    """
    with tempfile.TemporaryDirectory(prefix="qbench-", ignore_cleanup_errors=True) as parent:
        folder = Path(parent) / "code"
        try:
            arguments = ("worktree", "add", "--detach", "--quiet", str(folder), commit.digest)
            if git(commit.repository, *arguments) is None:
                raise QbenchError(
                    f"--baseline {commit.name}: git cannot check out {commit.digest[:12]} into {folder}; "
                    f"try `git worktree add FOLDER {commit.name}`"
                )
            yield folder
        finally:
            git(commit.repository, "worktree", "remove", "--force", str(folder))
            git(commit.repository, "worktree", "prune")


def git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None when it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            # Ctrl-C is for this process: git must be able to clean up after it.
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
