"""Intervals against judgements of explicitly resampled tables, scikit-learn, scipy and plain loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.bootstrap import intervals, replicates
from fairvlm_core.evaluation.interval import interval
from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.paired import differences
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.resampling import (
    LANES,
    bootstrap_weights,
    label_sums,
    leave_out_weights,
    patient_codes,
    whole_weights,
)

KINDS = {"binary": 1, "multilabel": 3, "multiclass": 4}


def predictions(kind="binary", n=400, seed=0, images=2, ties=True):
    """Scores with unknown truths and groups, a rare group, and ties; `images` of each patient."""
    rng = np.random.default_rng(seed)
    width = KINDS[kind]
    if kind == "multiclass":
        truth = np.eye(width)[rng.integers(0, width, n)]
        score = rng.dirichlet(np.ones(width), n) + truth * rng.random((n, 1))
        score /= score.sum(1, keepdims=True)
        decision = np.eye(width)[score.argmax(1)]
    else:
        truth = (rng.random((n, width)) < 0.4).astype(float)
        score = np.clip(0.3 * truth + 0.7 * rng.random((n, width)), 0, 1)
        score = score.astype(np.float16 if ties else np.float32).astype(float)
        decision = (score > 0.5).astype(float)
        truth[rng.random((n, width)) < 0.05] = np.nan
    named = lambda names, shares: rng.choice(np.array(names, dtype=object), n, p=shares)  # noqa: E731
    groups = {
        "sex": named(["female", "male", None], [0.45, 0.45, 0.1]),
        "age_group": named(["0-39", "40-59", "60+"], [0.3, 0.3, 0.4]),
        "race": named(["a", "b", "rare"], [0.5, 0.49, 0.01]),
    }
    ids = np.array([f"i{i}" for i in range(n)], dtype=object)
    patients = np.array([f"p{i // images}" for i in range(n)], dtype=object)
    return Scores(ids, patients, tuple("abcdefgh"[:width]), truth, score, decision, groups, kind, "model")


def at(judgement, path):
    for name in path:
        judgement = judgement[name]
    return judgement


def expanded(scores, weight):
    """The table in which each row stands as often as it was drawn."""
    rows = np.repeat(np.arange(len(weight)), weight)
    return dataclasses.replace(
        scores,
        sample_ids=np.array([f"r{i}" for i in range(len(rows))], dtype=object),
        patient_ids=scores.patient_ids[rows],
        y_true=scores.y_true[rows],
        y_score=scores.y_score[rows],
        y_pred=scores.y_pred[rows],
        groups={name: values[rows] for name, values in scores.groups.items()},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_resampling_the_numbers_are_those_of_the_judgement(kind):
    scores = predictions(kind)
    judged, found = judge(scores), replicates(scores, whole_weights(400), 1, min_cell=10)
    compared = 0
    for path, value in found.items():
        if "prevalence" in path:  # suppressed where it would give away a small count
            continue
        wanted = at(judged, path)
        assert (wanted is None) == np.isnan(value[0]), path
        if wanted is not None:
            assert value[0] == pytest.approx(wanted, abs=5e-6), path
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_resample_is_the_table_in_which_rows_stand_as_often_as_they_were_drawn(kind):
    """Judged anew from the rows; groups that are too small in the data have no part in either."""
    scores = predictions(kind)
    scores.groups["race"][scores.groups["race"] == "rare"] = None
    patient = patient_codes(scores.patient_ids)
    found = replicates(scores, bootstrap_weights(patient, 70, 3), 70, min_cell=10)
    blocks = np.concatenate(list(bootstrap_weights(patient, 70, 3)(np.arange(400))), axis=1)
    for r in (0, 5, 69):
        judged = judge(expanded(scores, blocks[:, r]), min_cell=1)
        for path, values in found.items():
            if "prevalence" in path:
                continue
            wanted = at(judged, path)
            if wanted is not None and not np.isnan(values[r]):
                assert values[r] == pytest.approx(wanted, abs=5e-6), path


def test_sums_against_scikit_learn_and_loops():
    rng = np.random.default_rng(1)
    truth, score = (rng.random(90) < 0.5).astype(float), rng.integers(0, 8, 90) / 8
    truth[:4] = np.nan
    decision = (score > 0.4).astype(float)
    decision[5] = np.nan
    codes = np.array([rng.integers(-1, 3, 90), np.full(90, 3)], dtype=np.int32)
    patient = np.arange(90)
    sums = label_sums(bootstrap_weights(patient, 5, 0), 5, truth, score, decision, codes, 4)
    (weights,) = bootstrap_weights(patient, 5, 0)(patient)
    for r in range(5):
        for g in range(4):
            rows = [i for i in range(90) if g in codes[:, i]]
            told = [i for i in rows if not np.isnan(truth[i])]
            w = weights[:, r].astype(float)
            assert sums.members[g, r] == sum(w[i] for i in rows if not np.isnan(decision[i]))
            assert sums.selected[g, r] == sum(w[i] for i in rows if decision[i] == 1)
            assert sums.positives[g, r] == sum(w[i] for i in told if truth[i] == 1)
            assert sums.hits[g, r] == sum(w[i] for i in told if truth[i] == 1 and decision[i] == 1)
            assert sums.false_alarms[g, r] == sum(w[i] for i in told if truth[i] == 0 and decision[i] == 1)
            assert sums.squares[g, r] == pytest.approx(sum(w[i] * (score[i] - truth[i]) ** 2 for i in told))
            area = roc_auc_score(truth[told], score[told], sample_weight=w[told])
            assert sums.wins[g, r] / (sums.positives[g, r] * sums.negatives[g, r]) == pytest.approx(area, abs=1e-12)


def test_patients_are_drawn_with_all_their_rows():
    patient = patient_codes(np.array(["b", "a", "b", "c"], dtype=object))
    assert patient.tolist() == [1, 0, 1, 2]
    blocks = list(bootstrap_weights(patient, 130, 0)(np.arange(4)))
    assert [block.shape for block in blocks] == [(4, LANES)] * 3
    drawn = np.concatenate(blocks, axis=1)
    assert (drawn[0] == drawn[2]).all()
    assert (drawn[0] + drawn[1].astype(int) + drawn[3] == 3).all()
    # Each number of draws as often as the binomial says.
    many = np.concatenate(list(bootstrap_weights(np.arange(50), 6400, 1)(np.arange(50))), axis=1)
    seen = np.bincount(many.ravel(), minlength=8)[:5] / many.size
    np.testing.assert_allclose(seen, stats.binom.pmf(np.arange(5), 50, 1 / 50), atol=0.003)
    assert len(np.unique(many, axis=1).T) == 6400
    other = next(iter(bootstrap_weights(np.arange(50), 64, 2)(np.arange(50))))
    assert not (other == many[:, :64]).all()


def test_the_jackknife_leaves_out_each_patient_once():
    patient = np.array([0, 0, 1, 2, 3])
    (block,) = leave_out_weights(patient, 4, 0)(np.arange(5))
    assert (block[0] == block[1]).all()
    assert sorted(map(tuple, block[1:, :4].T)) == [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)]


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_are_those_of_scipy(method):
    """For accuracy, a mean; to within what 20,000 random resamples leave open."""
    rng = np.random.default_rng(2)
    right = (rng.random(80) < 0.9).astype(float)
    scores = predictions(n=80, images=1)
    scores = dataclasses.replace(scores, y_true=np.ones((80, 1)), y_pred=right[:, None].copy(), groups={})
    scores.y_true[:20] = 0
    scores.y_pred[:20] = 1 - right[:20, None]
    found = intervals(scores, resamples=20000, method=method)["overall"]["accuracy"]
    wanted = stats.bootstrap(
        (right,), np.mean, n_resamples=20000, method=method, rng=np.random.default_rng(0)
    ).confidence_interval
    np.testing.assert_allclose(found, wanted, atol=0.013)


def test_bca_is_efrons_formula():
    rng = np.random.default_rng(0)
    values, left = rng.gamma(2.0, size=2000), rng.gamma(2.0, size=40)
    estimate = 1.9
    below = sum((v < estimate) + (v == estimate) / 2 for v in values) / 2000
    bias = stats.norm.ppf(below)
    mean = sum(left) / 40
    acceleration = sum((mean - v) ** 3 for v in left) / (6 * sum((mean - v) ** 2 for v in left) ** 1.5)
    tails = []
    for z in (stats.norm.ppf(0.05), stats.norm.ppf(0.95)):
        tails.append(stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))))
    found = interval(estimate, values, level=0.9, jackknife=left)
    np.testing.assert_allclose(found, np.quantile(values, tails))


def test_two_images_of_a_patient_are_not_two_patients():
    """Every image twice: the same interval, where a bootstrap of images would give a narrower one."""
    once = predictions(n=200, images=1)
    twice = expanded(once, np.full(200, 2))
    narrow = dataclasses.replace(twice, patient_ids=twice.sample_ids)
    first, second, third = (intervals(scores, min_cell=1, seed=4)["overall"]["auc"] for scores in (once, twice, narrow))
    assert first == second
    assert third[1] - third[0] < 0.8 * (first[1] - first[0])


def test_a_number_that_many_resamples_lack_has_no_interval():
    scores = predictions(n=300, images=1, seed=3)
    women = scores.groups["sex"] == "female"
    scores.y_true[women] = 0
    scores.y_true[np.flatnonzero(women)[:1]] = 1  # a third of the resamples do not draw her
    found = intervals(scores)
    sex = found["attributes"]["sex"]
    assert sex["groups"]["female"]["auc"] is None
    assert sex["es_auc"] is None
    assert sex["groups"]["male"]["auc"] is not None
    assert sex["dpd"] is not None
    assert found["attributes"]["race"]["groups"].keys() == {"a", "b"}


def test_intervals_do_not_depend_on_the_order_of_the_rows():
    scores = predictions("multilabel", ties=False)
    order = np.random.default_rng(0).permutation(400)
    moved = dataclasses.replace(
        scores,
        **{name: getattr(scores, name)[order] for name in ("sample_ids", "patient_ids", "y_true", "y_score", "y_pred")},
        groups={name: values[order] for name, values in scores.groups.items()},
    )
    assert intervals(scores, resamples=100) == intervals(moved, resamples=100)
    assert intervals(scores, resamples=100) != intervals(scores, resamples=100, seed=1)


def test_intervals_hold_what_they_promise():
    """Of 200 studies, 95 % intervals of the AUC hold the true one in 89 to 99 %."""
    true = stats.norm.cdf(1 / np.sqrt(2))
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        truth = (rng.random(120) < 0.5).astype(float)
        score = stats.norm.cdf(rng.normal(size=120) + truth)
        scores = Scores(
            np.arange(120).astype(object), np.arange(120).astype(object), ("a",), truth[:, None], score[:, None],
            (score > 0.5).astype(float)[:, None], {}, "binary", "m",
        )  # fmt: skip
        low, high = intervals(scores, resamples=256, seed=seed)["overall"]["auc"]
        hits += low <= true <= high
    assert 178 <= hits <= 198


def test_a_difference_is_paired():
    """The same patients are drawn for both: a model against itself has no difference, a better one a certain one."""
    first = predictions(n=300, ties=False)
    order = np.random.default_rng(0).permutation(300)
    again = dataclasses.replace(
        first,
        **{name: getattr(first, name)[order] for name in ("sample_ids", "patient_ids", "y_true", "y_score", "y_pred")},
        groups={name: values[order] for name, values in first.groups.items()},
    )
    same = differences(first, again)
    assert all(
        found.estimate == 0 and found.low in (0, np.nan) for path, found in same.items() if found.low == found.low
    )
    assert same["overall", "auc"].p_value == 1
    noise = np.random.default_rng(1).normal(0, 0.15, first.y_score.shape)
    worse = dataclasses.replace(first, y_score=np.clip(first.y_score + noise, 0, 1))
    found = differences(first, worse)["overall", "auc"]
    assert 0 < found.low < found.estimate < found.high
    assert found.p_value < 0.05
    alone = intervals(first)["overall"]["auc"]
    assert found.high - found.low < alone[1] - alone[0]
    back = differences(worse, first)["overall", "auc"]
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    with pytest.raises(PredictionsError, match="the same images"):
        differences(first, predictions(n=299))


def gap(values):
    return max(values) - min(values)


def test_the_interval_of_an_extreme_leaves_room_where_chance_exaggerates():
    """Against a loop that writes down, resample by resample, how far the rates are from the data's."""
    scores = predictions("multilabel", n=300, images=1)
    scores = dataclasses.replace(scores, groups={"age_group": scores.groups["age_group"]})
    truth, decision, group = scores.y_true, scores.y_pred, scores.groups["age_group"]
    names = sorted(set(group))
    drawn = np.concatenate(list(bootstrap_weights(np.arange(300), 200, 0)(patient_codes(scores.patient_ids))), axis=1)

    def rates(j, weight):
        selected = [np.average(decision[group == name, j], weights=weight[group == name]) for name in names]
        ill = [(group == name) & (truth[:, j] == 1) for name in names]
        return {"dpd": selected, "tpr_gap": [np.average(decision[rows, j], weights=weight[rows]) for rows in ill]}

    whole = [rates(j, np.ones(300)) for j in range(3)]
    sampled = [[rates(j, drawn[:, r]) for j in range(3)] for r in range(200)]
    found = intervals(scores, resamples=200, min_cell=1)["attributes"]["age_group"]
    for metric in ("dpd", "tpr_gap"):
        for name, over in ((metric, np.mean), (f"{metric}_worst", max)):
            estimate = over([gap(of[metric]) for of in whole])
            values = [over([gap(of[metric]) for of in told]) for told in sampled]
            apart = [
                [gap(np.subtract(of[metric], was[metric])) for of, was in zip(told, whole, strict=True)]
                for told in sampled
            ]
            low = estimate - np.quantile([over(one) for one in apart], 0.95)
            np.testing.assert_allclose(found[name], [max(low, 0), np.quantile(values, 0.975)], atol=2e-6)


def test_the_interval_of_the_worst_group_leaves_room_above():
    scores = predictions(n=400, images=1, seed=2)
    found = intervals(scores, resamples=300)["attributes"]["age_group"]
    of = replicates(scores, bootstrap_weights(patient_codes(scores.patient_ids), 300, 0), 300, min_cell=10)
    judged = judge(scores)["attributes"]["age_group"]
    names = list(judged["groups"])
    drawn = np.array([of["attributes", "age_group", "groups", name, "auc"] for name in names])
    own = np.array([[judged["groups"][name]["auc"]] for name in names])
    high = judged["worst_group_auc"] + np.quantile((own - drawn).max(axis=0), 0.975)
    np.testing.assert_allclose(
        found["worst_group_auc"], [np.quantile(drawn.min(axis=0), 0.025), min(high, 1)], atol=3e-6
    )


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_interval_holds_its_estimate(kind, method):
    scores = predictions(kind, n=60, images=1, seed=5)
    judged, found = judge(scores, min_cell=2), intervals(scores, resamples=200, min_cell=2, method=method)
    checked = 0

    def walk(value, ends):
        nonlocal checked
        if isinstance(ends, dict):
            for name, inner in ends.items():
                walk(value[name], inner)
        elif ends is not None and value is not None:
            assert 0 <= ends[0] - 2e-6 <= value <= ends[1] + 2e-6 <= 1 + 4e-6 or ends[0] <= value <= ends[1]
            checked += 1

    for part in ("overall", "attributes", "across"):
        walk(judged[part], found[part])
    assert checked > 60


def test_percentiles_of_a_gap_may_lie_above_it_but_its_interval_does_not():
    race = np.random.default_rng(8).choice(np.array(list("abcde"), dtype=object), 100)
    scores = dataclasses.replace(predictions("multilabel", n=100, images=1, seed=8), groups={"race": race})
    gap = judge(scores)["attributes"]["race"]["dpd"]
    drawn = replicates(scores, bootstrap_weights(patient_codes(scores.patient_ids), 500, 0), 500, min_cell=10)
    assert np.quantile(drawn["attributes", "race", "dpd"], 0.025) > gap
    low, high = intervals(scores, resamples=500)["attributes"]["race"]["dpd"]
    assert low < gap < high
