"""Calibration against scikit-learn, plain loops and simulated truth; and that it changes no ranking and no argmax."""

from __future__ import annotations

import math

import generated_predictions as generated
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation import metrics
from fairvlm_core.evaluation.calibration import calibrate, calibrate_table, calibrated, fit, left_alone
from fairvlm_core.evaluation.predictions import scores
from fairvlm_core.evaluation.thresholds import add_decisions

nan = float("nan")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def drawn(seed: int, n: int, *, slope: float = 0.5, intercept: float = -1.5):
    """Truth and score [n, 1] of a model whose logit must be multiplied by `slope` and moved by `intercept`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2.5, n)
    truth = (rng.random(n) < sigmoid(slope * x + intercept)).astype(float)
    return truth[:, None], sigmoid(x).astype(np.float32)[:, None]


def sharpened(seed: int, n: int, temperature: float, classes: int = 4):
    """One-hot truth and scores [n, classes], too sure of themselves (temperature > 1) or too modest."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1.5, (n, classes))
    honest = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    truth = np.eye(classes)[[rng.choice(classes, p=row) for row in honest]]
    powered = honest**temperature
    return truth, (powered / powered.sum(axis=1, keepdims=True)).astype(np.float32)


class _Logit(ClassifierMixin, BaseEstimator):
    """A classifier whose decision function is the logit of the score that it is given."""

    classes_ = np.array([0, 1])

    def fit(self, X, y):
        return self

    def decision_function(self, X):
        return np.log(X[:, 0] / (1 - X[:, 0]))

    def predict(self, X):
        return (X[:, 0] >= 0.5).astype(int)

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("seed", range(3))
def test_platt_is_that_of_scikit_learn(seed):
    truth, score = drawn(seed, 400)
    found = fit(truth, score, ["x"], "binary")
    theirs = CalibratedClassifierCV(FrozenEstimator(_Logit()), method="sigmoid").fit(score.astype(float), truth[:, 0])
    expected = theirs.predict_proba(score.astype(float))[:, 1]
    np.testing.assert_allclose(calibrate(score, ["x"], found)[:, 0], expected, atol=2e-4)
    # Unpenalised logistic regression differs by the smoothed targets only, which matter little.
    plain = LogisticRegression(C=np.inf).fit(np.log(score / (1 - score)), truth[:, 0])
    assert found["labels"]["x"]["slope"] == pytest.approx(plain.coef_[0, 0], rel=0.05)


def newton(truth, score):
    """Slope and intercept for Platt's targets, row by row in Python floats."""
    positives = sum(truth)
    high, low = (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2)
    xs = [math.log(s / (1 - s)) for s in score]
    a, b = 0.0, math.log((positives + 1) / (len(truth) - positives + 1))  # where Platt's own algorithm starts
    for _ in range(50):
        ga = gb = haa = hab = hbb = 0.0
        for t, x in zip(truth, xs, strict=True):
            p = 1 / (1 + math.exp(-a * x - b))
            d, w = p - (high if t else low), p * (1 - p)
            ga, gb, haa, hab, hbb = ga + d * x, gb + d, haa + w * x * x, hab + w * x, hbb + w
        det = haa * hbb - hab * hab
        a, b = a - (hbb * ga - hab * gb) / det, b - (haa * gb - hab * ga) / det
    return a, b


def test_platt_is_the_optimum_of_a_plain_newton_loop_per_label_over_what_is_known():
    truth, score = (
        np.hstack(part) for part in zip(drawn(3, 300), drawn(4, 300, slope=1.4, intercept=0.3), strict=True)
    )
    truth[::7, 1] = nan
    found = fit(truth, score, ["a", "b"], "multilabel")
    assert found["method"] == "platt"
    for j, label in enumerate("ab"):
        known = ~np.isnan(truth[:, j])
        slope, intercept = newton(truth[known, j].tolist(), score[known, j].astype(float).tolist())
        assert found["labels"][label] == {
            "slope": pytest.approx(slope, rel=1e-7),
            "intercept": pytest.approx(intercept, abs=1e-7),
            "reason": None,
        }
    slope, intercept = (found["labels"]["a"][name] for name in ("slope", "intercept"))
    p = score[:, 0].astype(float)
    expected = sigmoid(slope * np.log(p / (1 - p)) + intercept)
    np.testing.assert_allclose(calibrate(score, ["a", "b"], found)[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_minimises_the_cross_entropy_and_finds_the_truth(true):
    truth, score = sharpened(0, 4000, true)
    found = fit(truth, score, list("abcd"), "multiclass")

    def loss(t):
        powered = score.astype(float) ** (1 / t)
        return -np.log((powered / powered.sum(axis=1, keepdims=True))[truth == 1]).mean()

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9}).x
    assert found["method"] == "temperature"
    assert found["temperature"] == pytest.approx(best, rel=0.01)  # the targets are smoothed by one image per class
    assert found["temperature"] == pytest.approx(true, rel=0.1)
    powered = score.astype(float) ** (1 / found["temperature"])
    expected = powered / powered.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrate(score, list("abcd"), found), expected, atol=1e-6)


def test_temperature_is_exactly_the_best_for_the_smoothed_targets():
    truth, score = sharpened(1, 60, 2.0)
    truth[::9] = nan
    known = ~np.isnan(truth[:, 0])
    target = np.where(truth[known] == 1, known.sum() + 1, 1) / (known.sum() + 4)

    def loss(t):
        powered = score[known].astype(float) ** (1 / t)
        return -(target * np.log(powered / powered.sum(axis=1, keepdims=True))).sum(axis=1).mean()

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-10}).x
    assert fit(truth, score, list("abcd"), "multiclass")["temperature"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_a_miscalibrated_model_can_be_believed_on_images_that_it_was_not_fitted_to(kind):
    if kind == "multiclass":
        parts = [sharpened(seed, 2000, 3.0) for seed in (0, 1)]
    elif kind == "binary":
        parts = [drawn(seed, 2000) for seed in (0, 1)]
    else:
        parts = [
            tuple(np.hstack(pair) for pair in zip(drawn(seed, 2000), drawn(seed + 9, 2000, slope=3), strict=True))
            for seed in (0, 1)
        ]
    labels = list("abcd")[: parts[0][0].shape[1]]
    found = fit(*parts[0], labels, kind)
    truth, score = parts[1]
    after = calibrate(score, labels, found)
    for j in range(len(labels)):
        before = metrics.expected_calibration_error(truth[:, j], score[:, j])
        assert metrics.expected_calibration_error(truth[:, j], after[:, j]) < 0.5 * before
        assert metrics.brier(truth[:, j], after[:, j]) < metrics.brier(truth[:, j], score[:, j])


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_nobody_changes_places(kind):
    table = generated.table(kind).replace_schema_metadata({"fairvlm.kind": kind})
    before = scores(table, "test")
    validation = scores(table, "validation")
    after = calibrated(before, fit(validation.y_true, validation.y_score, validation.labels, kind))
    assert after.y_score.astype(np.float32).astype(float).tolist() == after.y_score.tolist()
    for j in range(len(before.labels)):
        truth, raw, now = before.y_true[:, j], before.y_score[:, j], after.y_score[:, j]
        # Equal scores stay equal, different ones different, in the same order.
        np.testing.assert_array_equal(np.unique(raw, return_inverse=True)[1], np.unique(now, return_inverse=True)[1])
        assert metrics.auc(truth, now) == metrics.auc(truth, raw)
        for groups in before.groups.values():
            assert metrics.es_auc(truth, now, groups=groups) == metrics.es_auc(truth, raw, groups=groups)


def test_scores_that_float32_tells_apart_keep_their_auc_up_to_ties():
    truth, score = drawn(5, 3000, slope=0.2)
    score[:5, 0], truth[:5, 0] = [0, 1, 1e-30, np.nextafter(np.float32(1), np.float32(0)), 1e-9], [0, 1, 0, 1, 0]
    after = calibrate(score, ["x"], fit(truth, score, ["x"], "binary"))[:, 0]
    assert np.isfinite(after).all()
    assert ((after > 0) & (after < 1)).all()
    assert metrics.auc(truth[:, 0], after) == pytest.approx(metrics.auc(truth[:, 0], score[:, 0]), abs=1e-5)
    order = np.argsort(score[:, 0], kind="stable")
    assert (np.diff(after[order]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=6),
    st.floats(0.05, 50),
)
def test_the_decision_between_classes_never_changes(steps, temperature):
    """Not even between scores that are neighbours in float32, which a large temperature makes equal."""
    base = np.array([np.float32(1 / 3)] * 3, dtype=np.float32)
    score = np.array([[b + np.spacing(b) * k for b, k in zip(base, row, strict=True)] for row in steps], np.float32)
    score = np.vstack([score, [[0.2, 0.5, 0.3], [1, 0, 0], [0, 1e-30, 1]]]).astype(np.float32)
    found = {"method": "temperature", "temperature": temperature, "reason": None}
    after = calibrate(score, list("abc"), found)
    np.testing.assert_array_equal(after.argmax(axis=1), score.argmax(axis=1))
    np.testing.assert_array_equal(after, after.astype(np.float32))
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-6)


def test_a_label_with_too_little_to_fit_or_a_ranking_upside_down_keeps_its_scores():
    truth, score = (np.tile(part, 5) for part in drawn(0, 300))
    few = np.flatnonzero(truth[:, 1] == 1)[9:]
    truth[few, 1] = nan  # nine known positives
    truth[np.flatnonzero(truth[:, 2] == 0)[9:], 2] = nan  # nine known negatives
    truth[:, 3] = 1 - truth[:, 3]
    score[:, 4] = 0.3
    labels = ["fitted", "positives", "negatives", "turned", "constant"]
    found = fit(truth, score, labels, "multilabel")
    reasons = {label: part["reason"] for label, part in found["labels"].items()}
    order = "higher scores do not go with more positives on validation"
    assert reasons == {
        "fitted": None,
        "positives": "fewer than 10 known positives on validation",
        "negatives": "fewer than 10 known negatives on validation",
        "turned": order,
        "constant": order,
    }
    assert left_alone(found, labels)[order] == ["turned", "constant"]
    after = calibrate(score, labels, found)
    np.testing.assert_array_equal(after[:, 1:], score[:, 1:])
    assert np.abs(after[:, 0] - score[:, 0]).max() > 0.1
    ten = fit(np.repeat([[0.0], [1.0]], [10, 10], axis=0), np.linspace(0.1, 0.8, 20)[:, None], ["x"], "binary")
    assert ten["labels"]["x"]["reason"] is None


def test_classes_with_too_few_images_or_upside_down_keep_their_scores():
    truth, score = sharpened(0, 200, 1.0)
    few = truth.copy()
    few[9:] = nan
    for given_truth, reason in ((few, "fewer than 10 images of a known class"), (truth[::-1] * 0, "fewer than 10")):
        found = fit(given_truth, score, list("abcd"), "multiclass")
        assert reason in found["reason"]
        np.testing.assert_array_equal(calibrate(score, list("abcd"), found), score)
    worst = np.eye(4)[score.argmin(axis=1)]
    assert "higher scores do not go with" in fit(worst, score, list("abcd"), "multiclass")["reason"]
    assert "higher scores do not go with" in fit(truth, np.full((200, 4), 0.25), list("abcd"), "multiclass")["reason"]


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_validation_without_a_mistake_gives_no_infinite_confidence(kind):
    if kind == "binary":
        truth, score = np.repeat([[0.0], [1.0]], [30, 30], axis=0), np.linspace(0.3, 0.7, 60)[:, None]
    else:
        truth = np.eye(3)[np.arange(60) % 3]
        score = 0.3 + 0.1 * truth
    labels = list("abc")[: score.shape[1]]
    after = calibrate(score, labels, fit(truth, score, labels, kind))
    assert 0 < after.min() < after.max() < 1
    assert after[truth == 1].mean() > score[truth == 1].mean()
    if kind == "multiclass":
        assert after[truth == 1].mean() == pytest.approx(61 / 63, abs=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_a_table_is_calibrated_like_its_matrices_whatever_the_order_of_its_rows(kind):
    table = generated.table(kind).replace_schema_metadata({"fairvlm.kind": kind})
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    validation = scores(table, "validation")
    found = fit(validation.y_true, validation.y_score, validation.labels, kind)
    after = calibrate_table(shuffled, found)
    assert after.column_names == shuffled.column_names
    assert after.schema.field("y_score").type == pa.float32()
    for split in ("validation", "test"):
        raw, seen = scores(shuffled, split), scores(after, split)
        assert seen.sample_ids.tolist() == raw.sample_ids.tolist()
        np.testing.assert_array_equal(seen.y_score, calibrated(raw, found).y_score)
        assert np.abs(seen.y_score - raw.y_score).max() > 1e-3
    assert calibrate_table(table, None) is table
    with pytest.raises(PredictionsError, match="may be calibrated already"):
        calibrate_table(add_decisions(table, dict.fromkeys(validation.labels, 0.5)), found)


def test_without_a_calibration_scores_are_as_they_are_and_an_unknown_one_is_refused():
    table = generated.table("binary")
    raw = scores(table, "test")
    np.testing.assert_array_equal(calibrated(raw, None).y_score, raw.y_score)
    with pytest.raises(PredictionsError, match="isotonic"):
        calibrate([[0.2]], ["x"], {"method": "isotonic"})
    with pytest.raises(ValueError, match="both should be"):
        fit([0, 1], [0.2, 0.3], ["x"], "binary")
