"""Log the selected model to MLflow and register it as the next version, which the alias challenger then points to.

What is registered holds what was trained and a reference to the base model, never the base weights. The server is
that of MLFLOW_TRACKING_URI, else a database in the working directory. A version is made last, when its files are there;
a registration that was cut short is run again, and a version that it had made already only gets its alias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import Port, check, option
from fairvlm_core.errors import CheckpointError, ConfigError
from fairvlm_core.registry import is_alias

MODELS = ("stage1", "stage2", "fair_moe")
GATE_FILE = "gate.json"
NOT_JUDGED = "not judged"
ONE_RUN = "Pass folders of one run of the pipeline."
REASONS = 4000  # characters of the tag that holds the gate's reasons; a tag takes 5,000
INPUTS = {
    "comparison": Port("Folder that compare wrote."),
    "base": Port("Folder that base_models wrote."),
    "cohort": Port("Folder that stratify wrote."),
    **{name: Port(f"Folder that {name} wrote.") for name in MODELS},
}
OUTPUTS = {"out": Port("Folder to write: registration.json.")}


@dataclass(frozen=True)
class Config:
    """Parameters of the step."""

    model: str = option(
        "selected", "What to register: the model that compare selected, or a named one.", choices=("selected", *MODELS)
    )
    registered_name: str = option("fairvlm", "Name in the model registry.")
    alias: str = option("challenger", "Alias that the new version gets.")
    experiment: str = option("fairvlm", "Experiment of the run, where MLflow's environment variables name no other.")
    tracking_uri: str = option("sqlite:///mlflow.db", "Tracking server where MLFLOW_TRACKING_URI is not set.")

    def __post_init__(self) -> None:
        check(self)
        # MLflow would find out only after the version exists.
        if not is_alias(self.alias):
            raise ConfigError(
                f'register.alias cannot be "{self.alias}".',
                where="register.alias",
                mend="Use letters, digits, - and _, but neither a version like v1 nor latest.",
            )


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write registration.json: name, version, run, server, alias and tags."""
    import tempfile

    import mlflow

    from fairvlm_core import __version__
    from fairvlm_core.cohort.table import COHORT_FILE, read_cohort, task_of
    from fairvlm_core.files import read_json, sha256, write_json
    from fairvlm_core.model_files import describe
    from fairvlm_core.registry import card, lineage, record, tracking, versions
    from fairvlm_core.registry.base import base_reference

    comparison = read_json(inputs["comparison"] / "comparison.json", made_by="compare")
    name = comparison["selected"] if config.model == "selected" else config.model
    gate = read_json(inputs["comparison"] / GATE_FILE, made_by="compare")
    described = describe(inputs[name])
    training = read_json(inputs[name] / "config.json", made_by=name)
    _refuse_others(described, name, comparison, task_of(read_cohort(inputs["cohort"])), inputs)
    if gate["test_sha256"] != lineage.hash_test_rows(inputs["cohort"]):
        raise CheckpointError(
            "The gate judged on other test images than the cohort has now.",
            where=str(inputs["comparison"] / GATE_FILE),
            mend=ONE_RUN,
        )
    tags = {
        **lineage.surroundings(),
        **lineage.commit(Path.cwd()),
        "dvc_data_hash": lineage.data_hash(inputs["cohort"], Path.cwd()),
        "cohort_sha256": sha256(inputs["cohort"] / COHORT_FILE),
        "model": name,
        "criterion": comparison["criterion"]["name"],
        "fairvlm_version": __version__,
        "seed": str(described["seed"]),
        "gate_sha256": sha256(inputs["comparison"] / GATE_FILE),
        **_verdict(gate, name),
    }
    reference = base_reference(inputs["base"], described["family"])
    judged = comparison["models"][name]
    with tracking.tracking(config.tracking_uri) as uri, tempfile.TemporaryDirectory() as scratch:
        with tracking.noting(tracking.NOTHING):
            tracking.ensure_registered_model(config.registered_name)
            artifact = Path(scratch) / tracking.ARTIFACT
            fixed = {key: judged[key] for key in ("thresholds", "calibration", "rule", "target") if key in judged}
            tracking.write_artifact(artifact, model=inputs[name], fixed=fixed, reference=reference)
            tags["fingerprint"] = versions.fingerprint(artifact)
            told = Path(scratch) / "told"
            description = card.write_card(
                told / "card", inputs=inputs, name=name, gate=gate, tags=tags, registered_name=config.registered_name
            )
            record.write_lineage(told / record.FOLDER, inputs=inputs, config=asdict(config), tags=tags, root=Path.cwd())
            before = versions.registered_before(config.registered_name, tags)
        if before:
            number, run_id, tags = before.number, before.run_id, before.tags
            print(f"Version {number} of {config.registered_name} is this model already; it gets the alias.", flush=True)
            tracking.finish(run_id)
            tracking.set_alias(config.registered_name, config.alias, number)
        else:
            with tracking.logging_run(config.experiment) as run_id:
                with tracking.noting(f"The run {run_id} was logged in part; no version was made. Run register again."):
                    mlflow.set_tags(tags)
                    mlflow.log_params(tracking.parameters(described, comparison, training))
                    mlflow.log_metrics(tracking.metrics(judged))
                    for file in _figures(inputs, name):
                        mlflow.log_artifact(str(file), "report")
                    mlflow.log_artifacts(str(told))
                    logged = tracking.log_model(artifact, described["task"], described["image_size"])
                number = str(
                    tracking.register(
                        logged.model_uri,
                        run_id,
                        name=config.registered_name,
                        alias=config.alias,
                        tags=tags,
                        description=description,
                    )
                )
    registration = {
        "name": config.registered_name,
        "version": int(number),
        "alias": config.alias,
        "run_id": run_id,
        "tracking_uri": uri,
        "tags": tags,
    }
    write_json(outputs["out"] / "registration.json", registration)
    return {"model": name, **{key: registration[key] for key in ("name", "version", "alias", "run_id")}}


def _verdict(gate: Mapping[str, Any], name: str) -> dict[str, str]:
    """The tags that say how the gate judged this model, against which champion, on which test images.

    The gate judges the model that compare selected. Another one, registered by its name, was not judged.
    """
    from fairvlm_core.registry.ledger import shortened

    tags = {"test_sha256": gate["test_sha256"], "gate_champion": "none", "gate_champion_fingerprint": "none"}
    if gate["model"] != name:
        return {
            **tags,
            "gate_verdict": NOT_JUDGED,
            "gate_reasons": f"The gate judged {gate['model']}, the model that compare selected, and not {name}.",
        }
    if gate["champion"]:
        tags["gate_champion"] = str(gate["champion"]["version"])
        tags["gate_champion_fingerprint"] = gate["champion"]["fingerprint"] or "unknown"
    reasons = shortened(" ".join(gate["reasons"]), REASONS)
    return {**tags, "gate_verdict": gate["verdict"], "gate_reasons": reasons}


def _refuse_others(
    described: Mapping[str, Any], name: str, comparison: Mapping[str, Any], task: Any, inputs: Mapping[str, Path]
) -> None:
    """The model, the comparison and the cohort must belong together: thresholds and tags would say something untrue."""
    where = str(inputs[name] / "model.json")
    if described["name"] != name:
        raise CheckpointError(
            f"The input {name} holds the model {described['name']}.",
            where=where,
            mend=f"Pass the folder that {name} wrote.",
        )
    for what, labels in (("comparison", comparison["labels"]), ("cohort", task.labels)):
        if list(labels) != list(described["task"].labels):
            raise CheckpointError(
                f"The model has other labels than the {what}.",
                where=where,
                mend=ONE_RUN,
            )


def _figures(inputs: Mapping[str, Path], name: str) -> list[Path]:
    """What a person would look at, as far as it is there."""
    comparison = [
        inputs["comparison"] / file
        for file in ("report.html", "report.md", "comparison.json", GATE_FILE, "tradeoff.png")
    ]
    others = [inputs["cohort"] / "strata.png", inputs[name] / "history.png"]
    return [file for file in (*comparison, *others) if file.is_file()]
