"""Judge the registered model in use on today's cohort: scored as predict does, judged as evaluate does.

Its calibration and thresholds are those it was registered with, so that it decides as it does in use. Without such a
model yet, the step says so and ends well. Nothing is written to MLflow: the predictions hold demographics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairvlm_core.config import Port, option
from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.registry import is_alias
from fairvlm_core.steps import evaluate

if TYPE_CHECKING:
    from fairvlm_core.registry.versions import Registered

CHAMPION_FILE = "champion.json"
INPUTS = {
    "cohort": Port("Folder that stratify wrote."),
    "images": Port("Folder that ingest wrote, with the image store."),
    "base": Port(
        "Folder that base_models wrote: where the base model is looked for first, if the weights are the same.",
        optional=True,
    ),
}
OUTPUTS = {"out": Port("Folder to write: champion.json and, where there is a champion, what evaluate writes.")}


@dataclass(frozen=True)
class Config(evaluate.Config):
    """Which registered model, and the parameters of evaluate: equal ones make its numbers comparable."""

    version: str = option("champion", "Alias or number of the registered version to judge; empty: none.")
    registered_name: str = option("fairvlm", "Name in the model registry.")
    tracking_uri: str = option("sqlite:///mlflow.db", "Tracking server where MLFLOW_TRACKING_URI is not set.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version and not is_alias(self.version):
            raise ConfigError(
                f'champion.version cannot be "{self.version}".',
                where="champion.version",
                mend="Give an alias such as champion, a number such as 3, or nothing.",
            )


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write champion.json: version (null where there is none), where it comes from, whether the cohort is the same."""
    import tempfile

    from fairvlm_core.cohort.table import COHORT_FILE
    from fairvlm_core.files import sha256, write_json

    told: dict[str, Any] = {
        "name": config.registered_name,
        **dict.fromkeys(("version", "alias", "run_id", "model", "cohort_sha256", "same_cohort")),
        "tags": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        fetched = _fetched(config, Path(scratch)) if config.version else None
        if fetched is None:
            none = f"There is no champion yet. No version of {config.registered_name} has the alias {config.version}."
            print(none if config.version else "No champion is asked for.", flush=True)
            write_json(outputs["out"] / CHAMPION_FILE, told)
            return {"version": "none"}
        from fairvlm_core.models import describe

        found, artifact = fetched
        described = describe(artifact / "model")
        _refuse_others(found, described, inputs)
        registered_with = found.tags.get("cohort_sha256")
        told |= {
            "version": found.number,
            "alias": found.alias,
            "run_id": found.run_id,
            "model": described["name"],
            "cohort_sha256": registered_with,
            "same_cohort": registered_with == sha256(inputs["cohort"] / COHORT_FILE),
            "tags": found.tags,
        }
        write_json(outputs["out"] / CHAMPION_FILE, told)
        judged = _judged(config, artifact, described, inputs, outputs["out"], Path(scratch))
    return {**{key: told[key] for key in ("version", "model")}, "same_cohort": int(told["same_cohort"]), **judged}


def _fetched(config: Config, scratch: Path) -> tuple[Registered, Path] | None:
    """The registered version and the folder of its files in `scratch`; None where nothing has the alias yet."""
    from fairvlm_core.registry import tracking, versions

    with tracking.tracking(config.tracking_uri):
        found = versions.find(config.registered_name, config.version)
        return (found, versions.fetch(found, scratch / "version")) if found else None


def _refuse_others(found: Registered, described: Mapping[str, Any], inputs: Mapping[str, Path]) -> None:
    """Only a model that answers the cohort's question, on pictures of its size, can be judged on it."""
    from fairvlm_core.cohort.images import ImageStore
    from fairvlm_core.cohort.table import read_cohort, task_of

    task, other = task_of(read_cohort(inputs["cohort"])), described["task"]
    size, taken = ImageStore.open(inputs["images"]).size, described["image_size"]
    if (task.kind, tuple(task.labels)) != (other.kind, tuple(other.labels)):
        what = f"is for other labels ({', '.join(other.labels)}) than the cohort has ({', '.join(task.labels)})"
    elif size != taken:
        what = f"takes images of {taken} pixels, and those of the cohort have {size}"
    else:
        return
    raise CheckpointError(
        f"Version {found.number} of {found.name} {what}.",
        where=found.uri,
        mend="Name another version in champion.version, or none, or judge it on a cohort that it was made for.",
    )


def _judged(
    config: Config, artifact: Path, described: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, scratch: Path
) -> dict[str, Any]:
    """Write what evaluate writes, of the model in `artifact`; returns evaluate's figures."""
    from fairvlm_core.files import read_json, write_json
    from fairvlm_core.models import BASES_FILE
    from fairvlm_core.registry.base import find_base
    from fairvlm_core.steps import predict

    # The folders that the two steps read, as the steps before them would have left them.
    base, predictions, thresholds = (scratch / name for name in ("base", "predictions", "thresholds"))
    for folder in (base, predictions, thresholds):
        folder.mkdir()
    try:
        checkpoint = find_base(read_json(artifact / "base.json", made_by="register"), inputs.get("base"))
    except CheckpointError as error:
        mend = f"{error.mend} Or leave champion.version empty, to go on without the champion."
        raise CheckpointError(error.what, where=error.where, mend=mend) from None
    whole = str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint
    write_json(base / BASES_FILE, {described["family"]: whole})
    fixed = read_json(artifact / "thresholds.json", made_by="register")
    task = described["task"]
    belongs = {"model": described["name"], "kind": task.kind, "labels": list(task.labels)}
    write_json(thresholds / "thresholds.json", {**fixed, **belongs})
    given = {"model": artifact / "model", "base": base, **{name: inputs[name] for name in ("cohort", "images")}}
    predict.run(predict.Config(), given, {"out": predictions})
    return evaluate.run(config, {"predictions": predictions, "thresholds": thresholds}, {"out": out})
