"""Differences of gaps between two models: against plain loops over resamples, and in studies whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_bootstrap import predictions

from fairvlm_core.evaluation.paired import Difference, Limits, differences, of_extremes
from fairvlm_core.evaluation.resampling import bootstrap_weights, patient_codes

RESAMPLES = 150


def other_model(scores, spread=0.4, seed=1):
    noise = np.random.default_rng(seed).normal(0, spread, scores.y_score.shape)
    score = np.clip(scores.y_score + noise, 0, 1)
    return dataclasses.replace(scores, y_score=score, y_pred=(score > 0.5).astype(float))


def rates(scores, names, weight):
    """What the gaps of one label are made of, as (number, groups); weights are whole numbers of copies."""
    group, told = scores.groups["age_group"], []
    for j in range(len(scores.labels)):
        truth, score, decision = scores.y_true[:, j], scores.y_score[:, j], scores.y_pred[:, j]
        known = ~np.isnan(truth)
        area = lambda rows: roc_auc_score(truth[rows], score[rows], sample_weight=weight[rows])  # noqa: E731,B023
        mean = lambda rows: np.average(decision[rows], weights=weight[rows])  # noqa: E731,B023
        told.append(
            {
                "selected": [mean(group == name) for name in names],
                "tpr": [mean((group == name) & (truth == 1)) for name in names],
                "fpr": [mean((group == name) & (truth == 0)) for name in names],
                "auc": [area((group == name) & known) for name in names],
                "everybody": area(known),
            }
        )
    return told


def gap(values):
    return max(values) - min(values)


def eod(of):
    return max(gap(of["tpr"]), gap(of["fpr"]))


def es_auc(of):
    return of["everybody"] / (1 + sum(abs(of["everybody"] - area) for area in of["auc"]))


def minus(of, was):
    return {key: np.subtract(value, was[key]).tolist() for key, value in of.items()}


def of_errors(number):
    return lambda of, was: number(minus(of, was))


def mean_over(labels, number, *told):
    return np.mean([number(*(of[j] for of in told)) for j in range(labels)])


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_intervals_of_gaps_equal_plain_loops(kind):
    first = predictions(kind, n=240, ties=False)
    first = dataclasses.replace(first, groups={"age_group": first.groups["age_group"]})
    second = other_model(first)
    labels, names = len(first.labels), ["0-39", "40-59", "60+"]
    drawn = np.concatenate(
        list(bootstrap_weights(patient_codes(first.patient_ids), RESAMPLES, 0)(np.arange(240))), axis=1
    )[:, :RESAMPLES].astype(float)
    whole = [rates(scores, names, np.ones(240)) for scores in (first, second)]
    told = [[rates(scores, names, drawn[:, r]) for r in range(RESAMPLES)] for scores in (first, second)]
    found = differences(first, second, resamples=RESAMPLES, min_cell=1)

    def over(number, *given):
        return mean_over(labels, number, *given)

    for metric, number in (("dpd", lambda of: gap(of["selected"])), ("eod", eod)):
        estimate = over(number, whole[0]) - over(number, whole[1])
        values = np.array([over(number, one) - over(number, two) for one, two in zip(*told, strict=True)])
        pushed = [np.mean([over(of_errors(number), one, whole[k]) for one in told[k]]) for k in (0, 1)]
        apart = [over(of_errors(number), one, two) for one, two in zip(*told, strict=True)]
        width = np.quantile(np.abs(values - values.mean()), 0.975)
        most = np.quantile(apart, 0.9875)
        one = found["attributes", "age_group", metric]
        assert one.estimate == pytest.approx(estimate, abs=1e-6)
        assert one.low == pytest.approx(max(estimate - pushed[0] - width, -most), abs=2e-5)
        assert one.high == pytest.approx(min(estimate + pushed[1] + width, most), abs=2e-5)
        across = found["across", metric, "mean"]  # of one attribute
        assert (across.low, across.high) == pytest.approx((one.low, one.high))

    def areas(of):
        return np.mean([label["auc"] for label in of], axis=0)

    estimate = min(areas(whole[0])) - min(areas(whole[1]))
    values = np.array([min(areas(one)) - min(areas(two)) for one, two in zip(*told, strict=True)])
    pushed = [np.mean([max(areas(whole[k]) - areas(one)) for one in told[k]]) for k in (0, 1)]
    ahead = [areas(one) - areas(two) for one, two in zip(*told, strict=True)]
    width = np.quantile(np.abs(values - values.mean()), 0.975)
    one = found["attributes", "age_group", "worst_group_auc"]
    least, most = np.quantile([min(of) for of in ahead], 0.0125), np.quantile([max(of) for of in ahead], 0.9875)
    assert one.low == pytest.approx(max(estimate - pushed[1] - width, least), abs=2e-5)
    assert one.high == pytest.approx(min(estimate + pushed[0] + width, most), abs=2e-5)

    estimate = over(es_auc, whole[0]) - over(es_auc, whole[1])
    one = found["attributes", "age_group", "es_auc"]
    assert one.estimate == pytest.approx(estimate, abs=1e-6)

    def far(of, was):
        return sum(
            abs(of["everybody"] - was["everybody"] - (a - b)) for a, b in zip(of["auc"], was["auc"], strict=True)
        )

    def sides(of, was):
        one, two = of["everybody"], was["everybody"]
        return [min(one / (1 + far(of, was)) - two, 0), max(one - two / (1 + far(of, was)), 0)]

    bounds = [
        [[over(lambda of, was: sides(of, was)[k], one, two) for one, two in zip(*told, strict=True)]]  # noqa: B023
        for k in (0, 1)
    ]
    least, most = np.quantile(bounds[0], 0.0125), np.quantile(bounds[1], 0.9875)

    def pushed_of(k):
        """What the mean sum of errors, taken off the sum of distances, adds to ES-AUC, mean over the labels."""
        added = []
        for j in range(labels):
            base, area = whole[k][j], whole[k][j]["everybody"]
            apart = [area - group for group in base["auc"]]
            errors = [
                sum(abs(of[j]["everybody"] - group - was) for group, was in zip(of[j]["auc"], apart, strict=True))
                for of in told[k]
            ]
            distance = sum(map(abs, apart))
            added.append(area / (1 + distance - np.mean(errors)) - area / (1 + distance))
        return np.mean(added)

    values = np.array([over(es_auc, one) - over(es_auc, two) for one, two in zip(*told, strict=True)])
    width = np.quantile(np.abs(values - values.mean()), 0.975)
    assert one.low == pytest.approx(max(estimate - pushed_of(1) - width, least), abs=2e-5)
    assert one.high == pytest.approx(min(estimate + pushed_of(0) + width, most), abs=2e-5)


def test_models_that_say_the_same_differ_by_nothing_however_few_patients_there_are():
    scores = predictions(n=120)
    found = differences(scores, scores, resamples=100)
    for path in (("across", "eod", "mean"), ("attributes", "sex", "worst_group_auc"), ("across", "es_auc", "mean")):
        assert found[path] == Difference(0.0, 0.0, 0.0, 1.0)


def test_the_sign_turns_with_the_order():
    first, second = predictions(), other_model(predictions())
    there, back = differences(first, second, resamples=100), differences(second, first, resamples=100)
    for path, one in there.items():
        other = back[path]
        if one.low == one.low:
            assert (one.estimate, one.low, one.high) == pytest.approx((-other.estimate, -other.high, -other.low))
            assert one.p_value == other.p_value


def test_the_p_value_agrees_with_the_interval():
    rng = np.random.default_rng(0)
    limits = Limits(np.full(401, -1.0), np.full(401, 1.0), pushed=(0.03, 0.08))
    for estimate in np.linspace(-0.3, 0.3, 61):
        values = np.append(rng.normal(estimate, 0.05, 400), estimate)
        found = of_extremes(values, limits)
        assert found.low <= estimate <= found.high
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
    assert found.p_value == 2 / 401
    few = values.copy()
    few[:100] = np.nan
    assert np.isnan(of_extremes(few, limits).low)
