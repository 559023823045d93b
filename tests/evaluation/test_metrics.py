"""Metrics against scikit-learn, fairlearn and plain loops, and what happens where they are not defined."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference as fairlearn_dpd
from fairlearn.metrics import equalized_odds_difference as fairlearn_eod
from fairlearn.metrics import true_positive_rate_difference as fairlearn_tprd
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from fairvlm_core.evaluation import metrics

nan = float("nan")


def draw(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.4).astype(int)
    score = np.round(np.clip(rng.normal(0.4 + 0.2 * truth, 0.25), 0, 1), 1)  # eleven values: mostly ties
    return truth, score, (score >= 0.5).astype(int), rng.choice(["a", "b", "c"], n)


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_scikit_learn_with_ties(seed):
    truth, score, _, _ = draw(seed)
    assert metrics.auc(truth, score) == pytest.approx(sklearn_metrics.roc_auc_score(truth, score), abs=1e-14)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=25))
def test_auc_counts_the_pairs(rows):
    positives = [score for truth, score in rows if truth]
    negatives = [score for truth, score in rows if not truth]
    wins = [(p > q) + 0.5 * (p == q) for p in positives for q in negatives]
    expected = sum(wins) / len(wins) if wins else nan
    assert metrics.auc(*zip(*rows, strict=True)) == pytest.approx(expected, nan_ok=True)


def test_roc_curve_equals_scikit_learn():
    truth, score, _, _ = draw(1)
    fpr, tpr, _ = sklearn_metrics.roc_curve(truth, score, drop_intermediate=False)
    ours = metrics.roc_curve(truth, score)
    np.testing.assert_allclose(ours, (fpr, tpr), atol=1e-14)
    assert np.trapezoid(ours[1], ours[0]) == pytest.approx(metrics.auc(truth, score))


@pytest.mark.parametrize("seed", range(5))
def test_gaps_equal_fairlearn_where_every_group_can_be_judged(seed):
    truth, _, decision, group = draw(seed)
    both = {"sensitive_features": group}
    assert metrics.demographic_parity_difference(decision, groups=group) == pytest.approx(
        fairlearn_dpd(truth, decision, **both)
    )
    assert metrics.equalized_odds_difference(truth, decision, groups=group) == pytest.approx(
        fairlearn_eod(truth, decision, **both)
    )
    assert metrics.true_positive_rate_difference(truth, decision, groups=group) == pytest.approx(
        fairlearn_tprd(truth, decision, **both)
    )


def test_es_auc_follows_the_formula():
    truth, score, _, group = draw(3)
    overall = sklearn_metrics.roc_auc_score(truth, score)
    distance = sum(abs(overall - sklearn_metrics.roc_auc_score(truth[group == g], score[group == g])) for g in "abc")
    assert metrics.es_auc(truth, score, groups=group) == pytest.approx(overall / (1 + distance))


@pytest.mark.parametrize(
    ("unknown", "as_array"), [(-1, np.array), (None, lambda x: np.array(x, dtype=object)), (nan, list), (None, list)]
)
def test_rows_of_unknown_group_take_no_part(unknown, as_array):
    truth, score, decision, group = draw(4)
    code = np.unique(group, return_inverse=True)[1]
    mixed = as_array([unknown if i % 7 == 0 else int(c) for i, c in enumerate(code)])
    kept = np.arange(len(code)) % 7 != 0
    rest = {"groups": code[kept]}
    assert set(metrics.group_aucs(truth, score, groups=mixed)) == {0, 1, 2}
    assert metrics.es_auc(truth, score, groups=mixed) == metrics.es_auc(truth[kept], score[kept], **rest)
    assert metrics.demographic_parity_difference(decision, groups=mixed) == metrics.demographic_parity_difference(
        decision[kept], **rest
    )
    for gap in (metrics.equalized_odds_difference, metrics.true_positive_rate_difference):
        assert gap(truth, decision, groups=mixed) == gap(truth[kept], decision[kept], **rest)


def test_group_that_cannot_be_judged_is_left_out_and_reported_never_scored_zero():
    truth = [1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1]
    decision = [1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    group = ["a"] * 4 + ["b"] * 4 + ["none sick"] * 2 + ["all sick"]
    assert set(metrics.group_aucs(truth, decision, groups=group)) == {"a", "b"}
    assert metrics.unjudged_groups(truth, groups=group) == {
        "none sick": {"n": 2, "positives": 0, "negatives": 2},
        "all sick": {"n": 1, "positives": 1, "negatives": 0},
    }
    first = slice(0, 8)
    for gap in (metrics.equalized_odds_difference, metrics.true_positive_rate_difference):
        assert gap(truth, decision, groups=group) == gap(truth[first], decision[first], groups=group[first]) == 0.5
    assert metrics.demographic_parity_difference(decision, groups=group) == pytest.approx(0.75)  # needs no truth


def test_nothing_to_judge_is_nan():
    assert np.isnan(metrics.auc([1, 1], [0.2, 0.3]))
    assert np.isnan(metrics.auc([], []))
    assert np.isnan(metrics.es_auc([0, 1], [0.2, 0.3], groups=[-1, -1]))
    assert np.isnan(metrics.es_auc([0, 1], [0.2, 0.3], groups=["a", "b"]))
    assert np.isnan(metrics.demographic_parity_difference([0, 1], groups=[None, None]))
    assert np.isnan(metrics.equalized_odds_difference([0, 1], [0, 1], groups=["a", "b"]))
    assert np.isnan(metrics.true_positive_rate_difference([0, 1], [0, 1], groups=["a", "b"]))
    assert metrics.group_aucs([1, 1], [0.1, 0.2], groups=["a", "a"]) == {}
    assert np.isnan(metrics.balanced_accuracy([1, 1], [1, 1]))


def test_rows_of_unknown_truth_take_no_part():
    assert metrics.auc([0, 1, nan], [0.2, 0.3, 0.1]) == 1.0
    assert metrics.accuracy([[0, 1], [nan, 1]], [[0, 1], [1, 0]]) == pytest.approx(2 / 3)
    assert metrics.es_auc([0, 1, nan], [0.2, 0.3, 0.1], groups=[0, 0, 0]) == 1.0


def test_mistaken_arrays_are_refused():
    with pytest.raises(ValueError, match="shape"):
        metrics.auc([0, 1], [0.2])
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        metrics.auc([0, 2], [0.2, 0.3])
    with pytest.raises(ValueError, match="y_score has NaN"):
        metrics.auc([0, 1], [0.2, nan])
    with pytest.raises(ValueError, match="groups has 1 rows"):
        metrics.es_auc([0, 1], [0.2, 0.3], groups=["a"])


def test_accuracies_equal_scikit_learn():
    truth, _, decision, _ = draw(6)
    assert metrics.accuracy(truth, decision) == pytest.approx(sklearn_metrics.accuracy_score(truth, decision))
    assert metrics.balanced_accuracy(truth, decision) == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(truth, decision)
    )
    both = np.stack([truth, decision], axis=1), np.stack([decision, decision], axis=1)
    assert metrics.exact_match(*both) == pytest.approx(sklearn_metrics.accuracy_score(*both))


def test_age_groups_keep_their_order():
    names = [name for name, _ in metrics.groups_in(["60+", "5-9", "10-19", "0-4"])]
    assert names == ["0-4", "5-9", "10-19", "60+"]


def naive_bins(truth, score, bins):
    """Count, mean score and share of positives of each bin, by its definition."""
    found = []
    for b in range(bins):
        inside = [
            (t, s)
            for t, s in zip(truth, score, strict=True)
            if t == t and b / bins <= s and (s < (b + 1) / bins or b == bins - 1)
        ]
        n = len(inside)
        found.append((n, sum(s for _, s in inside) / n if n else nan, sum(t for t, _ in inside) / n if n else nan))
    return found


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 1.0, nan]),
            st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 14 / 15])),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([1, 2, 10, 15]),
)
def test_reliability_and_calibration_error_are_those_of_a_plain_loop(rows, bins):
    truth, score = (list(column) for column in zip(*rows, strict=True))
    expected = naive_bins(truth, score, bins)
    count, mean, share = metrics.reliability(truth, score, bins)
    assert count.tolist() == [n for n, _, _ in expected]
    np.testing.assert_allclose(mean, [m for _, m, _ in expected], atol=1e-12)
    np.testing.assert_allclose(share, [s for _, _, s in expected], atol=1e-12)
    total = sum(n for n, _, _ in expected)
    error = sum(n * abs(m - s) for n, m, s in expected if n) / total if total else nan
    assert metrics.expected_calibration_error(truth, score, bins) == pytest.approx(error, abs=1e-12, nan_ok=True)


def test_scores_of_0_and_1_fall_into_the_first_and_the_last_bin():
    count, mean, share = metrics.reliability([0, 1, 1], [0.0, 1.0, 1.0], 15)
    assert count.tolist() == [1, *[0] * 13, 2]
    assert (mean[0], share[0], mean[-1], share[-1]) == (0, 0, 1, 1)
    assert metrics.expected_calibration_error([0, 1, 1], [0.0, 1.0, 1.0]) == 0
    assert metrics.expected_calibration_error([1, 0], [0.0, 1.0]) == 1
    for wrong in (-0.01, 1.01):
        with pytest.raises(ValueError, match="between 0 and 1"):
            metrics.expected_calibration_error([1], [wrong])


@pytest.mark.parametrize("seed", range(3))
def test_brier_score_equals_scikit_learn(seed):
    truth, score, _, _ = draw(seed)
    assert metrics.brier(truth, score) == pytest.approx(sklearn_metrics.brier_score_loss(truth, score), abs=1e-14)
    unknown = np.append(truth.astype(float), nan), np.append(score, 0.9)
    assert metrics.brier(*unknown) == metrics.brier(truth, score)
    assert np.isnan(metrics.brier([nan], [0.5]))
    assert np.isnan(metrics.expected_calibration_error([nan], [0.5]))
