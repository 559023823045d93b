"""One MLflow run per registration: parameters, metrics, figures, and the model, which becomes a registered version."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException, RestException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, Schema
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from fairvlm_core.cohort.fundus import draw_fundus
from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import FairVLMError
from fairvlm_core.files import write_json
from fairvlm_core.model_files import describe
from fairvlm_core.registry.columns import ARTIFACT, IMAGE, REFUSED, output_columns

MODEL_CODE = str(Path(__file__).with_name("model.py"))
# This package is in no index: its code travels with the model.
PACKAGE = str(Path(__file__).parent.parent)
URI_VARIABLE = "MLFLOW_TRACKING_URI"
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# What is imported to predict, beside MLflow itself.
REQUIRED = (
    *("torch", "transformers", "tokenizers", "huggingface_hub", "safetensors"),
    *("numpy", "pandas", "pyarrow", "scipy", "pillow", "PyYAML"),
)
REQUIRED_BY = {"vlm": ("peft", "numba"), "dual": ()}
# A training step's history: its figures per epoch look at groups of any size, so they are not published.
UNPUBLISHED = ("history.*", "metrics.json")
# Packages of artifact stores, whose errors share no class.
STORES = ("botocore", "boto3", "s3transfer", "azure", "google", "requests", "urllib3")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SQLITE = re.compile(r"sqlite:///([^?]+)(.*)")
NOTHING = "Nothing was logged."
EXISTS = "RESOURCE_ALREADY_EXISTS"
PAUSES = (2, 10)  # seconds before it is looked whether a version was made, and created again
GAPS = ("es_auc", "dpd", "eod", "tpr_gap", "worst_group_auc", "worst_group_ece")


@contextmanager
def tracking(default: str) -> Iterator[str]:
    """Use the tracking server in MLFLOW_TRACKING_URI, else `default`; gives its URI without credentials.

    Raises:
        FairVLMError: in the place of any error of MLflow, its database, its artifact store or a full disk in the block;
            with what `noting` adds to it.
    """
    before = os.environ.get(URI_VARIABLE)
    shown = without_credentials(before or default)
    uri = _absolute(before or default)
    for name in ("mlflow", "alembic"):  # both tell every step of creating a database
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        mlflow.set_tracking_uri(uri)
        yield shown
    except FairVLMError:
        raise
    except Exception as error:
        if not _foreign(error):
            raise
        raise _told(error, uri, shown) from None
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


@contextmanager
def noting(done: str) -> Iterator[None]:
    """Add to an error of the block what was done before and what was not: `tracking` tells it."""
    try:
        yield
    except Exception as error:
        error.add_note(done)
        raise


def _foreign(error: Exception) -> bool:
    """Whether it is an error of MLflow, of what it stores things with, or of the file system."""
    known = isinstance(error, (MlflowException, SQLAlchemyError, ModuleNotFoundError, OSError))
    return known or type(error).__module__.split(".")[0] in STORES


def _told(error: Exception, uri: str, shown: str) -> FairVLMError:
    """An error of MLflow's in our words; no address with a password stays in it."""
    text = str(error).strip()
    notes = " ".join(getattr(error, "__notes__", ()))
    if getattr(error, "errno", None) in DISK or any(os.strerror(number) in text for number in DISK):
        what, mend = "A disk is full.", "Make room, and run it again."
    elif "disk is full" in text:  # what SQLite says
        what, mend = "The disk of the database is full.", "Make room, and run it again."
    elif isinstance(error, OSError) and error.strerror:
        what, mend = f"A file cannot be used: {error.strerror}.", "Check the folder and its rights, and run it again."
    else:
        reason = _no_credentials((text.splitlines() or [type(error).__name__])[0].replace(uri, shown))
        what = f"MLflow refused this: {reason}"
        mend = f"Check {URI_VARIABLE}, that the server can be reached, and the step's parameters."
    where = getattr(error, "filename", None) or shown
    return FairVLMError(f"{what} {notes}".strip(), where=str(where), mend=mend)


def _no_credentials(text: str) -> str:
    """A message in which no URL has a user and a password.

    >>> _no_credentials("cannot reach https://me:secret@example.org/team")
    'cannot reach https://example.org/team'
    """
    return re.sub(r"(\w://)[^\s/@]+@", r"\1", text)


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
    try:
        return mlflow.create_experiment(name, artifact_location=beside)
    except MlflowException as error:
        if error.error_code != EXISTS or (found := mlflow.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id  # another registration was faster


@contextmanager
def logging_run(experiment: str, run_name: str | None = None) -> Iterator[str]:
    """A run of this experiment, by its id; an error in the block ends it as FAILED."""
    with noting(NOTHING):
        run_id = mlflow.start_run(experiment_id=experiment_id(experiment), run_name=run_name).info.run_id
    try:
        yield run_id
    except BaseException:
        # The error is to be told, not that the server could not be told of it either.
        with _at_once(), suppress(MlflowException, SQLAlchemyError):
            mlflow.end_run("FAILED")
        raise
    mlflow.end_run()


def finish(run_id: str | None) -> None:
    """End a run well that registered a version and was cut short after that."""
    client = mlflow.MlflowClient()
    if run_id and client.get_run(run_id).info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")


@contextmanager
def _at_once() -> Iterator[None]:
    """MLflow's requests are not repeated in the block."""
    before = os.environ[RETRIES]
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        os.environ[RETRIES] = before


def write_artifact(folder: Path, *, model: Path, fixed: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Write what the registered model loads: the trained tensors, what was fixed on validation, where the base is.

    Args:
        fixed: thresholds (label -> threshold) and calibration (as `evaluation.calibration.fit` gives it, or null).
    """
    shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns(*UNPUBLISHED))
    write_json(folder / "thresholds.json", dict(fixed))
    write_json(folder / "base.json", reference)


def log_model(artifact: Path, task: Task, image_size: int) -> Any:
    """Log what `write_artifact` wrote to the active run, with signature, example and code; returns its ModelInfo."""
    return Model.log(
        artifact_path=None,
        name="model",
        flavor=SimpleNamespace(save_model=_save_model, __name__="mlflow.pyfunc"),
        python_model=MODEL_CODE,
        artifacts={ARTIFACT: str(artifact)},
        signature=signature(task),
        input_example=example(image_size),
        pip_requirements=requirements(describe(artifact / "model")["family"]),
        code_paths=[PACKAGE],
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
    kinds = {"score": "double", "label": "long", "predicted": "string", "version": "string"}
    return ModelSignature(
        inputs=Schema([ColSpec("binary", IMAGE), *(ColSpec(AnyType(), name, required=False) for name in REFUSED)]),
        outputs=Schema([ColSpec(kinds[name.split("_")[0]], name) for name in output_columns(task.labels, task.kind)]),
    )


def example(image_size: int) -> pd.DataFrame:
    """One generated picture, of nobody."""
    images = draw_fundus(np.random.default_rng(0), cup_to_disc=np.array([0.5]), size=image_size)
    buffer = io.BytesIO()
    Image.fromarray(images[0]).save(buffer, format="PNG")
    return pd.DataFrame({IMAGE: [buffer.getvalue()]})


def requirements(family: str) -> list[str]:
    """The installed versions of what a model of this family imports; local suffixes such as +cpu are in no index."""
    return [f"{name}=={version(name).split('+')[0]}" for name in (*REQUIRED, *REQUIRED_BY[family])]


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


def register(
    model_uri: str, run_id: str, *, name: str, alias: str, tags: Mapping[str, str], description: str = ""
) -> int:
    """Make a logged model the next version of `name` with its tags, and only then let the alias point to it."""
    with noting(f"The run {run_id} was logged; no version of {name} was made. Run register again."):
        number = _create_version(model_uri, run_id, name, tags, description)
    set_alias(name, alias, str(number))
    return number


def set_alias(name: str, alias: str, number: str) -> None:
    """Let an alias point to a version."""
    with noting(f"Version {number} of {name} is there; its alias {alias} was not set. Run register again."):
        mlflow.MlflowClient().set_registered_model_alias(name, alias, number)


def _create_version(model_uri: str, run_id: str, name: str, tags: Mapping[str, str], description: str) -> int:
    """Create one version, even where the server's answer is lost: MLflow's own repetition would make two."""
    client = mlflow.MlflowClient()
    # A server takes a logged model as a source only if it is also named by its id.
    logged = model_uri.removeprefix("models:/")
    for pause in (*PAUSES, None):
        try:
            with _at_once():
                created = client.create_model_version(
                    name,
                    source=model_uri,
                    run_id=run_id,
                    tags=dict(tags),
                    description=description or None,
                    model_id=logged,
                )
            return int(created.version)
        except MlflowException as error:
            # Over HTTP, an error that is no answer of the server's leaves open whether the version was made.
            if pause is None or isinstance(error, RestException) or SQLITE.fullmatch(mlflow.get_registry_uri()):
                raise
        time.sleep(pause)
        made = [item for item in client.search_model_versions(f"run_id = '{run_id}'") if item.name == name]
        if made:
            return int(made[0].version)
    raise AssertionError("the last attempt returns or raises")


def ensure_registered_model(name: str) -> None:
    """Create the registered model where there is none."""
    try:
        mlflow.MlflowClient().create_registered_model(name)
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise


def _absolute(uri: str) -> str:
    """A local database by its absolute path: MLflow keeps databases open by URI, whatever the working directory."""
    database = SQLITE.fullmatch(uri)
    return f"sqlite:///{Path(database[1]).resolve()}{database[2]}" if database else uri


def _name(text: str) -> str:
    """A name that MLflow takes: it refuses, for instance, the plus sign of an age group."""
    return re.sub(r"[^\w\-./]+", "_", text)
