"""Kubeflow component of the step `validate`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(
    params: dict,
    cohort: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
):
    """Check the cohort against its expectations; a broken cohort fails the run and says what is wrong."""
    from fairvlm_core.kubeflow.call import run_step

    inputs = {"cohort": cohort.path}
    run_step("validate", params, inputs, out.path, metrics=metrics, shown={"validation.html": page.path})
