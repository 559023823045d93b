"""Bring a release from a DVC repository: first what a revision means, then the folder as it was then.

A branch moves, so nothing may be kept under its name. What a revision means is therefore asked first: the last commit
that changed the folder. Under it a fetched folder can be kept, however often the branch moves for other reasons.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.files import folder_written

TOKEN = "GIT_TOKEN"
# Git runs this text in a shell; the token stays in the environment and is on no command line.
HELPER = f'!f() {{ echo username=token; echo "password=${TOKEN}"; }}; f'


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
    with _checked_out(repo) as folder:
        commit = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        if commit is None:
            commit = _git(
                folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"origin/{revision}^{{commit}}"
            )
        if commit is None:
            raise ConfigError(
                f"The repository has no revision {revision}.",
                where=f"fetch_dataset_revision, {_shown(repo)}",
                mend="Give a commit, a tag or a branch that it has.",
            )
        found, where = _hash_of(folder, commit, place)
        last = _git(folder, "log", "-1", "--format=%H", commit, "--", where)
        return Release(last or commit, found)


def fetch(repo: str, commit: str, path: str, out: Path) -> None:
    """Bring the folder as it was at a commit; without a repository, an empty folder.

    Raises:
        CohortError: when DVC cannot bring it, or it is a file.
    """
    if not repo:
        with folder_written(out):
            return
    _refuse_incomplete(repo, commit, path)
    with folder_written(out) as folder, _checked_out(repo) as source:
        folder.rmdir()  # DVC would put the dataset inside a folder that exists
        # What follows `--` cannot be read as an option, whatever the run's form said.
        command = [sys.executable, "-m", "dvc", "get", "--rev", commit, "--out", str(folder), "--", str(source), path]
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
def _checked_out(repo: str) -> Iterator[Path]:
    """A local copy of the repository: itself where it is a folder, for DVC then finds its cache there, too."""
    if Path(repo).is_dir():
        yield Path(repo)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "repository"
        credentials = ["-c", f"credential.helper={HELPER}"] if os.environ.get(TOKEN) else []
        command = ["git", *credentials, "clone", "--quiet", "--no-checkout", "--", repo, str(folder)]
        done = subprocess.run(
            command, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise ConfigError(
                f"The repository cannot be cloned: {_shown(said[-1]) if said else 'git says nothing'}",
                where=f"fetch_dataset_repo, {_shown(repo)}",
                mend=f"Check its address, and for a private one the token in {TOKEN}.",
            )
        yield folder


def _hash_of(folder: Path, commit: str, path: PurePosixPath) -> tuple[str, str]:
    """The folder's hash at a commit, and the file or folder in Git that says it."""
    described = _git(folder, "show", f"{commit}:{path}.dvc")
    if described is not None:
        (out,) = _yaml(described, f"{path}.dvc")["outs"]
        return out["md5"], f"{path}.dvc"
    for parent in (path.parent, *path.parent.parents):
        lock = str(parent / "dvc.lock")
        written = _git(folder, "show", f"{commit}:{lock}")
        for stage in (_yaml(written, lock).get("stages") or {}).values() if written else ():
            for out in stage.get("outs", []):
                if parent / out["path"] == path and "md5" in out:
                    return out["md5"], lock
    tree = _git(folder, "rev-parse", "--verify", "--quiet", f"{commit}:{path}")
    if tree is not None:
        return f"git:{tree}", str(path)
    raise ConfigError(
        f"There is no {path} at this revision.",
        where="fetch_dataset_path",
        mend="Give the path of a folder that DVC or Git keeps there.",
    )


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


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
