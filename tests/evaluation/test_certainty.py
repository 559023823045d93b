"""Intervals and p-values that agree: an interval of a gap holds 0 where the permutation test does not rule it out."""

from __future__ import annotations

import dataclasses

import numpy as np
from test_bootstrap import predictions

from fairvlm_core.evaluation.bootstrap import intervals
from fairvlm_core.evaluation.certainty import certainty
from fairvlm_core.evaluation.permutation import gap_p_values

GAPS = ("dpd", "eod", "tpr_gap", "fpr_gap")


def test_an_interval_holds_equality_where_chance_may_explain_the_gap():
    scores = predictions(n=500)
    women = scores.groups["sex"] == "female"
    blind = scores.y_score.copy()
    blind[women] = np.random.default_rng(0).random((women.sum(), 1))
    scores = dataclasses.replace(scores, y_score=blind, y_pred=(blind > 0.5).astype(float))
    plain, chances = intervals(scores, resamples=200), gap_p_values(scores, permutations=200)
    sure, same = certainty(scores, resamples=200)
    assert same == chances
    seen = set()
    for attribute, p_values in chances.items():
        for gap in GAPS:
            alike = p_values[gap] >= 0.05
            seen.add(alike)
            before, after = plain["attributes"][attribute][gap], sure["attributes"][attribute][gap]
            assert after == ([0.0, before[1]] if alike else before)
        area, after = sure["overall"]["auc"], sure["attributes"][attribute]["es_auc"]
        assert (after[1] >= area[1]) == (p_values["es_auc"] >= 0.05)
    assert seen == {True, False}
    # A mean is 0 only if all are.
    for gap in GAPS:
        all_alike = all(chances[name][gap] >= 0.05 for name in scores.groups)
        assert not all_alike or sure["across"][gap]["mean"][0] == 0


def test_the_interval_of_a_gap_that_is_not_there_holds_it():
    """Of 100 studies in which the groups are served alike, about 95."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scores = predictions(n=150, images=1, seed=seed)
        scores = dataclasses.replace(scores, groups={"race": rng.choice(np.array(["a", "b", "c"], dtype=object), 150)})
        low, high = certainty(scores, resamples=100, seed=seed)[0]["attributes"]["race"]["eod"]
        held += low == 0 < high
    assert held >= 88
