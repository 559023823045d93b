"""The pipeline as it is compiled for Kubeflow, run to the end on this machine, each task in its own process."""

import json
import os
from pathlib import Path

import pytest
from graphs import OUTSIDE, step_of, tasks_of
from kfp import local
from small_run import SMALL

from components.image import IMAGE
from fairvlm_core.steps import STEPS
from pipelines.compile import COMPILED, compiled
from pipelines.fairvlm import fairvlm

ROOT = Path(COMPILED).parent.parent


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the pipeline with the small parameters and those given; returns the folder that holds one folder per task."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DVC_NO_ANALYTICS"):
        monkeypatch.setenv(name, "true")
    monkeypatch.chdir(tmp_path)

    def start(**params):
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(tmp_path / "root"),
            workspace_root=str(tmp_path / "workspace"),
        )
        try:
            fairvlm(params={step: {**SMALL.get(step, {}), **params.get(step, {})} for step in STEPS})
        finally:
            (folder,) = (tmp_path / "root").iterdir()
            start.folder = folder

    return start


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_the_whole_pipeline_runs_to_the_end(run, tmp_path):
    run()
    spec = compiled(COMPILED)[0]
    tasks = {name: step_of(spec, task) for name, task in tasks_of(spec).items()}
    finished = {path.parent.name for path in run.folder.glob("*/executor_output.json")}
    assert finished == {*tasks, "report-status"}
    for name, step in tasks.items():
        if step not in OUTSIDE:
            assert json.loads((run.folder / name / "out" / "metrics.json").read_text()) is not None
    assert "SUCCEEDED" in (run.folder / "report-status" / "summary").read_text()
    assert not list(run.folder.rglob("*.partial"))

    page = (run.folder / "compare" / "report").read_text()
    assert page == (run.folder / "compare" / "out" / "report.html").read_text()
    assert "<html" in page
    told = json.loads((run.folder / "evaluate" / "executor_output.json").read_text())
    shown = told["artifacts"]["classification"]["artifacts"][0]["metadata"]
    assert set(shown) == {"confidenceMetrics", "confusionMatrix"}
    counted = sum(sum(row["row"]) for row in shown["confusionMatrix"]["rows"])
    assert counted == json.loads((run.folder / "evaluate" / "out" / "metrics.json").read_text())["test_n"]

    short = (run.folder / "compare" / "short").read_text()
    assert short == (run.folder / "compare" / "out" / "report.md").read_text()

    from mlflow import MlflowClient

    assert json.loads((run.folder / "champion" / "out" / "champion.json").read_text())["version"] is None
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (registered,) = client.search_registered_models()
    version = client.get_model_version_by_alias(registered.name, "challenger")
    assert client.get_run(version.run_id).data.metrics
    # The component hands on what only the pipeline knows.
    assert version.tags["image"] == IMAGE
    assert version.tags["kfp_run_id"]
    assert "dataset_commit" not in version.tags  # nothing was fetched
    kept = Path(client.download_artifacts(version.run_id, "lineage", str(tmp_path)))
    sections = json.loads((kept / "params.json").read_text())
    assert list(sections) == sorted(STEPS)
    assert sections["stage1"]["epochs"] == SMALL["stage1"]["epochs"]
    assert isinstance(sections["stage1"]["epochs"], int)
    assert json.loads((kept / "origin.json").read_text())["kfp_run_id"] == version.tags["kfp_run_id"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_a_step_that_fails_fails_the_run_and_nothing_after_it_starts(run, capfd):
    with pytest.raises(RuntimeError, match="stratify"):
        run(stratify={"attributes": ["sexx"]})
    tasks = {path.name for path in run.folder.iterdir()}
    assert "validate" in tasks
    assert not tasks & {"base-models", "stage1", "register"}
    assert 'Did you mean "sex"?' in capfd.readouterr().out  # the task's log says what was probably meant
    assert "**FAILED**" in (run.folder / "report-status" / "summary").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_a_mistake_in_the_form_is_refused_before_anything_is_fetched(run, capfd):
    with pytest.raises(RuntimeError, match="plan"):
        run(validate={"min_grup": 30})
    assert {path.name for path in run.folder.iterdir()} <= {"plan", "report-status"}
    assert "min_group" in capfd.readouterr().out
