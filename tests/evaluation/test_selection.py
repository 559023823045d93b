"""Selection of an epoch or a model on validation."""

from __future__ import annotations

import numpy as np
import pytest

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation import CRITERIA
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.selection import criterion, pareto_front, select, selection_figures


def judgement(auc, **attributes):
    return {"overall": {"auc": auc}, "attributes": attributes}


def test_criterion_values():
    sex = {"es_auc": 0.6, "worst_group_auc": 0.7, "eod": 0.3}
    age = {"es_auc": 0.8, "worst_group_auc": 0.5, "eod": 0.5}
    race = {"es_auc": None, "worst_group_auc": None, "eod": None}
    found = judgement(0.7, sex=sex, age=age, race=race)
    names = ["sex", "age", "race"]
    assert criterion("auc", found, names) == 0.7
    assert criterion("es_auc", found, names) == pytest.approx(0.7)
    assert criterion("worst_group_auc", found, names) == 0.5
    assert criterion("dto", found, names) == pytest.approx(0.5)  # 3, 4, 5
    assert criterion("dto", found, ["race"]) is None


def test_selection_takes_the_best_the_first_of_equals_and_the_nearest_to_utopia():
    assert select("auc", {"stage1": 0.7, "stage2": 0.8, "fair_moe": None}) == "stage2"
    assert select("auc", {"stage1": 0.8, "stage2": 0.8}) == "stage1"
    assert select("dto", {"stage1": 0.8, "stage2": 0.2}) == "stage2"
    with pytest.raises(PredictionsError, match="No model can be selected by es_auc"):
        select("es_auc", {"stage1": None})


def scores(groups):
    truth = np.array([[0.0], [1.0]] * 20)
    score = truth * 0.2 + 0.3 + np.linspace(0, 0.3, 40)[:, None]
    ids = np.arange(40).astype(object)
    decided = (score >= 0.5).astype(float)
    return Scores(ids, ids, ("finding",), truth, score, decided, groups, "binary", "model")


@pytest.mark.parametrize("name", CRITERIA)
def test_the_logged_score_is_the_criterion_and_higher_is_better(name):
    figures = selection_figures(
        scores({"sex": np.array(["female", "male"] * 10 + ["male", "male"] * 10, dtype=object)}), name
    )
    assert set(CRITERIA) <= set(figures) or "sex" not in figures
    if name in figures:
        assert figures["score"] == (-figures[name] if name == "dto" else figures[name])


def test_without_groups_the_area_selects():
    figures = selection_figures(scores({}), "es_auc")
    assert figures["score"] == figures["auc"] > 0.5


def naive_front(performance, gap):
    """Every model against every other."""
    known = [a is not None and g is not None and a == a and g == g for a, g in zip(performance, gap, strict=True)]
    return [
        known[i]
        and not any(
            known[j]
            and performance[j] >= performance[i]
            and gap[j] <= gap[i]
            and (performance[j] > performance[i] or gap[j] < gap[i])
            for j in range(len(known))
        )
        for i in range(len(known))
    ]


@pytest.mark.parametrize("seed", range(200))
def test_the_pareto_front_against_every_model_against_every_other(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 12))
    # Few values, so that many agree in one or both; some do not exist.
    values = rng.integers(0, 4 if seed % 2 else 1000, (2, n)).astype(float) / 10
    missing = rng.random((2, n))
    performance, gap = (
        [None if m < 0.1 else float("nan") if m < 0.15 else float(v) for v, m in zip(row, lost, strict=True)]
        for row, lost in zip(values, missing, strict=True)
    )
    assert pareto_front(performance, gap) == naive_front(performance, gap)


def test_the_pareto_front_at_its_edges():
    assert pareto_front([], []) == []
    assert pareto_front([None], [0.1]) == [False]
    assert pareto_front([0.8, 0.8, 0.8], [0.1, 0.1, 0.2]) == [True, True, False]  # equal ones are on it together
    assert pareto_front([0.7, 0.8], [0.1, 0.1]) == [False, True]  # as fair, and less accurate
    assert pareto_front([0.9, 0.8], [0.3, None]) == [True, False]
    with pytest.raises(ValueError, match="shorter"):
        pareto_front([0.8, 0.7], [0.1])
