"""The components are thin, complete and self-contained: one per step, with the step's own inputs."""

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kfp import compiler

import components
from fairvlm_core.errors import FairVLMError
from fairvlm_core.steps import STEPS, step_module

ROOT = Path(components.__file__).parent


def compiled_component(name, tmp_path):
    component = getattr(importlib.import_module(f"components.{name}.component"), name)
    compiler.Compiler().compile(component, str(tmp_path / "component.yaml"))
    return component, yaml.safe_load((tmp_path / "component.yaml").read_text())


def test_there_is_one_folder_per_step_and_one_that_fetches():
    folders = {path.parent.name for path in ROOT.glob("*/component.py")}
    assert folders == {*STEPS, "fetch_dataset"}
    assert all((ROOT / folder / "README.md").is_file() for folder in folders)


@pytest.mark.parametrize("name", STEPS)
def test_inputs_of_the_component_are_inputs_of_the_step(name, tmp_path):
    _, spec = compiled_component(name, tmp_path)
    (declared,) = spec["components"].values()
    module = step_module(name)
    assert set(declared["inputDefinitions"]["artifacts"]) == set(module.INPUTS)
    assert set(declared["inputDefinitions"]["parameters"]) == {"params"}
    assert {"out", "metrics"} <= set(declared["outputDefinitions"]["artifacts"])


@pytest.mark.parametrize("name", [*STEPS, "fetch_dataset"])
def test_component_installs_nothing_at_run_time(name, tmp_path):
    _, spec = compiled_component(name, tmp_path)
    (executor,) = spec["deploymentSpec"]["executors"].values()
    assert "pip" not in " ".join(executor["container"]["command"])


@pytest.mark.parametrize("name", [*STEPS, "fetch_dataset"])
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
    ports = {name: SimpleNamespace(path=str(tmp_path / name)) for name in names if name != "params"}
    with pytest.raises(FairVLMError, match="config map"):
        component.python_func(params={}, **ports)
    assert not list(tmp_path.iterdir())


def test_readmes_name_every_input_and_output(tmp_path):
    for name in STEPS:
        _, spec = compiled_component(name, tmp_path)
        (declared,) = spec["components"].values()
        text = (ROOT / name / "README.md").read_text()
        for port in (*declared["inputDefinitions"]["artifacts"], *declared["outputDefinitions"]["artifacts"]):
            assert f"`{port}`" in text, f"{name}/README.md does not say what {port} is"
