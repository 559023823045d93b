"""Kubeflow component of the step `stage1`."""

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
