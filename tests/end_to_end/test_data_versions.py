"""Data under DVC as docs/data-versions.md says: releases imported over HTTP and from S3, cohorts pushed and pulled.

The servers are real ones on loopback: Python's own for HTTP, moto's for S3.
"""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from components.fetch_dataset.component import fetch_dataset
from fairvlm_core.kubeflow.fetch import resolve
from fairvlm_core.registry.lineage import data_hash, dvc_md5
from fairvlm_core.steps import execute, step_module

SMALL = {"patients": 120, "pixels": 32}
IDENTITY = {f"GIT_{who}_{what}": f"{what}@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
# What a user sets for an S3 server; moto takes any key.
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in {**IDENTITY, **KEYS, "DVC_NO_ANALYTICS": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def s3(monkeypatch):
    """The address of an S3 server, with a bucket `releases` and a bucket `cache`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    for bucket in ("releases", "cache"):
        client.create_bucket(Bucket=bucket)
    yield SimpleNamespace(address=f"http://{host}:{port}", client=client)
    server.stop()


@pytest.fixture
def web(tmp_path):
    """A folder served over HTTP, and its address."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(folder=folder, address=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


def call(folder, *command):
    words = [sys.executable, "-m", *command] if command[0] == "dvc" else command
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repository(folder):
    folder.mkdir()
    call(folder, "git", "init", "-q", "-b", "main")
    call(folder, "dvc", "init", "-q")
    return folder


def commit(folder, message):
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", message)


def test_a_release_is_imported_and_updated_over_http(web, tmp_path):
    """A file at a time, for HTTP lists no folders; an update is seen, and the version before it stays."""
    table = web.folder / "HAM10000_metadata"
    table.write_text("lesion_id,image_id\n1,1\n")
    repo = repository(tmp_path / "repo")
    (repo / "datasets").mkdir()
    call(repo, "dvc", "import-url", "-q", f"{web.address}/HAM10000_metadata", "datasets/HAM10000_metadata")
    commit(repo, "first")
    assert (repo / "datasets" / "HAM10000_metadata").read_text() == table.read_text()
    table.write_text("lesion_id,image_id\n1,1\n2,2\n")
    os.utime(table, (2e9, 2e9))
    call(repo, "dvc", "update", "-q", "datasets/HAM10000_metadata.dvc")
    assert (repo / "datasets" / "HAM10000_metadata").read_text() == table.read_text()
    call(repo, "git", "checkout", "-q", "datasets/HAM10000_metadata.dvc")
    call(repo, "dvc", "checkout", "-q", "datasets/HAM10000_metadata.dvc")
    assert "2,2" not in (repo / "datasets" / "HAM10000_metadata").read_text()


def test_a_release_is_imported_and_updated_from_s3_as_a_folder(s3, tmp_path):
    s3.client.put_object(Bucket="releases", Key="clinic/table.csv", Body=b"a\n1\n")
    s3.client.put_object(Bucket="releases", Key="clinic/images/1.png", Body=b"picture")
    repo = repository(tmp_path / "repo")
    (repo / "datasets").mkdir()
    call(repo, "dvc", "remote", "add", "-q", "source", "s3://releases")
    call(repo, "dvc", "remote", "modify", "-q", "source", "endpointurl", s3.address)
    call(repo, "dvc", "import-url", "-q", "remote://source/clinic", "datasets/clinic")
    commit(repo, "first")
    assert (repo / "datasets" / "clinic" / "images" / "1.png").read_bytes() == b"picture"
    s3.client.put_object(Bucket="releases", Key="clinic/images/2.png", Body=b"another")
    call(repo, "dvc", "update", "-q", "datasets/clinic.dvc")
    names = sorted(path.name for path in (repo / "datasets" / "clinic").rglob("*") if path.is_file())
    assert names == ["1.png", "2.png", "table.csv"]


def test_a_cohort_is_pushed_to_s3_pulled_elsewhere_and_fetched_by_the_pipeline(s3, tmp_path):
    """The same bytes, and the hash that `register` records."""
    repo = repository(tmp_path / "repo")
    execute("ingest", step_module("ingest").Config(image_size=16, options=SMALL), {}, {"out": repo / "data" / "cohort"})
    call(repo, "dvc", "add", "-q", "data/cohort")
    call(repo, "dvc", "remote", "add", "-q", "-d", "store", "s3://cache/dvc")
    call(repo, "dvc", "remote", "modify", "-q", "store", "endpointurl", s3.address)
    commit(repo, "the cohort")
    call(repo, "git", "tag", "v1")
    call(repo, "dvc", "push", "-q")
    assert "md5: " + dvc_md5(repo / "data" / "cohort") in (repo / "data" / "cohort.dvc").read_text()

    call(tmp_path, "git", "clone", "-q", str(repo), "clone")
    clone = tmp_path / "clone"
    assert not (clone / "data" / "cohort").exists()
    call(clone, "dvc", "pull", "-q")
    files = [path.relative_to(clone) for path in (clone / "data" / "cohort").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for name in files:
        assert (clone / name).read_bytes() == (repo / name).read_bytes()
    assert data_hash(clone / "data" / "cohort", clone) == data_hash(repo / "data" / "cohort", repo)

    found = resolve(str(repo), "v1", "data/cohort")
    assert found.data_hash == dvc_md5(repo / "data" / "cohort")
    out = SimpleNamespace(path=str(tmp_path / "fetched"), metadata={})
    fetch_dataset.python_func(
        repo=str(repo), commit=found.commit, path="data/cohort", data_hash=found.data_hash, out=out
    )
    assert dvc_md5(tmp_path / "fetched") == dvc_md5(repo / "data" / "cohort")
