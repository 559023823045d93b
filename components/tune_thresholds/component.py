"""Kubeflow component of the step `tune_thresholds`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tune_thresholds(
    params: dict,
    predictions: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Choose one threshold per label on the validation split."""
    from fairvlm_core.kubeflow.call import run_step

    inputs = {"predictions": predictions.path}
    run_step("tune_thresholds", params, inputs, out.path, metrics=metrics)
