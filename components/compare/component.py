"""Kubeflow component of the step `compare`."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    params: dict,
    strata: dsl.Input[dsl.Dataset],
    stage1: dsl.Input[dsl.Dataset],
    stage2: dsl.Input[dsl.Dataset],
    fair_moe: dsl.Input[dsl.Dataset],
    champion: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    short: dsl.Output[dsl.Markdown],
):
    """Put the models and the champion side by side: report, short report, accuracy against gap."""
    from fairvlm_core.kubeflow.call import run_step

    inputs = {
        "strata": strata.path,
        "stage1": stage1.path,
        "stage2": stage2.path,
        "fair_moe": fair_moe.path,
        "champion": champion.path,
    }
    run_step(
        "compare",
        params,
        inputs,
        out.path,
        metrics=metrics,
        shown={"report.html": report.path, "report.md": short.path},
    )
