"""Judgements against the metrics, scikit-learn, and the rules of what may be published."""

from __future__ import annotations

import dataclasses
import json

import generated_predictions as generated
import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as sklearn_metrics

from fairvlm_core.errors import PredictionsError
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


def plain_ece(truth, score, bins=15):
    """Expected calibration error by its definition, a bin at a time."""
    total = 0.0
    for b in range(bins):
        inside = [i for i, s in enumerate(score) if b / bins <= s and (s < (b + 1) / bins or b == bins - 1)]
        if inside:
            promised, true = sum(score[i] for i in inside), sum(truth[i] for i in inside)
            total += abs(promised - true) / len(score)
    return total


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_ece_and_brier_are_means_over_the_labels_of_everybody_and_of_each_group(kind):
    given, result = judged(kind)

    def means(rows):
        eces, briers = [], []
        for j in range(len(given.labels)):
            known = rows & ~np.isnan(given.y_true[:, j])
            truth, score = given.y_true[known, j], given.y_score[known, j]
            eces.append(plain_ece(truth.tolist(), score.tolist()))
            briers.append(np.mean([(s - t) ** 2 for s, t in zip(score, truth, strict=True)]))
        return {"ece": np.mean(eces), "brier": np.mean(briers)}

    everybody = means(np.ones(len(given.sample_ids), dtype=bool))
    assert {name: result["overall"][name] for name in everybody} == pytest.approx(everybody, abs=2e-6)
    for attribute in ("sex", "age_group", "race"):
        found, groups = result["attributes"][attribute], given.groups[attribute]
        expected = {name: means(groups == name) for name in found["groups"] if name not in found["suppressed"]}
        for name, numbers in expected.items():
            assert {key: found["groups"][name][key] for key in numbers} == pytest.approx(numbers, abs=2e-6), name
        assert found["worst_group_ece"] == pytest.approx(max(n["ece"] for n in expected.values()), abs=2e-6)
    assert result["attributes"]["race"]["groups"]["Pacific Islander"]["ece"] is None


def test_group_without_positives_has_an_error_of_calibration_but_no_auc():
    given, result = judged("binary")
    asian = result["attributes"]["race"]["groups"]["Asian"]
    assert asian["auc"] is None
    assert asian["ece"] == pytest.approx(given.y_score[given.groups["race"] == "Asian"].mean(), abs=1e-6)


def test_label_with_few_known_truths_in_a_group_takes_no_part_in_its_ece():
    given, _ = judged("multilabel")
    women, truth = given.groups["sex"] == "female", given.y_true.copy()
    truth[np.flatnonzero(women)[9:], 1] = np.nan  # nine known are too few
    result = judge(dataclasses.replace(given, y_true=truth))
    found = result["attributes"]["sex"]["labels"]
    assert "female" not in found["Edema"]["groups"]
    rest = [found[label]["groups"]["female"]["ece"] for label in given.labels if label != "Edema"]
    assert result["attributes"]["sex"]["groups"]["female"]["ece"] == pytest.approx(np.mean(rest), abs=2e-6)


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


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_each_label_by_itself_is_as_scikit_learn_says(kind):
    given, result = judged(kind)
    assert list(result["per_label"]) == list(given.labels)
    everybody = np.ones(len(given.sample_ids), dtype=bool)
    cells = [(label, result["per_label"][label], everybody) for label in given.labels]
    for name, rows in (("female", given.groups["sex"] == "female"), ("male", given.groups["sex"] == "male")):
        of = result["attributes"]["sex"]["labels"]
        cells += [(label, of[label]["groups"][name], rows) for label in given.labels]
    for label, found, rows in cells:
        j = given.labels.index(label)
        known = rows & ~np.isnan(given.y_true[:, j])
        truth, score, decision = (x[known, j] for x in (given.y_true, given.y_score, given.y_pred))
        expected = {
            "n": known.sum(),
            "positives": truth.sum(),
            "prevalence": truth.mean(),
            "auc": sklearn_metrics.roc_auc_score(truth, score),
            "accuracy": sklearn_metrics.accuracy_score(truth, decision),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, decision),
            "tpr": sklearn_metrics.recall_score(truth, decision),
            "fpr": 1 - sklearn_metrics.recall_score(truth, decision, pos_label=0),
            "brier": sklearn_metrics.brier_score_loss(truth, score),
            "selection_rate": given.y_pred[rows, j].mean(),
        }
        if isinstance(found["positives"], str):  # few, so neither they nor their share are told
            assert min(truth.sum(), len(truth) - truth.sum()) < result["min_cell"]
            assert found["prevalence"] is None
            del expected["positives"], expected["prevalence"]
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=2e-6), label
    for label, of in result["attributes"]["sex"]["labels"].items():
        assert of["worst_group_auc"] == min(group["auc"] for group in of["groups"].values()), label


def test_balanced_accuracy_of_a_group():
    given, result = judged("multiclass")
    women = given.groups["sex"] == "female"
    truth, decision = given.y_true[women].argmax(axis=1), given.y_pred[women].argmax(axis=1)
    assert result["attributes"]["sex"]["groups"]["female"]["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(truth, decision), abs=2e-6
    )
    given, result = judged("multilabel")
    of = result["attributes"]["sex"]["labels"]
    each = [of[label]["groups"]["female"]["balanced_accuracy"] for label in given.labels]
    assert result["attributes"]["sex"]["groups"]["female"]["balanced_accuracy"] == pytest.approx(
        np.mean(each), abs=2e-6
    )


def test_label_with_few_known_truths_says_so_and_nothing_else():
    given, _ = judged("multilabel")
    truth = given.y_true.copy()
    truth[9:, 1] = np.nan
    found = judge(dataclasses.replace(given, y_true=truth))["per_label"][given.labels[1]]
    assert found == {"n": "<10", "positives": None}


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
    counts = {"n": race["groups"]["Asian"]["n"], "positives": "<10"}
    assert race["unjudged"] == [{"label": "glaucoma", "group": "Asian", "reason": "no positives", **counts}]
    assert race["groups"]["Asian"]["auc"] is None
    assert race["groups"]["Asian"]["positives"] == "<10"
    # With its size, that of the only suppressed group would follow.
    assert race["groups"]["Asian"]["n"] == "10 or more"
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


def answered(kind: str, seed: int = 0):
    """Predictions whose model also answered: mostly right, sometimes undecided (a whole image in multi-class)."""
    given, _ = judged(kind)
    rng = np.random.default_rng(seed)
    truth = np.nan_to_num(given.y_true)
    if kind == "multiclass":
        wrong = rng.random(len(truth)) < 0.3
        answer = np.where(wrong[:, None], np.eye(truth.shape[1])[rng.integers(truth.shape[1], size=len(truth))], truth)
        answer[rng.random(len(truth)) < 0.2] = np.nan
    else:
        answer = np.where(rng.random(truth.shape) < 0.3, 1 - truth, truth)
        answer[rng.random(truth.shape) < 0.2] = np.nan
    return dataclasses.replace(given, y_answer=answer)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_answers_are_judged_as_a_plain_loop_counts_them(kind):
    given = answered(kind)
    found = judge(given)["answers"]
    assert "answers" not in judged(kind)[1]
    questions = []  # (image, answer, truth, decision), each a class, 0 or 1, or None
    for i in range(len(given.sample_ids)):
        rows = (given.y_answer[i], given.y_true[i], given.y_pred[i])
        if kind == "multiclass":
            questions.append((i, *(None if np.isnan(row).any() else int(np.argmax(row)) for row in rows)))
        else:
            questions += [(i, *(None if np.isnan(v) else int(v) for v in cell)) for cell in zip(*rows, strict=True)]
    known = [(answer, truth) for _, answer, truth, _ in questions if truth is not None]
    decided = [(answer, decision) for _, answer, _, decision in questions if answer is not None]
    certain = [answer == truth for answer, truth in known if answer is not None]
    expected = {
        "accuracy": np.mean([answer == truth for answer, truth in known]),
        "accuracy_decided": np.mean(certain),
        "undecided": 1 - len(decided) / len(questions),
        "agreement": np.mean([answer == decision for answer, decision in decided]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0.1 < found["undecided"] < 0.3
    women = [q for q in questions if given.groups["sex"][q[0]] == "female"]
    group = found["attributes"]["sex"]["female"]
    assert group["undecided"] == pytest.approx(np.mean([q[1] is None for q in women]), abs=1e-6)
    assert group["accuracy"] == pytest.approx(np.mean([q[1] == q[2] for q in women if q[2] is not None]), abs=1e-6)
    small = found["attributes"]["race"]["Pacific Islander"]
    assert small == {"n": "<10", "accuracy": None, "undecided": None}


def test_answers_that_are_all_undecided_have_no_accuracy_of_the_decided():
    given, _ = judged("binary")
    found = judge(dataclasses.replace(given, y_answer=np.full(given.y_true.shape, np.nan)))["answers"]
    assert found["undecided"] == 1
    assert found["accuracy"] == 0
    assert found["accuracy_decided"] is None
    assert found["agreement"] is None


def test_answers_survive_the_file_and_wrong_ones_are_refused(tmp_path):
    table = generated.table("binary")
    values = [None, 0, 1] * (len(table) // 3)
    path = tmp_path / "predictions.parquet"
    write_predictions(table.append_column("y_answer", pa.array(values, pa.int8())), path, kind="binary")
    read = read_predictions(path)
    assert read.column("y_answer").to_pylist() == values
    assert scores(read, "validation").y_answer[:3, 0].tolist() == pytest.approx([np.nan, 0, 1], nan_ok=True)
    assert scores(generated.table("binary"), "test").y_answer is None
    write_predictions(table.append_column("y_answer", pa.array([2] * len(table), pa.int8())), path, kind="binary")
    with pytest.raises(PredictionsError, match="An answer is neither 0, 1 nor empty"):
        read_predictions(path)
