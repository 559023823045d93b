"""`fetch_dataset` against a real DVC repository: the folder as it was at the revision, whole or not at all."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from components.fetch_dataset.component import fetch_dataset
from fairvlm_core.errors import CohortError


def fetch(tmp_path, repo="", revision="", path=""):
    out = tmp_path / "fetched"
    fetch_dataset.python_func(repo=str(repo), revision=revision, path=path, out=SimpleNamespace(path=str(out)))
    return out


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A DVC repository whose folder `release` says "first" at the tag v1 and "second" afterwards."""
    repo = tmp_path_factory.mktemp("repository")
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    env = {**os.environ, **identity, "DVC_NO_ANALYTICS": "true"}

    def call(*command):
        subprocess.run(command, cwd=repo, env=env, check=True, capture_output=True)

    call("git", "init", "-q")
    call(sys.executable, "-m", "dvc", "init", "-q")
    (repo / "release" / "images").mkdir(parents=True)
    for text in ("first", "second"):
        (repo / "release" / "table.csv").write_text(text)
        (repo / "release" / "images" / "1.png").write_bytes(text.encode())
        call(sys.executable, "-m", "dvc", "add", "-q", "release")
        call("git", "add", "-A")
        call("git", "commit", "-q", "-m", text)
        if text == "first":
            call("git", "tag", "v1")
    return repo


def test_without_a_repository_the_folder_is_empty(tmp_path):
    out = fetch(tmp_path)
    assert out.is_dir()
    assert not list(out.iterdir())


def test_the_release_is_the_one_of_the_revision(repository, tmp_path):
    (tmp_path / "fetched").mkdir()
    out = fetch(tmp_path, repository, "v1", "release")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == ["images/1.png", "table.csv"]
    assert (out / "table.csv").read_text() == "first"


@pytest.mark.parametrize(("revision", "path"), [("", "release"), ("v1", "")])
def test_a_repository_needs_revision_and_path(repository, tmp_path, revision, path):
    with pytest.raises(CohortError, match="revision"):
        fetch(tmp_path, repository, revision, path)
    assert not list(tmp_path.iterdir())


def test_a_single_file_is_refused(repository, tmp_path):
    with pytest.raises(CohortError, match="file"):
        fetch(tmp_path, repository, "v1", "release/table.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", ["nowhere", "--help"])
def test_what_cannot_be_fetched_fails_and_leaves_nothing(repository, tmp_path, argument):
    """An option in the form's field is a path like any other: it must not turn a failed task into a green one."""
    with pytest.raises(subprocess.CalledProcessError):
        fetch(tmp_path, repository, "v1", argument)
    assert not list(tmp_path.iterdir())
