"""`fetch_dataset` against a real DVC repository: the folder as it was at the revision, whole or not at all."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from components.fetch_dataset.component import fetch_dataset
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.kubeflow.fetch import resolve
from fairvlm_core.registry.lineage import dvc_md5


def fetch(tmp_path, repo="", commit="", path=""):
    out = SimpleNamespace(path=str(tmp_path / "fetched"), metadata={})
    fetch_dataset.python_func(repo=str(repo), commit=commit, path=path, data_hash="hash", out=out)
    assert out.metadata == {"commit": commit, "path": path, "data_hash": "hash"}
    return tmp_path / "fetched"


def git(repo, *arguments):
    done = subprocess.run(["git", *arguments], cwd=repo, capture_output=True, text=True, check=True)
    return done.stdout.strip()


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


def test_a_repository_elsewhere_is_cloned_and_its_remote_read(tmp_path, monkeypatch):
    """As from a server: nothing but the clone and the DVC remote that it names."""
    origin, remote = tmp_path / "origin", tmp_path / "remote"
    (origin / "release").mkdir(parents=True)
    (origin / "release" / "table.csv").write_text("kept elsewhere")
    git(origin, "init", "-q", "-b", "main")
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        [*dvc, "init", "-q"], [*dvc, "remote", "add", "-q", "-d", "store", str(remote)],
        [*dvc, "add", "-q", "release"], [*dvc, "push", "-q"],
        ["git", "checkout", "-q", "-b", "side"], ["git", "add", "-A"],
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first"],
    ):  # fmt: skip
        subprocess.run(command, cwd=origin, check=True, capture_output=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = resolve(f"file://{origin}", "side", "release")
    assert (fetch(tmp_path, f"file://{origin}", found.commit, "release") / "table.csv").read_text() == "kept elsewhere"


@pytest.mark.parametrize(("revision", "path"), [("", "release"), ("v1", "")])
def test_a_repository_needs_revision_and_path(repository, tmp_path, revision, path):
    with pytest.raises(ConfigError, match="revision"):
        fetch(tmp_path, repository, revision, path)
    assert not list(tmp_path.iterdir())


def test_a_single_file_is_refused(repository, tmp_path):
    with pytest.raises(CohortError, match="file"):
        fetch(tmp_path, repository, "v1", "release/table.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", ["nowhere", "--help"])
def test_what_cannot_be_fetched_fails_and_leaves_nothing(repository, tmp_path, argument):
    """An option in the form's field is a path like any other: it must not turn a failed task into a green one."""
    with pytest.raises(CohortError, match="could not bring"):
        fetch(tmp_path, repository, "v1", argument)
    assert not list(tmp_path.iterdir())


def test_a_branch_means_the_commit_that_last_changed_the_folder(repository, tmp_path):
    """So that what was fetched is kept while other files change, and not while these do."""
    first, second = git(repository, "rev-parse", "v1"), git(repository, "rev-parse", "HEAD")
    branch = git(repository, "branch", "--show-current")
    assert resolve(str(repository), "v1", "release").commit == first
    found = resolve(str(repository), branch, "release")
    assert found.commit == second
    assert found.data_hash == dvc_md5(fetch(tmp_path, repository, found.commit, "release"))
    (repository / "unrelated.txt").write_text("more")
    git(repository, "add", "unrelated.txt")
    git(repository, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "more")
    try:
        assert git(repository, "rev-parse", "HEAD") != second
        assert resolve(str(repository), branch, "release") == found
        assert resolve(str(repository), second[:12], "release") == found
        assert resolve(f"file://{repository}", branch, "release") == found  # cloned, as from a server
    finally:
        git(repository, "reset", "-q", "--hard", second)


def test_no_git_is_needed_for_it(repository, tmp_path, monkeypatch):
    """The image has none."""
    first = git(repository, "rev-parse", "v1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve(f"file://{repository}", "v1", "release").commit == first
    out = SimpleNamespace(path=str(tmp_path / "fetched"), metadata={})
    fetch_dataset.python_func(repo=str(repository), commit=first, path="release", data_hash="", out=out)
    assert (tmp_path / "fetched" / "table.csv").read_text() == "first"


def test_what_git_itself_keeps_is_known_by_its_tree(repository):
    (repository / "small").mkdir()
    (repository / "small" / "table.csv").write_text("a")
    git(repository, "add", "small")
    git(repository, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "small")
    try:
        found = resolve(str(repository), "HEAD", "small")
        assert found.data_hash == "git:" + git(repository, "rev-parse", "HEAD:small")
    finally:
        git(repository, "reset", "-q", "--hard", "HEAD~1")


def test_an_output_of_a_pipeline_is_known_by_the_lock(tmp_path):
    repo = tmp_path / "repo"
    (repo / "made").mkdir(parents=True)
    git(repo, "init", "-q")
    lock = "schema: '2.0'\nstages:\n  ingest:\n    cmd: x\n    outs:\n    - {path: data, hash: md5, md5: abc.dir}\n"
    (repo / "made" / "dvc.lock").write_text(lock)
    git(repo, "add", "-A")
    git(repo, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "lock")
    found = resolve(str(repo), "HEAD", "made/data")
    assert (found.commit, found.data_hash) == (git(repo, "rev-parse", "HEAD"), "abc.dir")


@pytest.mark.parametrize(
    ("revision", "path", "where"),
    [
        ("v9", "release", "fetch_dataset_revision"),
        ("--help", "release", "fetch_dataset_revision"),
        ("v1", "nowhere", "fetch_dataset_path"),
        ("v1", "../release", "fetch_dataset_path"),
        ("v1", "/etc", "fetch_dataset_path"),
        ("v1", "", "fetch_dataset_path"),
        ("", "release", "fetch_dataset_revision"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_fetched(repository, revision, path, where):
    with pytest.raises(ConfigError) as caught:
        resolve(str(repository), revision, path)
    assert where in caught.value.where
    assert caught.value.mend


def test_a_repository_that_is_not_there_is_named_without_the_password():
    with pytest.raises(ConfigError, match="cannot be cloned") as caught:
        resolve("file://user:hunter2@/nowhere/at/all", "main", "release")
    assert "hunter2" not in str(caught.value)
