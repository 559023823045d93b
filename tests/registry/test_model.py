"""The registered model's interface: which pictures it takes, what it returns and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from types import SimpleNamespace

import bases
import mlflow
import numpy as np
import pandas as pd
import pipeline_outputs
import pytest
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
from mlflow.pyfunc import scoring_server
from PIL import Image

from fairvlm_core.cohort.images import build_store, open_image
from fairvlm_core.errors import CheckpointError
from fairvlm_core.models import describe
from fairvlm_core.models import load as load_model
from fairvlm_core.registry import tracking
from fairvlm_core.registry.base import base_reference
from fairvlm_core.registry.model import REFUSED, RegisteredModel, output_columns

THRESHOLDS = {"multiclass": {}, "multilabel": {"edema": 0.4, "fracture": 0.6}}
CALIBRATION = {
    "multiclass": {"method": "temperature", "temperature": 2.5, "reason": None},
    "multilabel": {
        "method": "platt",
        "labels": {
            "edema": {"slope": 1.7, "intercept": -0.6, "reason": None},
            "fracture": {"slope": 1.0, "intercept": 0.0, "reason": "fewer than 10 known positives on validation"},
        },
    },
}


@pytest.fixture(scope="module", params=["multiclass", "multilabel"])
def model(request, tmp_path_factory):
    """A loaded model, its task's kind, its artifact folder and the same model as `predict` would load it."""
    root = tmp_path_factory.mktemp(request.param)
    folders = pipeline_outputs.write_models(root, request.param)
    artifact = root / "artifact"
    reference = base_reference(folders["base"], "vlm")
    fixed = {"thresholds": THRESHOLDS[request.param]}  # without calibration: the scores as they are
    tracking.write_artifact(artifact, model=folders["stage2"], fixed=fixed, reference=reference)
    return SimpleNamespace(
        loaded=opened(artifact),
        kind=request.param,
        artifact=artifact,
        original=load_model(folders["stage2"], folders["base"]),
    )


def opened(artifact):
    loaded = RegisteredModel()
    loaded.load_context(SimpleNamespace(artifacts={"fairvlm": str(artifact)}))
    return loaded


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures as releases have them: not square, larger than the model's, PNG and JPEG, grey and turned by EXIF."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 256, (6, 9, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    Image.fromarray(wide).save(root / "wide.png")
    Image.fromarray(wide[:, :40, 0]).save(root / "grey.jpg", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(wide).save(root / "turned.jpg", quality=90, exif=turned)
    return sorted(root.iterdir())


def test_scores_are_those_of_the_image_store(model, files, tmp_path):
    keys = [file.name for file in files]
    by_name = {file.name: file for file in files}
    store = build_store(keys, lambda key: open_image(by_name[key], where=key), tmp_path, size=bases.SIZE)
    expected = model.original.score(store.read(keys))
    given = pd.DataFrame({"image": [str(file) for file in files]}, index=[7, 5, 3])
    seen = model.loaded.predict(None, given)
    labels = bases.TASKS[model.kind].labels
    assert list(seen.index) == [7, 5, 3]
    assert list(seen) == output_columns(labels, model.kind)
    scores = seen[[f"score_{label}" for label in labels]].to_numpy()
    assert scores == pytest.approx(expected, abs=1e-6)
    assert np.ptp(scores, axis=0).max() > 1e-4  # the pictures are told apart
    decisions = seen[[f"label_{label}" for label in labels]].to_numpy()
    if model.kind == "multiclass":
        assert seen["predicted"].tolist() == [labels[j] for j in expected.argmax(1)]
        assert decisions.tolist() == [[int(j == best) for j in range(3)] for best in expected.argmax(1)]
    else:
        assert decisions.tolist() == [[int(row[0] >= 0.4), int(row[1] >= 0.6)] for row in expected.tolist()]


def test_scores_are_calibrated_before_they_are_returned_and_decided(model, files, tmp_path):
    """Against the formulas, one score at a time; the decision is that of the calibrated score."""
    artifact = tmp_path / "artifact"
    shutil.copytree(model.artifact, artifact)
    fixed = json.loads((artifact / "thresholds.json").read_text())
    assert "calibration" not in fixed
    labels = bases.TASKS[model.kind].labels
    given = pd.DataFrame({"image": [str(file) for file in files]})
    columns = [f"score_{label}" for label in labels]
    raw = model.loaded.predict(None, given)[columns].to_numpy()
    if model.kind == "multiclass":
        expected = [[p**0.4 / sum(q**0.4 for q in row) for p in row] for row in raw.tolist()]
    else:
        expected = [[1 / (1 + math.exp(0.6 - 1.7 * math.log(a / (1 - a)))), b] for a, b in raw.tolist()]
        # A threshold between a score and its calibrated value.
        fixed["thresholds"]["edema"] = (raw[0, 0] + expected[0][0]) / 2
    (artifact / "thresholds.json").write_text(json.dumps(fixed | {"calibration": CALIBRATION[model.kind]}))
    seen = opened(artifact).predict(None, given)
    assert seen[columns].to_numpy() == pytest.approx(np.array(expected), abs=1e-6)
    assert np.abs(seen[columns].to_numpy() - raw)[:, 0].min() > 1e-3
    if model.kind == "multiclass":
        assert seen["predicted"].tolist() == [labels[j] for j in raw.argmax(axis=1)]
    else:
        assert seen["label_edema"][0] == int(expected[0][0] > raw[0, 0])


def test_paths_bytes_and_base64_are_the_same_picture(model, files):
    for file in files:
        content = file.read_bytes()
        forms = [str(file), content, bytearray(content), base64.b64encode(content).decode()]
        seen = [model.loaded.predict(None, pd.DataFrame({"image": [form]})) for form in forms]
        for other in seen[1:]:
            pd.testing.assert_frame_equal(other, seen[0])


def test_no_pictures_give_no_rows(model):
    seen = model.loaded.predict(None, pd.DataFrame({"image": []}))
    assert len(seen) == 0
    assert list(seen) == output_columns(bases.TASKS[model.kind].labels, model.kind)


@pytest.mark.parametrize("model", ["multilabel"], indirect=True)
def test_mistakes_name_row_and_column_but_no_content(model, files, tmp_path):
    (tmp_path / "cut.png").write_bytes(files[2].read_bytes()[:60])
    good = files[0].read_bytes()
    for bad, message in (
        (str(tmp_path / "none.png"), "missing"),
        (str(tmp_path / "cut.png"), "cannot be read"),
        (files[2].read_bytes()[:60], "cannot be read"),
        (b"secret bytes", "cannot be read"),
        (None, "NoneType"),
        (3.5, "float"),
    ):
        with pytest.raises(mlflow.MlflowException, match=message) as error:
            model.loaded.predict(None, pd.DataFrame({"image": [good, bad]}, dtype=object))
        assert "row 1, column image" in str(error.value)
        assert "secret" not in str(error.value)
    for columns, message in (
        ({"picture": [good]}, "no pictures"),
        *(({"image": [good], name: ["x"]}, f"column {name}") for name in ("sex", "race", "age", "age_group")),
        ({"image": [good], "weight": [3]}, "column weight"),
    ):
        with pytest.raises(mlflow.MlflowException, match=message):
            model.loaded.predict(None, pd.DataFrame(columns))
    with pytest.raises(mlflow.MlflowException, match="no pictures"):
        model.loaded.predict(None, good)


@pytest.mark.parametrize("model", ["multiclass"], indirect=True)
def test_scoring_server_takes_base64_and_refuses_paths_and_demographics(model, files, tmp_path, monkeypatch):
    described = describe(model.artifact / "model")
    folder = tmp_path / "saved"
    mlflow.pyfunc.save_model(
        folder,
        python_model=tracking.MODEL_CODE,
        artifacts={"fairvlm": str(model.artifact)},
        signature=tracking.signature(described["task"]),
        input_example=tracking.example(bases.SIZE),
        pip_requirements=tracking.requirements("vlm"),
    )
    served = mlflow.pyfunc.load_model(str(folder))

    def ask(*rows, **columns):
        records = [{"image": row, **columns} for row in rows]
        body = json.dumps({"dataframe_records": records})
        return scoring_server.invocations(body, "application/json", served, served.metadata.get_input_schema())

    answer = ask(*(base64.b64encode(file.read_bytes()).decode() for file in files))
    assert answer.status == 200
    seen = pd.DataFrame(json.loads(answer.response)["predictions"])
    expected = model.loaded.predict(None, pd.DataFrame({"image": [str(file) for file in files]}))
    assert seen["score_mel"].to_numpy() == pytest.approx(expected["score_mel"].to_numpy(), abs=1e-6)
    assert seen["predicted"].tolist() == expected["predicted"].tolist()
    picture = base64.b64encode(files[0].read_bytes()).decode()
    for name in REFUSED:
        with pytest.raises(mlflow.MlflowException, match="no demographics"):
            ask(picture, **{name: "x"})
    # A path of the server is no picture, whether or not its letters happen to be base64 (a slash is a letter of it).
    for slashes in range(4):
        with pytest.raises(mlflow.MlflowException, match=r"cannot be read|Failed to convert column image"):
            ask("/" * slashes + str(files[0]))
    # A Parquet body gets past the signature with a text. Paths are for programs that load the model themselves.
    body = io.BytesIO()
    pd.DataFrame({"image": [str(files[0])]}).to_parquet(body)
    asked = (body.getvalue(), "application/vnd.apache.parquet", served, served.metadata.get_input_schema())
    assert scoring_server.invocations(*asked).status == 200
    monkeypatch.setenv(_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name, "true")
    with pytest.raises(mlflow.MlflowException, match="text is not a picture"):
        scoring_server.invocations(*asked)
    body = io.BytesIO()
    pd.DataFrame({"image": [files[0].read_bytes()]}).to_parquet(body)
    assert scoring_server.invocations(body.getvalue(), *asked[1:]).status == 200
    assert ask(picture).status == 200


@pytest.mark.parametrize("model", ["multilabel"], indirect=True)
def test_a_model_without_all_thresholds_or_its_base_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.delenv("FAIRVLM_BASE", raising=False)
    artifact = tmp_path / "artifact"
    shutil.copytree(model.artifact, artifact)
    for thresholds, missing in (
        ({"edema": 0.4}, "fracture"),
        ({"edema": None, "fracture": 0.4}, "edema"),
        ({}, "edema, fracture"),
    ):
        (artifact / "thresholds.json").write_text(json.dumps({"thresholds": thresholds}))
        with pytest.raises(CheckpointError, match="no threshold for every label") as error:
            opened(artifact)
        assert error.value.where == f"{artifact / 'thresholds.json'}: {missing}"
    shutil.copyfile(model.artifact / "thresholds.json", artifact / "thresholds.json")
    reference = json.loads((artifact / "base.json").read_text())
    (artifact / "base.json").write_text(json.dumps(reference | {"checkpoint": str(tmp_path / "gone")}))
    with pytest.raises(CheckpointError, match="base model of this registered model is missing"):
        opened(artifact)


@pytest.mark.parametrize("model", ["multilabel"], indirect=True)
def test_version_is_that_of_the_registry(model, files, tmp_path):
    """Read from the file that MLflow writes beside a registered model which it has loaded."""
    given = pd.DataFrame({"image": [str(file) for file in files]})
    assert set(model.loaded.predict(None, given)["version"]) == {"unregistered"}
    artifact = tmp_path / "whole" / "artifacts" / "fairvlm"
    shutil.copytree(model.artifact, artifact)
    (tmp_path / "whole" / "registered_model_meta").write_text("model_name: fairvlm\nmodel_version: 12\n")
    assert set(opened(artifact).predict(None, given)["version"]) == {"12"}


def test_example_is_generated_and_readable():
    (picture,) = tracking.example(48)["image"]
    assert Image.open(io.BytesIO(picture)).size == (48, 48)
