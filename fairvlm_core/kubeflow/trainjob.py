"""A training step as a TrainJob of Kubeflow Trainer v2: several nodes, each with all the GPUs of its pod.

The runtime of the job starts torchrun on every node, with the command that `launch` gives to torchrun on one machine.
Nodes see nothing of the pod that starts them but a shared volume, the workspace: inputs are copied there, unless they
lie on it already, and the output comes back from there. Checkpoints stay there too: a second try goes on with them.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.files import folder_written, read_json
from fairvlm_core.kubeflow.launch import refuse_alone, words, write_params

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

RUNTIME = "torch-distributed"
# Name of the replicated job, of its pods' container, and of the steps in the SDK, which end in the node's number.
NODE = "node"
ENDED = ("Complete", "Failed")
# Requests to the cluster that may fail in a row: a restart of its API server is no reason to give up days of training.
ATTEMPTS = 30


@dataclass(frozen=True)
class Local:
    """Containers on this machine in place of a cluster, for a test of the way there.

    Attributes:
        backend: a `ContainerBackendConfig` of the SDK.
        name: name of the job; the SDK mounts the folder `~/.kubeflow/trainer/containers/NAME`, the workspace.
        mount: where the containers see that folder.
        env: environment variables of the containers.
    """

    backend: Any
    name: str
    mount: str = "/workspace"
    env: Mapping[str, str] | None = None


def train_job(
    name: str,
    config: Any,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    nodes: int,
    image: str,
    workspace: str | Path,
    task_config: Any = None,
    runtime: str = RUNTIME,
    poll: float = 10.0,
    local: Local | None = None,
) -> dict[str, Any]:
    """Run a step as a TrainJob and wait for its end, with the first node's log in this one.

    Args:
        name: one of `SEVERAL_PROCESSES`.
        config: an instance of the step's `Config`.
        inputs: name -> path.
        out: the folder to write; it may exist already, and is replaced.
        nodes: how many pods train together.
        image: the image of the pods; it has this package.
        workspace: a folder on a volume that the pods mount at the same path (ReadWriteMany), this run's own.
        task_config: what the task would have got, and its pods get: a `kfp.dsl.TaskConfig`, or a mapping with the same
            names (resources, tolerations, node_selector, affinity, env, volumes, volume_mounts), as in a pod's spec.
        runtime: name of the (cluster) training runtime.
        poll: seconds between two looks at the job.
        local: where containers on this machine stand in for the cluster.

    Returns:
        The step's metrics, as `execute` returns them.

    Raises:
        ConfigError: when the step runs in one process, or the pods cannot have what the task has.
        FairVLMError: without the SDK, when the cluster refuses the job, or when it fails; its log is printed by then.
    """
    refuse_alone(name, nodes, "nodes")
    place = Path(workspace) / name
    if not place.parent.is_dir():
        raise ConfigError(
            "The workspace of the TrainJob does not exist.",
            where=str(workspace),
            mend="Give the pipeline a workspace, on a volume that all nodes can mount and write.",
        )
    pod = dict(task_config) if isinstance(task_config, Mapping) else dict(vars(task_config)) if task_config else {}
    env = dict(local.env or {}) if local else environment(pod.get("env") or ())
    client = _client(local)
    place.mkdir(exist_ok=True)
    shared = {key: _on_workspace(path, Path(workspace), place / "inputs" / key) for key, path in inputs.items()}
    params = write_params(place / "params.yaml", name, config)
    seen = {key: _seen(path, workspace, local) for key, path in {**shared, "out": place / "out"}.items()}
    command = words(name, _seen(params, workspace, local), {key: seen[key] for key in inputs}, seen["out"])
    job, earlier = local.name if local else f"{name}-{uuid.uuid4().hex[:8]}", place / "job"
    # A pod that was killed could not delete its job, which would go on writing what this one writes.
    if earlier.exists():
        _delete(client, earlier.read_text())
    earlier.write_text(job)
    _submit(client, job, command, pod, env, nodes=nodes, image=image, runtime=runtime)
    print(f"TrainJob {job}: {nodes} nodes train {name}.", flush=True)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        status = _watch(client, job, poll, local)
        if status != "Complete":
            _print_logs(client, job, nodes)
            raise FairVLMError(
                f"The step {name} failed on one of its {nodes} nodes.",
                where=f"TrainJob {job}",
                mend="The log above has the last lines of every node; the message of the one that failed first counts.",
            )
        with folder_written(Path(out)) as partial:
            shutil.copytree(place / "out", partial, dirs_exist_ok=True)
        shutil.rmtree(place)
    finally:
        # Its pods hold GPUs, also where this wait was interrupted.
        _delete(client, job)
        earlier.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, before)
    return read_json(Path(out) / "metrics.json", made_by=name)


def environment(variables: Any) -> dict[str, str]:
    """Environment variables of a pod's spec as name -> value, which is all that the SDK passes on.

    A key of a config map has its value from this process, which has the same variable. A secret is refused: it would
    stand in the TrainJob for everyone to read.

    Args:
        variables: the list `env` of a container, in Kubernetes' words.

    Raises:
        ConfigError: for a secret.
    """
    values = {}
    for variable in variables:
        key, source = variable["name"], variable.get("valueFrom") or {}
        if "secretKeyRef" in source:
            raise ConfigError(
                f"The variable {key} comes from a secret, which a TrainJob would show.",
                where=f"env of the task, {key}",
                mend="Mount the secret as a volume, or leave it out: training needs none.",
            )
        if not source:
            values[key] = str(variable.get("value") or "")
        elif key in os.environ:
            values[key] = os.environ[key]
    return values


def entry(arguments: list[str]) -> None:
    """The program of every process in local containers, to which the SDK sends nothing but a function's source."""
    import runpy
    import sys

    sys.argv = ["fairvlm", *arguments]
    runpy.run_module("fairvlm_core.cli", run_name="__main__")


def _client(local: Local | None) -> TrainerClient:
    try:
        from kubeflow.trainer import TrainerClient
    except ImportError:
        raise FairVLMError(
            "Kubeflow's SDK is not installed, which starts a TrainJob.", mend='pip install "fairvlm[trainer]"'
        ) from None
    try:
        return TrainerClient(backend_config=local.backend if local else None)
    except Exception as error:
        where = "the containers of this machine" if local else "the cluster of this pod's service account"
        raise FairVLMError(f"Kubeflow's SDK cannot connect: {_reason(error)}", where=where) from error


def _submit(
    client: TrainerClient,
    job: str,
    command: list[str],
    pod: Mapping[str, Any],
    env: dict[str, str],
    *,
    nodes: int,
    image: str,
    runtime: str,
) -> None:
    from kubeflow.trainer import CustomTrainer, CustomTrainerContainer
    from kubeflow.trainer.backends.container.backend import ContainerBackend
    from kubeflow.trainer.options import Name, TrainerCommand

    asked = pod.get("resources") or {}
    common: dict[str, Any] = {
        "image": image,
        "num_nodes": nodes,
        "resources_per_node": {**(asked.get("requests") or {}), **(asked.get("limits") or {})} or None,
        "env": env or None,
    }
    options: list[Any] = [Name(job)]
    if isinstance(client.backend, ContainerBackend):
        trainer: Any = CustomTrainer(func=entry, func_args={"arguments": command}, **common)
    else:
        # The runtime's controller tells torchrun of the other nodes in environment variables.
        trainer = CustomTrainerContainer(**common)
        options += [TrainerCommand(["torchrun", "-m", "fairvlm_core.cli", *command]), *_patches(pod)]
    try:
        client.train(runtime=runtime, trainer=trainer, options=options)
    except Exception as error:
        raise FairVLMError(
            f"The TrainJob could not be created: {_reason(error)}",
            where=f"TrainJob {job}, runtime {runtime}",
            mend="Kubeflow Trainer v2 must be installed, with this runtime, and the service account of the run must be "
            "allowed to create trainjobs.",
        ) from error


def _patches(pod: Mapping[str, Any]) -> list[Any]:
    """What the nodes' pods get beside the runtime's own: the volumes, and the nodes on which they may run."""
    from kubeflow.trainer import options

    mounts = pod.get("volume_mounts")
    spec = options.PodSpecPatch(
        volumes=pod.get("volumes") or None,
        node_selector=pod.get("node_selector") or None,
        affinity=pod.get("affinity") or None,
        tolerations=pod.get("tolerations") or None,
        containers=[options.ContainerPatch(name=NODE, volume_mounts=mounts)] if mounts else None,
    )
    if spec == options.PodSpecPatch():
        return []
    job = options.JobTemplatePatch(spec=options.JobSpecPatch(template=options.PodTemplatePatch(spec=spec)))
    jobs = options.JobSetSpecPatch(replicated_jobs=[options.ReplicatedJobPatch(name=NODE, template=job)])
    template = options.JobSetTemplatePatch(spec=jobs)
    return [options.RuntimePatch(training_runtime_spec=options.TrainingRuntimeSpecPatch(template=template))]


def _on_workspace(path: Path, workspace: Path, copy: Path) -> Path:
    """The path itself if it lies on the workspace, or that of a copy there."""
    if path.resolve().is_relative_to(workspace.resolve()):
        return path
    if not path.exists():
        raise FairVLMError(f"The input {copy.name} does not exist.", where=str(path))
    if path.is_dir():
        with folder_written(copy) as partial:
            shutil.copytree(path, partial, dirs_exist_ok=True)
    else:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return copy


def _seen(path: Path, workspace: str | Path, local: Local | None) -> str:
    """A path on the workspace as the nodes see it."""
    inside = path.resolve().relative_to(Path(workspace).resolve())
    return str(Path(local.mount if local else workspace) / inside)


def _watch(client: TrainerClient, job: str, poll: float, local: Local | None) -> str:
    """Print the states of the nodes as they change and the first node's log as it grows; the job's last status."""
    told, shown, failures = "", 0, 0
    while True:
        try:
            found = client.get_job(job)
            failures = 0
        except Exception as error:
            failures += 1
            if failures == ATTEMPTS:
                raise FairVLMError(
                    f"The TrainJob cannot be watched: {_reason(error)}", where=f"TrainJob {job}"
                ) from error
            time.sleep(poll)
            continue
        states = ", ".join(f"{step.name} {step.status}" for step in sorted(found.steps, key=lambda step: step.name))
        lines = _first_log(client, job, local)
        for line in [f"TrainJob {job}: {states}."] * (states != told) + lines[shown:]:
            print(line, flush=True)
        told, shown = states, max(shown, len(lines))
        if found.status in ENDED:
            return found.status
        time.sleep(poll)


def _first_log(client: TrainerClient, job: str, local: Local | None) -> list[str]:
    """All lines of the first node so far. Of local containers the SDK gives one text each, the first node's first."""
    try:
        texts = client.get_job_logs(job, step=f"{NODE}-0")
        return next(iter(texts), "").splitlines() if local else list(texts)
    except Exception as error:
        return [f"No log of {NODE}-0: {_reason(error)}"]


def _print_logs(client: TrainerClient, job: str, nodes: int, lines: int = 30) -> None:
    """The last lines of every node but the first, whose log is printed already."""
    for node in range(1, nodes):
        try:
            text = "\n".join(client.get_job_logs(job, step=f"{NODE}-{node}")).splitlines()
        except Exception as error:
            text = [f"No log: {_reason(error)}"]
        for line in text[-lines:]:
            print(f"{NODE}-{node}: {line}", flush=True)


def _delete(client: TrainerClient, job: str) -> None:
    try:
        client.delete_job(job)
    except Exception as error:
        print(f"TrainJob {job} could not be deleted: {_reason(error)}", flush=True)


def _stop(*_: Any) -> None:
    """A task that is stopped takes its TrainJob with it."""
    raise SystemExit(143)


def _reason(error: BaseException) -> str:
    """The first line of an error and of its cause, which in the SDK says more."""
    found = [str(each).splitlines()[0] for each in (error, error.__cause__) if each is not None and str(each)]
    return "; ".join(found) or type(error).__name__
