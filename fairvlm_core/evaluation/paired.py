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

Sides = tuple[np.ndarray, np.ndarray]  # in each resample, [R]: what a difference is no smaller than, and no larger


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
    apart = _apart(one, other, single)
    found = {}
    for path in one.values.keys() & other.values.keys():
        values = one.values[path] - other.values[path]
        if path in apart:
            pushed = [float(_mean_known(drawn.errors[path][:-1])) for drawn in (one, other)]
            metric = path[1] if path[0] == "across" else path[-1]
            # Where chance makes the numbers too large, the first one's makes the difference too large.
            below, above = reversed(pushed) if metric in TOO_SMALL else pushed
            found[path] = of_extremes(values, apart[path], below=below, above=above, level=level)
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


def of_extremes(values: np.ndarray, sides: Sides, *, below: float, above: float, level: float = LEVEL) -> Difference:
    """The same of two gaps or other extremes.

    Args:
        values: as of `of_numbers`.
        sides: what the difference is no smaller and no larger than, in each resample and, last, in the data.
        below, above: how far chance may have moved the difference upwards, and downwards, on average.
    """
    estimate, drawn = float(values[-1]), values[:-1]
    known = drawn[~np.isnan(drawn)]
    least, most = (side[:-1][~np.isnan(side[:-1])] for side in sides)
    enough = max(ENOUGH * len(drawn), 1)
    if np.isnan(estimate) or min(len(known), len(least)) < enough or np.isnan([below, above]).any():
        return Difference(estimate, np.nan, np.nan, np.nan)
    away = np.abs(known - known.mean())
    # Half the chance of error for each statement; the first one's is for both ends together.
    width, half = np.quantile(away, (1 + level) / 2), (1 - level) / 4
    low = max(estimate - below - width, np.quantile(least, half), -1.0)
    high = min(estimate + above + width, np.quantile(most, 1 - half), 1.0)
    beyond = abs(estimate) - (below if estimate > 0 else above)
    p = 2 * ((away >= beyond).sum() + 1) / (len(away) + 1) if beyond > 0 else 1.0
    return Difference(estimate, float(min(low, estimate)), float(max(high, estimate)), float(min(p, 1.0)))


def _apart(one: Measured, other: Measured, single: Sequence[str]) -> dict[Path, Sides]:
    """What the differences of extremes are no smaller and no larger than, in every resample.

    Args:
        single: the attributes that a mean over attributes is made of.
    """
    found: dict[Path, Sides] = {}
    for name, groups in one.attributes.items():
        told: dict[str, list[Sides]] = {}
        for label, first in one.labels.items():
            for metric, sides in _of_label(first, other.labels[label], name, groups).items():
                told.setdefault(metric, []).append(sides)
        for metric, sides_of in told.items():
            found["attributes", name, metric] = _mean(sides_of)
        areas = [("attributes", name, "groups", str(group), "auc") for group in groups]
        if areas:
            ahead = np.array([one.values[path] - other.values[path] for path in areas])
            found["attributes", name, "worst_group_auc"] = np.fmin.reduce(ahead), np.fmax.reduce(ahead)
    for metric in ("es_auc", *RATES):
        of_single = [found["attributes", name, metric] for name in single if ("attributes", name, metric) in found]
        if of_single:
            found["across", metric, "mean"] = _mean(of_single)
    return found


def _of_label(one: OfLabel, other: OfLabel, name: str, groups: Sequence[Any]) -> dict[str, Sides]:
    """The same for one label and attribute."""
    judged = [group for group in groups if one.groups[name, group]["judged"]]

    def ahead(metric: str, among: Sequence[Any]) -> np.ndarray:
        return np.array([one.groups[name, group][metric] - other.groups[name, group][metric] for group in among])

    found: dict[str, Sides] = {}
    for metric, rates in RATES.items():
        among = groups if metric == "dpd" else judged
        if len(among) > 1:
            most = np.max([np.ptp(ahead(rate, among), axis=0) for rate in rates], axis=0)
            found[metric] = -most, most
    if len(judged) > 1:
        # ES-AUC is AUC / (1 + s), and the models' s differ by no more than this.
        first, second = one.together[name], other.together[name]
        far = np.abs(first - second - ahead("auc", judged)).sum(axis=0)
        found["es_auc"] = np.minimum(first / (1 + far) - second, 0), np.maximum(first - second / (1 + far), 0)
    return found


def _mean(sides: Sequence[Sides]) -> Sides:
    least, most = (np.mean(side, axis=0) for side in zip(*sides, strict=True))
    return least, most


def _mean_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
