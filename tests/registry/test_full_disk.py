"""A disk that is full while a model is logged: one clear error, and nothing is half registered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager

import pipeline_outputs
import pytest
from mlflow import MlflowClient

from fairvlm_core.errors import FairVLMError
from fairvlm_core.registry import tracking, versions
from fairvlm_core.steps import execute, register


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return pipeline_outputs.write_outputs(tmp_path_factory.mktemp("outputs"), "binary")


@contextmanager
def small_disk(folder, size):
    """A disk of this size at `folder`; gives what changes its size."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield lambda other: subprocess.run(["mount", "-o", f"remount,size={other}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    for name in ("TRACKING_URI", "REGISTRY_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").create_experiment("fairvlm", f"file://{tmp_path}/store")
    return tmp_path


def registered(folders, out, **options):
    inputs = {name: folders[name] for name in register.INPUTS if name in folders}
    return execute("register", register.Config(model="fair_moe", **options), inputs, {"out": out})


def made(workplace):
    return MlflowClient(f"sqlite:///{workplace}/mlflow.db").search_model_versions()


def assert_one_whole_version(workplace):
    (only,) = made(workplace)
    with tracking.tracking(f"sqlite:///{workplace}/mlflow.db"):
        found = versions.find("fairvlm", str(only.version))
        artifact = versions.fetch(found, workplace / "fetched")
    assert versions.fingerprint(artifact) == found.tags["fingerprint"]


def test_the_artifact_store_is_full(folders, workplace):
    with small_disk(workplace / "store", "300k") as resize:
        with pytest.raises(FairVLMError, match="disk is full") as error:
            registered(folders, workplace / "out")
        assert "was logged in part; no version was made. Run register again." in error.value.what
        assert made(workplace) == []
        assert not (workplace / "out").exists()
        resize("64m")
        registered(folders, workplace / "out")
        assert_one_whole_version(workplace)


def test_the_scratch_folder_is_full(folders, workplace, monkeypatch):
    with small_disk(workplace / "scratch", "200k") as resize:
        monkeypatch.setattr("tempfile.tempdir", str(workplace / "scratch"))
        with pytest.raises(FairVLMError, match="disk is full") as error:
            registered(folders, workplace / "out")
        assert "Nothing was logged." in error.value.what
        assert made(workplace) == []
        resize("64m")
        registered(folders, workplace / "out")
        assert_one_whole_version(workplace)


def test_the_disk_of_the_database_is_full(folders, workplace):
    with small_disk(workplace / "database", "64m") as resize:
        shutil.move(workplace / "mlflow.db", workplace / "database" / "mlflow.db")
        uri = f"sqlite:///{workplace}/database/mlflow.db"
        used = (workplace / "database" / "mlflow.db").stat().st_size
        resize(f"{used // 1024 + 24}k")
        with pytest.raises(FairVLMError, match="disk of the database is full") as error:
            registered(folders, workplace / "out", tracking_uri=uri)
        assert "no version" in error.value.what or "Nothing was logged" in error.value.what
        assert error.value.where == uri
        resize("64m")
        assert MlflowClient(uri).search_model_versions() == []
        registered(folders, workplace / "out", tracking_uri=uri)
        (only,) = MlflowClient(uri).search_model_versions()
        assert json.loads((workplace / "out" / "registration.json").read_text())["version"] == int(only.version)
