"""What a form says is checked before anything runs: parameters, pools, and how the run ended is told."""

import http.server
import json
import threading

import pytest

from fairvlm_core.errors import ConfigError
from fairvlm_core.kubeflow.plan import asked_for, sections
from fairvlm_core.kubeflow.status import tell
from fairvlm_core.steps import STEPS

FORM = {"ingest.dataset": "generated", "base_models.preset": "tiny"}
POOLS = {
    "cpu": {"cpu": "2", "memory": "6Gi", "gpus": 0.0, "selector": {}, "taints": []},
    "gpu": {"cpu": "8", "memory": "32Gi", "gpus": 1.0, "selector": {"a": "b"}, "taints": ["nvidia.com/gpu"]},
}


def test_a_run_changes_what_it_names_and_nothing_else():
    defaults = {"stage1": {"epochs": 3.0, "attributes": ["sex"]}, "evaluate": {"resamples": 100.0}}
    found = sections(defaults, {"stage1": {"epochs": 5.0}}, FORM | {"compare.criterion": "auc"})
    assert tuple(found) == STEPS
    assert found["stage1"] == {"epochs": 5, "attributes": ["sex"]}
    assert isinstance(found["stage1"]["epochs"], int)
    assert found["evaluate"] == {"resamples": 100}
    assert found["compare"] == {"criterion": "auc"}
    assert defaults["stage1"]["epochs"] == 3.0


@pytest.mark.parametrize(
    ("params", "words", "mend"),
    [
        ({"stage_1": {"epochs": 3}}, "no step", "stage1"),
        ({"stage1": {"epoch": 3}}, "epoch", "epochs"),
        ({"stage1": {"epochs": -1}}, "epochs", ""),
        ({"stage1": 3}, "not a mapping", "Write"),
        ({"ingest": {"dataset": "ptbxl"}}, "field of its own", "ingest_dataset"),
        ({"fair_moe": {"init_from": "stage2"}}, "starts from base, not from stage2", "compile"),
    ],
)
def test_a_mistake_in_the_parameters_is_named(params, words, mend):
    with pytest.raises(ConfigError) as caught:
        sections({}, params, FORM)
    assert words in str(caught.value)
    assert mend in (caught.value.mend or "")


def test_what_a_pool_asks_for():
    found = asked_for(POOLS, "gpu", step="stage1", preset="published")
    assert found["gpus"] == "1"
    assert found["selector"] == {"a": "b"}
    assert found["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert asked_for(POOLS, "cpu", step="stage1", preset="tiny")["gpus"] == "0"


@pytest.mark.parametrize(
    ("name", "preset", "words", "mend"),
    [("gpus", "tiny", 'no pool "gpus"', '"gpu"'), ("cpu", "published", "has no GPU", "Choose gpu")],
)
def test_a_pool_that_does_not_do_is_refused(name, preset, words, mend):
    with pytest.raises(ConfigError) as caught:
        asked_for(POOLS, name, step="stage2", preset=preset)
    assert words in str(caught.value)
    assert mend in caught.value.mend
    assert caught.value.where == "stage2_pool"


@pytest.fixture
def listener():
    """A server that keeps what is posted to it."""
    heard = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", heard
        server.shutdown()


def told(tmp_path, state="FAILED", error="the row of a patient\nand more"):
    tell(state=state, run="run-7", task="stage1", error=error, summary=tmp_path / "summary")
    return (tmp_path / "summary").read_text()


def test_how_a_run_ended_is_told_without_the_text_of_an_error(tmp_path, monkeypatch, listener):
    address, heard = listener
    monkeypatch.setenv("FAIRVLM_WEBHOOK", address)
    summary = told(tmp_path)
    assert "**FAILED**" in summary
    assert "    the row of a patient\n    and more" in summary
    assert heard == [{"text": "fairvlm: the run run-7 ended: FAILED."}]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense"])
def test_an_address_that_does_not_answer_does_no_harm(tmp_path, monkeypatch, capsys, address):
    monkeypatch.setenv("FAIRVLM_WEBHOOK", address)
    assert "SUCCEEDED" in told(tmp_path, "SUCCEEDED", "")
    assert "could not be told" in capsys.readouterr().out


def test_without_an_address_nobody_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FAIRVLM_WEBHOOK", raising=False)
    told(tmp_path)
    assert "could not" not in capsys.readouterr().out
