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
from fairvlm_core.evaluation.calibration import calibrated, fit
from fairvlm_core.evaluation.predictions import scores, write_predictions
from fairvlm_core.steps import execute
from fairvlm_core.steps.tune_thresholds import Config


def tuned(tmp_path, table, kind, **options):
    source = tmp_path / "predictions"
    write_predictions(table, source / "predictions.parquet", kind=kind)
    metrics = execute("tune_thresholds", Config(**options), {"predictions": source}, {"out": tmp_path / "out"})
    return metrics, json.loads((tmp_path / "out" / "thresholds.json").read_text())


def test_each_label_gets_the_threshold_of_the_best_f1(tmp_path):
    table = generated.table("multilabel")
    metrics, found = tuned(tmp_path, table, "multilabel", calibrate=False)
    assert found["calibration"] is None
    assert metrics["calibrated"] == 0
    assert found["labels"] == list(generated.LABELS["multilabel"])
    assert found["rule"] == "f1"
    assert found["split"] == "validation"
    assert found["n"] == metrics["n"] == 300
    rows = table.filter(pc.equal(table.column("split"), "validation")).to_pandas().dropna(subset="y_true")
    for label, part in rows.groupby("label"):
        truth, score = part["y_true"].astype(int), part["y_score"].astype(float)
        best = max(2 * (truth * (score >= t)).sum() / (truth.sum() + (score >= t).sum()) for t in np.unique(score))
        assert f1_score(truth, score >= found["thresholds"][label]) == pytest.approx(best)
        assert found["f1"][label] == pytest.approx(best, abs=1e-6)
    assert metrics["macro_f1"] == pytest.approx(np.mean(list(found["f1"].values())), abs=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_calibration_is_fitted_first_and_thresholds_belong_to_calibrated_scores(tmp_path, kind):
    table = generated.table(kind).replace_schema_metadata({"fairvlm.kind": kind})
    metrics, found = tuned(tmp_path, table, kind)
    raw = scores(table, "validation", labels=found["labels"])
    assert found["calibration"] == fit(raw.y_true, raw.y_score, raw.labels, kind)
    assert metrics["calibrated"] == len(raw.labels)
    given = calibrated(raw, found["calibration"])
    assert np.abs(given.y_score - raw.y_score).max() > 1e-4
    for j, label in enumerate(given.labels):
        known = ~np.isnan(given.y_true[:, j])
        decision = (
            given.y_score.argmax(axis=1) == j
            if kind == "multiclass"
            else given.y_score[:, j] >= found["thresholds"][label]
        )
        assert found["f1"][label] == pytest.approx(f1_score(given.y_true[known, j], decision[known]), abs=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_the_order_of_the_scores_stays_so_the_best_f1_stays(tmp_path, kind):
    """Calibration moves the thresholds, but not who is above them."""
    table = generated.table(kind).replace_schema_metadata({"fairvlm.kind": kind})
    _, before = tuned(tmp_path / "a", table, kind, calibrate=False)
    _, after = tuned(tmp_path / "b", table, kind)
    assert after["f1"] == before["f1"]
    raw = scores(table, "validation", labels=before["labels"])
    given = calibrated(raw, after["calibration"])
    plain, moved = (
        part.y_score >= [found["thresholds"][label] for label in raw.labels]
        for part, found in ((raw, before), (given, after))
    )
    known = ~np.isnan(raw.y_true)
    np.testing.assert_array_equal(plain[known], moved[known])
    assert after["thresholds"] != before["thresholds"]


def test_what_is_not_calibrated_is_told_in_a_sentence(tmp_path, capsys):
    table = generated.table("multilabel")
    rare = pc.and_(pc.equal(table.column("label"), "Edema"), pc.equal(table.column("split"), "validation"))
    table = table.set_column(
        table.column_names.index("y_true"), "y_true", pc.if_else(rare, pa.scalar(0, pa.int8()), table.column("y_true"))
    )
    metrics, found = tuned(tmp_path, table, "multilabel")
    assert capsys.readouterr().out == "Not calibrated: Edema (fewer than 10 known positives on validation).\n"
    reasons = {label: part["reason"] for label, part in found["calibration"]["labels"].items()}
    assert [label for label, reason in reasons.items() if reason] == ["Edema"]
    assert metrics["calibrated"] == 3
    assert (found["calibration"]["labels"]["Edema"]["slope"], found["thresholds"]["Edema"]) == (1.0, 0.5)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_test_split_is_not_read(tmp_path, kind):
    table = generated.table(kind)
    _, expected = tuned(tmp_path / "a", table, kind)
    test = pc.equal(table.column("split"), "test")
    turned = pc.if_else(test, pc.subtract(1.0, table.column("y_score")), table.column("y_score"))
    table = table.set_column(table.column_names.index("y_score"), "y_score", turned.cast(pa.float32()))
    assert expected["calibration"] is not None
    assert tuned(tmp_path / "b", table, kind)[1] == expected
    flipped = pc.if_else(test, pc.subtract(pa.scalar(1, pa.int8()), table.column("y_true")), table.column("y_true"))
    table = table.set_column(table.column_names.index("y_true"), "y_true", flipped.cast(pa.int8()))
    assert tuned(tmp_path / "c", table, kind)[1] == expected


def test_multiclass_decides_by_argmax(tmp_path):
    _, found = tuned(tmp_path, generated.table("multiclass"), "multiclass")
    assert found["rule"] == "argmax"
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
