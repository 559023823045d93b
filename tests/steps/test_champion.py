"""The step champion, end to end: the registered model's numbers are those that the pipeline gave it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import bases
import numpy as np
import pipeline_outputs
import pytest
from mlflow import MlflowClient

from fairvlm_core.cohort.images import ImageStore, build_store
from fairvlm_core.errors import CheckpointError, ConfigError, FairVLMError
from fairvlm_core.evaluation.predictions import read_predictions
from fairvlm_core.files import sha256
from fairvlm_core.steps import evaluate, execute, register
from fairvlm_core.steps.champion import Config

TOLD = {"name", "version", "alias", "run_id", "model", "cohort_sha256", "same_cohort", "tags"}


@contextmanager
def working_in(folder):
    """`folder` as the working directory, and nothing of the machine's MLflow settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRACKING_URI", "REGISTRY_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME"):
            patch.delenv(f"MLFLOW_{name}", raising=False)
        patch.delenv("FAIRVLM_BASE", raising=False)
        patch.chdir(folder)
        yield patch


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A working directory whose registry holds stage2, the champion, and fair_moe; and the folders they come from."""
    root = tmp_path_factory.mktemp("registry")
    folders = pipeline_outputs.write_outputs(root / "outputs", "binary")
    with working_in(root):
        for model, alias in (("stage2", "champion"), ("fair_moe", "challenger")):
            config = register.Config(model=model, alias=alias)
            given = {name: folders[name] for name in register.INPUTS}
            execute("register", config, given, {"out": root / f"registration-{model}"})
    return root, folders


@pytest.fixture
def workplace(registry):
    with working_in(registry[0]):
        yield registry[0]


@pytest.fixture
def elsewhere(tmp_path):
    with working_in(tmp_path):
        yield tmp_path


def champion(folders, out, *, base=None, cohort=None, **options):
    """Run the step; returns its metrics and what it says about the champion."""
    folder = cohort or folders["cohort"]
    inputs = {"cohort": folder, "images": folder, "base": base}
    metrics = execute("champion", Config(**options), inputs, {"out": out})
    told = json.loads((out / "champion.json").read_text())
    assert told.keys() == TOLD
    return metrics, told


@pytest.mark.parametrize(
    ("model", "version", "number"),
    [("stage2", "champion", "1"), ("fair_moe", "challenger", "2"), ("fair_moe", "2", "2")],
)
def test_the_numbers_are_those_of_predict_and_evaluate(registry, workplace, tmp_path, model, version, number):
    _, folders = registry
    metrics, told = champion(folders, tmp_path / "out", version=version)
    expected = folders["comparison"].parent / f"{model}_evaluation"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(path.name for path in expected.iterdir()), "champion.json"
    }  # fmt: skip
    found, before = (read_predictions(folder) for folder in (tmp_path / "out", expected))
    assert found.drop_columns(["y_score"]).equals(before.drop_columns(["y_score"]))
    assert found.column("y_score").to_pylist() == pytest.approx(before.column("y_score").to_pylist(), abs=1e-7)
    judged, same = (json.loads((folder / "evaluation.json").read_text()) for folder in (tmp_path / "out", expected))
    for split in ("validation", "test"):
        assert judged[split] == same[split]
    assert judged["thresholds"]["thresholds"] == same["thresholds"]["thresholds"]
    assert judged["thresholds"]["calibration"] == same["thresholds"]["calibration"]
    flat = json.loads((expected / "metrics.json").read_text())
    assert metrics == {"version": number, "model": model, "same_cohort": 1, **flat}
    registered = json.loads((workplace / f"registration-{model}" / "registration.json").read_text())
    assert told == {
        "name": "fairvlm",
        "version": number,
        "alias": None if version == number else version,
        "run_id": registered["run_id"],
        "model": model,
        "cohort_sha256": sha256(folders["cohort"] / "cohort.parquet"),
        "same_cohort": True,
        "tags": registered["tags"],
    }


def test_thresholds_and_calibration_are_those_of_the_registration(registry, workplace, tmp_path):
    """The numbers of the test before would not tell whether the decisions were tuned anew on today's validation."""
    _, folders = registry
    cohort = bases.write_cohort_with_images(tmp_path / "cohort", bases.TASKS["binary"], count=240, seed=5)
    metrics, told = champion(folders, tmp_path / "out", cohort=cohort)
    registered = json.loads((folders["comparison"] / "comparison.json").read_text())["models"]["stage2"]
    assert registered["calibration"]["labels"]["glaucoma"]["slope"] != 1
    judged = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert judged["thresholds"]["thresholds"] == registered["thresholds"]
    assert judged["thresholds"]["calibration"] == registered["calibration"]
    table = read_predictions(tmp_path / "out")
    scores = table.column("y_score").to_pylist()
    limit = registered["thresholds"]["glaucoma"]
    assert table.column("y_pred").to_pylist() == [int(score >= limit) for score in scores]
    # It is another cohort than that of the registration, and said to be.
    assert told["same_cohort"] is False
    assert metrics["same_cohort"] == 0
    assert told["cohort_sha256"] == sha256(folders["cohort"] / "cohort.parquet") != sha256(cohort / "cohort.parquet")


def test_parameters_of_evaluate_are_parameters_of_this_step(registry, workplace, tmp_path):
    _, folders = registry
    options = {"min_cell": 15, "resamples": 200, "interval": "bca", "seed": 3}
    assert set(options) <= {field.name for field in dataclasses.fields(evaluate.Config)}
    champion(folders, tmp_path / "out", **options)
    source = {name: folders["comparison"].parent / f"stage2_{name}" for name in ("predictions", "thresholds")}
    execute("evaluate", evaluate.Config(**options), source, {"out": tmp_path / "evaluation"})
    found, expected = (
        json.loads((tmp_path / name / "evaluation.json").read_text())["test"] for name in ("out", "evaluation")
    )
    assert found == expected
    assert found["attributes"]["sex x age_group"]["suppressed"]


def test_without_a_champion_the_step_says_so_and_ends_well(registry, elsewhere, capsys):
    _, folders = registry

    def nobody(**options):
        metrics, told = champion(folders, elsewhere / "out", **options)
        assert metrics == {"version": "none"}
        assert told["version"] is None
        assert told["run_id"] is told["model"] is told["cohort_sha256"] is told["same_cohort"] is None
        assert {path.name for path in (elsewhere / "out").iterdir()} == {"champion.json", "config.json", "metrics.json"}
        return capsys.readouterr().out

    assert nobody().startswith("There is no champion yet.")  # no database
    assert {path.name for path in elsewhere.iterdir()} == {"out"}
    shutil.copyfile(registry[0] / "mlflow.db", elsewhere / "mlflow.db")
    assert nobody(version="winner").startswith("There is no champion yet.")  # no alias
    assert nobody(registered_name="other").startswith("There is no champion yet.")  # no registered model
    (elsewhere / "mlflow.db").unlink()
    assert nobody(version="") == "No champion is asked for.\n"
    assert not (elsewhere / "mlflow.db").exists()


def test_without_a_version_no_server_is_asked(registry, elsewhere, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert champion(registry[1], elsewhere / "out", version="")[0] == {"version": "none"}


def test_a_number_that_does_not_exist_is_an_error(registry, workplace, tmp_path):
    _, folders = registry
    with pytest.raises(FairVLMError, match="no version 7 of the registered model fairvlm"):
        champion(folders, tmp_path / "out", version="7")
    with pytest.raises(FairVLMError, match="no version 1 of the registered model other"):
        champion(folders, tmp_path / "out", version="1", registered_name="other")
    assert not (tmp_path / "out").exists()


def test_the_server_is_that_of_the_environment(registry, elsewhere, monkeypatch):
    root, folders = registry
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    _, told = champion(folders, elsewhere / "out", tracking_uri="sqlite:///other.db")
    assert told["version"] == "1"
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{root}/mlflow.db"
    assert not (elsewhere / "other.db").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    _, told = champion(folders, elsewhere / "out", tracking_uri=f"sqlite:///{root}/mlflow.db")
    assert told["version"] == "1"


def test_a_server_that_cannot_be_reached_is_told_without_its_password(registry, elsewhere, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9/mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FairVLMError) as error:
        champion(registry[1], elsewhere / "out")
    assert "http://127.0.0.1:9/mlflow" in str(error.value)
    assert "s3cret" not in str(error.value)
    assert not (elsewhere / "out").exists()


def test_a_cohort_that_the_champion_is_not_for_is_refused(registry, workplace, tmp_path):
    _, folders = registry
    other = bases.write_cohort_with_images(tmp_path / "other", bases.TASKS["multilabel"])
    with pytest.raises(CheckpointError, match=r"for other labels \(glaucoma\) .* \(edema, fracture\)") as error:
        champion(folders, tmp_path / "out", cohort=other)
    assert error.value.where == "models:/fairvlm/1"
    larger = tmp_path / "larger"
    shutil.copytree(folders["cohort"], larger)
    build_store(ImageStore.open(larger).keys, lambda key: np.zeros((48, 48, 3), dtype=np.uint8), larger, size=48)
    with pytest.raises(CheckpointError, match="takes images of 32 pixels, and those of the cohort have 48"):
        champion(folders, tmp_path / "out", cohort=larger)


def test_the_base_model_is_found_or_its_absence_told(registry, workplace, tmp_path, monkeypatch):
    _, folders = registry
    other = bases.write_bases(tmp_path / "other", bases.TASKS["multiclass"])
    (metrics, _), (again, _) = (champion(folders, tmp_path / "out", base=base) for base in (None, other))
    assert metrics == again  # other weights are passed over, where the model's own are in their place
    moved = tmp_path / "moved"
    folders["base"].rename(moved)
    try:
        for base in (None, other):
            with pytest.raises(CheckpointError, match="base model of this registered model is missing") as error:
                champion(folders, tmp_path / "none", base=base)
            assert "FAIRVLM_BASE" in error.value.mend
            assert "champion.version" in error.value.mend
        assert champion(folders, tmp_path / "out", base=moved)[0] == metrics
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FAIRVLM_BASE", "moved")
        uri = f"sqlite:///{workplace}/mlflow.db"
        assert champion(folders, tmp_path / "out", base=other, tracking_uri=uri)[0] == metrics
    finally:
        moved.rename(folders["base"])


def test_nothing_is_written_to_the_registry(registry, workplace, tmp_path):
    """Predictions hold demographics image by image."""

    def kept():
        files = sorted((path, path.stat().st_size) for path in Path("mlartifacts").rglob("*") if path.is_file())
        client = MlflowClient("sqlite:///mlflow.db")
        experiments = [found.experiment_id for found in client.search_experiments()]
        return files, [(run.info.run_id, run.data.metrics, run.data.tags) for run in client.search_runs(experiments)]

    before = kept()
    champion(registry[1], tmp_path / "out")
    assert kept() == before


def test_config_refuses_what_is_neither_alias_nor_number():
    for version in ("v3", "latest", "the champion", "models:/fairvlm/3"):
        with pytest.raises(ConfigError, match=r"champion\.version"):
            Config(version=version)
    with pytest.raises(ConfigError, match=r"champion\.interval"):
        Config(interval="exact")
