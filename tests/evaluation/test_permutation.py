"""Permutation tests against loops that shuffle and judge anew, and DeLong's test against its formula in pairs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from test_bootstrap import predictions

from fairvlm_core.evaluation.metrics import (
    auc,
    demographic_parity_difference,
    equalized_odds_difference,
    es_auc,
    true_positive_rate_difference,
)
from fairvlm_core.evaluation.permutation import _deals, gap_p_values
from fairvlm_core.evaluation.significance import delong


def whole(n=160, seed=0):
    """One image a patient, nothing unknown."""
    scores = predictions(n=n, images=1, seed=seed)
    rng = np.random.default_rng(seed)
    scores.y_true[np.isnan(scores.y_true)] = 0
    scores.groups["sex"] = rng.choice(np.array(["female", "male"], dtype=object), n)
    return dataclasses.replace(scores, groups={"sex": scores.groups["sex"]})


def test_p_values_are_those_of_a_loop():
    scores = whole()
    truth, score, decision = scores.y_true[:, 0], scores.y_score[:, 0], scores.y_pred[:, 0]
    metrics = {
        "dpd": lambda g: demographic_parity_difference(decision, groups=g),
        "eod": lambda g: equalized_odds_difference(truth, decision, groups=g),
        "tpr_gap": lambda g: true_positive_rate_difference(truth, decision, groups=g),
        "es_auc": lambda g: -es_auc(truth, score, groups=g),
    }
    rng = np.random.default_rng(0)
    wanted = {}
    for name, metric in metrics.items():
        group, count, larger = scores.groups["sex"].copy(), 800, 0
        base = metric(group)
        for _ in range(count):
            if name == "dpd":
                shuffled = rng.permutation(group)
            else:
                shuffled = group.copy()
                for value in (0, 1):
                    shuffled[truth == value] = rng.permutation(group[truth == value])
            larger += metric(shuffled) >= base - 1e-12
        wanted[name] = (1 + larger) / (1 + count)
    found = gap_p_values(scores, permutations=4000)["sex"]
    for name, p in wanted.items():
        assert found[name] == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 800) + 0.002), name


def test_a_gap_that_is_there_is_found_and_one_that_is_not_is_not():
    scores = whole(600, seed=1)
    assert min(gap_p_values(scores)["sex"].values()) > 0.01
    women = scores.groups["sex"] == "female"
    blind = scores.y_score.copy()
    blind[women] = np.random.default_rng(0).random((women.sum(), 1))
    scores = dataclasses.replace(scores, y_score=blind, y_pred=(blind > 0.5).astype(float))
    found = gap_p_values(scores)["sex"]
    assert found["es_auc"] < 0.01
    assert found["tpr_gap"] < 0.01


def test_prevalence_alone_is_no_gap_in_errors():
    """More women are ill: decisions differ in number, and nothing else does."""
    rng = np.random.default_rng(0)
    scores = whole(1200, seed=2)
    truth = (rng.random(1200) < np.where(scores.groups["sex"] == "female", 0.8, 0.2)).astype(float)[:, None]
    score = np.clip(0.3 * truth + 0.7 * rng.random((1200, 1)), 0, 1)
    scores = dataclasses.replace(scores, y_true=truth, y_score=score, y_pred=(score > 0.5).astype(float))
    found = gap_p_values(scores)["sex"]
    assert found["dpd"] < 0.01
    assert found["eod"] > 0.05
    assert found["es_auc"] > 0.05


def test_p_values_are_uniform_where_there_is_no_gap():
    values = [gap_p_values(whole(80, seed=seed), permutations=200)["sex"]["eod"] for seed in range(150)]
    assert 0.01 < np.mean(np.array(values) <= 0.05) + 0.01 < 0.13
    assert stats.kstest(values, "uniform").pvalue > 1e-4


def test_patients_keep_their_group_together_and_small_groups_take_no_part():
    scores = predictions(n=400, images=4)
    found = gap_p_values(scores, permutations=200)
    assert found.keys() == {"sex", "age_group", "race", "sex x age_group"}
    assert all(0 < p <= 1 for values in found.values() for p in values.values())
    lone = dataclasses.replace(
        scores, groups={"sex": np.where(scores.groups["race"] == "rare", "a", "b").astype(object)}
    )
    assert gap_p_values(lone)["sex"] == dict.fromkeys(("es_auc", "tpr_gap", "fpr_gap", "eod", "dpd"))


def test_several_labels_are_corrected():
    scores = predictions("multilabel", n=300)
    single = [
        dataclasses.replace(
            scores,
            labels=(label,),
            kind="binary",
            **{name: getattr(scores, name)[:, [j]] for name in ("y_true", "y_score", "y_pred")},
        )
        for j, label in enumerate(scores.labels)
    ]
    each = [gap_p_values(one, permutations=500)["race"]["eod"] for one in single]
    assert gap_p_values(scores, permutations=500)["race"]["eod"] == pytest.approx(min(1, 3 * min(each)))


def test_names_are_dealt_evenly_within_each_stratum():
    rng = np.random.default_rng(0)
    first, stratum = rng.choice(3, 60, p=[0.2, 0.3, 0.5]), rng.integers(0, 2, 60)
    same, *blocks = _deals(first, stratum, 3, 2000, seed=1)
    assert (same == first[:, None]).all()
    lanes = np.concatenate(blocks, axis=1)
    for value in (0, 1):
        inside = stratum == value
        counts = np.bincount(first[inside], minlength=3)
        assert all((np.bincount(lane, minlength=3) == counts).all() for lane in lanes[inside].T)
        # Every patient has a name as often as there are such names, and two patients share one as in an urn.
        shares = np.array([(lanes[inside] == g).mean(axis=1) for g in range(3)])
        assert np.abs(shares - (counts / inside.sum())[:, None]).max() < 4.5 * np.sqrt(0.25 / lanes.shape[1])
        together = np.mean((lanes[inside][0] == 2) & (lanes[inside][-1] == 2))
        urn = counts[2] * (counts[2] - 1) / (inside.sum() * (inside.sum() - 1))
        assert abs(together - urn) < 4.5 * np.sqrt(0.25 / lanes.shape[1])
    assert len(np.unique(lanes, axis=1).T) == lanes.shape[1]
    assert any(
        (block != other).any() for block, other in zip(blocks, _deals(first, stratum, 3, 64, seed=2), strict=False)
    )


def test_delong_is_its_formula_over_pairs():
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.4
    first, second = rng.integers(0, 12, 60) / 12 + 0.3 * truth, rng.integers(0, 12, 60) / 12 + 0.2 * truth
    found = delong(truth, first, second)

    def placements(score):
        kernel = [[(a > b) + (a == b) / 2 for b in score[~truth]] for a in score[truth]]
        return np.mean(kernel, axis=1), np.mean(kernel, axis=0)

    (a10, a01), (b10, b01) = placements(first), placements(second)
    variance = np.var(a10 - b10, ddof=1) / truth.sum() + np.var(a01 - b01, ddof=1) / (~truth).sum()
    assert found.first == pytest.approx(auc(truth, first))
    assert found.second == pytest.approx(auc(truth, second))
    assert found.se == pytest.approx(math.sqrt(variance))
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(found.difference) / found.se))
    same = delong(truth, first, first)
    assert (same.difference, same.p_value) == (0, 1)
    alone = delong(truth, first, second, patients=np.arange(60))
    assert alone.se == pytest.approx(found.se, rel=0.03)
    double = lambda values: np.repeat(values, 2)  # noqa: E731
    twice = delong(double(truth), double(first), double(second), patients=double(np.arange(60)))
    assert twice.se == pytest.approx(alone.se)
    assert delong(double(truth), double(first), double(second)).se < 0.75 * alone.se
    with pytest.raises(ValueError, match="positives and negatives"):
        delong([1, 1], [0.1, 0.2], [0.3, 0.1])
