"""Registering on an MLflow server and fetching from it: over HTTP more is checked than with a database file."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pipeline_outputs
import pytest

from fairvlm_core.steps import champion, execute, register


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that keeps the artifacts itself; its address is in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "store"),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words, "--workers", "1", "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, **quiet},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.slow
def test_what_is_registered_on_a_server_is_judged_from_it(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = pipeline_outputs.write_outputs(tmp_path / "outputs", "binary")
    inputs = {"cohort": folders["cohort"], "images": folders["cohort"]}
    none = execute("champion", champion.Config(), inputs, {"out": tmp_path / "champion"})
    assert none == {"version": "none"}
    config = register.Config(model="fair_moe", alias="champion")
    execute("register", config, {name: folders[name] for name in register.INPUTS}, {"out": tmp_path / "registration"})
    found = execute("champion", champion.Config(), inputs, {"out": tmp_path / "champion"})
    assert found["version"] == "1"
    expected = json.loads((tmp_path / "outputs" / "fair_moe_evaluation" / "metrics.json").read_text())
    assert expected.items() <= found.items()
    assert not (tmp_path / "mlflow.db").exists()
