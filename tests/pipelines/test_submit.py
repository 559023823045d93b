"""`fairvlm submit`, against a small server that speaks the part of the API v2beta1 which kfp.Client uses."""

import json
import os
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import kfp
import pytest
import yaml
from graphs import tasks_of

from fairvlm_core.cli import main
from fairvlm_core.config import build
from fairvlm_core.errors import ConfigError
from fairvlm_core.kubeflow.call import whole
from fairvlm_core.kubeflow.plan import sections
from fairvlm_core.steps import STEPS, step_module
from pipelines import submit
from pipelines.compile import COMPILED, compiled
from pipelines.fairvlm import FORM, PARAMS_FILE
from pipelines.form import arguments, cron, read_pipeline

PROFILE = PARAMS_FILE.parent / "profiles" / "ham10000" / "params.yaml"
API = "/apis/v2beta1"
KINDS = {  # path -> name of the list, name of the id
    "/pipelines": ("pipelines", "pipeline_id"),
    "/experiments": ("experiments", "experiment_id"),
    "/runs": ("runs", "run_id"),
    "/recurringruns": ("recurringRuns", "recurring_run_id"),
}


class Kubeflow(ThreadingHTTPServer):
    """What it was asked, and what it keeps: `kept[path]` is the list of what was created there.

    `looks` is what a run looks like each time somebody asks for it; `refused` maps a path to the status and body that
    it is answered with instead.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked, self.kept, self.looks, self.refused, self.health = [], {}, [], {}, {"multi_user": False}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def created(self, path):
        return self.kept.get(path, [])


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, body, status=200, kind="application/json"):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle_any(self):
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = url.path.removeprefix(API)
        server = self.server
        server.asked.append((self.command, path, query, body, dict(self.headers)))
        if path in server.refused:
            return self.answer(*server.refused[path])
        if path == "/healthz":
            return self.answer(server.health)
        if path == "/pipelines/upload_version":
            return self.answer(self.keep(f"/pipelines/{query['pipelineid']}/versions", query["name"], "version_id"))
        if self.command == "POST":
            return self.answer(self.keep(path, None, KINDS[path][1], json.loads(body)))
        if path.startswith("/runs/"):
            return self.answer(server.looks.pop(0) if len(server.looks) > 1 else server.looks[0])
        found = server.created(path)
        if "filter" in query:
            (predicate,) = json.loads(query["filter"])["predicates"]
            assert predicate["operation"] in ("EQUALS", 1)  # the name and the number of one operation
            assert predicate["key"] == "display_name"
            found = [item for item in found if item["display_name"] == predicate["stringValue"]]
        name = "pipeline_versions" if path.endswith("/versions") else KINDS[path][0]
        return self.answer({name: found, "total_size": len(found)})

    def keep(self, path, name, key, content=None):
        items = self.server.kept.setdefault(path, [])
        made = {**(content or {"display_name": name}), key: f"{path.rsplit('/', 1)[-1]}-{len(items) + 1}"}
        if key == "version_id":
            made = {"display_name": name, "pipeline_id": path.split("/")[2], "pipeline_version_id": made[key]}
        if path == "/recurringruns":
            made["status"] = "ENABLED"
        items.append(made)
        return made

    do_GET = do_POST = handle_any


@pytest.fixture
def kubeflow(monkeypatch, tmp_path):
    """A server, and an environment without a token, a proxy, or what somebody's own client remembers."""
    for name in os.environ:
        if name.startswith(("KF_PIPELINES", "KFP_")) or name.lower().endswith("_proxy") or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(submit, "EVERY", 0.001)
    server = Kubeflow()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fairvlm(monkeypatch, capsys, kubeflow):
    """`fairvlm submit` on that server: exit status, standard output, standard error."""

    def run(*given, host=kubeflow.url):
        monkeypatch.setattr(sys, "argv", ["fairvlm", "submit", "--host", host, *map(str, given)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return exited.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def pipeline():
    return read_pipeline(COMPILED)


def uploads(kubeflow):
    return [body for _, path, _, body, _ in kubeflow.asked if path == "/pipelines/upload_version"]


def test_the_first_upload_makes_the_pipeline_and_the_second_of_the_same_file_nothing(fairvlm, kubeflow, tmp_path):
    status, shown, _ = fairvlm("--upload-only")
    assert status == 0
    (made,) = kubeflow.created("/pipelines")
    assert made["display_name"] == "fairvlm"
    (body,) = uploads(kubeflow)
    assert COMPILED.read_bytes() in body
    assert f"{kubeflow.url}/#/pipelines/details/pipelines-1/version/versions-1" in shown
    assert not kubeflow.created("/runs")

    # Other bytes of the same content are the same version.
    documents = list(yaml.safe_load_all(COMPILED.read_text()))
    copy = tmp_path / "copy.yaml"
    copy.write_text("# other\n" + yaml.safe_dump_all(documents, sort_keys=False))
    for path in (COMPILED, copy):
        status, shown, _ = fairvlm(path, "--upload-only")
        assert status == 0
        assert "was there already" in shown
    assert len(uploads(kubeflow)) == len(kubeflow.created("/pipelines")) == 1


def test_a_changed_file_becomes_another_version_of_the_same_pipeline(fairvlm, kubeflow, tmp_path):
    fairvlm("--upload-only")
    changed = tmp_path / "changed.yaml"
    changed.write_text(COMPILED.read_text().replace("defaultValue: tiny", "defaultValue: small"))
    assert fairvlm(changed)[0] == 0
    assert len(kubeflow.created("/pipelines")) == 1
    first, second = (version["display_name"] for version in kubeflow.created("/pipelines/pipelines-1/versions"))
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{12}", second)
    (run,) = kubeflow.created("/runs")
    expected = {"pipeline_id": "pipelines-1", "pipeline_version_id": "versions-2"}
    assert run["pipeline_version_reference"] == expected
    assert run["runtime_config"]["parameters"]["base_models_preset"] == "small"


def test_a_run_has_the_form_the_account_and_the_experiment(fairvlm, kubeflow, pipeline):
    given = ("--set", "stage1_pool=gpu-small", "--set", "stage1.epochs=5", "--set", "compare.criterion=auc")
    status, shown, errors = fairvlm(*given, "--experiment", "weekly", "--service-account", "runner")
    assert (status, errors) == (0, "")
    (run,) = kubeflow.created("/runs")
    assert run["service_account"] == "runner"
    assert run["experiment_id"] == "experiments-1"
    assert [made["display_name"] for made in kubeflow.created("/experiments")] == ["weekly"]
    form = {name: field["defaultValue"] for name, field in pipeline.form.items()}
    changed = {"stage1_pool": "gpu-small", "params": {"stage1": {"epochs": 5}}, "compare_criterion": "auc"}
    assert run["runtime_config"]["parameters"] == form | changed
    assert f"Started: {kubeflow.url}/#/runs/details/runs-1\n" in shown
    assert 'params: {"stage1": {"epochs": 5}}\n' in shown
    fairvlm("--experiment", "weekly")
    assert len(kubeflow.created("/experiments")) == 1
    assert kubeflow.created("/runs")[1]["service_account"] == "fairvlm"


@pytest.mark.parametrize("path", [PARAMS_FILE, PROFILE], ids=["own", "ham10000"])
def test_a_run_with_a_params_file_has_the_parameters_that_dvc_has_with_it(path, fairvlm, kubeflow):
    """Through the server, and through the task `plan`, each step gets the config that the file means."""
    assert fairvlm("--params", path)[0] == 0
    form = kubeflow.created("/runs")[0]["runtime_config"]["parameters"]
    fixed = tasks_of(compiled(COMPILED)[0])["plan"]["inputs"]["parameters"]["defaults"]["runtimeValue"]["constant"]
    planned = sections(fixed, form["params"], {key: form[key.replace(".", "_")] for key in FORM})
    local = yaml.safe_load(path.read_text())
    for step in STEPS:
        config = step_module(step).Config
        assert build(config, whole(planned[step]), where=step) == build(config, local.get(step) or {}, where=step)
    if path == PARAMS_FILE:
        assert form["params"] == {}
    else:  # what the file leaves out has the step's default, and no picture of a patient comes into the report
        assert form["params"]["predict"] == {"attention_cases": 0}
        assert form["params"]["stratify"] == {"majority_cap": None}
        assert form["ingest_dataset"] == "ham10000"


def test_what_is_set_wins_over_the_file(pipeline):
    form = arguments(pipeline, PROFILE, ["ingest_dataset=table", "stage1.epochs=2", "stage2.attributes=[sex]"])
    assert form["ingest_dataset"] == "table"
    assert form["params"]["stage1"]["epochs"] == 2
    assert form["params"]["stage2"]["attributes"] == ["sex"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--set", "stage1_pol=cpu"], 'Did you mean "stage1_pool"?'),
        (["--set", "stage1_pool=gpu-larg"], 'Did you mean "gpu-large"?'),
        (["--set", "ingest_dataset=ham1000"], 'Did you mean "ham10000"?'),
        (["--set", "stage1.epoch=5"], 'Did you mean "epochs"?'),
        (["--set", "stage9.epochs=5"], 'There is no step "stage9"'),
        (["--set", "stage1.epochs=many"], "stage1.epochs cannot be 'many'"),
        (["--set", "stage1.epochs=[1"], "not valid YAML"),
        (["--set", "stage1_pool"], "There is no value"),
        (["--set", "params={}"], "Give a file to --params"),
        (["--set", "fair_moe.init_from=stage2"], "was compiled for a Fair-MoE that starts from base"),
        (["--set", "stage2_pool=cpu", "--set", "base_models_preset=published"], "The pool cpu has no GPU"),
        (["--set", "fetch_dataset_repo=https://example.org/data"], "repository, revision or path is empty"),
        (["--schedule", "every monday"], "This is no schedule"),
        (["--schedule", "0 3 * * 1", "--wait"], "only one can be done"),
        (["--params", "missing.yaml"], "The params file is missing"),
        (["missing.yaml"], "The compiled pipeline cannot be read"),
        ([str(PARAMS_FILE)], "not the compiled pipeline"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_the_server_is_asked(given, words, fairvlm, kubeflow):
    status, _, errors = fairvlm(*given)
    assert status == 2
    assert words in errors
    assert not kubeflow.asked


def test_a_password_in_the_address_of_the_dataset_is_refused_and_not_shown(pipeline):
    values = {"repo": "https://me:hush@example.org/data", "revision": "main", "path": "release"}
    with pytest.raises(ConfigError, match="holds a password") as caught:
        arguments(pipeline, None, [f"fetch_dataset_{name}={value}" for name, value in values.items()])
    assert "hush" not in str(caught.value)


def test_a_schedule_is_made_once(fairvlm, kubeflow):
    status, shown, _ = fairvlm("--schedule", "0 3 * * 1", "--set", "stage1_pool=gpu-small")
    assert status == 0
    (made,) = kubeflow.created("/recurringruns")
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert made["mode"] == "ENABLE"
    assert made["no_catchup"] is True
    assert made["runtime_config"]["parameters"]["stage1_pool"] == "gpu-small"
    assert made["service_account"] == "fairvlm"
    assert f"Scheduled: {kubeflow.url}/#/recurringrun/details/recurringruns-1" in shown
    assert not kubeflow.created("/runs")
    status, _, errors = fairvlm("--schedule", "0 3 * * 1")
    assert status == 2
    assert 'There is a recurring run "fairvlm, 0 3 * * 1" already' in errors
    made["status"] = "DISABLED"
    assert fairvlm("--schedule", "0 3 * * 1")[0] == 0
    assert len(kubeflow.created("/recurringruns")) == 2
    assert cron("30 0 3 * * 1") == "30 0 3 * * 1"


def look(state, **tasks):
    """A run as the server describes it; drivers and the tasks of Argo itself are in its list, too."""
    details = [{"task_id": name, "display_name": name.replace("_", "-"), "state": now} for name, now in tasks.items()]
    details.append({"task_id": "d", "display_name": "root-driver", "state": "SUCCEEDED"})
    return {"run_id": "runs-1", "state": state, "run_details": {"task_details": details}}


@pytest.mark.parametrize(
    ("last", "status"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)], ids=["success", "failure", "cancelled"]
)
def test_waiting_tells_each_change_and_ends_as_the_run_does(last, status, fairvlm, kubeflow):
    kubeflow.looks = [
        {"run_id": "runs-1"},
        look("RUNNING", plan="RUNNING"),
        look("RUNNING", plan="SUCCEEDED", evaluate_2="RUNNING"),
        look("RUNNING", plan="SUCCEEDED", evaluate_2="RUNNING"),
        look(last, plan="SUCCEEDED", evaluate_2=last),
    ]
    code, shown, _ = fairvlm("--wait")
    assert code == status
    total = len(read_pipeline(COMPILED).tasks)
    told = shown.splitlines()[2:]
    assert told == [
        f"plan: running (0 of {total} tasks have ended)",
        f"plan: succeeded (1 of {total} tasks have ended)",
        f"evaluate-stage2: running (1 of {total} tasks have ended)",
        f"evaluate-stage2: {last.lower()} (2 of {total} tasks have ended)",
        f"The run ended: {last}. {kubeflow.url}/#/runs/details/runs-1",
    ]


def test_waiting_outlasts_a_server_that_fails_for_a_while_but_not_for_ever(fairvlm, kubeflow, monkeypatch):
    kubeflow.looks = [look("RUNNING", plan="RUNNING"), look("SUCCEEDED")]
    kubeflow.refused["/runs/runs-1"] = ({"message": "upstream"}, 503)
    monkeypatch.setattr(submit.time, "sleep", lambda _: kubeflow.refused.clear())
    assert fairvlm("--wait")[0] == 0
    kubeflow.refused["/runs/runs-2"] = ({"message": "upstream"}, 503)
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    status, _, errors = fairvlm("--wait")
    assert status == 2
    assert "(503). upstream" in errors


def test_a_host_that_does_not_answer_is_one_error(fairvlm):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        status, _, errors = fairvlm(host=nobody)
    assert status == 2
    assert errors.splitlines()[:2] == ["The server does not answer (NewConnectionError).", f"Where: {nobody}"]
    assert len(errors.splitlines()) == 3


@pytest.mark.parametrize("path", ["/healthz", "/pipelines", "/pipelines/upload_version", "/experiments", "/runs"])
def test_a_server_that_refuses_is_one_error(path, fairvlm, kubeflow, monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", "hush")
    kubeflow.refused[path] = ({"code": 7, "message": "User 'me' is not authorized\n at main.go:7"}, 403)
    status, shown, errors = fairvlm()
    assert status == 2
    assert errors.splitlines()[0] == "The server refuses (403). User 'me' is not authorized"
    assert "KFP_TOKEN" in errors
    assert len(errors.splitlines()) == 3
    assert "hush" not in shown + errors


def test_a_page_to_log_in_is_not_taken_for_kubeflow(fairvlm, kubeflow):
    kubeflow.refused["/healthz"] = (b"<html>Log in</html>", 200, "text/html")
    status, _, errors = fairvlm()
    assert status == 2
    assert "perhaps a page to log in" in errors


@pytest.mark.parametrize("host", ["", "kubeflow.example.org"])
def test_an_address_without_a_protocol_is_refused(host, fairvlm):
    status, _, errors = fairvlm(host=host)
    assert status == 2
    assert "https://" in errors


def test_the_token_comes_from_the_environment_or_a_file_and_from_no_flag(fairvlm, kubeflow, monkeypatch, tmp_path):
    def sent():
        heads = [headers.get("authorization") or headers.get("Authorization") for *_, headers in kubeflow.asked]
        kubeflow.asked.clear()
        return set(heads)

    fairvlm("--upload-only")
    assert sent() == {None}
    file = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    assert "cannot be read" in fairvlm("--upload-only")[2]
    file.write_text("from-file\n")
    fairvlm("--upload-only")
    assert sent() == {"Bearer from-file"}
    monkeypatch.setenv("KFP_TOKEN", "from-variable")
    fairvlm("--upload-only")
    assert sent() == {"Bearer from-variable"}


def test_with_profiles_everything_is_in_the_namespace_that_is_named(fairvlm, kubeflow):
    kubeflow.health = {"multi_user": True}
    status, _, errors = fairvlm()
    assert status == 2
    assert "--namespace" in errors
    assert not kubeflow.created("/pipelines")
    assert fairvlm("--namespace", "team")[0] == 0
    assert kubeflow.created("/pipelines")[0]["namespace"] == "team"
    assert kubeflow.created("/experiments")[0]["namespace"] == "team"
    asked = [query for command, path, query, *_ in kubeflow.asked if (command, path) == ("GET", "/pipelines")]
    assert [query["namespace"] for query in asked] == ["team"]
