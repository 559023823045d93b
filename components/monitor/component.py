"""Kubeflow components of `fairvlm monitor`: the comparison, and the task that fails where it found drift."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def monitor(
    params: dict,
    reference: dsl.Input[dsl.Dataset],
    current: dsl.Input[dsl.Dataset],
    out: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    short: dsl.Output[dsl.Markdown],
) -> NamedTuple("Monitored", [("verdict", str), ("told", str)]):
    """Compare a month of predictions with those of the test set."""
    from fairvlm_core.kubeflow.monitor import run_monitor

    shown = {"monitor.html": report.path, "monitor.md": short.path}
    return run_monitor(params, reference.path, current.path, out.path, metrics=metrics, shown=shown)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def alarm(verdict: str, told: str):
    """Fail where the month has drifted; the report of a task that failed itself would be lost."""
    print(told)
    if verdict == "drifted":
        raise SystemExit(1)
