"""The interval of one number, from what it is in resamples of the patients.

A gap is a largest minus a smallest rate, and chance makes the largest too large: the estimate tends to exceed the
truth, and the resamples exceed the estimate. Percentiles of a gap can therefore lie above the gap itself. BCa removes a
bias that some increasing map makes constant, which this one is not, and does no better (docs/intervals.md). What holds
whatever the true rates are is that gaps obey the triangle inequality, and are no smaller than the difference of any two
groups. With t the true rates, e those of the data and g the gap,

    g(e) - g(e - t) <= g(t) = t_i - t_j, i and j being the groups that are truly furthest apart.

So the lower end is the estimate minus what g(e - t) exceeds in 5 % of the studies; the resamples tell it, as the gap of
their rates minus the data's. The upper end is the upper percentile of the gap in the resamples, which is no less than
that of the difference of i and j. Means over labels and attributes, the largest of several gaps, and the ECE, a sum of
absolute values, obey the same inequalities. Chance makes ES-AUC and the AUC of the worst group too small; there the
ends change places.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

LEVEL = 0.95
ENOUGH = 0.9  # share of the resamples in which a number must exist for it to have an interval
TOO_SMALL = ("es_auc", "es_accuracy", "worst_group_auc")  # what chance pushes down; other extremes are pushed up

Path = tuple[str, ...]  # where a number stands in a judgement: ("attributes", "sex", "groups", "female", "auc")


def interval(
    estimate: float, values: np.ndarray, *, level: float = LEVEL, jackknife: np.ndarray | None = None
) -> tuple[float, float] | None:
    """The interval of one number, which holds it; None where it does not exist, or in too many resamples does not.

    Args:
        estimate: the number itself.
        values: what it is in each resample, [R], NaN where it does not exist.
        jackknife: what it is with each patient (or fold of patients) left out: then the interval is bias-corrected and
            accelerated (Efron 1987), else that of the percentiles.

    >>> [round(end, 3) for end in interval(0.5, np.linspace(0, 1, 101), level=0.9)]
    [0.05, 0.95]
    """
    known = values[~np.isnan(values)]
    if np.isnan(estimate) or len(known) < max(ENOUGH * len(values), 1):
        return None
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if jackknife is not None:
        tails = _bca_tails(estimate, known, jackknife[~np.isnan(jackknife)], tails)
    low, high = np.quantile(known, tails)
    return float(min(low, estimate)), float(max(high, estimate))


def extreme_interval(
    path: Path, estimate: float, values: np.ndarray, errors: np.ndarray, *, level: float = LEVEL
) -> tuple[float, float] | None:
    """The interval, within 0 and 1, of a gap or another extreme: one end is that of the percentiles.

    Args:
        path: tells which end chance pushes the estimate to: up, but down for `TOO_SMALL`.
        estimate, values: as of `interval`.
        errors: how far chance pushes it in each resample, [R], as `bootstrap.measured` gives them.

    >>> values, errors = np.linspace(0.6, 1, 101), np.linspace(0, 0.4, 101)
    >>> [round(end, 3) for end in extreme_interval(("attributes", "sex", "eod"), 0.5, values, errors, level=0.9)]
    [0.14, 0.98]
    """
    ends = interval(estimate, values, level=level)
    known = errors[~np.isnan(errors)]
    if ends is None or not len(known):
        return None
    metric = path[1] if path[0] == "across" else path[-1].removesuffix("_worst")
    # The errors of a gap are those of either sign already; those of one worst group have a sign.
    pushed = float(np.quantile(known, (1 + level) / 2 if metric == "worst_group_auc" else level))
    if metric in TOO_SMALL:
        return max(ends[0], 0.0), min(max(estimate + pushed, estimate), 1.0)
    return max(min(estimate - pushed, estimate), 0.0), min(ends[1], 1.0)


def _bca_tails(estimate: float, known: np.ndarray, left: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Which quantiles to take. Where every resample says the same, or nobody's absence matters, those asked for."""
    below = ((known < estimate).mean() + (known <= estimate).mean()) / 2
    away = left.mean() - left if len(left) else np.zeros(1)
    spread = (away**2).sum() ** 1.5
    if not 0 < below < 1 or spread == 0:
        return tails
    bias, acceleration = ndtri(below), (away**3).sum() / (6 * spread)
    shifted = bias + ndtri(tails)
    return ndtr(bias + shifted / (1 - acceleration * shifted))
