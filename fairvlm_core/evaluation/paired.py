"""How much larger a number is for one model than for another on the same patients, and how sure that is.

Both models see the same patients drawn, so that what is hard about a patient cancels. For AUC, accuracy and the like
the percentiles of the differences are an interval. For gaps, ES-AUC and the worst group's AUC they are not: chance
exaggerates each model's, by an amount that is large for a model whose groups are served alike and for one whose numbers
are noisy, and small otherwise. It does not cancel, and percentiles of the differences may lie wholly on the wrong side
of 0 (docs/gate.md). With M the number, t the true rates and e those of the data, two statements hold whatever t is:

- What chance adds to M is on average between 0 and what it adds where all groups are alike; the resamples tell that, as
  the mean of M(e* - e). So the difference, moved by that of the one model and by that of the other, and by how far the
  resamples of the difference lie from their mean, holds the true one.
- The models' M differ by no more than M of their differences, M(t1 - t2) (triangle inequality), and the percentiles of
  M(e1* - e2*) exceed it: models that say the same have a difference of 0, however noisy both are.

The interval is what both leave, each made for half the chance of error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.bootstrap import RESAMPLES, Measured, OfLabel, Path, measured
from fairvlm_core.evaluation.interval import ENOUGH, LEVEL, TOO_SMALL, interval
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.resampling import bootstrap_weights, patient_codes, with_whole

RATES = {"dpd": ("selection_rate",), "tpr_gap": ("tpr",), "fpr_gap": ("fpr",), "eod": ("tpr", "fpr")}


@dataclass(frozen=True)
class Difference:
    """How much larger a number is for one model than for another on the same patients.

    Attributes:
        estimate: first minus second.
        low, high: its interval; NaN where there is none.
        p_value: two-sided, of no difference, from the resamples that the interval is made of; at least 2 in R+1.
    """

    estimate: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Limits:
    """What holds of the difference of two models' extremes whatever the true rates are.

    Attributes:
        least, most: in each resample and, last, in the data, [R + 1]: the difference is no smaller, and no larger.
        pushed: by how much chance pushes each model's number at most, on average.
    """

    least: np.ndarray
    most: np.ndarray
    pushed: tuple[float, float]


def differences(
    first: Scores,
    second: Scores,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    min_cell: int = 10,
    seed: int = 0,
) -> dict[Path, Difference]:
    """The first model's numbers minus the second's: those of overall, of groups, the gaps, and the worst group's AUC.

    Raises:
        PredictionsError: the models were not given the same images of the same patients.
    """
    one, other = measured_alike(first, second, resamples=resamples, min_cell=min_cell, seed=seed)
    return of_measured(one, other, single=list(first.groups), level=level)


def of_measured(
    one: Measured, other: Measured, *, single: Sequence[str], level: float = LEVEL
) -> dict[Path, Difference]:
    """The differences of two models in the same resamples; `single`: the attributes that means are made of."""
    limits = _limits(one, other, single)
    found = {}
    for path in one.values.keys() & other.values.keys():
        values = one.values[path] - other.values[path]
        if path in limits:
            metric = path[1] if path[0] == "across" else path[-1]
            found[path] = of_extremes(values, limits[path], too_small=metric in TOO_SMALL, level=level)
        elif path not in one.errors:
            found[path] = of_numbers(values, level=level)
    return found


def measured_alike(
    first: Scores, second: Scores, *, resamples: int, min_cell: int, seed: int
) -> tuple[Measured, Measured]:
    """Both models in the same resamples of the patients, and last in the data; raises as `differences`."""
    if set(zip(first.sample_ids, first.patient_ids, strict=True)) != set(
        zip(second.sample_ids, second.patient_ids, strict=True)
    ):
        raise PredictionsError(
            f'"{first.model}" and "{second.model}" were not given the same images of the same patients.',
            mend="Predict the same split of the same cohort with both.",
        )
    one, other = (
        measured(
            scores,
            with_whole(bootstrap_weights(patient_codes(scores.patient_ids), resamples, seed), resamples),
            resamples + 1,
            min_cell=min_cell,
        )
        for scores in (first, second)
    )
    return one, other


def of_numbers(values: np.ndarray, *, level: float = LEVEL) -> Difference:
    """A difference from what it is in each resample and, last, in the data, [R + 1]: percentiles and their p-value."""
    estimate, drawn = float(values[-1]), values[:-1]
    ends = interval(estimate, drawn, level=level)
    if ends is None:
        return Difference(estimate, np.nan, np.nan, np.nan)
    known = drawn[~np.isnan(drawn)]
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return Difference(estimate, *ends, float(min(2 * (tail + 1) / (len(known) + 1), 1.0)))


def of_extremes(values: np.ndarray, limits: Limits, *, too_small: bool = False, level: float = LEVEL) -> Difference:
    """The same of two extremes, with `values` as of `of_numbers`; `too_small`: chance pushes them down, else up."""
    estimate, drawn = float(values[-1]), values[:-1]
    known = drawn[~np.isnan(drawn)]
    least, most = (side[:-1][~np.isnan(side[:-1])] for side in (limits.least, limits.most))
    enough = max(ENOUGH * len(drawn), 1)
    if np.isnan([estimate, *limits.pushed]).any() or min(len(known), len(least)) < enough:
        return Difference(estimate, np.nan, np.nan, np.nan)
    # Where chance makes the numbers too large, the first one's makes the difference too large.
    below, above = limits.pushed[::-1] if too_small else limits.pushed
    away = np.abs(known - known.mean())
    # Half the chance of error for each statement; the first one's is for both ends together.
    width, half = np.quantile(away, (1 + level) / 2), (1 - level) / 4
    low = max(estimate - below - width, np.quantile(least, half), -1.0)
    high = min(estimate + above + width, np.quantile(most, 1 - half), 1.0)
    beyond = abs(estimate) - (below if estimate > 0 else above)
    p = 2 * ((away >= beyond).sum() + 1) / (len(away) + 1) if beyond > 0 else 1.0
    return Difference(estimate, float(min(low, estimate)), float(max(high, estimate)), float(min(p, 1.0)))


def _limits(one: Measured, other: Measured, single: Sequence[str]) -> dict[Path, Limits]:
    """The limits of every extreme; `single`: the attributes that a mean over attributes is made of."""
    found: dict[Path, Limits] = {}
    for name, groups in one.attributes.items():
        told: dict[str, list[Limits]] = {}
        for label, first in one.labels.items():
            for metric, limits in _of_label(first, other.labels[label], name, groups).items():
                told.setdefault(metric, []).append(limits)
        for metric, each in told.items():
            found["attributes", name, metric] = _mean(each)
        areas = [("attributes", name, "groups", str(group), "auc") for group in groups]
        if areas:
            ahead = np.array([one.values[path] - other.values[path] for path in areas])
            path = ("attributes", name, "worst_group_auc")
            pushed = _average(one.errors[path]), _average(other.errors[path])
            found[path] = Limits(np.fmin.reduce(ahead), np.fmax.reduce(ahead), pushed)
    for metric in ("es_auc", *RATES):
        of_single = [found["attributes", name, metric] for name in single if ("attributes", name, metric) in found]
        if of_single:
            found["across", metric, "mean"] = _mean(of_single)
    return found


def _of_label(one: OfLabel, other: OfLabel, name: str, groups: Sequence[Any]) -> dict[str, Limits]:
    """The same for one label and attribute."""
    judged = [group for group in groups if one.groups[name, group]["judged"]]

    def each(metric: str, among: Sequence[Any]) -> list[np.ndarray]:
        return [np.array([of.groups[name, group][metric] for group in among]) for of in (one, other)]

    found: dict[str, Limits] = {}
    for metric, rates in RATES.items():
        among = groups if metric == "dpd" else judged
        if len(among) > 1:
            most = np.max([np.ptp(np.subtract(*each(rate, among)), axis=0) for rate in rates], axis=0)
            pushed = _average(one.errors[name][metric]), _average(other.errors[name][metric])
            found[metric] = Limits(-most, most, pushed)
    if len(judged) > 1:
        # ES-AUC is AUC / (1 + s) with s the sum of |AUC - a group's|. The models' s differ by no more than `far`.
        first, second = one.together[name], other.together[name]
        apart = [area - of for area, of in zip((first, second), each("auc", judged), strict=True)]
        far = np.abs(apart[0] - apart[1]).sum(axis=0)
        least, most = np.minimum(first / (1 + far) - second, 0), np.maximum(first - second / (1 + far), 0)
        found["es_auc"] = Limits(least, most, (_pushed(first, apart[0]), _pushed(second, apart[1])))
    return found


def _pushed(area: np.ndarray, apart: np.ndarray) -> float:
    """By how much chance makes ES-AUC too small at most, on average: what it makes s too large, taken off.

    Args:
        area: AUC, [R + 1].
        apart: AUC minus that of each group, [G, R + 1].
    """
    found = np.abs(apart[:, -1]).sum()
    too_large = _average(np.abs(apart - apart[:, -1:]).sum(axis=0))
    # May exceed AUC, which ES-AUC cannot: were it cut there, label by label, the mean over labels would be too small.
    return float(area[-1] / max(1 + found - too_large, area[-1]) - area[-1] / (1 + found))


def _mean(each: Sequence[Limits]) -> Limits:
    least, most = (np.mean([getattr(limits, side) for limits in each], axis=0) for side in ("least", "most"))
    first, second = np.mean([limits.pushed for limits in each], axis=0)
    return Limits(least, most, (float(first), float(second)))


def _average(values: np.ndarray) -> float:
    """Over the resamples that have the number; the last of the values are the data themselves."""
    known = values[:-1][~np.isnan(values[:-1])]
    return float(known.mean()) if len(known) else np.nan
