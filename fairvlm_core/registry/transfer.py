"""From one MLflow server to another: a version's files and its run's record are logged again.

`copy_model_version` of MLflow only names the same files once more, and only on the same server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
from mlflow.models import Model

from fairvlm_core.errors import CheckpointError
from fairvlm_core.registry import tracking, versions
from fairvlm_core.registry.ledger import CHALLENGER, PROMOTED
from fairvlm_core.registry.versions import Registered

# What `register` logs beside the model, and all that leaves a server.
RECORD = ("report", "card", "lineage")
# What is said to one server is not said to the other: neither a password, nor which run to write to.
OF_ONE_SERVER = (
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AWS_SIGV4"),
    *("MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
)
MODEL_FILE = "MLmodel"
# MLflow writes it into what it downloads: of which version it is.
DOWNLOADED = "registered_model_meta"


@dataclass(frozen=True)
class Package:
    """What is logged again.

    Attributes:
        model: folder of the MLflow model, with MLmodel.
        record: folder that holds what the run has of `RECORD`.
        tags: of the version, without those of its promotion there; description: its card's short form.
    """

    model: Path
    record: Path
    tags: Mapping[str, str]
    description: str
    run_name: str
    run_tags: Mapping[str, str]
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    experiment: str


@contextmanager
def other_server(uri: str) -> Iterator[str]:
    """Use this server, whatever the environment says; gives its URI without credentials."""
    hidden = (tracking.URI_VARIABLE, *OF_ONE_SERVER)
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    try:
        with tracking.tracking(uri) as shown:
            yield shown
    finally:
        os.environ.update(before)
        mlflow.set_tracking_uri(before.get(tracking.URI_VARIABLE))  # type: ignore[arg-type]  # None unsets it


def pack(found: Registered, artifact: Path | None, folder: Path, server: str) -> Package:
    """Fetch into `folder` what belongs to a version and is not yet in `artifact`, as `versions.fetch` gave it.

    Args:
        server: the URI of this server without credentials.
    """
    assert artifact
    assert found.run_id
    client = mlflow.MlflowClient()
    run = client.get_run(found.run_id)
    for name in RECORD:
        if client.list_artifacts(found.run_id, name):
            mlflow.artifacts.download_artifacts(run_id=found.run_id, artifact_path=name, dst_path=str(folder))
    folder.mkdir(exist_ok=True)
    origin = {"copied_from": f"{found.uri} on {server}"}
    return Package(
        model=artifact.parent.parent,
        record=folder,
        tags={key: value for key, value in found.tags.items() if not key.startswith(PROMOTED)} | origin,
        description=client.get_model_version(found.name, found.number).description or "",
        run_name=run.info.run_name,
        run_tags={key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")} | origin,
        parameters=run.data.params,
        metrics=run.data.metrics,
        experiment=client.get_experiment(run.info.experiment_id).name,
    )


def copied(name: str, tags: Mapping[str, str], folder: Path) -> str | None:
    """Number of the version of `name` here that is the same model, judged by the same gate, with all its files."""
    whole = (here.number for here in versions.same_model(name, tags) if _arrived(here, folder / here.number))
    return next(whole, None)


def log_again(package: Package, name: str, folder: Path) -> str:
    """Log a package here as a new run and the next version of `name`, its challenger; returns its number.

    Raises:
        CheckpointError: when what arrived is not what was sent.
    """
    tracking.ensure_registered_model(name)
    with tracking.logging_run(package.experiment, package.run_name) as run_id:
        mlflow.set_tags(dict(package.run_tags))
        mlflow.log_params(dict(package.parameters))
        mlflow.log_metrics(dict(package.metrics))
        for part in sorted(package.record.iterdir()):
            mlflow.log_artifacts(str(part), part.name)
        logged = Model.log(
            artifact_path=None,
            name="model",
            flavor=SimpleNamespace(save_model=_copy_of(package.model), __name__="mlflow.pyfunc"),
            validate_serving_input=False,
        )
    number = str(
        tracking.register(
            logged.model_uri,
            run_id,
            name=name,
            alias=CHALLENGER,
            tags=dict(package.tags),
            description=package.description,
        )
    )
    here = versions.find(name, number)
    if here is None or not _arrived(here, folder / number):
        raise CheckpointError(
            f"The files that arrived as version {number} of {name} are not those that were sent; it is not champion.",
            where=f"models:/{name}/{number}",
            mend="Check the artifact store of that server, delete this version there, and promote again.",
        )
    return number


def _arrived(here: Registered, folder: Path) -> bool:
    try:
        return versions.fingerprint(versions.fetch(here, folder)) == here.tags["fingerprint"]
    except CheckpointError:
        return False


def _copy_of(model: Path) -> Any:
    """What `Model.log` calls to have a model saved: the files as they are, under the names that this server gave."""

    def save_model(*, path: str, mlflow_model: Model, **_: Any) -> None:
        shutil.copytree(model, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(DOWNLOADED, "__pycache__"))
        kept = Model.load(model)
        for key in ("artifact_path", "run_id", "model_uuid", "model_id"):
            setattr(kept, key, getattr(mlflow_model, key))
        mlflow_model.__dict__.update(kept.__dict__)
        kept.save(str(Path(path) / MODEL_FILE))

    return save_model
