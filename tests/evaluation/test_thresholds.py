"""Thresholds against brute force, and decisions."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import generated_predictions as generated
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fairvlm_core.evaluation import thresholds
from fairvlm_core.evaluation.predictions import scores
from fairvlm_core.evaluation.thresholds import add_decisions, decide, decided, f1, tune

nan = float("nan")


def brute(truth: np.ndarray, score: np.ndarray) -> tuple[float, list[float]]:
    """The best F1 over a fine grid that has every score, every middle and 0.5, and the thresholds that reach it."""
    distinct = np.unique(score)
    grid = np.unique(np.concatenate([distinct, (distinct[1:] + distinct[:-1]) / 2, [0.5], np.linspace(-1, 2, 61)]))
    quality = []
    for t in grid:
        hits = sum(1 for y, s in zip(truth, score, strict=True) if y and s >= t)
        wrong = sum(1 for y, s in zip(truth, score, strict=True) if bool(y) != (s >= t))
        quality.append(2 * hits / max(2 * hits + wrong, 1))
    return max(quality), [t for t, q in zip(grid, quality, strict=True) if q == pytest.approx(max(quality), abs=1e-12)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(np.linspace(0, 1, 11).tolist())), min_size=1, max_size=14))
def test_threshold_is_the_best_of_all_and_the_nearest_to_one_half(rows):
    truth, score = np.array([t for t, _ in rows], dtype=float), np.array([s for _, s in rows])
    (found,) = tune(truth[:, None], score[:, None])
    if not truth.any():
        assert found == 0.5
        return
    quality, best = brute(truth, score)
    assert f1_score(truth, score >= found) == pytest.approx(quality)
    below = [t for t in best if t <= 0.5]
    if 0.5 in best:
        assert found == 0.5
    elif below and found <= 0.5:
        assert found == max(below)


def naive(truth, score, rule, target):
    """Every interval of thresholds that decide alike, one by one, in whole numbers; the first of the nearest to 0.5."""
    if not truth.any() or (rule != "f1" and truth.all()):
        return 0.5
    distinct = [np.inf, *sorted(set(score.tolist()), reverse=True), -np.inf]
    told = []
    for high, low in pairwise(distinct):
        decided = score >= high
        hits, alarms = int((decided & truth).sum()), int((decided & ~truth).sum())
        quality = {
            "f1": Fraction(2 * hits, hits + alarms + int(truth.sum())),
            "youden": Fraction(hits, max(int(truth.sum()), 1)) - Fraction(alarms, max(int((~truth).sum()), 1)),
            "sensitivity": -alarms if hits >= target * truth.sum() else -np.inf,
            "specificity": hits if (~truth).sum() - alarms >= target * (~truth).sum() else -np.inf,
        }[rule]
        if high <= 0.5 or low < 0.5:
            at = min(high, 0.5)
        elif high == np.inf:
            at = np.nextafter(low, np.inf) if low >= 1 else (low + 1) / 2
        else:
            middle = low + (high - low) / 2
            at = middle if middle > low else high
        told.append((quality, at))
    best = max(quality for quality, _ in told)
    return min((at for quality, at in told if quality == best), key=lambda at: abs(at - 0.5))


@pytest.mark.parametrize("bins", [1, 3, 40, 2048])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_looking_only_around_the_best_finds_what_looking_everywhere_finds(bins, data):
    n = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    truth = rng.random(n) < data.draw(st.sampled_from([0.1, 0.5, 0.9]))
    score = data.draw(st.sampled_from([0.0, 0.3, 2.0])) * truth + rng.random(n)
    score = score * data.draw(st.sampled_from([0.7, 1e-3, -3.0, 1e-33])) + data.draw(st.sampled_from([0.0, 0.4, 0.6]))
    score = score.astype(data.draw(st.sampled_from([np.float16, np.float32, np.float64]))).astype(float)
    rule, target = data.draw(st.sampled_from(thresholds.RULES)), data.draw(st.sampled_from([0.0, 0.5, 0.8, 1.0]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(thresholds, "BINS", bins)
        (found,) = tune(truth[:, None], score[:, None], rule=rule, target=target)
    assert found == naive(truth, score, rule, target)


def test_only_rows_around_the_best_are_sorted():
    rng = np.random.default_rng(0)
    truth = rng.random(30_000) < 0.1
    score = 0.3 * truth + 0.7 * rng.random(30_000)

    def quality(hits, alarms):
        return 2 * hits / (hits + alarms + truth.sum())

    rows, hits, alarms = thresholds._around_the_best(truth, score.astype(np.float32), quality)
    assert len(rows) < 300
    above = score > score[rows].max()
    assert (hits, alarms) == ((truth & above).sum(), (~truth & above).sum())


def test_ties_go_to_the_threshold_nearest_one_half():
    # Both (0.1, 0.2] and (0.6, 0.8] give F1 = 2/3.
    truth, score = [[1], [0], [0], [1]], [[0.8], [0.6], [0.5], [0.2]]
    assert tune(truth, score) == pytest.approx([0.7])
    assert brute(np.ravel(truth), np.ravel(score))[0] == pytest.approx(2 / 3)
    assert tune([[0], [1]], [[0.2], [0.9]]) == 0.5


def test_open_end_of_an_interval_is_not_chosen():
    assert tune([[0], [1]], [[0.6], [0.8]]) == pytest.approx([0.7])
    close = np.nextafter(0.7, 1)
    (found,) = tune([[0], [1]], [[0.7], [close]])
    assert found == close


def test_labels_are_tuned_apart_and_unknown_truth_is_ignored():
    truth = np.array([[1, 0, 0], [0, 1, 0], [nan, nan, nan], [1, 1, 0]])
    score = np.array([[0.9, 0.1, 0.3], [0.2, 0.3, 0.4], [1.0, 0.0, 0.6], [0.7, 0.4, 0.9]])
    np.testing.assert_allclose(tune(truth, score), [0.5, 0.3, 0.5])
    known = ~np.isnan(truth[:, 0])
    np.testing.assert_array_equal(tune(truth, score), tune(truth[known], score[known]))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(np.linspace(0, 1, 9).tolist())), min_size=2, max_size=14),
    st.sampled_from(["youden", "sensitivity", "specificity"]),
    st.sampled_from([0.0, 0.5, 0.8, 1.0]),
)
def test_other_rules_are_the_best_of_all_thresholds(rows, rule, target):
    truth, score = np.array([t for t, _ in rows]), np.array([s for _, s in rows])
    (found,) = tune(truth[:, None], score[:, None], rule=rule, target=target)
    if truth.all() or not truth.any():
        assert found == 0.5
        return

    def rates(threshold):
        decided = score >= threshold
        return decided[truth].mean(), 1 - decided[~truth].mean()

    grid = [rates(t) for t in np.linspace(-0.1, 1.1, 97)]
    sensitivity, specificity = rates(found)
    if rule == "youden":
        assert sensitivity + specificity == pytest.approx(max(a + b for a, b in grid))
    elif rule == "sensitivity":
        assert sensitivity >= target
        assert specificity == max(b for a, b in grid if a >= target)
    else:
        assert specificity >= target
        assert sensitivity == max(a for a, b in grid if b >= target)


def test_youden_is_that_of_the_roc_curve():
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    truth = rng.random(500) < 0.3
    score = np.clip(0.2 * truth + rng.random(500) * 0.8, 0, 1).astype(np.float16).astype(float)
    fpr, tpr, _ = roc_curve(truth, score)
    (found,) = tune(truth[:, None], score[:, None], rule="youden")
    decided = score >= found
    assert decided[truth].mean() - decided[~truth].mean() == pytest.approx((tpr - fpr).max())
    with pytest.raises(ValueError, match="rule should be one of"):
        tune([[0], [1]], [[0.1], [0.2]], rule="best")


def test_f1_equals_scikit_learn():
    rng = np.random.default_rng(0)
    truth, decision = rng.integers(0, 2, (2, 50))
    assert f1(truth, decision) == pytest.approx(f1_score(truth, decision))
    assert np.isnan(f1([0, 0], [0, 1]))


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="both should be"):
        tune([0, 1], [0.2, 0.3])


def test_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        tune([[0], [1]], [[0.2], [nan]])


def test_decisions():
    np.testing.assert_array_equal(decide([[0.3, 0.3], [0.2, 0.6]], [0.3, 0.5], "multilabel"), [[1, 0], [0, 1]])
    np.testing.assert_array_equal(decide([[0.3, 0.4, 0.3]], None, "multiclass"), [[0, 1, 0]])


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_column_of_decisions_equals_the_matrix(kind):
    table = generated.table(kind, n=120).replace_schema_metadata({"fairvlm.kind": kind})
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    limits = dict(zip(generated.LABELS[kind], np.linspace(0.2, 0.5, len(generated.LABELS[kind])), strict=True))
    with_column = add_decisions(shuffled, limits)
    for split in ("validation", "test"):
        found = scores(with_column, split)
        np.testing.assert_array_equal(found.y_pred, decided(scores(shuffled, split), limits).y_pred)
        if kind == "multiclass":
            np.testing.assert_array_equal(found.y_pred.sum(axis=1), 1)
