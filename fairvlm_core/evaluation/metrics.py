"""How good a model is, and how equally good it is for every group of patients.

The functions take numpy arrays and return floats; the sensitive attribute is always keyword-only. Three rules hold
throughout. A row whose group is unknown (-1, None or NaN) or whose truth is unknown (NaN) takes no part. A group that
has no positives or no negatives cannot be judged: it has no AUC, TPR or FPR, it is left out of the gap and never scored
0, and `unjudged_groups` reports it. Where nothing can be judged the result is NaN.

The definitions are those of Fair-MoE (evaluation metrics) and FairMed-VLM (demographic parity gap), and for how far a
score is a probability those of Brier (1950) and Guo et al. (2017).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def auc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs ranked rightly, ties counting one half.

    Args:
        y_true: [n], 0 or 1, NaN where unknown.
        y_score: [n], the higher the more positive.

    Returns:
        The exact area; NaN without positives or without negatives.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    truth, score = _columns(y_true, y_score=y_score)
    positive = truth == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # 1-based, tied scores share their mean rank
    wins = rank[positive].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def roc_curve(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every distinct threshold, from (0, 0) to (1, 1); empty without both classes.

    >>> roc_curve([0, 1, 1], [0.2, 0.2, 0.9])
    (array([0., 0., 1.]), array([0. , 0.5, 1. ]))
    """
    truth, score = _columns(y_true, y_score=y_score)
    positives = truth.sum()
    if positives in (0, len(truth)):
        return np.empty(0), np.empty(0)
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # the last row of each run of equal scores
    hits = np.cumsum(truth[order])[last]
    tpr, fpr = hits / positives, (last + 1 - hits) / (len(truth) - positives)
    return np.append(0.0, fpr), np.append(0.0, tpr)


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Share of known truths that were predicted; for [n, L] the mean label accuracy, weighted by known truths.

    >>> accuracy([0, 1, 1, float("nan")], [0, 1, 0, 1])
    0.6666666666666666
    """
    truth, decision = _columns(np.ravel(y_true), y_pred=np.ravel(y_pred))
    return float(np.mean(truth == decision)) if len(truth) else float("nan")


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Mean of the true positive and the true negative rate; NaN when one of them does not exist.

    >>> balanced_accuracy([0, 0, 0, 1], [0, 0, 0, 0])
    0.5
    """
    tpr, fpr = rates(y_true, y_pred)
    return (tpr + 1 - fpr) / 2


def exact_match(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Share of rows of [n, L] all of whose known labels were predicted; for one-hot rows, multi-class accuracy.

    >>> exact_match([[1, 0], [0, 1], [1, float("nan")]], [[1, 0], [1, 0], [1, 1]])
    0.6666666666666666
    """
    truth, decision = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    known = ~np.isnan(truth) & ~np.isnan(decision)
    rows = known.any(axis=1)
    return float(np.mean(((truth == decision) | ~known).all(axis=1)[rows])) if rows.any() else float("nan")


def brier(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Mean squared distance between score and truth [n]: 0 is perfect, 0.25 is what a score of 0.5 for everybody gets.

    >>> brier([1, 0, 1, float("nan")], [0.5, 0.0, 1.0, 0.9])
    0.08333333333333333
    """
    truth, score = _columns(y_true, y_score=y_score)
    return _mean((score - truth) ** 2)


def expected_calibration_error(y_true: ArrayLike, y_score: ArrayLike, bins: int = 15) -> float:
    """How far scores are from the share of positives among those who get them (Guo et al. 2017, section 3).

    The mean over the bins of |mean score - share positive|, weighted by the number of rows. A small group has a larger
    error than a large one by chance alone: its bins hold few rows.

    Args:
        y_true: [n], 0 or 1, NaN where unknown.
        y_score: [n], probabilities of the label.
        bins: how many, of equal width.

    Returns:
        0 (every score can be believed) to 1; NaN where no truth is known.

    >>> round(expected_calibration_error([0, 1, 0, 1], [0.2, 0.2, 0.9, 0.9], bins=2), 3)
    0.35
    """
    count, score, share = reliability(y_true, y_score, bins)
    filled = count > 0
    if not filled.any():
        return float("nan")
    return float(np.average(np.abs(score - share)[filled], weights=count[filled]))


def reliability(y_true: ArrayLike, y_score: ArrayLike, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What scores promise and what came true, in bins of equal width from 0 to 1.

    A score on an inner edge belongs to the bin above it, a score of 1 to the last bin.

    Args:
        y_true: [n], 0 or 1, NaN where unknown.
        y_score: [n], probabilities of the label.

    Returns:
        Per bin the number of rows (int64 [bins]), their mean score and their share of positives (float64 [bins]; NaN
        where the bin is empty).

    >>> reliability([0, 1, 1], [0.25, 0.25, 1.0], bins=2)
    (array([2, 1]), array([0.25, 1.  ]), array([0.5, 1. ]))
    """
    truth, score = _columns(y_true, y_score=y_score)
    place = bins_of(score, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        return (
            count,
            np.bincount(place, weights=score, minlength=bins) / count,
            np.bincount(place, weights=truth, minlength=bins) / count,
        )


def bins_of(y_score: ArrayLike, bins: int) -> np.ndarray:
    """The bin of `reliability` that each score falls into, int64 [n].

    >>> bins_of([0.0, 0.49, 0.5, 1.0], 2)
    array([0, 0, 1, 1])
    """
    score = np.asarray(y_score, dtype=float)
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("y_score should be between 0 and 1")
    return np.searchsorted(np.arange(1, bins) / bins, score, side="right")


def rates(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[float, float]:
    """True and false positive rate; each NaN when no row can tell.

    >>> rates([1, 1, 0, 0], [1, 0, 0, 1])
    (0.5, 0.5)
    """
    truth, decision = _columns(y_true, y_pred=y_pred)
    return _mean(decision[truth == 1]), _mean(decision[truth == 0])


def group_aucs(y_true: ArrayLike, y_score: ArrayLike, *, groups: ArrayLike) -> dict[Any, float]:
    """AUC of each group that can be judged; the others are absent (see `unjudged_groups`).

    >>> group_aucs([0, 1, 0, 1, 1], [0.2, 0.9, 0.6, 0.4, 0.5], groups=["f", "f", "m", "m", "x"])
    {'f': 1.0, 'm': 0.0}
    """
    truth, score, group = _columns(y_true, groups, y_score=y_score)
    return {name: auc(truth[rows], score[rows]) for name, rows in _judgeable(truth, group)}


def unjudged_groups(y_true: ArrayLike, *, groups: ArrayLike) -> dict[Any, dict[str, int]]:
    """The groups that have no AUC, TPR or FPR, with their counts: n, positives, negatives.

    >>> unjudged_groups([0, 1, 1, 1], groups=["f", "f", "m", "m"])
    {'m': {'n': 2, 'positives': 2, 'negatives': 0}}
    """
    truth = np.asarray(y_true, dtype=float)
    found = {}
    for name, rows in groups_in(groups, length=len(truth)):
        positives, negatives = int((truth[rows] == 1).sum()), int((truth[rows] == 0).sum())
        if not positives or not negatives:
            found[name] = {"n": positives + negatives, "positives": positives, "negatives": negatives}
    return found


def es_auc(y_true: ArrayLike, y_score: ArrayLike, *, groups: ArrayLike) -> float:
    """Equity-scaled AUC = AUC / (1 + sum over groups a of |AUC - AUC_a|) (Fair-MoE, evaluation metrics).

    AUC is that of all rows whose group is known, so that it is about the same people as the AUC_a.

    >>> round(es_auc([0, 1, 0, 1], [0.2, 0.9, 0.6, 0.4], groups=[0, 0, 1, 1]), 4)
    0.375
    """
    by_group = group_aucs(y_true, y_score, groups=groups)
    if not by_group:
        return float("nan")
    truth, score, group = _columns(y_true, groups, y_score=y_score)
    known = np.any([rows for _, rows in groups_in(group)], axis=0)
    overall = auc(truth[known], score[known])
    return equity_scaled(overall, by_group.values())


def demographic_parity_difference(y_pred: ArrayLike, *, groups: ArrayLike) -> float:
    """Largest minus smallest selection rate (share predicted positive) over the groups; it needs no truth.

    >>> demographic_parity_difference([1, 1, 0, 1, 0, 0], groups=["f", "f", "f", "m", "m", None])
    0.16666666666666663
    """
    decision = np.asarray(y_pred, dtype=float)
    chosen = [decision[rows] for _, rows in groups_in(groups, length=len(decision))]
    return _gap([_mean(values[~np.isnan(values)]) for values in chosen])


def true_positive_rate_difference(y_true: ArrayLike, y_pred: ArrayLike, *, groups: ArrayLike) -> float:
    """Largest minus smallest true positive rate over the groups that can be judged (equal opportunity).

    >>> true_positive_rate_difference([1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 1], groups=[0, 0, 0, 1, 1, 1])
    0.5
    """
    truth, decision, group = _columns(y_true, groups, y_pred=y_pred)
    return _gap([rates(truth[rows], decision[rows])[0] for _, rows in _judgeable(truth, group)])


def false_positive_rate_difference(y_true: ArrayLike, y_pred: ArrayLike, *, groups: ArrayLike) -> float:
    """Largest minus smallest false positive rate over the groups that can be judged.

    >>> false_positive_rate_difference([1, 0, 0, 1, 0, 0], [1, 1, 0, 1, 0, 0], groups=[0, 0, 0, 1, 1, 1])
    0.5
    """
    truth, decision, group = _columns(y_true, groups, y_pred=y_pred)
    return _gap([rates(truth[rows], decision[rows])[1] for _, rows in _judgeable(truth, group)])


def equity_scaled(overall: float, by_group: Iterable[float]) -> float:
    """A figure, made smaller by how far the groups are from it: overall / (1 + sum of |overall - group|).

    >>> round(equity_scaled(0.8, [0.7, 0.9]), 4)
    0.6667
    """
    return overall / (1 + sum(abs(overall - value) for value in by_group))


def equalized_odds_difference(y_true: ArrayLike, y_pred: ArrayLike, *, groups: ArrayLike) -> float:
    """The larger of the gaps in true and in false positive rate over the groups that can be judged.

    >>> equalized_odds_difference([1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 1], groups=[0, 0, 0, 1, 1, 1])
    1.0
    """
    truth, decision, group = _columns(y_true, groups, y_pred=y_pred)
    pairs = [rates(truth[rows], decision[rows]) for _, rows in _judgeable(truth, group)]
    return max(_gap([tpr for tpr, _ in pairs]), _gap([fpr for _, fpr in pairs]))


def groups_in(groups: ArrayLike, *, length: int | None = None) -> list[tuple[Any, np.ndarray]]:
    """The known groups in their natural order ("5-9" before "10-19"), each with the mask of its rows, bool [n].

    >>> [(name, rows.tolist()) for name, rows in groups_in(["b", None, "a", "b"])]
    [('a', [False, False, True, False]), ('b', [True, False, False, True])]
    """
    values = _group_column(groups)
    if length is not None and len(values) != length:
        raise ValueError(f"groups has {len(values)} rows, the labels have {length}")
    codes, found = pd.factorize(values)
    names = [value.item() if isinstance(value, np.generic) else value for value in found]
    places = sorted((i for i, name in enumerate(names) if name != -1), key=lambda i: _natural(names[i]))
    return [(names[i], codes == i) for i in places]


def _natural(name: Any) -> list[Any]:
    """Sort key that reads digits as numbers."""
    if not isinstance(name, str):
        return [("", name)]
    return [(part, 0) if i % 2 == 0 else ("", int(part)) for i, part in enumerate(re.split(r"(\d+)", name))]


def _judgeable(truth: np.ndarray, groups: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    return [(name, rows) for name, rows in groups_in(groups) if 0 < truth[rows].sum() < rows.sum()]


def _columns(y_true: ArrayLike, groups: ArrayLike | None = None, **values: ArrayLike) -> tuple[np.ndarray, ...]:
    """Truth, one value column and the groups, at the rows where truth and value are known."""
    ((name, given),) = values.items()
    truth, value = np.asarray(y_true, dtype=float), np.asarray(given, dtype=float)
    if truth.ndim != 1 or truth.shape != value.shape:
        raise ValueError(f"y_true has the shape {truth.shape}, {name} {value.shape}; both should be [n]")
    known = ~np.isnan(truth) & ~np.isnan(value)
    if name == "y_score" and (np.isnan(value) & ~np.isnan(truth)).any():
        raise ValueError("y_score has NaN where the truth is known")
    if not np.isin(truth[known], (0, 1)).all():
        raise ValueError("y_true should be 0, 1 or NaN")
    if groups is None:
        return truth[known], value[known]
    group = _group_column(groups)
    if len(group) != len(truth):
        raise ValueError(f"groups has {len(group)} rows, y_true has {len(truth)}")
    return truth[known], value[known], group[known]


def _group_column(groups: ArrayLike) -> np.ndarray:
    if isinstance(groups, np.ndarray):
        return groups
    # A list of strings and NaN would become strings, and "nan" a group, if numpy chose the type.
    values: list[Any] = list(groups)  # type: ignore[arg-type]
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _gap(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return max(known) - min(known) if known else float("nan")
