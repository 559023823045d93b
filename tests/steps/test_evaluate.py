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
from fairvlm_core.evaluation.calibration import calibrate
from fairvlm_core.evaluation.certainty import certainty
from fairvlm_core.evaluation.metrics import equalized_odds_difference
from fairvlm_core.evaluation.predictions import read_predictions, scores, write_predictions
from fairvlm_core.evaluation.report.subjects import read_subject
from fairvlm_core.steps import execute, tune_thresholds
from fairvlm_core.steps.evaluate import Config


def predicted(folder, kind, **options):
    write_predictions(generated.table(kind, **options), folder / "predictions.parquet", kind=kind)
    execute("tune_thresholds", tune_thresholds.Config(), {"predictions": folder}, {"out": folder / "thresholds"})
    return folder


def evaluate(source, out, thresholds=None, **options):
    inputs = {"predictions": source, "thresholds": thresholds or source / "thresholds"}
    return execute("evaluate", Config(**options), inputs, {"out": out})


def test_the_test_split_has_intervals_and_p_values_as_the_parameters_say(tmp_path):
    source = predicted(tmp_path / "p", "binary")
    found = {}
    for name, options in {
        "default": {},
        "bca": {"interval": "bca"},
        "seed": {"seed": 1},
        "few": {"resamples": 100},
    }.items():
        evaluate(source, tmp_path / name, **options)
        found[name] = json.loads((tmp_path / name / "evaluation.json").read_text())["test"]
        method = options.get("interval", "percentile")
        arguments = {"resamples": options.get("resamples", 1000), "seed": options.get("seed", 0)}
        sure, chances = certainty(scores(read_predictions(tmp_path / name), "test"), method=method, **arguments)
        assert found[name]["intervals"] == json.loads(json.dumps(sure))
        assert found[name]["p_values"] == chances
    assert len({json.dumps(judged["intervals"]["overall"]["auc"]) for judged in found.values()}) == 4
    assert "intervals" not in json.loads((tmp_path / "default" / "evaluation.json").read_text())["validation"]


def test_the_report_shows_the_intervals_that_evaluate_made(tmp_path):
    source = predicted(tmp_path / "p", "binary")
    evaluate(source, tmp_path / "out", interval="bca", seed=3)
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())["test"]
    shown = read_subject(tmp_path / "out", "model", "test", min_cell=10, sure=True)
    assert shown.sure == told["intervals"]
    assert shown.p_values == told["p_values"]
    assert not read_subject(tmp_path / "out", "model", "test", min_cell=10).sure
    # Where other groups are suppressed, their intervals must not be taken along.
    fewer = read_subject(tmp_path / "out", "model", "test", min_cell=150, sure=True)
    groups = fewer.judgement["attributes"]["age_group"]["groups"]
    assert {name for name, group in groups.items() if group["auc"] is not None} == {
        name for name, ends in fewer.sure["attributes"]["age_group"]["groups"].items() if ends["auc"]
    }


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_decisions_and_judgements_are_written(tmp_path, kind):
    source = predicted(tmp_path / "p", kind)
    metrics = evaluate(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.parquet", "evaluation.json", "roc.png", "config.json", "metrics.json"
    }  # fmt: skip
    before, after = read_predictions(source), read_predictions(tmp_path / "out")
    assert after.drop_columns(["y_pred", "y_score"]).to_pylist() == before.drop_columns(["y_score"]).to_pylist()
    calibration = json.loads((source / "thresholds" / "thresholds.json").read_text())["calibration"]
    for split in ("validation", "test"):
        raw, given = scores(before, split), scores(after, split)
        np.testing.assert_array_equal(given.y_score, calibrate(raw.y_score, raw.labels, calibration))
        assert np.abs(given.y_score - raw.y_score).max() > 1e-4
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
    assert metrics["test_ece"] == found["test"]["overall"]["ece"]
    assert metrics["test_brier"] == found["test"]["overall"]["brier"]
    assert metrics["test_worst_group_ece_sex"] == found["test"]["attributes"]["sex"]["worst_group_ece"]
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert Image.open(tmp_path / "out" / "roc.png").size[0] > 900


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_calibration_is_judged_and_the_ranking_stays(tmp_path, kind):
    """Scores of a third of what they promise: after calibration they can be believed, and nobody changes places."""
    found = {}
    for name, calibrate_them in (("plain", False), ("calibrated", True)):
        source = tmp_path / name
        table = generated.table(kind, n=3000)
        write_predictions(table, source / "predictions.parquet", kind=kind)
        config = tune_thresholds.Config(calibrate=calibrate_them)
        execute("tune_thresholds", config, {"predictions": source}, {"out": source / "thresholds"})
        evaluate(source, tmp_path / f"{name}-out")
        found[name] = json.loads((tmp_path / f"{name}-out" / "evaluation.json").read_text())["test"]
    plain, better = found["plain"], found["calibrated"]
    if kind == "multiclass":
        assert better["overall"]["accuracy"] == plain["overall"]["accuracy"]
        assert better["attributes"]["sex"]["eod"] == plain["attributes"]["sex"]["eod"]
    else:
        assert better["overall"]["ece"] < plain["overall"]["ece"]
        assert better["overall"]["brier"] < plain["overall"]["brier"]
        assert better["overall"]["auc_per_label"] == plain["overall"]["auc_per_label"]
        for attribute, part in better["attributes"].items():
            assert part["es_auc"] == plain["attributes"][attribute]["es_auc"]


def test_thresholds_without_calibration_leave_the_scores_as_they_are(tmp_path):
    """Files that were written before there was any, or by others."""
    source = predicted(tmp_path / "p", "binary")
    file = source / "thresholds" / "thresholds.json"
    fixed = json.loads(file.read_text())
    del fixed["calibration"]
    file.write_text(json.dumps(fixed | {"thresholds": {"glaucoma": 0.25}}))
    evaluate(source, tmp_path / "out")
    after = read_predictions(tmp_path / "out")
    assert after.column("y_score").equals(read_predictions(source).column("y_score"))
    assert after.column("y_pred").to_pylist() == [int(v >= 0.25) for v in after.column("y_score").to_pylist()]


def test_scores_are_not_calibrated_twice(tmp_path):
    source = predicted(tmp_path / "p", "binary")
    evaluate(source, tmp_path / "out")
    with pytest.raises(PredictionsError, match="may be calibrated already"):
        evaluate(tmp_path / "out", tmp_path / "again", source / "thresholds")


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
