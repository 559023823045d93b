"""The compiled pipeline is the one of the source, asks for the right nodes, and refers to nothing undeclared."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from graphs import LAST, OUTSIDE, executor_of, step_of, tasks_of

from components.image import IMAGE
from fairvlm_core.cohort.adapters import ADAPTERS
from fairvlm_core.config import build
from fairvlm_core.errors import ConfigError
from fairvlm_core.kubeflow.call import whole
from fairvlm_core.kubeflow.plan import sections
from fairvlm_core.steps import STEPS, step_module
from pipelines import pools
from pipelines.compile import COMPILED, compile_to, compiled, main
from pipelines.fairvlm import FORM, LITERALS, PARAMS_FILE, default_params, fairvlm
from pipelines.pools import CLUSTERS, GPU, STEP_POOLS, Pool, described

TRAINING = ("stage1", "stage2", "fair_moe")
ACCELERATED = {*TRAINING, "predict", "champion"}
FROM_POOL = re.compile(r"^\{\{\$\.inputs\.parameters\['pipelinechannel--(pool(?:-\d+)?)-(\w+)'\]\}\}$")


@pytest.fixture(scope="module")
def documents():
    return compiled(COMPILED)


@pytest.fixture
def kubernetes(documents):
    """Executor -> what it has of Kubernetes' own."""
    return documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks(spec):
    return tasks_of(spec).values()


def constants(task):
    """The task's parameters that are fixed in the compiled file."""
    given = task["inputs"]["parameters"]
    return {name: value["runtimeValue"]["constant"] for name, value in given.items() if "runtimeValue" in value}


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


def test_training_and_prediction_ask_for_their_pool_and_nobody_else_for_a_gpu(documents, kubernetes):
    spec = documents[0]
    accelerated, cpu = set(), CLUSTERS["own-labels"].pools["cpu"]
    for task in tasks(spec):
        label, executor = executor_of(spec, task)
        resources, step = executor["container"]["resources"], step_of(spec, task)
        placed = kubernetes[label]
        if step not in ACCELERATED:
            assert "accelerator" not in resources
            assert not {"nodeSelector", "tolerations"} & set(placed)
            assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == (cpu.cpu, cpu.memory)
            continue
        accelerated.add(step)
        assert resources["accelerator"]["resourceType"] == GPU
        asked = {
            "gpus": resources["accelerator"]["resourceCount"],
            "cpu": resources["resourceCpuLimit"],
            "memory": resources["resourceMemoryLimit"],
        }
        (source,) = {FROM_POOL.match(value).group(1) for value in asked.values()}
        assert all(FROM_POOL.match(value).group(2) == name for name, value in asked.items())
        # All that it asks for is said by one task, which reads the form's field of this step.
        own = {"taskOutputParameter": {"producerTask": source, "outputParameterKey": "selector"}}
        assert placed["nodeSelector"]["nodeSelectorJson"] == own
        own["taskOutputParameter"]["outputParameterKey"] = "tolerations"
        assert [toleration["tolerationJson"] for toleration in placed["tolerations"]] == [own]
        chosen = tasks_of(spec)[source]["inputs"]["parameters"]
        field = "predict" if step == "champion" else step
        assert chosen["name"]["componentInputParameter"].endswith(f"{field}_pool")
        assert chosen["step"]["runtimeValue"]["constant"] == field
        assert {"mountPath": "/dev/shm", "medium": "Memory"}.items() <= placed["emptyDirMounts"][-1].items()
    assert accelerated == ACCELERATED
    form = spec["root"]["inputDefinitions"]["parameters"]
    assert {step: form[f"{step}_pool"]["defaultValue"] for step in STEP_POOLS} == STEP_POOLS


def test_what_a_task_does_not_declare_is_what_kfp_itself_adds(documents):
    """Resources travel as parameters that no component declares: each must be there, and come from a task beside it."""
    spec = documents[0]
    for task in tasks(spec):
        declared = spec["components"][task["componentRef"]["name"]].get("inputDefinitions", {}).get("parameters", {})
        given = task.get("inputs", {}).get("parameters", {})
        more = {name: value for name, value in given.items() if name not in declared}
        for name, value in more.items():
            if name.startswith("pipelinechannel--"):
                assert value["taskOutputParameter"]["producerTask"] in tasks_of(spec)
            else:
                assert FROM_POOL.match(value["runtimeValue"]["constant"])
        assert not more or step_of(spec, task) in ACCELERATED


def test_the_champion_and_the_registration_are_made_anew_in_each_run_and_so_is_the_plan(documents, kubernetes):
    spec = documents[0]
    cached = {step_of(spec, task): task["cachingOptions"].get("enableCache", False) for task in tasks(spec)}
    assert {step for step, answer in cached.items() if not answer} == {"champion", "register", "plan"}
    for task in tasks(spec):
        label, _ = executor_of(spec, task)
        told = [name["configMapName"] for name in kubernetes[label].get("configMapAsEnv", [])]
        assert told == (["fairvlm"] if step_of(spec, task) in ("champion", "register") else [])


def test_what_is_fetched_is_kept_under_its_commit_and_never_under_a_branch(documents):
    spec = documents[0]
    (fetched,) = (task for task in tasks(spec) if step_of(spec, task) == "fetch_dataset")
    given = fetched["inputs"]["parameters"]
    for name, key in (("commit", "commit"), ("data_hash", "data_hash")):
        assert given[name] == {"taskOutputParameter": {"producerTask": "plan", "outputParameterKey": key}}
    assert not [name for name, value in given.items() if "revision" in json.dumps(value)]
    readers = [
        step_of(spec, task) for task in tasks(spec) if "fetch_dataset_revision" in json.dumps(task.get("inputs", {}))
    ]
    assert readers == ["plan"]


def test_nothing_starts_before_the_plan(documents):
    """A mistake in the form is refused before a GPU is asked for."""
    graph = tasks_of(documents[0])

    def waits_for(name):
        direct = set(graph[name].get("dependentTasks", []))
        return direct.union(*(waits_for(other) for other in direct))

    assert all("plan" in waits_for(name) for name in graph if name != "plan")


def test_pods_are_not_root_say_their_step_and_hold_no_token_that_they_do_not_need(documents, kubernetes):
    spec = documents[0]
    everything = [*tasks(spec), spec["root"]["dag"]["tasks"]["report-status"]]
    for task in everything:
        label, executor = executor_of(spec, task)
        step, own = step_of(spec, task), kubernetes[label]
        assert own["securityContext"] == {"runAsUser": "10001", "runAsGroup": "0", "runAsNonRoot": True}
        assert own["podMetadata"]["labels"] == {"fairvlm.io/step": step}
        assert {mount["mountPath"] for mount in own["emptyDirMounts"]} >= {"/tmp"}
        assert ("secretAsEnv" in own) == (step in ("plan", "fetch_dataset"))
        assert executor["container"]["image"] == IMAGE
        assert "env" not in executor["container"]
    assert {step_of(spec, task) for task in everything} == {*STEPS, *OUTSIDE, LAST}


def test_a_training_task_is_tried_again_and_finds_its_checkpoint(documents):
    spec, platforms = documents
    for task in tasks(spec):
        step, again = step_of(spec, task), task.get("retryPolicy", {}).get("maxRetryCount", 0)
        assert (again > 0) == (step in (*TRAINING, "fetch_dataset", "register")), step
        if step in TRAINING:
            assert constants(task)["workspace"] == "{{$.workspace_path}}"
    config = platforms["platforms"]["kubernetes"]["pipelineConfig"]
    assert config["workspace"]["size"]
    assert 0 < config["resourceTtlOnSuccess"] <= config["resourceTtlOnFailure"]
    assert config["activeDeadlineSeconds"] > 0


def test_the_run_ends_with_its_status_however_it_ends(documents):
    last = documents[0]["root"]["dag"]["tasks"]["report-status"]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert "taskFinalStatus" in last["inputs"]["parameters"]["status"]


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
                for source in task.get("inputs", {}).get(kind, {}).values():
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
            given = task.get("inputs", {}).get("parameters", {})
            for port, declared in inputs(called, "parameters").items():
                if port not in given and not declared.get("isOptional"):
                    found.append(f"{where}/{name}: {port} is not given")
            if "dag" in called:
                graph(called, f"{where}/{name}")
            else:
                executor = spec["deploymentSpec"]["executors"][called["executorLabel"]]
                for port in re.findall(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}", json.dumps(executor)):
                    if port not in given:
                        found.append(f"{where}/{name}: its container reads {port}")

    graph(spec["root"], "root")
    return found


def test_nothing_refers_to_an_undeclared_input(documents):
    assert not undeclared(documents[0])


def test_the_lint_sees_an_undeclared_input(documents):
    spec = copy.deepcopy(documents[0])
    handler = next(name for name, component in spec["components"].items() if "dag" in component)
    del spec["components"][handler]["inputDefinitions"]["parameters"]["pipelinechannel--stage1_pool"]
    _, executor = executor_of(spec, tasks_of(spec)["predict"])
    executor["container"]["resources"]["accelerator"]["resourceCount"] = "{{$.inputs.parameters['gpus']}}"
    del spec["components"]["comp-ingest"]["outputDefinitions"]["artifacts"]["out"]
    found = "\n".join(undeclared(spec))
    assert "stage1_pool is no input of root" in found
    assert "its container reads gpus" in found
    assert "ingest has no output out" in found


def test_no_task_stands_inside_a_condition_or_a_loop(documents):
    assert [name for name, component in documents[0]["components"].items() if "dag" in component] == [
        "comp-exit-handler-1"
    ]


def test_the_form_is_short_and_its_defaults_are_those_of_the_params_file(documents):
    """Through the compiled file and the plan, each section builds the same config as it does for `dvc repro`."""
    spec = documents[0]
    form = spec["root"]["inputDefinitions"]["parameters"]
    assert len(form) <= 12
    assert all(value["isOptional"] for value in form.values())
    steps = (*STEPS, "fetch_dataset", "params")
    assert all(any(name.startswith(step) for step in steps) for name in form)
    fixed = constants(tasks_of(spec)["plan"])
    given = {key: form[key.replace(".", "_")]["defaultValue"] for key in FORM}
    planned = sections(fixed["defaults"], form["params"]["defaultValue"], given)
    local = yaml.safe_load(PARAMS_FILE.read_text())
    for step in STEPS:
        config = step_module(step).Config
        assert build(config, whole(planned[step]), where=step) == build(config, local.get(step) or {}, where=step)


def test_lists_are_offered_where_there_is_a_choice(documents):
    form = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert {name for name, value in form.items() if "literals" in value} == set(LITERALS)
    for name, values in LITERALS.items():
        assert form[name]["literals"] == list(values)
        assert form[name]["defaultValue"] in values
    assert form["ingest_dataset"]["literals"] == list(ADAPTERS)


def test_every_cluster_compiles_with_its_own_nodes(tmp_path):
    for name, cluster in CLUSTERS.items():
        path = tmp_path / f"{name}.yaml"
        main(["--cluster", name, str(path)])
        spec = compiled(path)[0]
        assert constants(tasks_of(spec)["plan"])["pools"] == described(cluster)
        assert cluster.pools["gpu-large"].selector
        assert cluster.pools["gpu-large"].selector != cluster.pools["gpu-small"].selector
        assert not undeclared(spec)


def test_a_volume_of_base_models_is_mounted_where_they_are_read(tmp_path, kubernetes):
    assert not [own for own in kubernetes.values() if "pvcMount" in own]
    main(["--models", "weights", str(tmp_path / "a.yaml")])
    spec, platforms = compiled(tmp_path / "a.yaml")
    mounted = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    found = {step_of(spec, task): mounted[executor_of(spec, task)[0]].get("pvcMount") for task in tasks(spec)}
    assert {step for step, mount in found.items() if mount} == {*ACCELERATED, "base_models", "register"}
    assert {mount[0]["mountPath"] for mount in found.values() if mount} == {"/models"}


def test_over_several_nodes_the_stages_are_train_jobs_with_what_the_task_was_given(tmp_path):
    main(["--nodes", "2", str(tmp_path / "a.yaml")])
    spec, platforms = compiled(tmp_path / "a.yaml")
    for step in ("stage1", "stage2"):
        component = spec["components"][f"comp-{step}-job"]
        passed = {item["field"] for item in component["taskConfigPassthroughs"]}
        assert {"RESOURCES", "KUBERNETES_TOLERATIONS", "KUBERNETES_NODE_SELECTOR", "KUBERNETES_VOLUMES"} <= passed
        task = tasks_of(spec)[f"{step}-job"]
        assert constants(task)["nodes"] == 2
        assert constants(task)["image"] == IMAGE
        assert "accelerator" in executor_of(spec, task)[1]["container"]["resources"]
    assert "comp-fair-moe" in spec["components"]  # trains in a single process
    workspace = platforms["platforms"]["kubernetes"]["pipelineConfig"]["workspace"]
    assert workspace["kubernetes"]["pvcSpecPatch"] == {"accessModes": ["ReadWriteMany"]}
    assert not undeclared(spec)
    with pytest.raises(SystemExit):
        main(["--nodes", "0", str(tmp_path / "b.yaml")])


def test_an_unknown_cluster_is_named_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--cluster", "gkee"])
    assert caught.value.code == 2
    assert 'Did you mean "gke"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"cpu": Pool("2", "6Gi")}, 'asks for the pool "gpu-large"'),
        ({"gpu-large": Pool("2", "6Gi"), "gpu-small": Pool("2", "6Gi", 1)}, "has no GPU"),
    ],
)
def test_a_pool_that_does_not_do_is_refused_when_it_is_compiled(broken, words, monkeypatch, tmp_path):
    monkeypatch.setitem(CLUSTERS, "broken", pools.Cluster(broken))
    with pytest.raises(ConfigError, match=words):
        compile_to(tmp_path / "pipeline.yaml", cluster="broken")
    assert not list(tmp_path.iterdir())


def test_a_null_that_cannot_be_compiled_is_refused(tmp_path, monkeypatch):
    given = yaml.safe_load(PARAMS_FILE.read_text())
    given["stratify"]["majority_cap"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(given))
    monkeypatch.setattr("pipelines.fairvlm.PARAMS_FILE", tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match=r"stratify\.majority_cap is null"):
        default_params()


def test_a_tag_in_the_place_of_a_digest_is_warned_about(tmp_path, capsys):
    compile_to(tmp_path / "a.yaml", image="registry.example.org/fairvlm:1")
    assert "named by a tag" in capsys.readouterr().err
    compile_to(tmp_path / "b.yaml", image=f"registry.example.org/fairvlm@sha256:{'0' * 64}")
    assert capsys.readouterr().err == ""


def test_kfp_reads_what_was_compiled(documents):
    from kfp import components

    loaded = components.load_component_from_file(str(COMPILED))
    assert set(loaded.component_spec.inputs) == set(documents[0]["root"]["inputDefinitions"]["parameters"])
    assert set(fairvlm.component_spec.inputs) == set(loaded.component_spec.inputs)
    assert default_params()["base_models"]["preset"] == "tiny"


def test_no_secret_and_no_path_of_a_machine_is_compiled_in():
    text = Path(COMPILED).read_text()
    assert str(Path.home()) not in text
    assert not re.search(r"(?i)password=[^$]|token: [^$]", text)
    named = set(re.findall(r"secretName: (\S+)", text))
    assert named == {"fairvlm-dvc"}
