"""A head on frozen embeddings learns the labels; the adversary costs it the group; the unknown is left out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fairvlm_core.errors import CohortError
from fairvlm_core.evaluation.metrics import equalized_odds_difference
from fairvlm_core.training.frozen import adversarial_head


def cohort(kind, n=600):
    """Embeddings that show the labels, and, stronger, the group, which is correlated with the first of them."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, n)
    first = (rng.random(n) < np.where(group == 1, 0.7, 0.3)).astype(float)
    other = rng.integers(0, 2, n).astype(float)
    columns = {
        "binary": [first],
        "multilabel": [first, other],
        "multiclass": [first, (1 - first) * other, (1 - first) * (1 - other)],
    }[kind]
    labels = np.stack(columns, 1)
    z = rng.normal(size=(n, 12)) * 3 + 5
    z[:, : labels.shape[1]] += 3 * labels
    z[:, 5] += 6 * group
    return z, labels, group[:, None]


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_labels_are_learnt(kind):
    z, labels, groups = cohort(kind)
    score = adversarial_head(z, labels, groups, kind, alpha=0.5, seed=0)(z)
    assert score.shape == labels.shape
    assert score.dtype == np.float32
    assert ((score >= 0) & (score <= 1)).all()
    for j in range(labels.shape[1]):
        assert roc_auc_score(labels[:, j], score[:, j]) > 0.65
    if kind == "multiclass":
        np.testing.assert_allclose(score.sum(1), 1, atol=1e-6)


def test_the_adversary_lowers_the_gap():
    z, labels, groups = cohort("binary")
    gaps = []
    for alpha in (0.0, 1.0):
        score = adversarial_head(z, labels, groups, "binary", alpha=alpha, seed=0)(z)[:, 0]
        gaps.append(equalized_odds_difference(labels[:, 0], score >= 0.5, groups=groups[:, 0]))
    assert gaps[1] < gaps[0] - 0.1


def test_the_same_seed_gives_the_same_head_and_the_unknown_takes_no_part():
    z, labels, groups = cohort("multilabel", 200)
    labels[:20, 1], groups = np.nan, np.hstack([groups, np.zeros_like(groups)])
    groups[20:30, 1] = -1
    first = adversarial_head(z, labels, groups, "multilabel", alpha=1.0, seed=3)(z)
    again = adversarial_head(z, labels, groups, "multilabel", alpha=1.0, seed=3)(z)
    np.testing.assert_array_equal(first, again)
    labels[20:30] = 1 - labels[20:30]  # their group is unknown
    np.testing.assert_array_equal(adversarial_head(z, labels, groups, "multilabel", alpha=1.0, seed=3)(z), first)


@pytest.mark.parametrize(("change", "words"), [("label", "The label is the same"), ("group", "The cell of the attr")])
def test_nothing_to_learn_is_told(change, words):
    z, labels, groups = cohort("multilabel", 60)
    if change == "label":
        labels[:, 1] = 0
    else:
        groups[:] = 1
    with pytest.raises(CohortError, match=words):
        adversarial_head(z, labels, groups, "multilabel", alpha=1.0, seed=0)
