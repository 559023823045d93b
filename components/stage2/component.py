"""Kubeflow component of the step `stage2`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage2(
    params: dict,
    workspace: str,
    cohort: dsl.Input[dsl.Dataset],
    images: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    stage1: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """FairMed-VLM, Stage 2: LoRA with cross-group contrast and moment alignment."""
    from fairvlm_core.steps.call import run_step

    inputs = {"cohort": cohort.path, "images": images.path, "base": base.path, "stage1": stage1.path}
    run_step("stage2", params, inputs, out.path, metrics=metrics, workspace=workspace)
