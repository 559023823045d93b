"""A model's test split as two pictures that every platform can draw: one ROC curve and one confusion matrix.

They are about everybody. What is true of groups is in the report.
"""

from __future__ import annotations

import numpy as np

from fairvlm_core.evaluation.predictions import Scores

POINTS = 200  # of a curve: more are not seen


def roc(given: Scores) -> tuple[list[float], list[float], list[float]]:
    """The ROC curve of all known decisions, those of several labels pooled (micro average).

    Returns:
        False positive rates, true positive rates and thresholds, from the strictest on, at most `POINTS` + 1 of each
        and all finite; empty where there are no positives or no negatives.
    """
    from sklearn.metrics import roc_curve

    known = ~np.isnan(given.y_true)
    truth, score = given.y_true[known], given.y_score[known]
    if len(np.unique(truth)) < 2:
        return [], [], []
    fpr, tpr, thresholds = roc_curve(truth, score)
    thresholds = np.minimum(thresholds, 1.0)  # the first is infinite: nobody is called
    some = np.unique(np.linspace(0, len(fpr) - 1, POINTS + 1).round().astype(int))
    return fpr[some].tolist(), tpr[some].tolist(), thresholds[some].tolist()


def confusion(given: Scores) -> tuple[list[str], list[list[int]]]:
    """Truth (rows) against decision (columns): of the diagnoses, or of the one finding; none for several findings.

    Returns:
        The categories and the counts of images whose truth is known; empty for a multi-label task.
    """
    if given.kind == "multilabel":
        return [], []
    known = ~np.isnan(given.y_true).any(axis=1)
    if given.kind == "binary":
        names = [f"not {given.labels[0]}", given.labels[0]]
        truth, said = given.y_true[known, 0].astype(int), given.y_pred[known, 0].astype(int)
    else:
        names = list(given.labels)
        truth, said = given.y_true[known].argmax(axis=1), given.y_pred[known].argmax(axis=1)
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (truth, said), 1)
    return names, counts.tolist()
