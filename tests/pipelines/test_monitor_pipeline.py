"""The recurring run of `fairvlm monitor`: compiled, checked, and run on this machine, each task in its own process."""

import json
import os
from pathlib import Path

import pytest
import yaml
from kfp import compiler, local
from test_monitor import put, table

from fairvlm_core.errors import ConfigError
from fairvlm_core.evaluation.monitoring.evidence import Limits
from fairvlm_core.kubeflow.monitor import asked_for
from pipelines.compile import compiled
from pipelines.form import arguments, read_pipeline
from pipelines.monitor import COMPILED, fairvlm_monitor, graph, main

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
ROOT = Path(COMPILED).parent.parent
QUICK = {"monitor": {"resamples": 100}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the pipeline on the given month; returns the folder that holds one folder per task."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "reference", table(n=1200))

    def start(month, params=QUICK):
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(tmp_path / "root"),
            workspace_root=str(tmp_path / "workspace"),
        )
        try:
            fairvlm_monitor(reference=str(tmp_path / "reference"), current=str(month), params=params)
        finally:
            (start.folder,) = (tmp_path / "root").iterdir()

    return start


def test_a_month_that_is_stable_lets_the_run_succeed(run, tmp_path):
    run(put(tmp_path / "month", table(n=1200, seed=1)))
    told = json.loads((run.folder / "monitor" / "out" / "monitor.json").read_text())
    assert told["verdict"] != "drifted"
    assert told["resamples"] == 100
    page = (run.folder / "monitor" / "report").read_text()
    assert page == (run.folder / "monitor" / "out" / "monitor.html").read_text()


def test_a_month_that_drifted_fails_the_run_and_leaves_its_report(run, tmp_path, capfd):
    with pytest.raises(RuntimeError, match="alarm"):
        run(put(tmp_path / "month", table(n=1200, seed=1, women=0.3)))
    assert "Drift:" in (run.folder / "monitor" / "short").read_text()
    assert "Drift:" in capfd.readouterr().out


def test_a_mistake_fails_the_task_with_its_reason(run, tmp_path, capfd):
    with pytest.raises(RuntimeError, match="monitor"):
        run(put(tmp_path / "month", table(n=1200, seed=1)), {"monitor": {"dpd_rize": 0.2}})
    assert 'Did you mean "dpd_rise"?' in capfd.readouterr().out


def test_the_compiled_file_is_that_of_the_code(tmp_path):
    main([str(tmp_path / "monitor.yaml")])
    assert compiled(tmp_path / "monitor.yaml") == compiled(COMPILED)
    assert COMPILED.read_text().startswith("# Compiled by python -m pipelines.monitor; edit pipelines/monitor.py")
    compiler.Compiler().compile(graph(cluster="gke"), str(tmp_path / "gke.yaml"))
    with pytest.raises(SystemExit):
        main(["--cluster", "gky"])


def test_nothing_of_a_month_comes_from_a_cache():
    spec = compiled(COMPILED)[0]
    for name, task in spec["root"]["dag"]["tasks"].items():
        if not name.startswith("importer"):
            assert not task.get("cachingOptions", {}).get("enableCache")
    importers = [part["importer"] for part in spec["deploymentSpec"]["executors"].values() if "importer" in part]
    assert [part["reimport"] for part in importers] == [True, True]


def test_submit_takes_it_and_checks_the_form():
    pipeline = read_pipeline(COMPILED)
    addresses = ["reference=s3://models/reference", "current=s3://months/latest"]
    form = arguments(pipeline, None, [*addresses, "monitor.dpd_rise=0.2"])
    assert form == {
        "reference": "s3://models/reference",
        "current": "s3://months/latest",
        "params": {"monitor": {"dpd_rise": 0.2}},
    }
    for changes, message in (
        (addresses[:1], "no address"),
        ([*addresses, "monitor.dpd_rize=0.2"], "dpd_rize"),
        ([*addresses, "stage1.epochs=3"], "no parameters of stage1"),
        ([*addresses, "compare.criterion=auc"], "no parameters of compare"),
        ([*addresses, "monitor.dpd_rise=3"], "limit of 3"),
        ([*addresses, "curent=x"], "no single field"),
    ):
        with pytest.raises(ConfigError, match=message):
            arguments(pipeline, None, changes)
    with pytest.raises(ConfigError, match="no steps"):
        arguments(pipeline, ROOT / "params.yaml", addresses)


def test_another_pipeline_is_refused_still(tmp_path):
    documents = list(yaml.safe_load_all(COMPILED.read_text()))
    documents[0]["pipelineInfo"]["name"] = "another"
    (tmp_path / "another.yaml").write_text(yaml.safe_dump_all(documents))
    with pytest.raises(ConfigError, match="not the compiled pipeline"):
        read_pipeline(tmp_path / "another.yaml")


def test_parameters_arrive_as_they_were_given():
    asked, others = asked_for(
        {"monitor": {"min_cell": 20.0, "auc_drop": 0.02, "dpd": 0.3, "raw": True, "split": "test"}}
    )
    assert (asked.min_cell, asked.limits) == (20, Limits(auc_drop=0.02, dpd=0.3))
    assert others == {"raw": True, "split": "test"}
    for wrong in ({"raw": 1}, {"min_cell": "many"}, {"auc_drop": True}, {"split": 3}):
        with pytest.raises(ConfigError, match="wrong type"):
            asked_for({"monitor": wrong})
