"""Registered versions as `register` leaves them, without a model: what promotions look at, in a few hundred bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import bases
import mlflow
import numpy as np
from mlflow import MlflowClient
from safetensors.numpy import save_file

from fairvlm_core.registry import versions

NAME = "fairvlm"
PEOPLE = "test set of the spring"


def write_base(root: Path) -> Path:
    """A base model to refer to: one file of weights."""
    folder = root / "base model"
    folder.mkdir(exist_ok=True)
    save_file({"weight": np.zeros(4, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def write_files(folder: Path, base: Path, *, weight: float, thresholds: dict[str, float]) -> Path:
    """What MLflow keeps of a version, the artifact of `register` in it; returns that artifact."""
    artifact = folder / "artifacts" / "fairvlm"
    (artifact / "model").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n")
    described = {"name": "stage2", "family": "dual", "task": asdict(bases.TASKS["binary"]), "image_size": 32, "seed": 0}
    (artifact / "model" / "model.json").write_text(json.dumps(described))
    save_file({"weight": np.full(4, weight, dtype=np.float32)}, artifact / "model" / "trained.safetensors")
    (artifact / "thresholds.json").write_text(json.dumps({"thresholds": thresholds, "calibration": None}))
    weights = base / "model.safetensors"
    reference = {
        "family": "dual",
        "checkpoint": str(base),
        "sha256": {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()},
        "size": {weights.name: weights.stat().st_size},
    }
    (artifact / "base.json").write_text(json.dumps(reference))
    return artifact


def make(
    root: Path,
    weight: float,
    *,
    verdict: str = "pass",
    against: str | None = None,
    people: str = PEOPLE,
    thresholds: dict[str, float] | None = None,
    without: tuple[str, ...] = (),
    **tags: str,
) -> str:
    """Register a version on the server that is set; returns its number.

    Args:
        weight: what makes this model another one.
        against: number of the champion that the gate judged it against.
        people: who is in the test set.
        without: tags that are left out.
        tags: those that are others than a good version's.
    """
    client = MlflowClient()
    folder = root / f"version-{weight}-{len(list(root.glob('version-*')))}"
    label = bases.TASKS["binary"].labels[0]
    artifact = write_files(folder, write_base(root), weight=weight, thresholds=thresholds or {label: 0.5})
    fingerprint = versions.fingerprint(artifact)
    champion = client.get_model_version(NAME, against) if against else None
    test = hashlib.sha256(people.encode()).hexdigest()
    gate = {
        "verdict": verdict,
        "model": "stage2",
        "rules": {},
        "findings": [],
        "reasons": ["Every rule that was judged holds." if verdict == "pass" else "AUC is 0.3 below the champion's."],
        "champion": champion
        and {
            "name": NAME,
            "version": int(against),
            "run_id": champion.run_id,
            "fingerprint": champion.tags.get("fingerprint"),
        },
        "test_sha256": test,
        "min_cell": 10,
    }
    report = folder.with_suffix(".report")
    report.mkdir()
    (report / "gate.json").write_text(json.dumps(gate))
    found = {
        "git_commit": "c" * 40,
        "git_dirty": "false",
        "dvc_data_hash": "d" * 32 + ".dir",
        "cohort_sha256": "e" * 64,
        "fairvlm_version": "0.1.0",
        "model": "stage2",
        "seed": "0",
        "test_sha256": test,
        "gate_verdict": verdict,
        "gate_reasons": gate["reasons"][0],
        "gate_champion": against or "none",
        "gate_champion_fingerprint": champion.tags.get("fingerprint", "unknown") if champion else "none",
        "gate_sha256": hashlib.sha256((report / "gate.json").read_bytes()).hexdigest(),
        "fingerprint": fingerprint,
        **tags,
    }
    found = {key: value for key, value in found.items() if key not in without}
    experiment = client.get_experiment_by_name(NAME)
    place = (root / "store").as_uri() if mlflow.get_tracking_uri().startswith("sqlite") else None
    run = client.create_run(
        experiment.experiment_id if experiment else client.create_experiment(NAME, place), tags=found
    )
    run_id = run.info.run_id
    client.log_metric(run_id, "test_auc", 0.5 + weight / 100)
    client.log_param(run_id, "seed", 0)
    client.log_artifacts(run_id, str(folder), "model")
    client.log_artifacts(run_id, str(report), "report")
    client.set_terminated(run_id)
    if not client.search_registered_models(f"name='{NAME}'"):
        client.create_registered_model(NAME)
    made = client.create_model_version(NAME, f"{run.info.artifact_uri}/model", run_id, tags=found, await_creation_for=0)
    client.set_registered_model_alias(NAME, "challenger", made.version)
    return str(made.version)
