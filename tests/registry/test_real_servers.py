"""Registering on real servers that are killed, cut off and used by two at once: never a version that is not whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import mlflow
import mlflow_servers as servers
import pipeline_outputs
import pytest
from mlflow import MlflowClient

from fairvlm_core.errors import FairVLMError
from fairvlm_core.registry import tracking, versions
from fairvlm_core.steps import execute, register

pytestmark = pytest.mark.slow
# What is the client's doing is tried on one of the servers: PostgreSQL, where it is installed.
on_one = pytest.mark.parametrize(
    "server", ["postgresql" if servers.postgres_program("initdb") else "sqlite"], indirect=True
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return pipeline_outputs.write_outputs(tmp_path_factory.mktemp("outputs"), "binary")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory):
    """On SQLite, clients write to S3 themselves; on PostgreSQL, the server passes artifacts on to S3."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "postgresql" and not (
        servers.postgres_program("initdb") and servers.postgres_program("pg_ctl")
    ):
        pytest.skip("PostgreSQL is not installed")
    with pytest.MonkeyPatch.context() as patch, servers.s3("models") as where:
        for name in ("TRACKING_URI", "REGISTRY_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME"):
            patch.delenv(f"MLFLOW_{name}", raising=False)
        for name, value in {**where, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}.items():
            patch.setenv(name, value)
        if request.param == "sqlite":
            words = ["--backend-store-uri", f"sqlite:///{root}/server.db", "--no-serve-artifacts"]
            with servers.mlflow_server(root, *words, "--default-artifact-root", "s3://models/runs") as server:
                yield server
        else:
            with servers.postgres() as database:
                words = ["--backend-store-uri", database, "--artifacts-destination", "s3://models/runs"]
                with servers.mlflow_server(root, *words) as server:
                    yield server


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "PAUSES", (1, 1))
    return tmp_path


def registered(folders, out, uri, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        inputs = {name: folders[name] for name in register.INPUTS if name in folders}
        return execute("register", register.Config(**options), inputs, {"out": out})


def whole_versions(server, name, folder):
    """Every version of a model with its aliases, after its files were fetched and found to be those registered."""
    found = {}
    with tracking.tracking(server.uri):
        client = MlflowClient()
        for item in client.search_model_versions():
            if item.name != name:
                continue
            version = versions.find(name, str(item.version))
            artifact = versions.fetch(version, folder / f"{name}-{item.version}")
            assert versions.fingerprint(artifact) == version.tags["fingerprint"]
            run = client.get_run(version.run_id)
            assert client.list_artifacts(version.run_id, "report")
            found[int(item.version)] = SimpleNamespace(
                model=version.tags["model"],
                aliases=client.get_model_version(name, item.version).aliases,
                status=run.info.status,
            )
            shutil.rmtree(folder / f"{name}-{item.version}")
    return found


def test_two_registrations_at_once_make_two_whole_versions(server, folders, workplace):
    inputs = [f"--{name.replace('_', '-')}={folders[name]}" for name in register.INPUTS if name in folders]
    started = []
    for model in ("stage2", "fair_moe"):
        words = ["register", *inputs, f"--model={model}", f"--out={workplace / model}", "--registered-name=both"]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}
        program = [sys.executable, "-m", "fairvlm_core.cli", *words]
        started.append(subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    found = whole_versions(server, "both", workplace)
    assert set(found) == {1, 2}
    assert {version.model for version in found.values()} == {"stage2", "fair_moe"}
    assert sorted(alias for version in found.values() for alias in version.aliases) == ["challenger"]


@on_one
@pytest.mark.parametrize(
    ("moment", "told", "made"),
    [
        ("logged-models", "was logged in part; no version was made", 0),
        ("model-versions/create", "was logged; no version of", 0),
        ("registered-models/alias", "is there; its alias challenger was not set", 1),
    ],
)
def test_a_server_killed_in_the_middle_leaves_no_half_version(server, folders, workplace, moment, told, made):
    name = moment.replace("/", "-")

    def kill(number, method, path):
        if moment in path and method == "POST":
            server.kill()
        return servers.PASS

    with servers.way_to(server.port, kill) as uri:
        with pytest.raises(FairVLMError, match="refused") as error:
            registered(folders, workplace / "out", uri, registered_name=name, model="fair_moe")
        assert told in error.value.what
        assert not (workplace / "out").exists()
    server.start()
    assert len(whole_versions(server, name, workplace)) == made
    again = registered(folders, workplace / "out", server.uri, registered_name=name, model="fair_moe")
    found = whole_versions(server, name, workplace)
    assert set(found) == {again["version"]} == {1}
    assert (found[1].aliases, found[1].status) == (["challenger"], "FINISHED")


@on_one
@pytest.mark.parametrize("what", [servers.DROP, servers.LOSE])
def test_a_connection_that_is_lost_and_comes_back_makes_one_version(server, folders, workplace, what):
    """Every request fails the first time it is made, before the server heard of it or after."""
    tries, name = Counter(), what.replace(" ", "-")

    def lose_first(number, method, path):
        tries[method, path.split("?")[0]] += 1
        return what if tries[method, path.split("?")[0]] == 1 else servers.PASS

    with servers.way_to(server.port, lose_first) as uri:
        if what == servers.LOSE:
            # MLflow repeats the request that names the model as the run's output, and the server refuses that.
            with pytest.raises(FairVLMError, match=r"no version was made\. Run register again\."):
                registered(folders, workplace / "out", uri, registered_name=name, model="fair_moe")
            assert tries["POST", "/api/2.0/mlflow/runs/outputs"] == 2
        again = registered(folders, workplace / "out", uri, registered_name=name, model="fair_moe")
    assert tries["POST", "/api/2.0/mlflow/model-versions/create"] >= 1
    found = whole_versions(server, name, workplace)
    assert set(found) == {again["version"]} == {1}
    assert (found[1].aliases, found[1].status) == (["challenger"], "FINISHED")


@on_one
def test_a_connection_that_never_comes_back_is_told(server, folders, workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    gone = []

    def cut(number, method, path):
        gone.extend(["gone"] if "logged-models" in path else [])
        return servers.DROP if gone else servers.PASS

    with servers.way_to(server.port, cut) as uri:
        with pytest.raises(FairVLMError, match="was logged in part; no version was made") as error:
            registered(folders, workplace / "out", uri, registered_name="gone", model="fair_moe")
        assert error.value.where == uri
    assert whole_versions(server, "gone", workplace) == {}
    assert mlflow.active_run() is None
