"""The step evaluate: decisions at the fixed thresholds, judged on both splits."""

from __future__ import annotations

import json

import generated_predictions as generated
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fairvlm_core.errors import FairVLMError, PredictionsError
from fairvlm_core.evaluation.metrics import equalized_odds_difference
from fairvlm_core.evaluation.predictions import read_predictions, scores, write_predictions
from fairvlm_core.steps import execute, tune_thresholds
from fairvlm_core.steps.evaluate import Config


def predicted(folder, kind, **options):
    write_predictions(generated.table(kind, **options), folder / "predictions.parquet", kind=kind)
    execute("tune_thresholds", tune_thresholds.Config(), {"predictions": folder}, {"out": folder / "thresholds"})
    return folder


def evaluate(source, out, thresholds=None, **options):
    inputs = {"predictions": source, "thresholds": thresholds or source / "thresholds"}
    return execute("evaluate", Config(**options), inputs, {"out": out})


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_decisions_and_judgements_are_written(tmp_path, kind):
    source = predicted(tmp_path / "p", kind)
    metrics = evaluate(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.parquet", "evaluation.json", "roc.png", "config.json", "metrics.json"
    }  # fmt: skip
    before, after = read_predictions(source), read_predictions(tmp_path / "out")
    assert after.drop_columns(["y_pred"]).to_pylist() == before.to_pylist()
    assert pq.read_schema(tmp_path / "out" / "predictions.parquet").metadata[b"fairvlm.kind"] == kind.encode()
    given = scores(after, "test")
    if kind == "multiclass":
        np.testing.assert_array_equal(given.y_pred.argmax(axis=1), given.y_score.argmax(axis=1))
    else:
        limits = json.loads((source / "thresholds" / "thresholds.json").read_text())["thresholds"]
        np.testing.assert_array_equal(given.y_pred, given.y_score >= [limits[label] for label in given.labels])
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["validation"]["n"] == 300
    assert found["test"]["n"] == 600
    assert metrics["test_auc"] == found["test"]["overall"]["auc"]
    assert metrics["test_eod_sex"] == found["test"]["attributes"]["sex"]["eod"]
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert Image.open(tmp_path / "out" / "roc.png").size[0] > 900


def test_same_decisions_count_for_accuracy_and_for_fairness(tmp_path):
    source = predicted(tmp_path / "p", "binary")
    metrics = evaluate(source, tmp_path / "out")
    given = scores(read_predictions(tmp_path / "out"), "test")
    truth, decision = given.y_true[:, 0], given.y_pred[:, 0]
    assert metrics["test_accuracy"] == pytest.approx((truth == decision).mean(), abs=1e-6)
    expected = equalized_odds_difference(truth, decision, groups=given.groups["sex"])
    assert metrics["test_eod_sex"] == pytest.approx(expected, abs=1e-6)


def test_numbers_that_do_not_exist_are_absent(tmp_path):
    source = predicted(tmp_path / "p", "binary")
    metrics = evaluate(source, tmp_path / "out", min_cell=500)
    assert "test_auc" in metrics
    assert "test_eod_sex" not in metrics


def test_thresholds_of_other_labels_or_another_model_are_refused(tmp_path):
    source = predicted(tmp_path / "p", "binary")
    others = predicted(tmp_path / "q", "multilabel") / "thresholds"
    with pytest.raises(PredictionsError, match="thresholds are for the label Cardiomegaly"):
        evaluate(source, tmp_path / "out", others)
    model = predicted(tmp_path / "r", "binary", model="stage2") / "thresholds"
    with pytest.raises(PredictionsError, match="thresholds are for the model stage2"):
        evaluate(source, tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_missing_thresholds_name_the_step_that_makes_them(tmp_path):
    source = predicted(tmp_path / "p", "binary")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FairVLMError, match="fairvlm tune_thresholds"):
        evaluate(source, tmp_path / "out", tmp_path / "empty")


def test_answers_in_words_are_judged_and_the_picture_goes_along(tmp_path):
    """Where predict wrote answers and the picture of attention, both reach the model's figures."""
    table = generated.table("binary")
    answer = [None if i % 10 == 0 else value for i, value in enumerate(table.column("y_true").to_pylist())]
    source = tmp_path / "p"
    table = table.append_column("y_answer", pa.array(answer, pa.int8()))
    write_predictions(table, source / "predictions.parquet", kind="binary")
    Image.new("RGB", (4, 4)).save(source / "attention.png")
    execute("tune_thresholds", tune_thresholds.Config(), {"predictions": source}, {"out": source / "thresholds"})
    metrics = evaluate(source, tmp_path / "out")
    assert metrics["test_answer_undecided"] == pytest.approx(0.1)
    assert metrics["test_answer_accuracy"] == pytest.approx(0.9)
    given = scores(read_predictions(tmp_path / "out"), "test")
    decided = ~np.isnan(given.y_answer)
    agreement = (given.y_answer == given.y_pred)[decided].mean()
    assert metrics["test_answer_agreement"] == pytest.approx(agreement, abs=1e-6)
    assert read_predictions(tmp_path / "out").column("y_answer").to_pylist() == answer
    assert (tmp_path / "out" / "attention.png").read_bytes() == (source / "attention.png").read_bytes()
