"""Kubeflow component `pool`: what the pods of a step ask for, as the run's form says."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pool(pools: dict, name: str, step: str, preset: str) -> NamedTuple(
    "Pool", [("gpus", str), ("cpu", str), ("memory", str), ("selector", dict), ("tolerations", list)]
):
    """Look up one pool of those that the pipeline was compiled with."""
    from fairvlm_core.kubeflow.plan import asked_for

    found = asked_for(pools, name, step=step, preset=preset)
    return found["gpus"], found["cpu"], found["memory"], found["selector"], found["tolerations"]
