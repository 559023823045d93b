"""Two readings of the wiring: from the compiled pipeline, and from the commands in dvc.yaml.

A node is (step, model), model being None for a step that runs once. An edge is (node, input, producing node), and the
producer is None for what comes from outside the steps: the release.
"""

import itertools
import re
import shlex

import yaml

# Tasks without a step: they check and choose what a run asks for, and bring the release.
OUTSIDE = ("plan", "pool", "fetch_dataset")
LAST = "report_status"


def tasks_of(spec):
    """The tasks of a run, which stand in an exit handler, name -> task."""
    (handler,) = (task for name, task in spec["root"]["dag"]["tasks"].items() if name != "report-status")
    return spec["components"][handler["componentRef"]["name"]]["dag"]["tasks"]


def executor_of(spec, task):
    """The executor (container, resources) of a task, and its label."""
    label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
    return label, spec["deploymentSpec"]["executors"][label]


def step_of(spec, task):
    """The step that a task runs: the function that its container is told to execute."""
    _, executor = executor_of(spec, task)
    arguments = executor["container"]["args"]
    return arguments[arguments.index("--function_to_execute") + 1]


def pipeline_edges(spec):
    """Edges of a compiled pipeline; which model a task serves follows from whose artifacts reach it."""
    tasks = tasks_of(spec)

    def producers(name):
        artifacts = tasks[name].get("inputs", {}).get("artifacts", {})
        return {port: source["taskOutputArtifact"]["producerTask"] for port, source in artifacts.items()}

    def node(name):
        step = step_of(spec, tasks[name])
        if step == "predict":
            return step, step_of(spec, tasks[producers(name)["model"]])
        if step in ("tune_thresholds", "evaluate"):
            return step, node(producers(name)["predictions"])[1]
        return None if step in OUTSIDE else (step, None)

    return {
        (node(name), port, node(producer))
        for name in tasks
        if node(name) is not None
        for port, producer in producers(name).items()
    }


def interpolated(content, params):
    """A parsed dvc.yaml with the parameters that its paths name: `${step.field}`."""
    text = re.sub(
        r"\$\{(\w+)\.(\w+)\}",
        lambda m: m[0] if m[1] == "item" else params[m[1]][m[2]],
        yaml.safe_dump(content, sort_keys=False),
    )
    return yaml.safe_load(text)


def dvc_edges(content, inputs):
    """Edges of a dvc.yaml: a flag's path is the `--out` of another stage, or lies outside.

    Args:
        content: the parsed file, interpolated.
        inputs: step -> names of its inputs; other flags are parameters.
    """
    stages = {}
    for step, stage in content["stages"].items():
        matrix = stage.get("matrix", {})
        for values in itertools.product(*matrix.values()):
            item = dict(zip(matrix, values, strict=True))
            command = re.sub(r"\$\{item\.(\w+)\}", lambda match, item=item: item[match[1]], stage["cmd"])
            stages[step, item.get("model")] = flags(command, step)
    written = {given["out"]: node for node, given in stages.items()}
    assert len(written) == len(stages), "two stages write the same folder"
    return {
        (node, port, written.get(given[port]))
        for node, given in stages.items()
        for port in inputs[node[0]]
        if port in given
    }


def flags(command, step):
    """`fairvlm step --a b --c d` as {"a": "b", "c": "d"}, dashes in names as underscores."""
    words = shlex.split(command)
    assert words[:2] == ["fairvlm", step], f"the stage {step} runs something else: {command}"
    names, values = words[2::2], words[3::2]
    assert len(names) == len(values)
    assert all(name.startswith("--") for name in names), f"the stage {step} has a flag without a value: {command}"
    return {name[2:].replace("-", "_"): value for name, value in zip(names, values, strict=True)}
