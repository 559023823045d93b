"""Decision thresholds: fixed on validation before the test split is read, and used for accuracy and fairness alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from fairvlm_core.evaluation.predictions import Scores, kind_of, scores

DEFAULT = 0.5
RULES = ("f1", "youden", "sensitivity", "specificity")


def tune(y_true: ArrayLike, y_score: ArrayLike, *, rule: str = "f1", target: float = 0.9) -> np.ndarray:
    """Per label, the best threshold by a rule, when `y_score >= threshold` means positive (FairMed-VLM, thresholds).

    All thresholds between two neighbouring scores decide alike, so the result is the best over all real numbers. Of
    several best ones it is the one nearest 0.5; where that would be the open end of an interval, which decides
    differently, it is the middle of that interval.

    Args:
        y_true: [n, L], 0 or 1, NaN where unknown (such a row is ignored for that label).
        y_score: [n, L].
        rule: what is best. `f1`: the largest F1; maximising every label's maximises macro-F1. `youden`: the largest sum
            of sensitivity and specificity (Youden 1950). `sensitivity`: the largest specificity at which at least
            `target` of the positives are found, as screening asks for. `specificity`: the largest sensitivity at which
            at least `target` of the negatives are cleared.

    Returns:
        float64 [L]; 0.5 for a label without positives, or for another rule than f1 without negatives.

    >>> tune([[0], [1], [0], [1]], [[0.1], [0.3], [0.2], [0.4]])
    array([0.3])
    """
    if rule not in RULES:
        raise ValueError(f"rule should be one of {', '.join(RULES)}, not {rule}")
    truth, score = np.asarray(y_true, dtype=float), np.asarray(y_score, dtype=float)
    if truth.ndim != 2 or truth.shape != score.shape:
        raise ValueError(f"y_true has the shape {truth.shape}, y_score {score.shape}; both should be [n, L]")
    return np.array([_best(truth[:, j], score[:, j], rule, target) for j in range(truth.shape[1])])


def f1(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """2 TP / (2 TP + FP + FN) over the rows [n] whose truth is known; NaN without positives.

    >>> f1([1, 1, 0], [1, 0, 0])
    0.6666666666666666
    """
    truth, decision = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    known = ~np.isnan(truth)
    positives = truth[known].sum()
    hits = (truth[known] * decision[known]).sum()
    return float(2 * hits / (positives + decision[known].sum())) if positives else float("nan")


def decide(y_score: ArrayLike, thresholds: ArrayLike | None, kind: str) -> np.ndarray:
    """Decisions float64 [n, L]: 1 where the score reaches its label's threshold; multi-class: one-hot of the argmax.

    >>> decide([[0.2, 0.5, 0.3]], None, "multiclass")
    array([[0., 1., 0.]])
    """
    score = np.asarray(y_score, dtype=float)
    if kind == "multiclass":
        return np.eye(score.shape[1])[score.argmax(axis=1)]
    return (score >= np.asarray(thresholds, dtype=float)).astype(float)


def decided(given: Scores, thresholds: Mapping[str, float]) -> Scores:
    """The same predictions with `y_pred`; `thresholds` maps label to threshold (unused for multi-class)."""
    values = None if given.kind == "multiclass" else [thresholds[label] for label in given.labels]
    return replace(given, y_pred=decide(given.y_score, values, given.kind))


def add_decisions(table: pa.Table, thresholds: Mapping[str, float]) -> pa.Table:
    """A predictions table of one model with the column `y_pred`, in every split it has."""
    frame = table.select(["sample_id", "split", "label", "y_score"]).to_pandas()
    if kind_of(table) != "multiclass":
        value = (frame["y_score"].astype(float) >= frame["label"].map(thresholds)).astype("int8").to_numpy()
    else:
        value = np.zeros(len(frame), dtype="int8")
        for split in frame["split"].unique():
            found = scores(table, split)
            best = dict(zip(found.sample_ids, np.array(found.labels)[found.y_score.argmax(axis=1)], strict=True))
            rows = (frame["split"] == split).to_numpy()
            value[rows] = frame["label"][rows] == frame["sample_id"][rows].map(best)
    if "y_pred" in table.column_names:
        table = table.drop_columns(["y_pred"])
    return table.append_column("y_pred", pa.array(value, pa.int8()))


def _best(truth: np.ndarray, score: np.ndarray, rule: str, target: float) -> float:
    known = ~np.isnan(truth)
    truth, score = truth[known], score[known]
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or (rule != "f1" and not negatives):
        return DEFAULT
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True))  # the last row of each run of equal scores
    # Every threshold in (below, score] decides alike; the first interval is above all scores, where nobody is positive.
    hits = np.append(0, np.cumsum(truth)[last]).astype(np.int64)
    alarms = np.append(0, last + 1) - hits
    high = np.append(np.inf, score[last])
    low = np.append(score[last], -np.inf)
    quality = _quality(rule, target, hits, alarms, positives, negatives)
    best = quality == quality.max()
    candidates = np.array([_nearest(a, b) for a, b in zip(low[best], high[best], strict=True)])
    return float(candidates[np.argmin(np.abs(candidates - DEFAULT))])


def _quality(
    rule: str, target: float, hits: np.ndarray, alarms: np.ndarray, positives: int, negatives: int
) -> np.ndarray:
    """What the rule makes largest: of whole numbers, or one division of such, so that equal qualities are equal."""
    if rule == "f1":
        return 2 * hits / (hits + alarms + positives)
    if rule == "youden":
        return (hits * negatives - alarms * positives).astype(float)
    if rule == "sensitivity":
        return np.where(hits >= target * positives, -alarms, -np.inf)
    return np.where(negatives - alarms >= target * negatives, hits, -np.inf)


def _nearest(low: float, high: float) -> float:
    """The number in (low, high] nearest 0.5, or the middle where that would be `low` itself."""
    if high <= DEFAULT:
        return high
    if low < DEFAULT:
        return DEFAULT
    if high == np.inf:
        return float(np.nextafter(low, np.inf)) if low >= 1 else (low + 1) / 2
    middle = low + (high - low) / 2
    return middle if middle > low else high  # neighbouring floats have no middle
