"""One MLflow run per registration: parameters, metrics, figures, and the model, which becomes a registered version."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, Schema
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import write_json
from fairvlm_core.models.pictures import draw
from fairvlm_core.registry.model import ARTIFACT, IMAGE, REFUSED, output_columns

MODEL_CODE = str(Path(__file__).with_name("model.py"))
URI_VARIABLE = "MLFLOW_TRACKING_URI"
# The packages whose versions decide what a model computes.
REQUIRED = ("fairvlm", "torch", "transformers", "peft", "safetensors", "numpy", "pandas", "pillow")
# A training step's history: its figures per epoch look at groups of any size, so they are not published.
UNPUBLISHED = ("history.*", "metrics.json")
SQLITE = re.compile(r"sqlite:///([^?]+)(.*)")
GAPS = ("es_auc", "dpd", "eod", "tpr_gap", "worst_group_auc", "worst_group_ece")


@contextmanager
def tracking(default: str) -> Iterator[str]:
    """Use the tracking server in MLFLOW_TRACKING_URI, else `default`; gives its URI without credentials.

    Raises:
        FairVLMError: in the place of any error of MLflow, its database or a missing database driver in the block.
    """
    before = os.environ.get(URI_VARIABLE)
    shown = without_credentials(before or default)
    uri = _absolute(before or default)
    for name in ("mlflow", "alembic"):  # both tell every step of creating a database
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        mlflow.set_tracking_uri(uri)
        yield shown
    except (MlflowException, SQLAlchemyError, ModuleNotFoundError) as error:
        raise FairVLMError(
            f"MLflow refused this: {str(error).strip().splitlines()[0].replace(uri, shown)}",
            where=shown,
            mend=f"Check {URI_VARIABLE}, that the server can be reached, and the step's parameters.",
        ) from None
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


def without_credentials(uri: str) -> str:
    """The URI without user, password and query.

    >>> without_credentials("postgresql+psycopg2://me:pass@word@host:5432/mlflow?sslpassword=x")
    'postgresql+psycopg2://host:5432/mlflow'
    """
    return re.sub(r"//.*@", "//", uri).split("?")[0]


def experiment_id(name: str) -> str | None:
    """The experiment to run in, created where there is none; None where MLflow's own environment variables name a run.

    The artifacts of a local database lie beside it, in `mlartifacts`.
    """
    if any(os.environ.get(f"MLFLOW_{key}") for key in ("RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME")):
        return None
    found = mlflow.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    database = SQLITE.fullmatch(mlflow.get_tracking_uri())
    beside = (Path(database[1]).parent / "mlartifacts").as_uri() if database else None
    return mlflow.create_experiment(name, artifact_location=beside)


def write_artifact(folder: Path, *, model: Path, fixed: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Write what the registered model loads: the trained tensors, what was fixed on validation, where the base is.

    Args:
        fixed: thresholds (label -> threshold) and calibration (as `evaluation.calibration.fit` gives it, or null).
    """
    shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns(*UNPUBLISHED))
    write_json(folder / "thresholds.json", dict(fixed))
    write_json(folder / "base.json", reference)


def log_model(artifact: Path, task: Task, image_size: int) -> Any:
    """Log what `write_artifact` wrote to the active run, with signature and example; returns MLflow's ModelInfo."""
    return Model.log(
        artifact_path=None,
        name="model",
        flavor=SimpleNamespace(save_model=_save_model, __name__="mlflow.pyfunc"),
        python_model=MODEL_CODE,
        artifacts={ARTIFACT: str(artifact)},
        signature=signature(task),
        input_example=example(image_size),
        pip_requirements=requirements(),
        validate_serving_input=False,
    )


def _save_model(*, validate_serving_input: bool, **options: Any) -> None:
    """`mlflow.pyfunc.save_model` without the option that keeps MLflow from loading the base model for a trial run.

    The step must fit a machine that is too small for that; `predict` has just run the same files.
    """
    mlflow.pyfunc.save_model(**options)


def signature(task: Task) -> ModelSignature:
    """Pictures in, scores and decisions out.

    Pictures are bytes, which come as base64 over HTTP: as texts, a client could name files of the server.
    """
    kinds = {"score": "double", "label": "long", "predicted": "string"}
    return ModelSignature(
        inputs=Schema([ColSpec("binary", IMAGE), *(ColSpec(AnyType(), name, required=False) for name in REFUSED)]),
        outputs=Schema([ColSpec(kinds[name.split("_")[0]], name) for name in output_columns(task.labels, task.kind)]),
    )


def example(image_size: int) -> pd.DataFrame:
    """One generated picture, of nobody."""
    images, _ = draw(1, image_size, np.random.default_rng(0))
    buffer = io.BytesIO()
    Image.fromarray(images[0]).save(buffer, format="PNG")
    return pd.DataFrame({IMAGE: [buffer.getvalue()]})


def requirements() -> list[str]:
    """The installed versions of `REQUIRED`; local suffixes such as +cpu are left out, as they are in no index."""
    found = []
    for name in REQUIRED:
        try:
            found.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            found.append(name)
    return found


def parameters(
    described: Mapping[str, Any], comparison: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """What the run was made with, flat: the model, how it was trained and selected, its thresholds and calibration."""
    task: Task = described["task"]
    flat: dict[str, Any] = {
        "task.kind": task.kind,
        "task.labels": ", ".join(task.labels),
        "task.question": task.question,
    }
    for key, value in described.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        elif key != "task":
            flat[key] = ", ".join(map(str, value)) if isinstance(value, list) else value
    for key, value in training.items():
        flat[f"training.{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else value
    flat["min_cell"] = comparison["min_cell"]
    flat["selection.criterion"] = comparison["criterion"]["name"]
    flat["selection.attributes"] = ", ".join(comparison["criterion"]["attributes"])
    judged = comparison["models"][described["name"]]
    flat |= {f"threshold.{label}": value for label, value in judged["thresholds"].items()}
    calibration = judged.get("calibration") or {"method": "none"}
    flat["calibration"] = calibration["method"]
    if "temperature" in calibration:
        flat["calibration.temperature"] = calibration["temperature"]
    for label, found in calibration.get("labels", {}).items():
        flat |= {f"calibration.{key}.{label}": found[key] for key in ("slope", "intercept")}
    return {_name(key): value for key, value in flat.items()}


def metrics(judged: Mapping[str, Any]) -> dict[str, float]:
    """A model's judgement on validation and test under flat names: overall, per attribute, and over all attributes.

    Args:
        judged: the model's entry in comparison.json; small groups took no part in its gaps.
    """
    flat: dict[str, Any] = {}
    for split in ("validation", "test"):
        found = judged[split]
        flat[f"{split}_n"] = found["n"]
        flat |= {f"{split}_{name}": value for name, value in found["overall"].items()}
        for attribute, values in found["attributes"].items():
            flat |= {f"{split}_{name}_{attribute}": values[name] for name in GAPS}
        for name, values in found["across"].items():
            flat |= {f"{split}_{name}_{how}": value for how, value in values.items()}
    return {_name(key): float(value) for key, value in flat.items() if isinstance(value, (int, float))}


def register(model_uri: str, run_id: str, *, name: str, alias: str, tags: Mapping[str, str]) -> int:
    """Make a logged model the next version of `name` with its tags, and only then let the alias point to it."""
    client = mlflow.MlflowClient()
    # A server takes a logged model as a source only if it is also named by its id.
    logged = model_uri.removeprefix("models:/")
    created = client.create_model_version(name, source=model_uri, run_id=run_id, tags=dict(tags), model_id=logged)
    client.set_registered_model_alias(name, alias, created.version)
    return int(created.version)


def ensure_registered_model(name: str) -> None:
    """Create the registered model where there is none."""
    try:
        mlflow.MlflowClient().create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _absolute(uri: str) -> str:
    """A local database by its absolute path: MLflow keeps databases open by URI, whatever the working directory."""
    database = SQLITE.fullmatch(uri)
    return f"sqlite:///{Path(database[1]).resolve()}{database[2]}" if database else uri


def _name(text: str) -> str:
    """A name that MLflow takes: it refuses, for instance, the plus sign of an age group."""
    return re.sub(r"[^\w\-./]+", "_", text)
