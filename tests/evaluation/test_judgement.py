"""Judgements against the metrics, scikit-learn, and the rules of what may be published."""

from __future__ import annotations

import json

import generated_predictions as generated
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from fairvlm_core.evaluation import metrics
from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.predictions import read_predictions, scores, write_predictions
from fairvlm_core.evaluation.thresholds import decided


def judged(kind: str, *, min_cell: int = 10, split: str = "test"):
    table = generated.table(kind)
    given = scores(table.replace_schema_metadata({"fairvlm.kind": kind}), split)
    given = decided(given, dict.fromkeys(given.labels, 0.4))
    return given, judge(given, min_cell=min_cell)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_judgement_is_json_and_names_every_attribute(kind):
    _, result = judged(kind)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["attributes"]) == ["sex", "age_group", "race", "sex x age_group"]
    sex = result["attributes"]["sex"]
    assert sex["n"] + sex["unknown"] == result["n"] == 600
    assert list(sex["groups"]) == ["female", "male"]
    assert all(0 <= group["auc"] <= 1 for group in sex["groups"].values())


def test_binary_judgement_equals_the_functions():
    given, result = judged("binary")
    truth, score, decision = given.y_true[:, 0], given.y_score[:, 0], given.y_pred[:, 0]
    sex = result["attributes"]["sex"]
    groups = given.groups["sex"]
    expected = {
        "es_auc": metrics.es_auc(truth, score, groups=groups),
        "dpd": metrics.demographic_parity_difference(decision, groups=groups),
        "eod": metrics.equalized_odds_difference(truth, decision, groups=groups),
        "tpr_gap": metrics.true_positive_rate_difference(truth, decision, groups=groups),
        "worst_group_auc": min(metrics.group_aucs(truth, score, groups=groups).values()),
    }
    assert {name: sex[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    women = groups == "female"
    assert sex["groups"]["female"]["positives"] == int(truth[women].sum())
    assert sex["groups"]["female"]["tpr"] == pytest.approx(decision[women & (truth == 1)].mean(), abs=1e-6)
    assert sex["groups"]["female"]["selection_rate"] == pytest.approx(decision[women].mean(), abs=1e-6)
    assert result["overall"]["accuracy"] == pytest.approx((truth == decision).mean(), abs=1e-6)


def test_multiclass_judgement_is_macro_one_versus_rest():
    given, result = judged("multiclass")
    truth, decision = given.y_true.argmax(axis=1), given.y_pred.argmax(axis=1)
    overall = result["overall"]
    assert overall["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, decision), abs=1e-6)
    assert overall["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(truth, decision), abs=1e-6
    )
    assert overall["auc"] == pytest.approx(
        sklearn_metrics.roc_auc_score(truth, given.y_score, multi_class="ovr", average="macro"), abs=1e-5
    )
    gaps = [metrics.demographic_parity_difference(column, groups=given.groups["sex"]) for column in given.y_pred.T]
    assert result["attributes"]["sex"]["dpd"] == pytest.approx(np.mean(gaps), abs=1e-6)
    assert result["attributes"]["sex"]["dpd_worst"] == pytest.approx(max(gaps), abs=1e-6)
    assert result["attributes"]["sex"]["groups"]["male"]["selection_rate"] is None


def test_multilabel_judgement_ignores_unknown_truth():
    given, result = judged("multilabel")
    known = ~np.isnan(given.y_true)
    assert not known.all()
    areas = [sklearn_metrics.roc_auc_score(given.y_true[k, j], given.y_score[k, j]) for j, k in enumerate(known.T)]
    assert result["overall"]["auc"] == pytest.approx(np.mean(areas), abs=1e-6)
    right = ((given.y_true == given.y_pred) | ~known).all(axis=1)
    assert result["overall"]["exact_match"] == pytest.approx(right.mean(), abs=1e-6)


def test_small_groups_are_suppressed_and_take_no_part_in_gaps():
    given, result = judged("binary")
    race = result["attributes"]["race"]
    small = race["groups"]["Pacific Islander"]
    assert small == {**dict.fromkeys(small), "n": "<10"}
    assert race["suppressed"] == ["Pacific Islander"]
    kept = np.where(given.groups["race"] == "Pacific Islander", None, given.groups["race"])
    assert race["dpd"] == pytest.approx(
        metrics.demographic_parity_difference(given.y_pred[:, 0], groups=kept), abs=1e-6
    )
    assert "Pacific Islander" not in race["labels"]["glaucoma"]["groups"]


def test_group_without_positives_is_listed_with_its_reason():
    _, result = judged("binary")
    race = result["attributes"]["race"]
    assert race["unjudged"] == [{"label": "glaucoma", "group": "Asian", "reason": "no positives"}]
    assert race["groups"]["Asian"]["auc"] is None
    assert race["groups"]["Asian"]["positives"] == "<10"
    assert race["groups"]["Asian"]["n"] >= 10
    assert race["worst_group_auc"] > 0


def test_gap_of_a_single_published_group_is_null_not_zero():
    _, result = judged("binary", min_cell=350)
    sex = result["attributes"]["sex"]
    assert sex["suppressed"] == ["female"]
    assert [sex[name] for name in ("es_auc", "dpd", "eod", "tpr_gap")] == [None] * 4


def test_judgement_survives_the_file(tmp_path):
    path = write_predictions(generated.table("multiclass"), tmp_path / "predictions.parquet", kind="multiclass")
    given = scores(read_predictions(path), "test")
    assert given.kind == "multiclass"
    assert judge(decided(given, {}))["overall"] == judged("multiclass")[1]["overall"]
