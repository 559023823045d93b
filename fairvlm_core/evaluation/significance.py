"""Do two methods differ: over seeds by paired t-tests, Holm's correction, Cohen's d; in AUC by DeLong's test.

The former are those of FairMed-VLM (statistics).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtr

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


@dataclass(frozen=True)
class DeLong:
    """Two scores of the same images, compared by their AUC.

    Attributes:
        first, second: their AUC.
        difference: first minus second.
        se: its standard error.
        p_value: two-sided, from the normal distribution; 1 where the difference is 0 for sure.
    """

    first: float
    second: float
    difference: float
    se: float
    p_value: float


def delong(y_true: ArrayLike, first: ArrayLike, second: ArrayLike, *, patients: ArrayLike | None = None) -> DeLong:
    """DeLong's test of two correlated AUCs (DeLong et al. 1988), in n log n by midranks (Sun and Xu 2014).

    Args:
        y_true: [n], 0 or 1, NaN where unknown (such rows take no part).
        first, second: scores [n].
        patients: [n], where a patient has several images: then the variance is that of Obuchowski (1997), for images of
            one patient are not independent.

    Raises:
        ValueError: there are no positives or no negatives.

    >>> found = delong([0, 0, 1, 1, 1], [0.1, 0.4, 0.35, 0.8, 0.9], [0.3, 0.2, 0.1, 0.4, 0.9])
    >>> round(found.difference, 3), round(found.p_value, 3)
    (0.167, 0.48)
    """
    truth = np.asarray(y_true, dtype=float)
    known = ~np.isnan(truth)
    positive = truth[known] == 1
    ill, well = int(positive.sum()), int((~positive).sum())
    if not ill or not well:
        raise ValueError("y_true should have positives and negatives")
    parts = [_placements(np.asarray(score, dtype=float)[known], positive) for score in (first, second)]
    areas = [float(part[positive].mean()) for part in parts]
    # What each image adds to the difference: its placement's distance from the mean.
    added = np.where(positive, 1 / ill, 1 / well) * ((parts[0] - areas[0]) - (parts[1] - areas[1]))
    if patients is None:
        by_class = [(added[rows], count) for rows, count in ((positive, ill), (~positive, well))]
        variance = sum(float((values**2).sum()) * count / max(count - 1, 1) for values, count in by_class)
    else:
        _, person = np.unique(np.asarray(patients)[known].astype(str), return_inverse=True)
        sums = np.bincount(person, weights=added)
        variance = float((sums**2).sum()) * len(sums) / max(len(sums) - 1, 1)
    difference, se = areas[0] - areas[1], variance**0.5
    p = float(2 * ndtr(-abs(difference) / se)) if se > 0 else float("nan") if difference else 1.0
    return DeLong(areas[0], areas[1], difference, se, p)


def _placements(score: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Of each positive the share of negatives below it, of each negative that of positives above; ties count half."""
    from scipy.stats import rankdata  # takes half a second to import, which reports that test nothing need not wait for

    ill, well = positive.sum(), (~positive).sum()
    among_all, found = rankdata(score), np.empty(len(score))
    found[positive] = (among_all[positive] - rankdata(score[positive])) / well
    found[~positive] = 1 - (among_all[~positive] - rankdata(score[~positive])) / ill
    return found
