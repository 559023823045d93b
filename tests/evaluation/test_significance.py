"""Paired tests against scipy and numbers by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from fairvlm_core.evaluation.significance import holm, paired_t_test


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_equals_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.8, 0.05, n), rng.normal(0.78, 0.05, n)
    found, expected = paired_t_test(a, b), stats.ttest_rel(a, b)
    assert found.n == n
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.cohens_d == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1), rel=1e-12)
    swapped = paired_t_test(b, a)
    assert (swapped.statistic, swapped.p_value) == (-found.statistic, found.p_value)


def test_numbers_by_hand():
    # Differences 1, 2, 3, 4, 5: mean 3, sd sqrt(2.5), t = 3 / (sqrt(2.5) / sqrt(5)) = 3 sqrt(2), d = 3 / sqrt(2.5).
    found = paired_t_test([1, 3, 5, 7, 9], [0, 1, 2, 3, 4])
    assert found.difference == 3
    assert found.statistic == pytest.approx(3 * math.sqrt(2))
    assert found.cohens_d == pytest.approx(3 / math.sqrt(2.5))
    assert found.p_value == pytest.approx(0.013236, abs=1e-6)  # tables of t with 4 degrees of freedom
    # With one degree of freedom t is Cauchy: p = 1 - 2 atan(t) / pi; differences 1 and 3 give t = 2.
    assert paired_t_test([1, 3], [0, 0]).p_value == pytest.approx(1 - 2 * math.atan(2) / math.pi)


def test_very_small_p_values_are_not_rounded_away():
    a = np.arange(30) * 1e-3 + 10
    found, expected = paired_t_test(a, np.zeros(30)), stats.ttest_1samp(a, 0)
    assert 0 < found.p_value < 1e-60
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)


def test_unknown_values_leave_their_pair_out():
    a, b = [0.8, np.nan, 0.7, 0.9, 0.75], [0.7, 0.6, np.nan, 0.85, 0.6]
    found = paired_t_test(a, b)
    assert found.n == 3
    assert found.p_value == pytest.approx(stats.ttest_rel([0.8, 0.9, 0.75], [0.7, 0.85, 0.6]).pvalue)


def test_one_seed_is_no_test():
    found = paired_t_test([0.8], [0.7])
    assert (found.n, found.difference) == (1, pytest.approx(0.1))
    assert all(math.isnan(value) for value in (found.sd, found.statistic, found.p_value, found.cohens_d))
    nothing = paired_t_test([np.nan], [0.7])
    assert nothing.n == 0
    assert math.isnan(nothing.difference)
    assert paired_t_test([], []).n == 0


def test_differences_that_do_not_vary():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal = paired_t_test([0.7, 0.8, 0.9], [0.7, 0.8, 0.9])
        # 0.3 - 0.2 and 0.5 - 0.4 differ in the last bit: that is no spread.
        shifted = paired_t_test([0.3, 0.5, 0.7], [0.2, 0.4, 0.6])
    assert (equal.statistic, equal.p_value, equal.cohens_d) == (0, 1, 0)
    assert (shifted.n, shifted.difference, shifted.sd) == (3, pytest.approx(0.1), 0)
    assert math.isnan(shifted.p_value)
    assert math.isnan(shifted.cohens_d)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"\[n\]"):
        paired_t_test([1, 2], [1])


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, made monotone.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert holm([]).tolist() == []


def test_holm_does_not_count_what_was_not_tested():
    found = holm([0.01, np.nan, 0.04])
    np.testing.assert_allclose(found, [0.02, np.nan, 0.04])
    assert np.isnan(holm([np.nan])).all()


def test_holm_rejects_what_the_sequential_rule_rejects():
    """Holm's own rule: go through the sorted p-values and stop at the first above level / (m - k + 1)."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(rng.integers(1, 9)) ** 3
        rejected = np.zeros(len(p), dtype=bool)
        for k, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (len(p) - k):
                break
            rejected[i] = True
        np.testing.assert_array_equal(holm(p) <= 0.05, rejected)
