"""Kubeflow component of the step `predict`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def predict(
    params: dict,
    model: dsl.Input[dsl.Model],
    base: dsl.Input[dsl.Model],
    cohort: dsl.Input[dsl.Dataset],
    images: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Score every validation and test image with one model."""
    from fairvlm_core.kubeflow.call import run_step

    inputs = {"model": model.path, "base": base.path, "cohort": cohort.path, "images": images.path}
    run_step("predict", params, inputs, out.path, metrics=metrics)
