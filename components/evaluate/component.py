"""Kubeflow component of the step `evaluate`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    params: dict,
    predictions: dsl.Input[dsl.Dataset],
    thresholds: dsl.Input[dsl.Artifact],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    classification: dsl.Output[dsl.ClassificationMetrics],
):
    """Judge one model's predictions: accuracy, AUC, and the gaps between groups."""
    from fairvlm_core.kubeflow.call import run_step, show_classification

    inputs = {"predictions": predictions.path, "thresholds": thresholds.path}
    run_step("evaluate", params, inputs, out.path, metrics=metrics)
    show_classification(out.path, classification)
