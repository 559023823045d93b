"""Where each step runs: the node pools of a cluster, and which step asks for which.

The steps' pools are chosen when the pipeline is compiled, and a run's form may choose others. What a pool is, is fixed
in the compiled file. To fit a cluster, take one of the presets (`python -m pipelines.compile --cluster gke`) or edit
this file.

What a pod asks for comes from the task `pool` beside it, never from a parameter of the run: inside an exit handler kfp
compiles a parameterised resource to an input that nobody declares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kfp import dsl, kubernetes

from fairvlm_core.errors import ConfigError, nearest

STEP_LABEL = "fairvlm.io/step"
GPU = "nvidia.com/gpu"
USER = 10001  # of the image


@dataclass(frozen=True)
class Pool:
    """One kind of node.

    Attributes:
        cpu: cores that the task may use.
        memory: memory that the task may use, in Kubernetes' units.
        gpus: how many.
        selector: labels of the nodes.
        taints: keys of the taints that keep other work off these nodes.
    """

    cpu: str
    memory: str
    gpus: int = 0
    selector: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cluster:
    """The pools of a cluster.

    Attributes:
        pools: name -> pool.
        accelerator: the resource that its device plugin offers.
        models: claim of a volume with base models, mounted at /models in the pods that read them; none: no volume.
    """

    pools: Mapping[str, Pool]
    accelerator: str = GPU
    models: str = ""


CPU = Pool(cpu="2", memory="6Gi")
# 24 GB of GPU memory: inference with a 7B model in half precision, training of a CLIP.
SMALL = Pool(cpu="8", memory="32Gi", gpus=1, taints=(GPU,))
# 80 GB of GPU memory: LoRA on a 7B LLaVA with contrastive batches of 64.
LARGE = Pool(cpu="16", memory="96Gi", gpus=1, taints=(GPU,))


def cluster(small: Mapping[str, str], large: Mapping[str, str], *taints: str) -> Cluster:
    """The three pools with these node labels and, where the cluster's GPU nodes have others, these taints."""
    given = {"taints": taints} if taints else {}
    return Cluster(
        {
            "cpu": CPU,
            "gpu-small": replace(SMALL, selector=small, **given),
            "gpu-large": replace(LARGE, selector=large, **given),
        }
    )


CLUSTERS = {
    # Label the nodes yourself: kubectl label node NAME fairvlm.io/pool=gpu-large
    "own-labels": cluster({"fairvlm.io/pool": "gpu-small"}, {"fairvlm.io/pool": "gpu-large"}),
    # GKE labels a node with its accelerator and taints it.
    "gke": cluster(
        {"cloud.google.com/gke-accelerator": "nvidia-l4"}, {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}
    ),
    # Karpenter and EKS Auto Mode label nodes with the model of their GPU; the taint is that of the NodePool.
    "eks": cluster({"karpenter.k8s.aws/instance-gpu-name": "l4"}, {"karpenter.k8s.aws/instance-gpu-name": "h100"}),
    # AKS: the node pools' names, at most twelve letters and digits, and the taint of Azure's own documentation.
    "aks": cluster(
        {"kubernetes.azure.com/agentpool": "gpusmall"}, {"kubernetes.azure.com/agentpool": "gpularge"}, "sku"
    ),
    # NVIDIA's GPU operator labels a node with the product.
    "bare-metal": cluster({"nvidia.com/gpu.product": "NVIDIA-L4"}, {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}),
}

# The steps whose pool is in the run's form; all others run in the pool `cpu`.
STEP_POOLS = {
    "stage1": "gpu-large",
    "stage2": "gpu-large",
    "fair_moe": "gpu-small",
    "predict": "gpu-small",  # and the champion, which is predicted with, too
}
READ_MODELS = ("base_models", *STEP_POOLS, "champion", "register")
SCRATCH = {"stage1": "50Gi", "stage2": "50Gi", "fair_moe": "20Gi"}  # of /tmp; else 10Gi
TRAINING = ("stage1", "stage2", "fair_moe")


def cluster_named(name: str) -> Cluster:
    """One of the presets.

    Raises:
        ConfigError: when there is none of that name, or a step's pool is not in it or has no GPU.
    """
    if name not in CLUSTERS:
        raise ConfigError(f'There is no cluster "{name}".', where="--cluster", mend=nearest(name, CLUSTERS))
    found = CLUSTERS[name]
    for step, pool in STEP_POOLS.items():
        if pool not in found.pools:
            raise ConfigError(
                f'The step {step} asks for the pool "{pool}", which the cluster {name} does not have.',
                where="pipelines/pools.py",
                mend=nearest(pool, found.pools),
            )
        if not found.pools[pool].gpus:
            raise ConfigError(
                f"The pool {pool} has no GPU, and the step {step} needs one.",
                where="pipelines/pools.py",
                mend="Choose another pool in STEP_POOLS, or give this one a GPU.",
            )
    return found


def described(given: Cluster) -> dict[str, dict[str, Any]]:
    """The pools as the pipeline hands them to its tasks: what JSON can hold."""
    return {name: dataclasses.asdict(pool) | {"taints": list(pool.taints)} for name, pool in given.pools.items()}


def place(
    task: dsl.PipelineTask, step: str, chosen: dsl.PipelineTask | None = None, *, on: Cluster
) -> dsl.PipelineTask:
    """Let a task ask for what its step needs, and return the task.

    Args:
        step: its name, which the pod carries as a label: by it the network policies of deploy/ tell pods apart.
        chosen: the task `pool` that says what to ask for; without one, the pool `cpu`.
        on: the cluster that the pipeline is compiled for.
    """
    kubernetes.add_pod_label(task, STEP_LABEL, step)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=0, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=SCRATCH.get(step, "10Gi"))
    if on.models and step in READ_MODELS:
        kubernetes.mount_pvc(task, on.models, "/models")
    if chosen is None:
        pool = on.pools["cpu"]
        task.set_cpu_request(pool.cpu).set_cpu_limit(pool.cpu)
        return task.set_memory_request(pool.memory).set_memory_limit(pool.memory)
    asked = chosen.outputs
    task.set_cpu_request(asked["cpu"]).set_cpu_limit(asked["cpu"])
    task.set_memory_request(asked["memory"]).set_memory_limit(asked["memory"])
    task.set_accelerator_type(on.accelerator).set_accelerator_limit(asked["gpus"])
    kubernetes.add_node_selector_json(task, asked["selector"])
    kubernetes.add_toleration_json(task, asked["tolerations"])
    # Processes of one pod pass tensors through shared memory, of which a container has 64 MB otherwise.
    return kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="8Gi")
