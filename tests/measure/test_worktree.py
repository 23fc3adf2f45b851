"""Commits of a real repository, checked out beside it and gone again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qbench.errors import QbenchError
from qbench.measure.worktree import Commit, checked_out, find_commit


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with a file that says what commit it is of, one and two, and then neither."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    for text in ("one", "two"):
        (folder / "file").write_text(text)
        git(folder, "add", "file")
        git(folder, "commit", "--quiet", "-m", text)
    (folder / "file").write_text("not committed")
    (folder / "deep").mkdir()
    return folder


def test_a_commit_lies_beside_the_files_as_they_are_and_is_gone_afterwards(repository: Path) -> None:
    commit = find_commit("HEAD~1", repository / "deep")
    assert commit is not None
    assert commit.repository == repository
    with checked_out(commit) as folder:
        assert (folder / "file").read_text() == "one"
        assert (repository / "file").read_text() == "not committed"
    assert not folder.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_nothing_is_left_after_an_interrupt(repository: Path) -> None:
    commit = find_commit("main", repository)
    assert commit is not None
    made = []

    def interrupted() -> None:
        with checked_out(commit) as folder:
            (folder / "made by a build").write_text("x")
            made.append(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not made[0].parent.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("name", ["no-such-branch", "--help", ""])
def test_what_names_no_commit(repository: Path, name: str) -> None:
    assert find_commit(name, repository) is None


def test_outside_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert find_commit("HEAD", tmp_path) is None


def test_a_commit_that_git_does_not_have_is_told(repository: Path) -> None:
    lost = Commit(repository=repository, name="lost", digest="0" * 40)
    with (
        pytest.raises(QbenchError, match="--baseline lost: git cannot check out 000000000000"),
        checked_out(lost),
    ):
        pass
