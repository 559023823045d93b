"""The components are thin, complete and self-contained: one per step, with the step's own inputs."""

import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kfp import compiler

import components
from fairvlm_core.errors import FairVLMError
from fairvlm_core.steps import STEPS, step_module
from pipelines.pools import STEP_POOLS

ROOT = Path(components.__file__).parent


def compiled_component(name, tmp_path):
    component = getattr(importlib.import_module(f"components.{name}.component"), name)
    compiler.Compiler().compile(component, str(tmp_path / "component.yaml"))
    return component, yaml.safe_load((tmp_path / "component.yaml").read_text())


# Components without a step.
OTHERS = ("plan", "pool", "fetch_dataset", "report_status", "monitor")
# What a component is told besides its section of parameters.
TOLD = {
    **{name: {"workspace"} for name in ("stage1", "stage2", "fair_moe")},
    "register": {
        *("sections", "dataset_repo", "dataset_path"),
        *("dataset_commit", "dataset_hash", "image", "kfp_run_id"),
    },
}


def test_there_is_one_folder_per_step_and_those_around_them():
    folders = {path.parent.name for path in ROOT.glob("*/component.py")}
    assert folders == {*STEPS, *OTHERS}
    assert all((ROOT / folder / "README.md").is_file() for folder in folders)


@pytest.mark.parametrize("name", STEPS)
def test_inputs_of_the_component_are_inputs_of_the_step(name, tmp_path):
    _, spec = compiled_component(name, tmp_path)
    (declared,) = spec["components"].values()
    module = step_module(name)
    assert set(declared["inputDefinitions"]["artifacts"]) == set(module.INPUTS)
    assert set(declared["inputDefinitions"]["parameters"]) == {"params"} | TOLD.get(name, set())
    assert {"out", "metrics"} <= set(declared["outputDefinitions"]["artifacts"])


@pytest.mark.parametrize("name", [*STEPS, *OTHERS])
def test_component_installs_nothing_at_run_time(name, tmp_path):
    _, spec = compiled_component(name, tmp_path)
    (executor,) = spec["deploymentSpec"]["executors"].values()
    assert not re.search(r"\bpip\b", " ".join(executor["container"]["command"]))


@pytest.mark.parametrize("name", [*STEPS, *OTHERS])
def test_function_needs_no_name_of_its_module(name, tmp_path):
    """kfp ships the source of the function alone: a name of the module would be missing in the pod."""
    component, _ = compiled_component(name, tmp_path)
    outside = inspect.getclosurevars(component.python_func)
    assert not outside.globals
    assert not outside.nonlocals


@pytest.mark.parametrize("name", ["champion", "register"])
def test_registry_in_the_pod_is_refused(name, monkeypatch, tmp_path):
    component = getattr(importlib.import_module(f"components.{name}.component"), name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names = inspect.signature(component.python_func).parameters
    told = dict.fromkeys(TOLD.get(name, ()), "")
    ports = {port: SimpleNamespace(path=str(tmp_path / port)) for port in names if port not in {"params", *told}}
    with pytest.raises(FairVLMError, match="config map"):
        component.python_func(params={}, **told, **ports)
    assert not list(tmp_path.iterdir())


def test_readmes_name_every_input_and_output_and_what_is_asked_for(tmp_path):
    for name in (*STEPS, *OTHERS):
        _, spec = compiled_component(name, tmp_path)
        (declared,) = spec["components"].values()
        text = (ROOT / name / "README.md").read_text()
        for kind in ("inputDefinitions", "outputDefinitions"):
            for ports in declared.get(kind, {}).values():
                for port in ports:
                    assert f"`{port}`" in text or port in STEPS, f"{name}/README.md does not say what {port} is"
        pool = "`predict_pool`" if name == "champion" else f"`{name}_pool`"
        asked = pool if name in STEP_POOLS or name == "champion" else "pool `cpu`"
        assert f"Runs in the {asked}" in text or f"Runs where {asked} says" in text, f"{name}/README.md: resources"


def test_the_plan_hands_out_a_section_for_every_step_in_their_order(tmp_path):
    _, spec = compiled_component("plan", tmp_path)
    (declared,) = spec["components"].values()
    assert set(declared["outputDefinitions"]["parameters"]) == {"commit", "data_hash", "sections", *STEPS}
    component = importlib.import_module("components.plan.component").plan.python_func
    assert tuple(component.__annotations__["return"]._fields) == ("commit", "data_hash", "sections", *STEPS)
