"""Kubeflow component of the step `fair_moe`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fair_moe(
    params: dict,
    workspace: str,
    cohort: dsl.Input[dsl.Dataset],
    images: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    start: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Fair-MoE: fairness-oriented mixture of experts in both encoders."""
    from fairvlm_core.kubeflow.call import run_step

    inputs = {"cohort": cohort.path, "images": images.path, "base": base.path, "start": start.path}
    run_step("fair_moe", params, inputs, out.path, metrics=metrics, workspace=workspace)
