"""Kubeflow component of the step `stratify`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stratify(
    params: dict,
    cohort: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Artifact],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Split by patient, then balance the training split over sex x age cells."""
    from fairvlm_core.kubeflow.call import run_step

    inputs = {"cohort": cohort.path, "validation": validation.path}
    run_step("stratify", params, inputs, out.path, metrics=metrics)
