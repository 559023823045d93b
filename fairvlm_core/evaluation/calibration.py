"""Scores that can be read as probabilities: the map is fitted on validation and applied wherever scores are judged.

A finding of its own (binary, multilabel) has Platt scaling: sigmoid(slope * logit(score) + intercept) (Platt 1999). The
intercept corrects for training on a balanced cohort, whose prevalence is not that of the patients. One of several
diagnoses has one temperature T: the scores to the power of 1 / T, divided by their sum (Guo et al. 2017), so that
the decision never changes. Everybody has the same map: nobody's group must be known to use a score, and what is then
still wrong for a group shows in its calibration error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike
from scipy.special import expit, logit, softmax

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.predictions import Scores, scores

# Below so many known positives, negatives or images a fit would follow chance.
ENOUGH = 10
# The largest score below 1 in float32 is 1 - 2**-24; near 0, float32 tells much smaller scores apart.
LOW, HIGH = 1e-12, 1 - 2.0**-25
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
NO_ORDER = "higher scores do not go with more positives on validation"


def fit(y_true: ArrayLike, y_score: ArrayLike, labels: Sequence[str], kind: str) -> dict[str, Any]:
    """The map from scores to probabilities that is best on validation, as JSON.

    Where there is too little to fit, or the fit would turn the ranking over, scores stay as they are, and `reason` says
    why; else it is null. The targets are smoothed as in Platt 1999 (section 2.2), for several classes by one image more
    of each: with 0 and 1, a validation split without a mistake would ask for infinite confidence.

    Args:
        y_true: [n, L], 0 or 1, NaN where unknown (such a row is ignored for that label).
        y_score: [n, L], probabilities.
        labels: L names.
        kind: of the task.

    Returns:
        method "platt" and `labels` {label: {slope, intercept, reason}}, or method "temperature", temperature, reason.

    >>> truth, score = np.repeat([[0], [1], [0], [1]], [40, 10, 10, 40], axis=0), np.repeat([[0.3], [0.6]], 50, axis=0)
    >>> found = fit(truth, score, ["edema"], "binary")
    >>> calibrate([[0.3], [0.6]], ["edema"], found).round(2).tolist()
    [[0.21], [0.79]]
    """
    truth, score = np.asarray(y_true, dtype=float), np.asarray(y_score, dtype=float)
    if truth.ndim != 2 or truth.shape != score.shape:
        raise ValueError(f"y_true has the shape {truth.shape}, y_score {score.shape}; both should be [n, L]")
    if kind == "multiclass":
        return {"method": "temperature", **_temperature(truth, score)}
    columns = zip(labels, truth.T, score.T, strict=True)
    return {"method": "platt", "labels": {label: _platt(*column) for label, *column in columns}}


def calibrate(y_score: ArrayLike, labels: Sequence[str], calibration: Mapping[str, Any] | None) -> np.ndarray:
    """Probabilities float64 [n, L] from scores [n, L]; without a calibration the scores as they are.

    They are computed in float64 and rounded to float32, which is what a predictions file holds: thresholds, decisions
    and the registered model thus see the same numbers. Rounding keeps the order, but can make equal what was not.

    Raises:
        PredictionsError: when the calibration is of a kind that does not exist.
    """
    score = np.asarray(y_score, dtype=float)
    if calibration is None:
        return score
    if calibration["method"] == "temperature":
        return score if calibration["reason"] else _tempered(score, calibration["temperature"])
    if calibration["method"] != "platt":
        raise PredictionsError(
            f'There is no calibration of the method "{calibration["method"]}".',
            where="thresholds.json, calibration.method",
            mend="Run `fairvlm tune_thresholds` again.",
        )
    result = score.copy()
    for j, label in enumerate(labels):
        found = calibration["labels"][label]
        if not found["reason"]:
            probability = expit(found["slope"] * _logits(score[:, j]) + found["intercept"])
            result[:, j] = probability.astype(np.float32)
    return result


def calibrated(given: Scores, calibration: Mapping[str, Any] | None) -> Scores:
    """The same predictions with calibrated scores."""
    return replace(given, y_score=calibrate(given.y_score, given.labels, calibration))


def calibrate_table(table: pa.Table, calibration: Mapping[str, Any] | None) -> pa.Table:
    """A predictions table of one model with calibrated scores, in every split it has.

    Raises:
        PredictionsError: when its decisions are made already, for then its scores may be calibrated already.
    """
    if calibration is None:
        return table
    if "y_pred" in table.column_names:
        raise PredictionsError(
            "These predictions have decisions, so their scores may be calibrated already.",
            where="column y_pred",
            mend="Pass what predict wrote, not what evaluate wrote.",
        )
    frame = table.select(["sample_id", "split", "label"]).to_pandas()
    values = np.empty(len(frame), dtype=np.float32)
    for split in frame["split"].unique():
        given = calibrated(scores(table, split), calibration)
        rows = (frame["split"] == split).to_numpy()
        image = frame["sample_id"][rows].map({name: i for i, name in enumerate(given.sample_ids)})
        label = frame["label"][rows].map({name: j for j, name in enumerate(given.labels)})
        values[rows] = given.y_score[image.to_numpy(), label.to_numpy()]
    return table.set_column(table.column_names.index("y_score"), "y_score", pa.array(values, pa.float32()))


def left_alone(calibration: Mapping[str, Any], labels: Sequence[str]) -> dict[str, list[str]]:
    """Why scores stay as they are: reason -> labels; empty where all are calibrated.

    >>> left_alone({"method": "temperature", "temperature": 1.0, "reason": "too few"}, ["nv", "mel"])
    {'too few': ['nv', 'mel']}
    """
    found: dict[str, list[str]] = {}
    for label in labels:
        reason = (calibration["labels"][label] if "labels" in calibration else calibration)["reason"]
        if reason:
            found.setdefault(reason, []).append(label)
    return found


def _platt(truth: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Slope and intercept of one label."""
    from sklearn.linear_model import LogisticRegression

    known = ~np.isnan(truth)
    positive, x = truth[known] == 1, _logits(score[known])
    positives, negatives = int(positive.sum()), int((~positive).sum())
    for what, count in (("positives", positives), ("negatives", negatives)):
        if count < ENOUGH:
            return _unchanged(f"fewer than {ENOUGH} known {what} on validation")
    spread = x.std()
    if spread == 0:
        return _unchanged(NO_ORDER)
    target = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # A target between 0 and 1 is a row that counts as a positive by so much, and as a negative by what is left.
    z = np.tile((x - x.mean()) / spread, 2)[:, None]
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(z, np.repeat([1, 0], len(x)), sample_weight=np.concatenate([target, 1 - target]))
    slope = float(model.coef_[0, 0] / spread)
    if not slope > 0:
        return _unchanged(NO_ORDER)
    return {"slope": slope, "intercept": float(model.intercept_[0] - slope * x.mean()), "reason": None}


def _unchanged(reason: str) -> dict[str, Any]:
    return {"slope": 1.0, "intercept": 0.0, "reason": reason}


def _temperature(truth: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """The temperature with the smallest cross-entropy."""
    from scipy.optimize import brentq

    known = (truth == 1).sum(axis=1) == 1
    target, x = truth[known] == 1, np.log(np.maximum(score[known], SMALLEST))
    count, classes = target.shape
    if count < ENOUGH:
        return {"temperature": 1.0, "reason": f"fewer than {ENOUGH} images of a known class on validation"}
    x = x - x.max(axis=1, keepdims=True)
    wanted = (np.where(target, count + 1, 1) / (count + classes) * x).sum(axis=1).mean()

    def slope(inverse: float) -> float:
        """Derivative of the cross-entropy, which is convex, by 1 / T."""
        return float((softmax(inverse * x, axis=1) * x).sum(axis=1).mean() - wanted)

    # As for a label: where even the flattest scores are too sure of the wrong class, no temperature helps.
    if slope(0.0) > -1e-12:
        return {"temperature": 1.0, "reason": NO_ORDER}
    high = 1.0
    while slope(high) < 0:  # at the latest where all but the largest score are 0, for the others' targets are not
        high *= 2
    return {"temperature": 1 / brentq(slope, 0.0, high, xtol=1e-12), "reason": None}


def _tempered(score: np.ndarray, temperature: float) -> np.ndarray:
    power = softmax(np.log(np.maximum(score, SMALLEST)) / temperature, axis=1)
    result = power.astype(np.float32)
    best, rows = score.argmax(axis=1), np.arange(len(score))
    # Rounding can make two classes equal; the one that was ahead stays so.
    turned = rows[result.argmax(axis=1) != best] if len(rows) else rows
    result[turned, best[turned]] = np.nextafter(result[turned].max(axis=1), np.float32(1))
    return result.astype(float)


def _logits(score: np.ndarray) -> np.ndarray:
    return logit(np.clip(score, LOW, HIGH))
