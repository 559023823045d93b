"""The compiled pipeline is the one of the source, asks for the right nodes, and refers to nothing undeclared."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from graphs import executor_of, step_of

from fairvlm_core.config import build
from fairvlm_core.steps import STEPS, step_module
from fairvlm_core.steps.call import whole
from pipelines.compile import COMPILED, compile_to, compiled
from pipelines.fairvlm import PARAMS_FILE
from pipelines.pools import NODE_LABEL, POOLS, STEP_POOLS

TRAINING = ("stage1", "stage2", "fair_moe")


@pytest.fixture(scope="module")
def documents():
    return compiled(COMPILED)


def tasks(spec):
    return spec["root"]["dag"]["tasks"].values()


def test_the_committed_file_is_what_the_source_compiles_to(tmp_path, documents):
    compile_to(tmp_path / "fresh.yaml")
    assert compiled(tmp_path / "fresh.yaml") == documents, "run `make pipeline` and commit pipelines/fairvlm.yaml"


def test_compiling_again_leaves_an_equal_file_alone(tmp_path):
    path = tmp_path / "fresh.yaml"
    compile_to(path)
    path.write_text(path.read_text() + "# kept\n")
    compile_to(path)
    assert path.read_text().endswith("# kept\n")
    path.write_text(path.read_text().replace("name: fairvlm", "name: other"))
    compile_to(path)
    assert "name: other" not in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["fresh.yaml"]


def test_training_and_prediction_ask_for_their_pool_and_nobody_else_for_a_gpu(documents):
    spec, platforms = documents
    kubernetes = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    accelerated = set()
    for task in tasks(spec):
        label, executor = executor_of(spec, task)
        resources, step = executor["container"]["resources"], step_of(spec, task)
        pool = POOLS[STEP_POOLS.get(step, "cpu")]
        assert resources["resourceCpuLimit"] == pool.cpu
        assert resources["resourceMemoryLimit"] == pool.memory
        placed = kubernetes.get(label, {})
        if "accelerator" in resources:
            accelerated.add(step)
            accelerator = resources["accelerator"]
            assert (accelerator["resourceType"], accelerator["resourceCount"]) == (pool.accelerator, str(pool.count))
            assert placed["nodeSelector"]["labels"] == {NODE_LABEL: pool.node}
            assert [t["key"] for t in placed["tolerations"]] == list(pool.tolerations)
        else:
            assert "nodeSelector" not in placed
            assert "tolerations" not in placed
    assert accelerated == {*TRAINING, "predict", "champion"}


def test_the_champion_alone_is_judged_anew_in_each_run_and_it_knows_the_registry_as_register_does(documents):
    spec, platforms = documents
    kubernetes = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    cached = {step_of(spec, task): task["cachingOptions"].get("enableCache", False) for task in tasks(spec)}
    assert {step for step, answer in cached.items() if not answer} == {"champion"}
    told = {step_of(spec, task): kubernetes.get(executor_of(spec, task)[0], {}) for task in tasks(spec)}
    informed = {step: placed["configMapAsEnv"] for step, placed in told.items() if "configMapAsEnv" in placed}
    assert informed.keys() == {"champion", "register"}
    assert informed["champion"] == informed["register"]


def undeclared(spec):
    """Every reference of a task or container to an input or output that nobody declares."""
    found = []

    def inputs(component, kind):
        return component.get("inputDefinitions", {}).get(kind, {})

    def graph(component, where):
        inner = component["dag"]["tasks"]
        for name, task in inner.items():
            called = spec["components"][task["componentRef"]["name"]]
            for kind in ("parameters", "artifacts"):
                for port, source in task.get("inputs", {}).get(kind, {}).items():
                    if port not in inputs(called, kind):
                        found.append(f"{where}/{name}: {port} is no input of its component")
                    outer = source.get("componentInputParameter") or source.get("componentInputArtifact")
                    if outer and outer not in inputs(component, kind):
                        found.append(f"{where}/{name}: {outer} is no input of {where}")
                    made = source.get("taskOutputArtifact") or source.get("taskOutputParameter")
                    if made:
                        key = made.get("outputArtifactKey") or made.get("outputParameterKey")
                        producer = inner.get(made["producerTask"])
                        outputs = (
                            spec["components"][producer["componentRef"]["name"]]["outputDefinitions"]
                            if producer
                            else {}
                        )
                        if key not in outputs.get(kind, {}):
                            found.append(f"{where}/{name}: {made['producerTask']} has no output {key}")
            for port, declared in inputs(called, "parameters").items():
                if port not in task.get("inputs", {}).get("parameters", {}) and not declared.get("isOptional"):
                    found.append(f"{where}/{name}: {port} is not given")
            if "dag" in called:
                graph(called, f"{where}/{name}")
            else:
                executor = spec["deploymentSpec"]["executors"][called["executorLabel"]]
                for port in re.findall(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}", json.dumps(executor)):
                    if port not in inputs(called, "parameters"):
                        found.append(f"{where}/{name}: its container reads {port}")

    graph(spec["root"], "root")
    return found


def test_nothing_refers_to_an_undeclared_input(documents):
    assert not undeclared(documents[0])


def test_the_lint_sees_an_undeclared_input(documents):
    spec = copy.deepcopy(documents[0])
    del spec["root"]["inputDefinitions"]["parameters"]["stage1_params"]
    _, executor = executor_of(spec, spec["root"]["dag"]["tasks"]["predict"])
    executor["container"]["resources"]["accelerator"]["resourceCount"] = "{{$.inputs.parameters['gpus']}}"
    del spec["components"]["comp-ingest"]["outputDefinitions"]["artifacts"]["out"]
    found = "\n".join(undeclared(spec))
    assert "stage1_params is no input of root" in found
    assert "its container reads gpus" in found
    assert "ingest has no output out" in found


def test_no_task_stands_inside_a_condition_or_a_loop(documents):
    assert all("dag" not in component for component in documents[0]["components"].values())


def test_defaults_in_the_form_are_those_of_the_params_file(documents):
    """Through the compiled file and back, each section builds the same config as it does for `dvc repro`."""
    declared = documents[0]["root"]["inputDefinitions"]["parameters"]
    local = yaml.safe_load(PARAMS_FILE.read_text())
    assert {name for name in declared if name.endswith("_params")} == {f"{step}_params" for step in STEPS}
    for step in STEPS:
        config = step_module(step).Config
        here = build(config, local.get(step) or {}, where=step)
        assert build(config, whole(declared[f"{step}_params"]["defaultValue"]), where=step) == here


def test_no_secret_and_no_path_of_a_machine_is_compiled_in():
    text = Path(COMPILED).read_text()
    assert str(Path.home()) not in text
    assert not re.search(r"(?i)password|secret|token:", text)
