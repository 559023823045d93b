"""How an orchestrator's component calls a step: a section of parameters in, artifacts out. Imports no orchestrator."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fairvlm_core.config import build
from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import CHECKPOINTS
from fairvlm_core.kubeflow.launch import launch
from fairvlm_core.steps import step_module


class MetricsSink(Protocol):
    """Whatever takes named numbers, such as the metrics artifact of a component."""

    def log_metric(self, metric: str, value: float) -> None: ...


class ClassificationSink(Protocol):
    """Whatever takes a ROC curve and a confusion matrix, such as the classification metrics of a component."""

    def log_roc_curve(self, fpr: list[float], tpr: list[float], threshold: list[float]) -> None: ...

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None: ...


def run_step(
    name: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, str | Path],
    out: str | Path,
    *,
    metrics: MetricsSink | None = None,
    shown: Mapping[str, str | Path] | None = None,
    workspace: str = "",
    start: Callable[[str, Any, dict[str, Path], Path], dict[str, Any]] = launch,
) -> dict[str, Any]:
    """Run the step `name` on paths, log its numbers, and copy out what its page in the UI shows.

    Args:
        name: one of `STEPS`.
        params: the step's section of params.yaml; numbers may have come through JSON as doubles (`3.0` for `3`).
        inputs: input name -> path of the artifact.
        out: the folder to write; it may exist already, and is replaced.
        metrics: takes every metric that is a number.
        shown: file that the step writes into its folder -> path of the artifact that shows it.
        workspace: a folder that outlives the pod, for checkpoints; none: they are beside `out`.
        start: runs the step, given its name, config, inputs and output folder, and returns its metrics: `launch` on
            this machine, with all its GPUs; a `partial` of `trainjob.train_job` on several.

    Returns:
        The step's metrics, as `execute` returns them.

    Raises:
        FairVLMError: for a mistake in parameters or inputs, or when a file to show was not written.
    """
    if workspace:
        os.environ[CHECKPOINTS] = str(Path(workspace) / "checkpoints" / name)
    config = build(step_module(name).Config, whole(dict(params)), where=f"parameters of {name}")
    result = start(name, config, {key: Path(path) for key, path in inputs.items()}, Path(out))
    if metrics is not None:
        for key, value in result.items():
            if isinstance(value, (int, float)):
                metrics.log_metric(key, float(value))
    for file, target in (shown or {}).items():
        source = Path(out) / file
        if not source.is_file():
            raise FairVLMError(f"The step {name} wrote no {file}.", where=str(source))
        shutil.copyfile(source, target)
    return result


def show_classification(evaluation: str | Path, sink: ClassificationSink) -> None:
    """Log the ROC curve and the confusion matrix of the test split that `evaluate` judged.

    Args:
        evaluation: the folder that it wrote.
        sink: takes both; one of them is left out where the task or the split has none.
    """
    from fairvlm_core.evaluation.overall import confusion, roc
    from fairvlm_core.evaluation.predictions import read_predictions, scores

    given = scores(read_predictions(Path(evaluation)), "test")
    fpr, tpr, thresholds = roc(given)
    if fpr:
        sink.log_roc_curve(fpr, tpr, thresholds)
    names, counts = confusion(given)
    if names:
        sink.log_confusion_matrix(names, counts)


def require_server() -> None:
    """Refuse to run in a pod without a server: the steps' own default is a file, which is gone with the pod.

    Raises:
        FairVLMError: when MLFLOW_TRACKING_URI is not set.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise FairVLMError(
            "No MLflow server is configured.",
            where="MLFLOW_TRACKING_URI",
            mend="Set the key MLFLOW_TRACKING_URI in the config map fairvlm of the run's namespace.",
        )


def whole(value: Any) -> Any:
    """Turn doubles without a fraction back into integers, at any depth.

    A pipeline parameter travels as a protobuf Struct, whose only number is the double; configs ask for integers where
    they mean integers, and take an integer where they mean any number.
    """
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
