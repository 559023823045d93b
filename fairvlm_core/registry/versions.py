"""A registered version: which one an alias or a number means, and the files that `tracking.write_artifact` gave it.

`find` and `fetch` ask the server that is set: call them inside `tracking.tracking`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from fairvlm_core.errors import CheckpointError, FairVLMError
from fairvlm_core.files import read_json, sha256
from fairvlm_core.registry.columns import ARTIFACT
from fairvlm_core.registry.tracking import SQLITE

BASE_FILE = "base.json"
# Tags that are the same where a version is the same model, judged by the same gate.
SAME = ("fingerprint", "gate_sha256")
MISSING = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True)
class Registered:
    """One version of a registered model.

    Attributes:
        name: of the registered model.
        number: of the version, as MLflow writes it: a text.
        alias: by which it was found; none where its number was given.
        run_id: of the run that logged it.
        tags: what `register` wrote about it, and what people added.
    """

    name: str
    number: str
    alias: str | None
    run_id: str | None
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """Its address: `models:/fairvlm/3`."""
        return f"models:/{self.name}/{self.number}"


def find(name: str, version: str) -> Registered | None:
    """The version of the registered model `name` that an alias or a number means; None where the alias is not set yet.

    A database file that does not exist is not created: it can hold no version.

    Raises:
        FairVLMError: when there is no version of that number.
    """
    database = SQLITE.fullmatch(mlflow.get_registry_uri())
    there = database is None or Path(database[1]).is_file()
    numbered = version.isdecimal()
    number = version if numbered else aliases(name).get(version) if there else None
    if number is None:
        return None
    try:
        found = mlflow.MlflowClient().get_model_version(name, number) if there else None
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        found = None
    if found is None:
        raise FairVLMError(
            f"There is no version {number} of the registered model {name}.",
            where=f"models:/{name}/{number}",
            mend="Give the number of a version that the registry shows, or an alias.",
        )
    return Registered(name, number, None if numbered else version, found.run_id, dict(found.tags))


def same_model(name: str, tags: Mapping[str, str]) -> Iterator[Registered]:
    """The versions of `name` that are the model with these tags, judged by the same gate; the newest first."""
    for item in mlflow.MlflowClient().search_model_versions(f"name='{name}'", order_by=["version_number DESC"]):
        if all(item.tags.get(key) == tags.get(key) for key in SAME):
            yield Registered(name, str(item.version), None, item.run_id, dict(item.tags))


def registered_before(name: str, tags: Mapping[str, str]) -> Registered | None:
    """The version of `name` that is the model with these tags, judged by the same gate, and whose files are there."""
    return next((found for found in same_model(name, tags) if _has_files(found)), None)


def _has_files(found: Registered) -> bool:
    """Whether the artifact store still has the version's model."""
    listed = mlflow.artifacts.list_artifacts(artifact_uri=found.uri)
    return any(Path(item.path).name == "MLmodel" for item in listed)


def fetch(found: Registered, folder: Path) -> Path:
    """Download a version's files into `folder`; returns the one that holds model/, thresholds.json and base.json.

    Raises:
        CheckpointError: when the files cannot be fetched or are gone, or `register` did not make this version.
    """
    try:
        whole = mlflow.artifacts.download_artifacts(artifact_uri=found.uri, dst_path=str(folder))
    except OSError as error:
        raise CheckpointError(
            f"The files of this version cannot be fetched ({type(error).__name__}).",
            where=found.uri,
            mend="Bring the artifact store back, or name another version.",
        ) from None
    artifact = Path(whole) / "artifacts" / ARTIFACT
    if not artifact.is_dir():
        raise CheckpointError(
            "The files of this version are gone, or the step register did not make it.",
            where=found.uri,
            mend="Bring the artifact store back, name another version, or move the alias to one.",
        )
    return artifact


def fingerprint(artifact: Path) -> str:
    """The identity of a model on any server: SHA-256 over the names and hashes of what `tracking.write_artifact` wrote.

    Of base.json, where the base model lay does not count, only which weights it has: the same model registered on
    another machine is the same.
    """
    listed = {}
    for path in sorted(path for path in artifact.rglob("*") if path.is_file()):
        name = path.relative_to(artifact).as_posix()
        listed[name] = _reference_hash(path) if name == BASE_FILE else sha256(path)
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _reference_hash(path: Path) -> str:
    reference = read_json(path, made_by="register")
    which = {key: reference[key] for key in ("family", "sha256")}
    return hashlib.sha256(json.dumps(which, sort_keys=True).encode()).hexdigest()


def aliases(name: str) -> dict[str, str]:
    """Alias -> number of the version; none where the registered model does not exist."""
    try:
        return {
            alias: str(number) for alias, number in mlflow.MlflowClient().get_registered_model(name).aliases.items()
        }
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        return {}
