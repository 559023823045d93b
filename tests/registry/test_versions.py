"""Which version an alias or a number means, and what is said when there is none."""

from __future__ import annotations

import hashlib
import json
import logging

import mlflow
import pytest
from mlflow import MlflowClient

from fairvlm_core.errors import CheckpointError, FairVLMError
from fairvlm_core.registry import is_alias, tracking, versions


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with two versions of `fairvlm`, the second being the champion, that some other program made."""
    root = tmp_path_factory.mktemp("registry")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    client.create_registered_model("fairvlm")
    for number in (1, 2):
        source = root / f"source{number}"
        source.mkdir()
        (source / "MLmodel").write_text("flavors: {}")
        client.create_model_version("fairvlm", source=source.as_uri(), tags={"model": f"m{number}"})
    client.set_registered_model_alias("fairvlm", "champion", "2")
    return root


@pytest.fixture
def server(registry, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    with tracking.tracking(f"sqlite:///{registry}/mlflow.db"):
        yield registry


def test_alias_and_number_mean_the_version(server):
    found = versions.find("fairvlm", "champion")
    assert (found.number, found.alias, found.tags, found.uri) == ("2", "champion", {"model": "m2"}, "models:/fairvlm/2")
    found = versions.find("fairvlm", "1")
    assert (found.number, found.alias, found.tags) == ("1", None, {"model": "m1"})
    assert versions.find("fairvlm", "2").alias is None


def test_an_alias_that_is_not_set_and_a_model_that_is_not_there_give_none(server):
    assert versions.find("fairvlm", "winner") is None
    assert versions.find("other", "champion") is None


def test_numbers_and_names_that_cannot_be_are_told(server):
    for name, number in (("fairvlm", "3"), ("other", "1")):
        with pytest.raises(FairVLMError, match=f"no version {number} of the registered model {name}"):
            versions.find(name, number)
    with pytest.raises(mlflow.MlflowException, match="parameter 'name'"):
        versions.find("", "champion")


def test_a_database_that_does_not_exist_is_not_created(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    with tracking.tracking(f"sqlite:///{tmp_path}/mlflow.db"):
        assert versions.find("fairvlm", "champion") is None
        with pytest.raises(FairVLMError, match="no version 1"):
            versions.find("fairvlm", "1")
    assert not list(tmp_path.iterdir())


def test_a_version_of_another_program_and_one_without_files_are_refused(server, tmp_path):
    found = versions.find("fairvlm", "champion")
    with pytest.raises(CheckpointError, match="the step register did not make it"):
        versions.fetch(found, tmp_path)
    (server / "source2").rename(server / "gone")
    try:
        with pytest.raises(CheckpointError, match="files of this version are gone") as error:
            versions.fetch(found, tmp_path)
        assert error.value.where == "models:/fairvlm/2"
    finally:
        (server / "gone").rename(server / "source2")


def test_a_store_that_does_not_answer_is_told(server, tmp_path, monkeypatch):
    def fail(**_):
        raise ConnectionError("https://me:secret@store.example.org does not answer")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fail)
    with pytest.raises(CheckpointError, match="cannot be fetched") as error:
        versions.fetch(versions.find("fairvlm", "champion"), tmp_path)
    assert "ConnectionError" in str(error.value)
    assert "secret" not in str(error.value)


def test_aliases_are_those_that_mlflow_takes(server):
    for text in ("champion", "last-week_2", "v3", "latest", "V12", "Latest", "", "a b", "a:b", "v", "vv3"):
        try:
            MlflowClient().set_registered_model_alias("fairvlm", text, "1")
            taken = True
        except mlflow.MlflowException:
            taken = False
        assert is_alias(text) == taken, text
        if taken and text != "champion":
            MlflowClient().delete_registered_model_alias("fairvlm", text)
    MlflowClient().set_registered_model_alias("fairvlm", "champion", "2")


def written(folder, *, weights=b"w", checkpoint="/models/llava", sha256="0" * 64):
    (folder / "model" / "adapter").mkdir(parents=True)
    (folder / "model" / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    (folder / "thresholds.json").write_text("{}")
    reference = {"family": "vlm", "checkpoint": checkpoint, "sha256": {"model.safetensors": sha256}, "size": {}}
    (folder / "base.json").write_text(json.dumps(reference))
    return folder


def test_fingerprint_is_that_of_names_and_contents(tmp_path):
    def plain(content):
        return hashlib.sha256(content).hexdigest()

    base = json.dumps({"family": "vlm", "sha256": {"model.safetensors": "0" * 64}}, sort_keys=True)
    listed = {
        "base.json": plain(base.encode()),
        "model/adapter/adapter_model.safetensors": plain(b"w"),
        "thresholds.json": plain(b"{}"),
    }
    first = versions.fingerprint(written(tmp_path / "first"))
    assert first == plain(json.dumps(listed, sort_keys=True).encode())
    # Where the base model lay says nothing about the model; which weights it has, does.
    assert versions.fingerprint(written(tmp_path / "moved", checkpoint="/other/llava")) == first
    assert versions.fingerprint(written(tmp_path / "base", sha256="1" * 64)) != first
    assert versions.fingerprint(written(tmp_path / "weights", weights=b"v")) != first
    (tmp_path / "moved" / "thresholds.json").rename(tmp_path / "moved" / "other.json")
    assert versions.fingerprint(tmp_path / "moved") != first
