"""Where each step runs: the node pools of the cluster, and which step asks for which.

Pools are chosen when the pipeline is compiled, as plain values: an accelerator that is a run's parameter compiles to an
input that nobody declares as soon as the task stands inside a condition or an exit handler. To fit a cluster, edit this
file and compile again.
"""

from __future__ import annotations

from dataclasses import dataclass

from kfp import dsl, kubernetes

NODE_LABEL = "fairvlm.io/pool"
STEP_LABEL = "fairvlm.io/step"


@dataclass(frozen=True)
class Pool:
    """One kind of node.

    Attributes:
        cpu: cores that the task may use.
        memory: memory that the task may use, in Kubernetes' units.
        accelerator: the resource that the device plugin offers, or nothing.
        count: how many of them.
        node: value of the node label `fairvlm.io/pool`, or nothing where any node will do.
        tolerations: keys of the taints that keep other work off these nodes.
    """

    cpu: str
    memory: str
    accelerator: str | None = None
    count: int = 0
    node: str | None = None
    tolerations: tuple[str, ...] = ()


POOLS = {
    "cpu": Pool(cpu="2", memory="6Gi"),
    # 24 GB of GPU memory: inference with a 7B model in half precision, training of a CLIP.
    "gpu-small": Pool("8", "32Gi", "nvidia.com/gpu", 1, node="gpu-small", tolerations=("nvidia.com/gpu",)),
    # 80 GB of GPU memory: LoRA on a 7B LLaVA with contrastive batches of 64.
    "gpu-large": Pool("16", "96Gi", "nvidia.com/gpu", 1, node="gpu-large", tolerations=("nvidia.com/gpu",)),
}

# Steps that are not named here run in the pool `cpu`.
STEP_POOLS = {
    "stage1": "gpu-large",
    "stage2": "gpu-large",
    "fair_moe": "gpu-small",
    "predict": "gpu-small",
    "champion": "gpu-small",
}


def place(task: dsl.PipelineTask, step: str) -> dsl.PipelineTask:
    """Let a task ask for the pool of its step, and return the task."""
    pool = POOLS[STEP_POOLS.get(step, "cpu")]
    # By this label the network policies of deploy/ know who may leave the cluster.
    kubernetes.add_pod_label(task, STEP_LABEL, step)
    task.set_cpu_request(pool.cpu).set_cpu_limit(pool.cpu)
    task.set_memory_request(pool.memory).set_memory_limit(pool.memory)
    if pool.accelerator:
        task.set_accelerator_type(pool.accelerator).set_accelerator_limit(pool.count)
    if pool.node:
        kubernetes.add_node_selector(task, NODE_LABEL, pool.node)
    for key in pool.tolerations:
        kubernetes.add_toleration(task, key=key, operator="Exists", effect="NoSchedule")
    return task
