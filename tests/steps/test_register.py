"""The step register, end to end: a version in MLflow that loads, scores as predict did, and holds no base weights."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from contextlib import contextmanager

import bases
import mlflow
import pandas as pd
import pipeline_outputs
import pytest
from mlflow import MlflowClient
from PIL import Image

from fairvlm_core import __version__
from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import read_cohort
from fairvlm_core.errors import CheckpointError, ConfigError, FairVLMError
from fairvlm_core.evaluation.predictions import read_predictions
from fairvlm_core.steps import execute
from fairvlm_core.steps.register import INPUTS, Config

CHAMPION = {"name": "fairvlm", "version": "2", "run_id": None, "fingerprint": "f" * 64}
REPORT = {"comparison.json", "gate.json", "report.html", "report.md", "tradeoff.png"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return pipeline_outputs.write_outputs(tmp_path_factory.mktemp("outputs"), "binary")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty database: making one takes longer than a registration."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    logging.getLogger("alembic").setLevel(logging.ERROR)
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@contextmanager
def working_in(folder):
    """`folder` as the working directory, and nothing of the machine's MLflow settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRACKING_URI", "REGISTRY_URI", "RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME"):
            patch.delenv(f"MLFLOW_{name}", raising=False)
        patch.delenv("FAIRVLM_BASE", raising=False)
        patch.chdir(folder)
        yield patch


@pytest.fixture
def workplace(tmp_path, database):
    shutil.copyfile(database, tmp_path / "mlflow.db")
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def registered(folders, database, tmp_path_factory):
    """A working directory in which fair_moe, then stage2 was registered; and what was written about each."""
    root = tmp_path_factory.mktemp("registered")
    shutil.copyfile(database, root / "mlflow.db")
    with working_in(root):
        return root, {name: register(folders, root / name, model=name) for name in ("fair_moe", "stage2")}


def register(folders, out, **options):
    execute("register", Config(**options), {name: folders[name] for name in INPUTS}, {"out": out})
    return json.loads((out / "registration.json").read_text())


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_registered_version_scores_and_decides_as_the_pipeline_did(folders, workplace, capfd):
    (workplace / "mlflow.db").unlink()  # made by the step, in the working directory
    found = register(folders, workplace / "out")
    assert capfd.readouterr() == ("", "")
    comparison = json.loads((folders["comparison"] / "comparison.json").read_text())
    model = comparison["selected"]
    assert found["name"] == "fairvlm"
    assert found["version"] == 1
    assert found["tracking_uri"] == "sqlite:///mlflow.db"
    assert "MLFLOW_TRACKING_URI" not in os.environ

    mlflow.set_tracking_uri(f"sqlite:///{workplace}/mlflow.db")
    try:
        loaded = mlflow.pyfunc.load_model("models:/fairvlm@challenger")
    finally:
        mlflow.set_tracking_uri(None)
    judged = read_predictions(folders["comparison"].parent / f"{model}_evaluation").to_pandas()
    keys = dict(
        zip(*(read_cohort(folders["cohort"]).column(c).to_pylist() for c in ("sample_id", "image")), strict=True)
    )
    pixels = ImageStore.open(folders["cohort"]).read([keys[name] for name in judged["sample_id"]])
    seen = loaded.predict(pd.DataFrame({"image": [png(picture) for picture in pixels]}))
    assert list(seen) == ["score_glaucoma", "label_glaucoma", "version"]
    assert set(seen["version"]) == {"1"}
    assert seen["score_glaucoma"].to_numpy() == pytest.approx(judged["y_score"].to_numpy(), abs=1e-5)
    assert seen["label_glaucoma"].tolist() == judged["y_pred"].tolist()
    assert 0 < seen["label_glaucoma"].mean() < 1

    with pytest.raises(mlflow.MlflowException, match="no demographics") as refused:
        loaded.predict(pd.DataFrame({"image": [png(pixels[0])], "sex": ["female"], "age": [61]}))
    assert "sex, age" in str(refused.value)
    assert "female" not in str(refused.value)


def test_run_has_parameters_metrics_and_figures_fit_for_publication(folders, registered):
    root, found = registered
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    run = client.get_run(found["stage2"]["run_id"])
    assert run.info.status == "FINISHED"
    comparison = json.loads((folders["comparison"] / "comparison.json").read_text())
    judged = comparison["models"]["stage2"]
    for key, value in (
        ("test_auc", judged["test"]["overall"]["auc"]),
        ("validation_accuracy", judged["validation"]["overall"]["accuracy"]),
        ("test_eod_sex", judged["test"]["attributes"]["sex"]["eod"]),
        ("validation_es_auc_age_group", judged["validation"]["attributes"]["age_group"]["es_auc"]),
        ("test_dpd_mean", judged["test"]["across"]["dpd"]["mean"]),
    ):
        assert run.data.metrics[key] == pytest.approx(value), key
    # Sex x age group has cells of fewer than ten test images: what is null there is absent here.
    both = judged["test"]["attributes"]["sex x age_group"]
    assert both["suppressed"]
    for name in ("eod", "es_auc"):
        assert (f"test_{name}_sex_x_age_group" in run.data.metrics) == (both[name] is not None)
    assert run.data.params["name"] == "stage2"
    assert run.data.params["adapters"] == "adapter-stage1, adapter-stage2"
    assert float(run.data.params["threshold.glaucoma"]) == judged["thresholds"]["glaucoma"]
    assert run.data.params["calibration"] == judged["calibration"]["method"] == "platt"
    assert run.data.metrics["test_ece"] == pytest.approx(judged["test"]["overall"]["ece"])
    assert run.data.params["selection.criterion"] == "es_auc"
    logged = {item.path.removeprefix("report/") for item in client.list_artifacts(run.info.run_id, "report")}
    assert logged >= REPORT


def test_what_is_logged_holds_no_base_weights(folders, registered):
    files = [path for path in (registered[0] / "mlartifacts").rglob("*") if path.is_file()]
    weights = list(folders["base"].rglob("*.safetensors"))
    assert len(weights) == 2
    base = {hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}
    assert not base & {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert all(path.stat().st_size < min(w.stat().st_size for w in weights) for path in files)
    names = {path.name for path in files}
    assert {"trained.safetensors", "adapter_model.safetensors", "base.json", "thresholds.json", "model.py"} <= names
    assert not any(name.endswith((".pkl", ".bin", ".pt")) for name in names)
    assert "history.json" not in names  # its figures look at groups of any size


def test_versions_alias_and_tags(folders, registered):
    root, found = registered
    assert [found[name]["version"] for name in ("fair_moe", "stage2")] == [1, 2]
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    version = client.get_model_version_by_alias("fairvlm", "challenger")
    assert int(version.version) == 2
    assert client.get_model_version("fairvlm", "1").aliases == []
    assert version.run_id == found["stage2"]["run_id"]
    assert version.tags == found["stage2"]["tags"]
    cohort = hashlib.sha256((folders["cohort"] / "cohort.parquet").read_bytes()).hexdigest()
    gate = json.loads((folders["comparison"] / "gate.json").read_text())
    fixed = {
        "cohort_sha256": cohort,
        "criterion": "es_auc",
        "dvc_data_hash": f"sha256:{cohort}",
        "fairvlm_version": __version__,
        "model": "stage2",
        "seed": "0",
        "gate_sha256": hashlib.sha256((folders["comparison"] / "gate.json").read_bytes()).hexdigest(),
        "gate_verdict": gate["verdict"],
        "gate_reasons": " ".join(gate["reasons"]),
        "gate_champion": "none",
        "gate_champion_fingerprint": "none",
        "test_sha256": gate["test_sha256"],
    }
    assert {**fixed, "fingerprint": version.tags["fingerprint"]} == version.tags
    # The gate judged the selected model, stage2; what is registered by its name was not judged.
    assert found["fair_moe"]["tags"]["gate_verdict"] == "not judged"
    assert "stage2" in found["fair_moe"]["tags"]["gate_reasons"]
    assert found["fair_moe"]["tags"]["fingerprint"] != version.tags["fingerprint"]


def test_signature_example_and_requirements(registered):
    for folder in [path.parent for path in (registered[0] / "mlartifacts").rglob("MLmodel")]:
        model = mlflow.models.Model.load(folder)
        assert model.signature.inputs.required_input_names() == ["image"]
        assert model.signature.outputs.input_names() == ["score_glaucoma", "label_glaucoma", "version"]
        (picture,) = model.load_input_example(folder)["image"]
        assert Image.open(io.BytesIO(picture)).size == (bases.SIZE, bases.SIZE)
        requirements = (folder / "requirements.txt").read_text().split()
        named = {line.split("==")[0] for line in requirements}
        assert named >= {"mlflow", "torch", "transformers", "pyarrow"}
        assert "fairvlm" not in named  # it is in no index; its code is there
        assert (folder / "code" / "fairvlm_core" / "registry" / "model.py").is_file()
        assert not list(folder.rglob("__pycache__"))
        assert not any("+" in line for line in requirements)


@pytest.mark.parametrize(
    ("broken", "told", "made"),
    [
        ("set_tags", "logged in part; no version was made", 0),
        ("create_model_version", "was logged; no version of fairvlm was made", 0),
        ("set_registered_model_alias", "Version 3 of fairvlm is there; its alias challenger was not set", 1),
    ],
)
def test_a_failure_leaves_the_alias_on_the_whole_version(
    folders, registered, tmp_path, monkeypatch, broken, told, made
):
    """And says what was done; run again, the step does the rest and nothing twice."""
    root = tmp_path / "registered"
    shutil.copytree(registered[0], root)
    found = registered[1]

    def fail(*_, **__):
        raise mlflow.exceptions.MlflowException("the server is on fire")

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    with working_in(root) as patch:
        patch.setattr(mlflow if hasattr(mlflow, broken) else MlflowClient, broken, fail)
        with pytest.raises(FairVLMError, match="the server is on fire") as error:
            register(folders, root / "stage2", model="stage1")
        assert told in error.value.what
        version = client.get_model_version_by_alias("fairvlm", "challenger")
        assert (int(version.version), version.tags["model"]) == (2, "stage2")
        assert len(client.search_model_versions()) == 2 + made
        assert json.loads((root / "stage2" / "registration.json").read_text()) == found["stage2"]
        runs = client.search_runs([client.get_experiment_by_name("fairvlm").experiment_id])
        assert runs[0].info.status == "FAILED"
    with working_in(root):
        again = register(folders, root / "stage1", model="stage1")
    assert len(client.search_model_versions()) == again["version"] == 3
    assert int(client.get_model_version_by_alias("fairvlm", "challenger").version) == 3
    assert client.get_run(again["run_id"]).info.status == "FINISHED"
    assert (again["run_id"] == runs[0].info.run_id) == bool(made)


def test_the_same_model_is_registered_once(folders, workplace, capsys):
    first = register(folders, workplace / "first", model="fair_moe")
    base = workplace / "base"
    shutil.copytree(folders["base"], base)  # the same weights elsewhere are the same model
    again = register({**folders, "base": base}, workplace / "again", model="fair_moe", alias="next")
    assert "Version 1 of fairvlm is this model already" in capsys.readouterr().out
    assert {**again, "alias": "challenger"} == first
    client = MlflowClient("sqlite:///mlflow.db")
    assert set(client.get_registered_model("fairvlm").aliases) == {"challenger", "next"}
    # Judged by another gate, it is another version.
    judged = workplace / "comparison"
    shutil.copytree(folders["comparison"], judged)
    gate = json.loads((judged / "gate.json").read_text())
    gate |= {"model": "fair_moe", "verdict": "fail", "reasons": ["Too unfair." + "x" * 5000], "champion": CHAMPION}
    (judged / "gate.json").write_text(json.dumps(gate))
    other = register({**folders, "comparison": judged}, workplace / "other", model="fair_moe")
    assert other["version"] == 2
    assert other["tags"]["fingerprint"] == again["tags"]["fingerprint"]
    assert other["tags"]["gate_verdict"] == "fail"
    assert len(other["tags"]["gate_reasons"]) == 4000
    assert other["tags"]["gate_champion"] == "2"
    assert other["tags"]["gate_champion_fingerprint"] == "f" * 64
    # Nor is one whose files are gone the same.
    shutil.rmtree(workplace / "mlartifacts")
    assert register(folders, workplace / "again", model="fair_moe")["version"] == 3


def test_orchestrators_run_and_server_are_used(folders, workplace, monkeypatch):
    uri = f"sqlite:///{workplace}/team/tracking.db"
    (workplace / "team").mkdir()
    (workplace / "mlflow.db").rename(workplace / "team" / "tracking.db")
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("weekly", (workplace / "team" / "store").as_uri()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    found = register(folders, workplace / "out", model="stage1", tracking_uri="sqlite:///other.db")
    assert found["run_id"] == run.info.run_id
    assert found["tracking_uri"] == uri
    assert client.get_experiment_by_name("fairvlm") is None
    assert not (workplace / "other.db").exists()
    assert os.environ["MLFLOW_TRACKING_URI"] == uri


def test_server_that_cannot_be_reached_is_told_without_its_password(folders, workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9/mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FairVLMError) as error:
        register(folders, workplace / "out")
    assert "http://127.0.0.1:9/mlflow" in str(error.value)
    assert "s3cret" not in str(error.value)
    assert not (workplace / "out").exists()


def test_folders_that_do_not_belong_together_are_refused(folders, workplace, tmp_path_factory):
    with pytest.raises(CheckpointError, match="holds the model stage1"):
        register({**folders, "stage2": folders["stage1"]}, workplace / "out", model="stage2")
    with pytest.raises(CheckpointError, match="no trained model"):
        register({**folders, "stage2": folders["cohort"]}, workplace / "out", model="stage2")
    multiclass = pipeline_outputs.write_models(tmp_path_factory.mktemp("other"), "multiclass")
    with pytest.raises(CheckpointError, match="other labels than the comparison"):
        register({**folders, "stage2": multiclass["stage2"]}, workplace / "out", model="stage2")
    assert not (workplace / "mlartifacts").exists()


def test_a_comparison_without_gate_or_of_other_test_images_is_refused(folders, workplace):
    judged = workplace / "comparison"
    shutil.copytree(folders["comparison"], judged)
    gate = json.loads((judged / "gate.json").read_text())
    (judged / "gate.json").write_text(json.dumps(gate | {"test_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="other test images"):
        register({**folders, "comparison": judged}, workplace / "out")
    (judged / "gate.json").unlink()
    with pytest.raises(FairVLMError, match=r"gate\.json is missing") as error:
        register({**folders, "comparison": judged}, workplace / "out")
    assert "fairvlm compare" in error.value.mend
    assert not (workplace / "mlartifacts").exists()


def test_config_refuses_what_the_registry_would():
    for alias in ("v3", "latest", "chal lenger", ""):
        with pytest.raises(ConfigError, match=r"register\.alias"):
            Config(alias=alias)
    with pytest.raises(ConfigError, match='Did you mean "stage2"'):
        Config(model="stage-2")
