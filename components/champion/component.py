"""Kubeflow component of the step `champion`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def champion(
    params: dict,
    cohort: dsl.Input[dsl.Dataset],
    images: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    out: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Judge the registered model in use on today's cohort."""
    from fairvlm_core.kubeflow.call import require_server, run_step

    require_server()
    inputs = {"cohort": cohort.path, "images": images.path, "base": base.path}
    run_step("champion", params, inputs, out.path, metrics=metrics)
