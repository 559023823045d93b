"""Do two methods differ over the seeds: paired t-tests, Holm's correction, Cohen's d (FairMed-VLM, statistics)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr

# Differences that vary by less than this share of the values vary by rounding only.
ROUNDING = 1e-12


@dataclass(frozen=True)
class PairedTest:
    """A method against a reference over the same seeds.

    Attributes:
        n: pairs in which both values are known.
        difference: mean of value - reference; NaN without a pair.
        sd: standard deviation of the differences (n - 1 in the denominator); NaN with fewer than two pairs.
        statistic: t with n - 1 degrees of freedom; NaN where there is no test.
        p_value: two-sided, from the t distribution; NaN where there is no test.
        cohens_d: difference / sd, the effect size of paired values; NaN where there is no test.
    """

    n: int
    difference: float
    sd: float
    statistic: float
    p_value: float
    cohens_d: float


def paired_t_test(values: ArrayLike, reference: ArrayLike) -> PairedTest:
    """Two-sided paired t-test of `values` against `reference`, [n] each, NaN where a value is unknown.

    Pairs with an unknown value are left out. With fewer than two pairs there is no test. Where all differences are 0
    the methods are equal: t = 0, p = 1, d = 0. Where they are all the same and not 0, their spread says nothing about
    chance: there is no test, rather than a p of 0.

    Raises:
        ValueError: when the two are not of the same length.

    >>> found = paired_t_test([3.0, 4.0, 5.0], [2.0, 2.0, 2.0])
    >>> round(found.statistic, 4), round(found.p_value, 4), found.cohens_d
    (3.4641, 0.0742, 2.0)
    """
    a, b = np.asarray(values, dtype=float), np.asarray(reference, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"values has the shape {a.shape}, reference {b.shape}; both should be [n]")
    known = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[known], b[known]
    nan, n = float("nan"), len(a)
    if not n:
        return PairedTest(0, nan, nan, nan, nan, nan)
    differences = a - b
    mean = float(differences.mean())
    if n == 1:
        return PairedTest(1, mean, nan, nan, nan, nan)
    sd, rounding = float(differences.std(ddof=1)), ROUNDING * float(np.abs([a, b]).max())
    if sd <= rounding:
        equal = abs(mean) <= rounding
        return PairedTest(n, mean, 0.0, *((0.0, 1.0, 0.0) if equal else (nan, nan, nan)))
    statistic = mean / (sd / n**0.5)
    return PairedTest(n, mean, sd, statistic, float(2 * stdtr(n - 1, -abs(statistic))), mean / sd)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down correction of a family of p-values, float64 [m]; NaN (no test) stays NaN and is not counted.

    The k-th smallest of m is multiplied by m - k + 1 (k from 1), then made monotone and cut at 1.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted
