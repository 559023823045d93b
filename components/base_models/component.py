"""Kubeflow component of the step `base_models`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def base_models(
    params: dict,
    cohort: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Make the base models that the adapters are trained on."""
    from fairvlm_core.kubeflow.call import run_step

    inputs = {"cohort": cohort.path}
    run_step("base_models", params, inputs, out.path, metrics=metrics)
