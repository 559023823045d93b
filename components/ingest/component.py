"""Kubeflow component of the step `ingest`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    params: dict,
    root: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Read a published release (or generate a cohort) into one table and an image store."""
    from fairvlm_core.kubeflow.call import run_step

    inputs = {"root": root.path}
    run_step("ingest", params, inputs, out.path, metrics=metrics)
