"""Lineage: the commit that git names and the hash that DVC itself gives."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import sha256
from fairvlm_core.registry.lineage import commit, data_hash, dvc_md5, surroundings


def git(folder, *arguments):
    name = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "dvc.lock").write_text("stages: {}\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_commit_of_the_repository_around_a_folder(repository):
    clean = {"git_commit": git(repository, "rev-parse", "HEAD"), "git_dirty": "false"}
    assert commit(repository / "profile") == clean
    (repository / "notes.txt").write_text("untracked")
    (repository / "profile" / "dvc.lock").write_text("stages: {ingest: {}}\n")  # as DVC does during a run
    assert commit(repository / "profile") == clean
    (repository / "code.py").write_text("x = 2\n")
    assert commit(repository / "profile") == {**clean, "git_dirty": "true"}


def test_no_repository_and_no_commit_yet(tmp_path):
    assert commit(tmp_path) == {}
    git(tmp_path, "init", "--quiet")
    assert commit(tmp_path) == {}


@pytest.fixture
def cohort(tmp_path):
    """A folder whose files sort differently by path and by name."""
    folder = tmp_path / "data" / "balanced"
    for name in ("cohort.parquet", "a/z.json", "a-b.json", "a/b/c.txt", "Übersicht.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def lock(root, md5, path="data/balanced"):
    outputs = [{"path": "other", "hash": "md5", "md5": "0" * 32}, {"path": path, "hash": "md5", "md5": md5}]
    (root / "dvc.lock").write_text(
        yaml.safe_dump({"schema": "2.0", "stages": {"stratify": {"cmd": "x", "outs": outputs}}})
    )


def test_hash_is_the_one_dvc_gives(tmp_path, cohort):
    for arguments in (["init", "--no-scm", "--quiet"], ["add", "--no-commit", "--quiet", "data/balanced"]):
        subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, env={"DVC_NO_ANALYTICS": "1"}
        )
    (output,) = yaml.safe_load((tmp_path / "data" / "balanced.dvc").read_text())["outs"]
    assert dvc_md5(cohort) == output["md5"]
    lock(tmp_path, output["md5"])
    assert data_hash(cohort, tmp_path) == output["md5"]


def test_without_dvc_the_files_own_hash_is_named(tmp_path, cohort):
    own = f"sha256:{sha256(cohort / 'cohort.parquet')}"
    assert data_hash(cohort, tmp_path) == own
    lock(tmp_path, dvc_md5(cohort), path="data/elsewhere")
    assert data_hash(cohort, tmp_path) == own
    lock(tmp_path, dvc_md5(cohort))
    assert data_hash(cohort, tmp_path) == dvc_md5(cohort)
    (cohort / "cohort.parquet").write_text("edited after the run that dvc.lock describes")
    assert data_hash(cohort, tmp_path) == f"sha256:{sha256(cohort / 'cohort.parquet')}"


@pytest.mark.parametrize("content", ["<<<<<<< ours\n", "a: [", "", "schema: '2.0'"])
def test_damaged_lock_is_told(tmp_path, cohort, content):
    (tmp_path / "dvc.lock").write_text(content)
    with pytest.raises(FairVLMError, match=r"dvc\.lock cannot be read"):
        data_hash(cohort, tmp_path)


def test_what_the_environment_says_becomes_tags(monkeypatch):
    for name in ("GIT_COMMIT", "DATASET_COMMIT", "DATASET_HASH", "IMAGE", "KFP_RUN_ID"):
        monkeypatch.delenv(f"FAIRVLM_{name}", raising=False)
    assert surroundings() == {}
    monkeypatch.setenv("FAIRVLM_IMAGE", "registry.example.org/fairvlm@sha256:0")
    monkeypatch.setenv("FAIRVLM_KFP_RUN_ID", "run-7")
    monkeypatch.setenv("FAIRVLM_DATASET_HASH", "")
    assert surroundings() == {"image": "registry.example.org/fairvlm@sha256:0", "kfp_run_id": "run-7"}
