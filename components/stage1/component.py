"""Kubeflow components of the step `stage1`: in one pod with all its GPUs, or as a TrainJob over several nodes."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage1(
    params: dict,
    workspace: str,
    cohort: dsl.Input[dsl.Dataset],
    images: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """FairMed-VLM, Stage 1: concept alignment, then instruction tuning."""
    from fairvlm_core.steps.call import run_step

    inputs = {"cohort": cohort.path, "images": images.path, "base": base.path}
    run_step("stage1", params, inputs, out.path, metrics=metrics, workspace=workspace)


# What the task is given goes to the nodes of the job, the GPU among it; the task's own pod only submits it and waits.
@dsl.component(
    base_image=IMAGE,
    install_kfp_package=False,
    task_config_passthroughs=[
        dsl.TaskConfigField.RESOURCES,
        dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
        dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
        dsl.TaskConfigField.KUBERNETES_AFFINITY,
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
    ],
)
def stage1_job(
    params: dict,
    workspace: str,
    nodes: int,
    image: str,
    task_config: dsl.TaskConfig,
    cohort: dsl.Input[dsl.Dataset],
    images: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """FairMed-VLM, Stage 1, over several nodes."""
    from functools import partial

    from fairvlm_core.steps.call import run_step
    from fairvlm_core.steps.trainjob import train_job

    inputs = {"cohort": cohort.path, "images": images.path, "base": base.path}
    start = partial(train_job, nodes=nodes, image=image, workspace=workspace, task_config=task_config)
    run_step("stage1", params, inputs, out.path, metrics=metrics, start=start)
