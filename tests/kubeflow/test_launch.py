"""A training step in one process, in several of one machine, and on several nodes: the same weights each time."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from bases import TASKS, write_bases, write_cohort_with_images
from pretend_cluster import pretend_cluster

from fairvlm_core.config import read_params
from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.files import read_json
from fairvlm_core.kubeflow import launch, trainjob
from fairvlm_core.kubeflow.call import run_step
from fairvlm_core.steps import STEPS, execute, stage1

PARAMS = {"batch_size": 32, "epochs": 1, "lora_rank": 4, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cohort, its images, base models, and Stage 1 as one process trains it."""
    folder = tmp_path_factory.mktemp("place")
    write_cohort_with_images(folder / "cohort", TASKS["binary"])
    write_bases(folder / "base", TASKS["binary"])
    execute("stage1", stage1.Config(**PARAMS), inputs(folder), {"out": folder / "one"})
    return folder


@pytest.fixture(autouse=True)
def _this_code(monkeypatch):
    """Child processes import this checkout and take one thread each."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def inputs(place):
    return {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base"}


def same(mine, wanted):
    """Weights and figures of two folders of Stage 1, to the tolerance of two ranks against one."""
    from safetensors.torch import load_file

    first, second = (load_file(side / "adapter-stage1" / "adapter_model.safetensors") for side in (mine, wanted))
    assert first.keys() == second.keys()
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5)
    first, second = (read_json(side / "metrics.json", made_by="stage1") for side in (mine, wanted))
    assert first.keys() == second.keys()
    for name, value in second.items():
        if isinstance(value, float) and name != "images_per_second":
            np.testing.assert_allclose(first[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_two_processes_give_what_one_gives(place, tmp_path, monkeypatch):
    logged = {}
    sink = SimpleNamespace(log_metric=logged.__setitem__)
    start = partial(launch.launch, processes=2)
    torchrun = MagicMock(wraps=launch.subprocess.run)
    monkeypatch.setattr(launch.subprocess, "run", torchrun)
    found = run_step("stage1", PARAMS, inputs(place), tmp_path / "two", metrics=sink, start=start)
    assert "--nproc-per-node=2" in torchrun.call_args.args[0]
    same(tmp_path / "two", place / "one")
    assert found == read_json(tmp_path / "two" / "metrics.json", made_by="stage1")
    assert logged == {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


@pytest.mark.parametrize(("gpus", "step", "several"), [(4, "stage1", 4), (1, "stage1", 0), (4, "fair_moe", 0)])
def test_all_gpus_are_used_where_the_step_can(monkeypatch, tmp_path, gpus, step, several):
    """What is asked of torchrun; the processes themselves are in the other tests."""
    commands, alone = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launch, "execute", lambda *given: alone.append(given) or {})

    def run(command, check):
        commands.append(command)
        params = Path(command[command.index("--params") + 1])
        assert read_params(params, "stage1", STEPS)["learning_rate"] == 1e-5
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "metrics.json").write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(launch.subprocess, "run", run)
    given = {"learning_rate": 1e-5} if step == "stage1" else {}
    run_step(step, given, {"cohort": tmp_path / "cohort"}, tmp_path / "out")
    assert (len(commands), len(alone)) == ((1, 0) if several else (0, 1))
    if several:
        assert f"--nproc-per-node={several}" in commands[0]
        assert commands[0][-4:] == ["--cohort", str(tmp_path / "cohort"), "--out", str(tmp_path / "out")]


def test_a_process_of_torchrun_starts_no_others(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "execute", lambda *given: {"here": 1})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert run_step("stage1", {}, {}, tmp_path / "out") == {"here": 1}


def test_a_failed_process_is_one_clear_error(place, tmp_path, capfd):
    given = {**inputs(place), "base": tmp_path / "nothing"}
    with pytest.raises(FairVLMError, match=r"stage1 failed in one of its 2 processes") as caught:
        run_step("stage1", PARAMS, given, tmp_path / "two", start=partial(launch.launch, processes=2))
    assert caught.value.__cause__ is None
    assert "The input base of stage1 does not exist." in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_fair_moe_refuses_several(tmp_path):
    for start, unit in (
        (partial(launch.launch, processes=2), "2 processes"),
        (partial(trainjob.train_job, nodes=2, image="fairvlm", workspace=tmp_path), "2 nodes"),
    ):
        with pytest.raises(ConfigError, match=f"fair_moe runs in a single process, and {unit}") as caught:
            run_step("fair_moe", {}, {}, tmp_path / "out", start=start)
        assert "stage1 and stage2" in str(caught.value)


def test_variables_travel_by_value_and_secrets_do_not(monkeypatch):
    monkeypatch.setenv("FROM_MAP", "there")
    config_map = {"configMapKeyRef": {"name": "fairvlm", "key": "x"}}
    variables = [
        {"name": "PLAIN", "value": "1"},
        {"name": "EMPTY"},
        {"name": "FROM_MAP", "valueFrom": config_map},
        {"name": "NOT_HERE", "valueFrom": config_map},
    ]
    assert trainjob.environment(variables) == {"PLAIN": "1", "EMPTY": "", "FROM_MAP": "there"}
    secret = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    with pytest.raises(ConfigError, match="KEY comes from a secret"):
        trainjob.environment([secret])


def test_a_missing_workspace_is_named(tmp_path):
    start = partial(trainjob.train_job, nodes=2, image="fairvlm", workspace=tmp_path / "none")
    with pytest.raises(ConfigError, match="workspace of the TrainJob does not exist"):
        run_step("stage1", {}, {}, tmp_path / "out", start=start)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    pytest.importorskip("kubeflow.trainer", reason='Skipped: Kubeflow\'s SDK (pip install "fairvlm[trainer]").')
    from kubernetes.config import kube_config

    (tmp_path / "cluster").mkdir()
    (tmp_path / "workspace").mkdir()
    with pretend_cluster(tmp_path / "cluster") as found:
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "cluster" / "kubeconfig"))
        yield found


TASK_CONFIG = SimpleNamespace(
    affinity=None,
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    node_selector={"fairvlm.io/pool": "gpu-large"},
    env=[{"name": "FAIRVLM_TEST", "value": "yes"}],
    volumes=[{"name": "workspace", "persistentVolumeClaim": {"claimName": "run-1"}}],
    volume_mounts=[{"name": "workspace", "mountPath": "/kfp-workspace"}],
    resources={"requests": {"cpu": "8", "memory": "32Gi"}, "limits": {"cpu": "16", "nvidia.com/gpu": "8"}},
)


def test_two_nodes_give_what_one_process_gives(place, tmp_path, cluster, capsys):
    """The job is the SDK's own, sent to a stand-in of the cluster that starts its command on two nodes."""
    workspace, out = tmp_path / "workspace", tmp_path / "out"
    start = partial(
        trainjob.train_job, nodes=2, image="fairvlm:1", workspace=workspace, task_config=TASK_CONFIG, poll=0.3
    )
    found = run_step("stage1", PARAMS, inputs(place), out, start=start)
    same(out, place / "one")
    assert found == read_json(out / "metrics.json", made_by="stage1")

    ((name, job),) = cluster.jobs.items()
    trainer, (patch,) = job["spec"]["trainer"], job["spec"]["runtimePatches"]
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert (trainer["numNodes"], trainer["image"]) == (2, "fairvlm:1")
    assert trainer["command"][:4] == ["torchrun", "-m", "fairvlm_core.cli", "stage1"]
    assert str(workspace) in trainer["command"][-1]
    assert trainer["env"] == [{"name": "FAIRVLM_TEST", "value": "yes"}]
    asked = {"cpu": "16", "memory": "32Gi", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"] == {"limits": asked, "requests": asked}
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    spec = node["template"]["spec"]["template"]["spec"]
    assert node["name"] == "node"
    assert spec["nodeSelector"] == TASK_CONFIG.node_selector
    assert spec["tolerations"] == TASK_CONFIG.tolerations
    assert spec["volumes"] == TASK_CONFIG.volumes
    # The webhook of Kubeflow Trainer refuses `env` here.
    assert spec["containers"] == [{"name": "node", "volumeMounts": TASK_CONFIG.volume_mounts}]

    assert cluster.deleted == [name]
    assert list(workspace.iterdir()) == []
    printed = capsys.readouterr().out
    assert f"TrainJob {name}: node-0 Succeeded, node-1 Succeeded." in printed
    first = cluster.log(name, 0).read_text().splitlines()
    assert first
    assert [line for line in printed.splitlines() if not line.startswith("TrainJob")] == first


def test_a_failed_node_is_one_clear_error(place, tmp_path, cluster, capsys):
    workspace = tmp_path / "workspace"
    (workspace / "base").mkdir()  # An input on the workspace is not copied.
    start = partial(trainjob.train_job, nodes=2, image="fairvlm:1", workspace=workspace, poll=0.3)
    given = {**inputs(place), "base": workspace / "base"}
    with pytest.raises(FairVLMError, match="stage1 failed on one of its 2 nodes"):
        run_step("stage1", PARAMS, given, tmp_path / "out", start=start)
    printed = capsys.readouterr().out
    assert "bases.json is missing" in printed
    assert "node-1: " in printed
    ((name, job),) = cluster.jobs.items()
    assert job["spec"]["trainer"]["command"][-3] == str(workspace / "base")
    assert cluster.deleted == [name]
    assert not (tmp_path / "out").exists()
    # What a second try needs is kept.
    assert sorted(path.name for path in (workspace / "stage1").iterdir()) == ["inputs", "params.yaml"]
    assert yaml.safe_load((workspace / "stage1" / "params.yaml").read_text())["stage1"]["learning_rate"] == 1e-3


def test_a_job_that_is_interrupted_is_deleted(place, tmp_path, cluster, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainjob, "_watch", interrupted)
    start = partial(trainjob.train_job, nodes=2, image="fairvlm:1", workspace=tmp_path / "workspace")
    with pytest.raises(KeyboardInterrupt):
        run_step("stage1", PARAMS, inputs(place), tmp_path / "out", start=start)
    assert cluster.deleted == list(cluster.jobs)
    assert not (tmp_path / "workspace" / "stage1" / "job").exists()


def test_the_job_of_a_killed_pod_is_deleted_first(place, tmp_path, cluster, monkeypatch):
    (tmp_path / "workspace" / "stage1").mkdir()
    (tmp_path / "workspace" / "stage1" / "job").write_text("stage1-before")
    cluster.nodes["stage1-before"] = []
    monkeypatch.setattr(trainjob, "_watch", lambda *_: "Failed")
    start = partial(trainjob.train_job, nodes=2, image="fairvlm:1", workspace=tmp_path / "workspace")
    with pytest.raises(FairVLMError, match="failed on one of its 2 nodes"):
        run_step("stage1", PARAMS, inputs(place), tmp_path / "out", start=start)
    assert cluster.deleted == ["stage1-before", *cluster.jobs]


def test_a_cluster_that_refuses_is_one_clear_error(place, tmp_path, cluster):
    start = partial(trainjob.train_job, nodes=2, image="x", workspace=tmp_path / "workspace", runtime="other")
    with pytest.raises(FairVLMError, match="could not be created: Failed to get Runtime: other"):
        run_step("stage1", PARAMS, inputs(place), tmp_path / "out", start=start)
