"""The step tune_thresholds: validation alone decides."""

from __future__ import annotations

import json

import generated_predictions as generated
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import f1_score

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.predictions import write_predictions
from fairvlm_core.steps import execute
from fairvlm_core.steps.tune_thresholds import Config


def tuned(tmp_path, table, kind):
    source = tmp_path / "predictions"
    write_predictions(table, source / "predictions.parquet", kind=kind)
    metrics = execute("tune_thresholds", Config(), {"predictions": source}, {"out": tmp_path / "out"})
    return metrics, json.loads((tmp_path / "out" / "thresholds.json").read_text())


def test_each_label_gets_the_threshold_of_the_best_f1(tmp_path):
    table = generated.table("multilabel")
    metrics, found = tuned(tmp_path, table, "multilabel")
    assert found["labels"] == list(generated.LABELS["multilabel"])
    assert found["method"] == "max_f1"
    assert found["split"] == "validation"
    assert found["n"] == metrics["n"] == 300
    rows = table.filter(pc.equal(table.column("split"), "validation")).to_pandas().dropna(subset="y_true")
    for label, part in rows.groupby("label"):
        truth, score = part["y_true"].astype(int), part["y_score"].astype(float)
        best = max(2 * (truth * (score >= t)).sum() / (truth.sum() + (score >= t).sum()) for t in np.unique(score))
        assert f1_score(truth, score >= found["thresholds"][label]) == pytest.approx(best)
        assert found["f1"][label] == pytest.approx(best, abs=1e-6)
    assert metrics["macro_f1"] == pytest.approx(np.mean(list(found["f1"].values())), abs=1e-6)


def test_test_split_is_not_read(tmp_path):
    table = generated.table("binary")
    _, expected = tuned(tmp_path / "a", table, "binary")
    test = pc.equal(table.column("split"), "test")
    turned = pc.if_else(test, pc.subtract(1.0, table.column("y_score")), table.column("y_score"))
    table = table.set_column(table.column_names.index("y_score"), "y_score", turned.cast(pa.float32()))
    assert tuned(tmp_path / "b", table, "binary")[1] == expected


def test_multiclass_decides_by_argmax(tmp_path):
    _, found = tuned(tmp_path, generated.table("multiclass"), "multiclass")
    assert found["method"] == "argmax"
    assert found["thresholds"] == {}
    assert list(found["f1"]) == sorted(generated.LABELS["multiclass"])


def test_label_without_positives_keeps_one_half(tmp_path):
    table = generated.table("binary")
    nothing = pa.array(np.zeros(len(table), dtype="int8"))
    table = table.set_column(table.column_names.index("y_true"), "y_true", nothing)
    metrics, found = tuned(tmp_path, table, "binary")
    assert found["thresholds"] == {"glaucoma": 0.5}
    assert found["f1"] == {"glaucoma": None}
    assert "macro_f1" not in metrics


def test_predictions_without_validation_are_refused(tmp_path):
    table = generated.table("binary")
    with pytest.raises(PredictionsError, match="validation"):
        tuned(tmp_path, table.filter(pc.equal(table.column("split"), "test")), "binary")
    assert not (tmp_path / "out").exists()
