"""Registering on an MLflow server, fetching from it and serving from it: over HTTP more is checked than with a file."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import mlflow
import mlflow_servers as servers
import pandas as pd
import pipeline_outputs
import pytest
from PIL import Image

from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import read_cohort
from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.registry import serving, tracking
from fairvlm_core.steps import champion, execute, register

pytestmark = pytest.mark.slow
CLIENTS, REQUESTS = 8, 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return pipeline_outputs.write_outputs(tmp_path_factory.mktemp("outputs"), "binary")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that keeps the artifacts itself; its address is in the environment."""
    root = tmp_path_factory.mktemp("server")
    words = ["--backend-store-uri", f"sqlite:///{root}/server.db", "--artifacts-destination", str(root / "store")]
    with servers.mlflow_server(root, *words) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", running.uri)
        patch.delenv("FAIRVLM_BASE", raising=False)
        patch.chdir(root)
        yield running.uri


@pytest.fixture(scope="module")
def registered(server, folders, tmp_path_factory):
    """Version 1, the champion: a Fair-MoE, which has more to mix up than a LLaVA."""
    root = tmp_path_factory.mktemp("registered")
    inputs = {"cohort": folders["cohort"], "images": folders["cohort"]}
    none = execute("champion", champion.Config(), inputs, {"out": root / "champion"})
    assert none == {"version": "none"}
    config = register.Config(model="fair_moe", alias="champion")
    given = {name: folders[name] for name in register.INPUTS if name in folders}
    execute("register", config, given, {"out": root / "registration"})
    return server


@pytest.fixture(scope="module")
def pictures(folders):
    """PNG files of the cohort."""
    found = []
    for pixels in ImageStore.open(folders["cohort"]).read(read_cohort(folders["cohort"]).column("image").to_pylist()):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        found.append(buffer.getvalue())
    return found


def test_what_is_registered_on_a_server_is_judged_from_it(registered, folders, tmp_path):
    inputs = {"cohort": folders["cohort"], "images": folders["cohort"]}
    found = execute("champion", champion.Config(), inputs, {"out": tmp_path / "champion"})
    assert found["version"] == "1"
    expected = json.loads((folders["cohort"].parent / "fair_moe_evaluation" / "metrics.json").read_text())
    assert expected.items() <= found.items()


@pytest.fixture(scope="module")
def served(registered, tmp_path_factory):
    """`fairvlm serve fairvlm` in a process of its own; its address, and what it printed."""
    log, port = tmp_path_factory.mktemp("serve") / "log", servers.free_port()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "fairvlm_core.cli", "serve", "fairvlm", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            servers.answers(f"{address}/health", alive=lambda: process.poll() is None)
            yield address, log
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/health", timeout=5)


def ask(address, *images, **columns):
    """Status and answer of the scoring server about pictures."""
    records = [{"image": base64.b64encode(image).decode(), **columns} for image in images]
    body = json.dumps({"dataframe_records": records}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_eight_clients_at_once_get_the_scores_of_their_own_pictures(served, registered, pictures):
    """While some send what is refused: a person's sex, and a picture that is broken."""
    address, _ = served
    loaded = mlflow.pyfunc.load_model("models:/fairvlm@champion")
    expected = loaded.predict(pd.DataFrame({"image": pictures}))
    assert expected["score_glaucoma"].std() > 1e-3

    def client(number):
        wrong, right = [], 0
        for i in range(REQUESTS):
            count = 1 + (number + i) % 5
            first = (number * 29 + i * 7) % (len(pictures) - count)
            chosen = slice(first, first + count)
            status, answer = ask(address, *pictures[chosen])
            right += status == 200
            seen, truth = pd.DataFrame(answer["predictions"]), expected.iloc[chosen].reset_index(drop=True)
            wrong += [] if (seen["score_glaucoma"] - truth["score_glaucoma"]).abs().max() < 1e-6 else [(number, i)]
            wrong += [] if seen.drop(columns="score_glaucoma").equals(truth.drop(columns="score_glaucoma")) else [i]
            if number == 0:
                status, answer = ask(address, *pictures[chosen], sex="female")
                wrong += [] if status == 400 and "takes no demographics" in answer["message"] else [answer]
            if number == 1:
                status, answer = ask(address, pictures[first], pictures[first][:40])
                wrong += [] if status == 400 and "row 1, column image" in answer["message"] else [answer]
        return right, wrong

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(client, range(CLIENTS)))
    assert answers == [(REQUESTS, [])] * CLIENTS


def test_serve_says_what_is_served_and_how_to_ask(served, pictures, tmp_path):
    address, log = served
    told = log.read_text()
    assert "Version 1 of fairvlm (champion): fair_moe" in told
    assert "Gate: not judged" in told
    # The example works as it stands.
    (tmp_path / "PICTURE.png").write_bytes(pictures[0])
    lines = told.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  printf"))
    shown = subprocess.run(["bash", "-c", "\n".join(lines[start : start + 2])], cwd=tmp_path, capture_output=True)
    assert json.loads(shown.stdout)["predictions"] == ask(address, pictures[0])[1]["predictions"]


def test_what_cannot_be_served_is_refused_before_a_server_starts(registered, folders, tmp_path, monkeypatch):
    def fetched(model):
        with tracking.tracking(registered):
            return serving.fetch_served(model, tmp_path / model.replace("/", "-"))

    for model, error, words in (
        ("fairvlm@nobody", CheckpointError, "no version of fairvlm has the alias nobody"),
        ("other", CheckpointError, "no version of other has the alias champion"),
        ("fairvlm@v3", ConfigError, "names no registered model"),
        ("runs:/fairvlm/1", ConfigError, "names no registered model"),
    ):
        with pytest.raises(error, match=words):
            fetched(model)
    (folders["base"] / "dual").rename(folders["base"] / "away")
    try:
        with pytest.raises(CheckpointError, match="base model of this registered model is missing"):
            fetched("fairvlm/1")
        monkeypatch.setenv("FAIRVLM_BASE", str(tmp_path))
        (tmp_path / "bases.json").write_text(json.dumps({"dual": str(folders["base"] / "away")}))
        assert fetched("models:/fairvlm/1").base == str(folders["base"] / "away")
    finally:
        (folders["base"] / "away").rename(folders["base"] / "dual")
