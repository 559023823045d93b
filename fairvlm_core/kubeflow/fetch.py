"""Bring a release from a DVC repository: first what a revision means, then the folder as it was then.

A branch moves, so nothing may be kept under its name. What a revision means is therefore asked first: the last commit
that changed the folder. Under it a fetched folder can be kept, however often the branch moves for other reasons.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.files import folder_written

if TYPE_CHECKING:
    from dulwich.objects import Commit
    from dulwich.repo import Repo

TOKEN = "GIT_TOKEN"


@dataclass(frozen=True)
class Release:
    """One folder of a repository at one point in time.

    Attributes:
        commit: the last commit that changed the folder.
        data_hash: the md5 under which DVC keeps it, or `git:` and the id of its tree where Git itself keeps it.
    """

    commit: str
    data_hash: str


def resolve(repo: str, revision: str, path: str) -> Release:
    """What a revision of a repository means for one of its folders; only Git's own data are read.

    Args:
        repo: URL or local folder; a token for https is read from GIT_TOKEN.
        revision: commit, tag or branch.
        path: of the folder, from the root of the repository.

    Raises:
        ConfigError: when one of the three is empty or means nothing.
    """
    _refuse_incomplete(repo, revision, path)
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts:
        raise ConfigError(
            "The path leaves the repository.", where="fetch_dataset_path", mend="Give a path from its root, without ..."
        )
    with _repository(repo) as found:
        commit = _commit(found, revision)
        if commit is None:
            raise ConfigError(
                f"The repository has no revision {revision}.",
                where=f"fetch_dataset_revision, {_shown(repo)}",
                mend="Give a commit, a tag or a branch that it has.",
            )
        data_hash, where = _hash_of(found, commit, place)
        changes = iter(found.get_walker(include=[commit.id], paths=[where.encode()], max_entries=1))
        last = next(changes, None)
        return Release((last.commit if last else commit).id.decode(), data_hash)


def fetch(repo: str, commit: str, path: str, out: Path) -> None:
    """Bring the folder as it was at a commit; without a repository, an empty folder.

    Raises:
        CohortError: when DVC cannot bring it, or it is a file.
    """
    if not repo:
        with folder_written(out):
            return
    from dulwich import porcelain

    _refuse_incomplete(repo, commit, path)
    with folder_written(out) as folder, _repository(repo) as found:
        folder.rmdir()  # DVC would put the dataset inside a folder that exists
        if not Path(repo).is_dir():
            porcelain.branch_create(found, "fairvlm", commit)  # DVC copies what a branch of ours leads to
        # What follows `--` cannot be read as an option, whatever the run's form said.
        command = [sys.executable, "-m", "dvc", "get", "--rev", commit, "--out", str(folder), "--", found.path, path]
        if subprocess.run(command).returncode:
            raise CohortError(
                "DVC could not bring the dataset; what it says is above.",
                where=f"{_shown(repo)}, {path}",
                mend="Check that its remote can be reached from here, and the keys in the environment.",
            )
        if not folder.is_dir():
            folder.unlink()
            raise CohortError(
                "The dataset is a file.", where=f"{_shown(repo)}, {path}", mend="Give the path of its folder."
            )


def _refuse_incomplete(repo: str, revision: str, path: str) -> None:
    if not (repo and revision and path):
        raise ConfigError(
            "The dataset's repository, revision or path is empty.",
            where="fetch_dataset_repo, fetch_dataset_revision, fetch_dataset_path",
            mend="Give all of repository, revision (a commit or tag) and path; or none for the generated cohort.",
        )


@contextmanager
def _repository(repo: str) -> Iterator[Repo]:
    """The repository, without its files: where it is a folder, itself, for DVC then finds its cache there, too.

    The image has no git: dulwich, which DVC uses as well, is git in Python.
    """
    from dulwich import porcelain
    from dulwich.errors import NotGitRepository
    from dulwich.repo import Repo

    if Path(repo).is_dir():
        try:
            with closing(Repo(repo)) as found:
                yield found
        except NotGitRepository:
            raise ConfigError(
                "This folder is no repository.", where=f"fetch_dataset_repo, {repo}", mend="Give the root of one."
            ) from None
        return
    token = os.environ.get(TOKEN)
    access: dict[str, Any] = {"username": "token", "password": token} if token and repo.startswith("https://") else {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            cloned = porcelain.clone(repo, folder, checkout=False, errstream=io.BytesIO(), **access)
        # Whatever is wrong with an address, a server or a network comes as errors of half a dozen libraries.
        except Exception as error:
            raise ConfigError(
                f"The repository cannot be cloned ({type(error).__name__}).",
                where=f"fetch_dataset_repo, {_shown(repo)}",
                mend=f"Check its address, and for a private one the token in {TOKEN}.",
            ) from None
        with closing(cloned):
            yield cloned


def _commit(found: Repo, revision: str) -> Commit | None:
    """What a commit, tag or branch means; a branch of a clone is one of its origin."""
    from dulwich.objectspec import parse_commit

    for name in (revision, f"origin/{revision}"):
        try:
            return parse_commit(found, name)
        except (KeyError, ValueError):
            continue
    return None


def _hash_of(found: Repo, commit: Commit, path: PurePosixPath) -> tuple[str, str]:
    """The folder's hash at a commit, and the file or folder in Git that says it."""
    described = _read(found, commit, f"{path}.dvc")
    if described is not None:
        (out,) = _yaml(described, f"{path}.dvc")["outs"]
        return out["md5"], f"{path}.dvc"
    for parent in (path.parent, *path.parent.parents):
        lock = str(parent / "dvc.lock")
        written = _read(found, commit, lock)
        for stage in (_yaml(written, lock).get("stages") or {}).values() if written else ():
            for out in stage.get("outs", []):
                if parent / out["path"] == path and "md5" in out:
                    return out["md5"], lock
    tree = _lookup(found, commit, str(path))
    if tree is not None:
        return f"git:{tree.decode()}", str(path)
    raise ConfigError(
        f"There is no {path} at this revision.",
        where="fetch_dataset_path",
        mend="Give the path of a folder that DVC or Git keeps there.",
    )


def _lookup(found: Repo, commit: Commit, path: str) -> bytes | None:
    """The id of a file or folder at a commit."""
    from dulwich.errors import NotTreeError
    from dulwich.object_store import tree_lookup_path

    try:
        return tree_lookup_path(found.object_store.__getitem__, commit.tree, path.encode())[1]
    except (KeyError, NotTreeError):
        return None


def _read(found: Repo, commit: Commit, path: str) -> str | None:
    place = _lookup(found, commit, path)
    return None if place is None else found[place].as_raw_string().decode(errors="replace")


def _yaml(text: str, where: str) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError):
        raise ConfigError(
            "This file of the repository cannot be read.", where=where, mend="Mend it there, and commit it."
        ) from None


def _shown(address: str) -> str:
    """Without the name and password that an address may hold."""
    return re.sub(r"//[^/@\s]*@", "//", address)
