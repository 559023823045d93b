"""Where a model comes from: the commit of the code and the hash under which DVC keeps the data."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pyarrow.compute as pc
import yaml

from fairvlm_core.cohort.table import COHORT_FILE, SCHEMA, read_cohort, task_of
from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import sha256

LOCK_FILE = "dvc.lock"
# Tags that come from the environment; git_commit only where there is no repository to ask.
TOLD = ("git_commit", "dataset_commit", "dataset_hash", "image", "kfp_run_id")


def commit(folder: Path) -> dict[str, str]:
    """`git_commit` and `git_dirty` (true or false) of the repository around `folder`; empty where there is none.

    As with `git describe --dirty`, files that git does not track do not count. Nor does dvc.lock: DVC rewrites it while
    the pipeline runs, and what it says of the data has a hash of its own.
    """
    found = git(folder, "rev-parse", "HEAD")
    changes = git(
        folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude,top,glob)**/{LOCK_FILE}"
    )
    if found is None or changes is None:
        return {}
    return {"git_commit": found, "git_dirty": "true" if changes else "false"}


def surroundings() -> dict[str, str]:
    """What whoever started this says about it, in the environment: the dataset's commit and hash, image, run, commit.

    Kubeflow's component sets them, and the image the commit it was built from; elsewhere nothing is set.
    """
    told = {name: os.environ.get(f"FAIRVLM_{name.upper()}", "") for name in TOLD}
    return {name: value for name, value in told.items() if value}


def data_hash(cohort: Path, root: Path) -> str:
    """The hash under which DVC keeps the cohort, or `sha256:...` of cohort.parquet where DVC does not know these bytes.

    Args:
        cohort: folder that holds cohort.parquet.
        root: folder that may hold the dvc.lock of the run.
    """
    recorded = _recorded(root).get(cohort.resolve())
    if recorded is not None and recorded == dvc_md5(cohort):
        return recorded
    return f"sha256:{sha256(cohort / COHORT_FILE)}"


def dvc_md5(folder: Path) -> str:
    """The md5 that DVC 3 gives a folder: that of the list of its files and their md5."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    entries = [{"md5": _md5((folder / name).read_bytes()), "relpath": name} for name in names]
    return f"{_md5(json.dumps(entries, sort_keys=True).encode())}.dir"


def hash_test_rows(cohort: Path) -> str:
    """The sha256 of the test rows of cohort.parquet, whatever their order: who is tested, on what, and who they are.

    Notes are left out, because nothing that is judged reads them. What the labels are called is part of it.
    """
    table = read_cohort(cohort)
    task = task_of(table)
    rows = table.filter(pc.equal(table.column("split"), "test"))
    names = sorted(set(SCHEMA.names) - {"note"})
    lines = sorted(json.dumps([row[name] for name in names]) for row in rows.select(names).to_pylist())
    found = hashlib.sha256(json.dumps([task.kind, list(task.labels), names]).encode())
    for line in lines:
        found.update(b"\n" + line.encode())
    return found.hexdigest()


def _recorded(root: Path) -> dict[Path, str]:
    """Every output in dvc.lock with its md5."""
    lock = root / LOCK_FILE
    if not lock.is_file():
        return {}
    try:
        stages = yaml.safe_load(lock.read_text())["stages"]
    except (yaml.YAMLError, TypeError, KeyError):
        raise FairVLMError(
            "dvc.lock cannot be read.", where=str(lock), mend="Resolve its merge conflict, or run `dvc repro` again."
        ) from None
    outputs = [output for stage in stages.values() for output in stage.get("outs", [])]
    return {(root / output["path"]).resolve(): output["md5"] for output in outputs if "md5" in output}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def git(folder: Path, *arguments: str) -> str | None:
    """What git says, without the last line end; None where there is no git, no repository, or no such thing in it."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
