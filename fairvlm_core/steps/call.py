"""How an orchestrator's component calls a step: a section of parameters in, artifacts out. Imports no orchestrator."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fairvlm_core.config import build
from fairvlm_core.errors import FairVLMError
from fairvlm_core.steps import execute, step_module


class MetricsSink(Protocol):
    """Whatever takes named numbers, such as the metrics artifact of a component."""

    def log_metric(self, metric: str, value: float) -> None: ...


def run_step(
    name: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, str | Path],
    out: str | Path,
    *,
    metrics: MetricsSink | None = None,
    shown: Mapping[str, str | Path] | None = None,
) -> dict[str, Any]:
    """Run the step `name` on paths, log its numbers, and copy out what its page in the UI shows.

    Args:
        name: one of `STEPS`.
        params: the step's section of params.yaml; numbers may have come through JSON as doubles (`3.0` for `3`).
        inputs: input name -> path of the artifact.
        out: the folder to write; it may exist already, and is replaced.
        metrics: takes every metric that is a number.
        shown: file that the step writes into its folder -> path of the artifact that shows it.

    Returns:
        The step's metrics, as `execute` returns them.

    Raises:
        FairVLMError: for a mistake in parameters or inputs, or when a file to show was not written.
    """
    config = build(step_module(name).Config, whole(dict(params)), where=f"parameters of {name}")
    result = execute(name, config, {key: Path(path) for key, path in inputs.items()}, {"out": Path(out)})
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
