"""Places to register in: an empty database that is made once, and MLflow servers."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

SETTINGS = ("TRACKING_URI", "REGISTRY_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME", "TRACKING_USERNAME")


def empty_database(folder: Path) -> Path:
    """A database without anything in it, to be copied: making one takes longer than a promotion."""
    path = folder / "empty.db"
    logging.getLogger("alembic").setLevel(logging.ERROR)
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def place(root: Path, empty: Path, name: str = "mlflow.db") -> str:
    """The URI of a copy of the empty database in `root`."""
    shutil.copyfile(empty, root / name)
    return f"sqlite:///{root}/{name}"


@contextmanager
def own_settings(**values: str) -> Iterator[pytest.MonkeyPatch]:
    """Nothing of the machine's MLflow settings but these."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(f"MLFLOW_{name}", raising=False)
        patch.delenv("FAIRVLM_BASE", raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        yield patch


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """An MLflow server on a database in `folder` that keeps the artifacts itself; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "store")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words, "--workers", "1", "--port", str(port)],
        cwd=folder,
        env={**os.environ, **quiet},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
