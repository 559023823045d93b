"""One ROC curve and one confusion matrix of a split, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import auc, confusion_matrix, roc_auc_score

from fairvlm_core.evaluation.overall import POINTS, confusion, roc
from fairvlm_core.evaluation.predictions import Scores


def made(kind, labels, n=3000, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "multiclass":
        y_true = np.eye(labels)[rng.integers(0, labels, n)]
        y_score = rng.dirichlet([1] * labels, n) * 0.5 + y_true * 0.5 * rng.random((n, 1))
        y_pred = np.eye(labels)[y_score.argmax(axis=1)]
    else:
        y_true = (rng.random((n, labels)) < 0.3).astype(float)
        y_score = np.clip(rng.random((n, labels)) * 0.7 + y_true * 0.3, 0, 1)
        y_pred = (y_score > 0.5).astype(float)
    ids = np.arange(n).astype(object)
    return Scores(
        sample_ids=ids,
        patient_ids=ids,
        labels=tuple(f"finding {k}" for k in range(labels)),
        y_true=y_true,
        y_score=y_score,
        y_pred=y_pred,
        groups={},
        kind=kind,
        model="made",
    )


@pytest.mark.parametrize(("kind", "labels"), [("binary", 1), ("multilabel", 3), ("multiclass", 4)])
def test_the_curve_is_that_of_all_decisions(kind, labels):
    given = made(kind, labels)
    fpr, tpr, thresholds = roc(given)
    assert len(fpr) == len(tpr) == len(thresholds) <= POINTS + 1
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.isfinite(thresholds).all()
    assert (np.diff(thresholds) <= 0).all()
    assert auc(fpr, tpr) == pytest.approx(roc_auc_score(given.y_true.ravel(), given.y_score.ravel()), abs=2e-3)


def test_unknown_truth_takes_no_part():
    given = made("multilabel", 2)
    given.y_true[::3, 1] = np.nan
    known = ~np.isnan(given.y_true)
    fpr, tpr, _ = roc(given)
    assert auc(fpr, tpr) == pytest.approx(roc_auc_score(given.y_true[known], given.y_score[known]), abs=2e-3)


def test_one_class_has_no_curve():
    given = made("binary", 1)
    given.y_true[:] = 1
    assert roc(given) == ([], [], [])


@pytest.mark.parametrize(("kind", "labels"), [("binary", 1), ("multiclass", 4)])
def test_the_matrix_is_that_of_scikit_learn(kind, labels):
    given = made(kind, labels)
    given.y_true[::7] = np.nan
    names, counts = confusion(given)
    known = ~np.isnan(given.y_true).any(axis=1)
    code = (lambda rows: rows[:, 0]) if kind == "binary" else (lambda rows: rows.argmax(axis=1))
    assert np.array_equal(counts, confusion_matrix(code(given.y_true[known]), code(given.y_pred[known])))
    assert len(names) == len(counts) == max(2, labels)


def test_several_findings_have_no_matrix():
    assert confusion(made("multilabel", 2)) == ([], [])
