"""Drift: every number beside something independent, and verdicts in months whose truth is known."""

import itertools
import json
import math
from dataclasses import replace

import drift_alarms
import generated_predictions as generated
import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, selection_rate
from scipy.special import ndtri
from scipy.stats import binomtest, ks_2samp
from sklearn.metrics import roc_auc_score

from fairvlm_core.errors import ConfigError
from fairvlm_core.evaluation.metrics import expected_calibration_error
from fairvlm_core.evaluation.monitoring.changes import MEAN, shifts
from fairvlm_core.evaluation.monitoring.drift import drift
from fairvlm_core.evaluation.monitoring.evidence import (
    Asked,
    Finding,
    Limits,
    judged,
    minus,
    resampled,
    score_shift,
    shift,
    stability_index,
    tail,
    wilson,
)
from fairvlm_core.evaluation.monitoring.numbers import Pair
from fairvlm_core.evaluation.predictions import Scores, scores
from fairvlm_core.evaluation.thresholds import decided

QUICK = Asked(resamples=100)


def sample(kind="binary", *, n=1500, threshold=0.25, truth=True, **given):
    found = scores(generated.table(kind, n=n, **given), "test")
    found = decided(found, dict.fromkeys(found.labels, threshold))
    return found if truth else replace(found, y_true=np.full(found.y_true.shape, np.nan))


def moved(given, rows, by=0.3, threshold=0.25):
    """The same with higher scores in these rows, decided anew."""
    score = given.y_score.copy()
    score[rows] = np.clip(score[rows] + by, 0, 1)
    return decided(replace(given, y_score=score), dict.fromkeys(given.labels, threshold))


def found_in(told, measure, **where):
    return [
        f
        for f in told["findings"]
        if f["measure"] == measure and all(f[name] == value for name, value in where.items())
    ]


def one(told, measure, **where):
    (finding,) = found_in(told, measure, **where)
    return finding


@pytest.mark.parametrize(("hits", "of"), [(0, 12), (3, 12), (12, 12), (400, 1000)])
def test_wilson_is_that_of_scipy(hits, of):
    ends = wilson(hits / of, of).ends(float(ndtri(0.975)))
    assert ends == pytest.approx(tuple(binomtest(hits, of).proportion_ci(method="wilson")), abs=1e-12)


def test_a_difference_of_shares_has_newcombes_interval():
    """The first example of his table II (1998), method 10: 56 of 70 against 48 of 80."""
    low, high = minus(wilson(56 / 70, 70), wilson(48 / 80, 80)).at(0.95)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_the_p_value_is_that_at_which_the_interval_touches_the_limit():
    side = minus(wilson(0.45, 200), wilson(0.2, 300))
    p = tail(side, 0.1)
    assert side.at(1 - p)[0] == pytest.approx(0.1, abs=1e-9)
    assert tail(side, 0.25) == 1.0
    turned = minus(wilson(0.2, 300), wilson(0.45, 200))
    assert shift(turned, 0.1, 0.95)[2] == pytest.approx(p)
    low, high, _ = shift(side, 0.1, 0.95)
    assert (low > 0.1) == (p < 0.05)
    assert high > low


def test_an_interval_of_the_bootstrap_is_no_narrower_than_the_least():
    side = resampled(0.0, (0.0, 0.0), level=0.95, least=wilson(0.0, 12).ends)
    assert side.at(0.95) == pytest.approx(wilson(0.0, 12).at(0.95))
    wide = resampled(0.5, (0.2, 0.9), level=0.95)
    assert wide.at(0.95) == pytest.approx((0.2, 0.9))


def test_the_distance_and_its_p_value_are_those_of_scipy():
    rng = np.random.default_rng(0)
    then, now = rng.random(400), rng.random(300) ** 1.3
    found, low, high, p = score_shift(then, now, 400 * 300 / 700, limit=1e-12, level=0.95)
    theirs = ks_2samp(then, now, method="asymp")
    assert found == pytest.approx(theirs.statistic)
    assert theirs.pvalue < p < 1.2 * theirs.pvalue  # the bound, and what it bounds
    assert low < found < high
    assert score_shift(then, now, 171, limit=0.5, level=0.95)[3] == 1.0


def test_the_interval_of_the_distance_holds_the_true_one():
    """Uniform against uniform shifted by 0.15: the distance is 0.15. 60 and 40 are small."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        _, low, high, _ = score_shift(rng.random(60), rng.random(40) + 0.15, 24, limit=0.1, level=0.95)
        held += low <= 0.15 <= high
    assert held >= 0.95 * 400


def test_the_stability_index_is_that_of_a_loop_and_chance_is_as_large_as_told():
    rng = np.random.default_rng(2)
    then, now = rng.random(500), rng.random(200) ** 1.5
    edges = [-math.inf, *np.quantile(then, np.arange(1, 10) / 10), math.inf]
    by_hand = 0.0
    for low, high in itertools.pairwise(edges):
        p = (sum(low < x <= high for x in then) + 0.5) / (500 + 5)
        q = (sum(low < x <= high for x in now) + 0.5) / (200 + 5)
        by_hand += (q - p) * math.log(q / p)
    found, chance = stability_index(then, now, (500, 200))
    assert found == pytest.approx(by_hand)
    assert chance == pytest.approx(9 * (1 / 500 + 1 / 200))
    alike = [stability_index(rng.random(500), rng.random(200), (500, 200))[0] for _ in range(400)]
    assert np.mean(alike) == pytest.approx(chance, rel=0.1)
    assert stability_index(np.ones(50), np.ones(50), (50, 50))[0] == 0.0  # one bin


def test_gaps_and_shares_are_those_of_fairlearn():
    then, now = sample(), sample(seed=1)
    told = drift(then, now, QUICK)
    for side, when in ((then, "then"), (now, "now")):
        for attribute in ("sex", "age_group"):
            known = np.array([group is not None for group in side.groups[attribute]])
            frame = MetricFrame(
                metrics=selection_rate,
                y_true=side.y_pred[known, 0],
                y_pred=side.y_pred[known, 0],
                sensitive_features=side.groups[attribute][known].astype(str),
            )
            assert one(told, "dpd_rise", attribute=attribute)[when] == pytest.approx(frame.difference(), abs=1e-6)
            for group, rate in frame.by_group.items():
                finding = one(told, "selection_shift", attribute=attribute, group=group)
                assert finding[when] == pytest.approx(rate, abs=1e-6)
    rise = one(told, "dpd_rise", attribute="sex")
    assert rise["change"] == pytest.approx(rise["now"] - rise["then"], abs=2e-6)
    assert rise["low"] < rise["change"] < rise["high"]
    assert rise["more"]["now_low"] <= rise["now"] <= rise["more"]["now_high"]


def test_numbers_that_need_truth_are_those_of_scikit_learn():
    then, now = sample(), sample(seed=1)
    told = drift(then, now, QUICK)
    for side, when in ((then, "then"), (now, "now")):
        women = side.groups["sex"] == "female"
        for group, rows in ((None, np.ones(len(women), bool)), ("female", women)):
            area = one(told, "auc_drop", group=group, attribute=group and "sex")
            assert area[when] == pytest.approx(roc_auc_score(side.y_true[rows, 0], side.y_score[rows, 0]), abs=1e-6)
            error = one(told, "ece_rise", group=group, attribute=group and "sex")
            by_hand = expected_calibration_error(side.y_true[rows, 0], side.y_score[rows, 0])
            assert error[when] == pytest.approx(by_hand, abs=1e-6)
        areas = [f[when] for f in found_in(told, "auc_drop", attribute="sex")]
        assert one(told, "worst_group_auc_drop", attribute="sex")[when] == pytest.approx(min(areas))
    drop = one(told, "auc_drop", attribute=None)
    assert drop["change"] == pytest.approx(drop["then"] - drop["now"], abs=2e-6)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_of_several_labels_the_gap_is_also_told_as_their_mean(kind):
    told = drift(sample(kind), sample(kind, seed=1, truth=False), QUICK)
    each = [f["now"] for f in found_in(told, "dpd_rise", attribute="sex") if f["label"] != MEAN]
    assert len(each) == len(generated.LABELS[kind])
    assert one(told, "dpd_rise", attribute="sex", label=MEAN)["now"] == pytest.approx(np.mean(each), abs=1e-6)


def test_gaps_are_compared_over_the_same_groups():
    """A group that is gone now would else make the gap smaller."""
    then, now = sample(), sample(seed=1)
    rows = then.groups["race"] == "White"
    then = moved(then, rows, by=-0.3)
    gone = now.groups["race"].copy()
    gone[gone == "White"] = None
    told = drift(then, replace(now, groups={**now.groups, "race": gone}), QUICK)
    rest = [then.y_pred[then.groups["race"] == name, 0].mean() for name in ("Asian", "Black")]
    assert one(told, "dpd_rise", attribute="race")["then"] == pytest.approx(abs(rest[0] - rest[1]), abs=1e-6)
    assert found_in(told, "selection_shift", group="White") == []


def finding(p, low, high, change=0.2, limit=0.1, measure="selection_shift"):
    return Finding(measure, "x", None, None, 0.1, 0.1 + change, change, low, high, limit, p)


def test_verdicts_follow_holm_and_the_interval():
    given = [
        finding(0.03, 0.11, 0.3),  # beyond by itself, but there are four
        finding(0.001, 0.15, 0.25),
        finding(1.0, -0.05, 0.05, change=0.0),
        finding(1.0, -0.15, 0.05, change=-0.05),
        finding(1.0, -0.3, 0.05, change=-0.1, measure="auc_drop"),  # better by any amount is within
        finding(float("nan"), float("nan"), float("nan")),
    ]
    found = judged(given, 0.95)
    assert [f.verdict for f in found] == ["drifted", *["cannot tell"] * 3, *["stable"] * 2]
    assert found[0].p_holm == pytest.approx(0.005)
    assert found[1].p == 0.03


def test_a_shift_of_one_group_is_found_there_and_not_in_the_others():
    then, now = sample(n=2400), sample(n=2400, seed=1)
    told = drift(then, moved(now, now.groups["sex"] == "female"), QUICK)
    assert told["verdict"] == "drifted"
    drifted = {(f["measure"], f["attribute"], f["group"]) for f in told["findings"] if f["verdict"] == "drifted"}
    assert {("score_shift", "sex", "female"), ("selection_shift", "sex", "female")} <= drifted
    assert ("dpd_rise", "sex", None) in drifted
    assert not {group for _, _, group in drifted if group and group.startswith("male")}
    assert told["findings"][0]["verdict"] == "drifted"
    assert drift(then, now, QUICK)["verdict"] != "drifted"


def alarms(months, images, who, distance, *, truth):
    """How many months drifted, by the simulation of the benchmark."""
    by = drift_alarms.shift_of(distance)
    threshold, count = drift_alarms.widest(by) if by else 1.0, 0
    for month in range(months):
        rng = np.random.default_rng([7, month])
        then, now = (drift_alarms.sample(1000, rng, threshold), drift_alarms.sample(images, rng, threshold, who, by))
        if not truth:
            now = replace(now, y_true=np.full(now.y_true.shape, np.nan))
        count += drift(then, now, QUICK)["verdict"] == "drifted"
    return count


def test_the_simulation_shifts_whom_it_says_by_what_it_says():
    by = drift_alarms.shift_of(0.25)
    threshold = drift_alarms.widest(by)
    then, now = (drift_alarms.sample(40000, np.random.default_rng(k), threshold, "women", k * by) for k in (0, 1))
    for group, distance in (("female", 0.25), ("male", 0.0)):
        both = [side.y_score[side.groups["sex"] == group, 0] for side in (then, now)]
        assert ks_2samp(*both).statistic == pytest.approx(distance, abs=0.02)
    women = [side.y_pred[side.groups["sex"] == "female"].mean() for side in (then, now)]
    assert women[1] - women[0] == pytest.approx(0.25, abs=0.02)


def test_shifts_as_large_as_their_limits_raise_few_alarms_and_larger_ones_always():
    """All comparisons of scores and decisions are at their limits; 3 of 15 months by chance alone: one time in 25."""
    assert alarms(15, 500, "everybody", 0.1, truth=False) <= 2
    assert alarms(5, 500, "everybody", 0.3, truth=False) == 5


@pytest.mark.slow
def test_months_in_which_nothing_changed_raise_hardly_an_alarm():
    assert alarms(100, 300, None, 0.0, truth=True) <= 5


def test_images_of_one_patient_are_not_more_people():
    """Every image three times, as the same patient's: no interval and no p-value may move."""
    then, now = sample(n=600), sample(n=600, seed=1)

    def thrice(given):
        rows = np.repeat(np.arange(len(given.sample_ids)), 3)
        ids = np.array([f"{given.sample_ids[i]} {k % 3}" for k, i in enumerate(rows)], dtype=object)
        columns = {name: getattr(given, name)[rows] for name in ("patient_ids", "y_true", "y_score", "y_pred")}
        groups = {name: values[rows] for name, values in given.groups.items()}
        return replace(given, sample_ids=ids, groups=groups, **columns)

    once = {(f.measure, f.attribute, f.group): f for f in shifts(Pair.of(then, now), replace(QUICK, min_cell=30))}
    more = {
        (f.measure, f.attribute, f.group): f
        for f in shifts(Pair.of(thrice(then), thrice(now)), replace(QUICK, min_cell=90))
    }
    assert len(once) > 10
    for key in once.keys() & more.keys():
        assert (more[key].low, more[key].high) == pytest.approx((once[key].low, once[key].high), abs=1e-9)
        assert more[key].p == pytest.approx(once[key].p, abs=1e-9)
    whole = one(drift(thrice(then), thrice(now), QUICK), "auc_drop", attribute=None)
    alone = one(drift(then, now, QUICK), "auc_drop", attribute=None)
    assert whole["high"] - whole["low"] == pytest.approx(alone["high"] - alone["low"], rel=1e-6)


def test_without_truth_nothing_that_needs_it_is_told():
    told = drift(sample(), sample(seed=1, truth=False), QUICK)
    assert {f["measure"] for f in told["findings"]} == {"score_shift", "selection_shift", "dpd_rise", "mix_shift"}
    assert told["labels"] == {"glaucoma": {"known": 0.0, "judged": False}}


def test_the_verdict_of_a_tiny_month_is_that_it_cannot_be_told():
    assert drift(sample(), sample(n=60, seed=1), QUICK)["verdict"] == "cannot tell"


def test_a_large_month_does_not_alarm_over_what_is_small():
    """30,000 people whose scores moved by 0.02: significant beyond doubt, and within the limit."""
    rng, n = np.random.default_rng(0), 30000
    ids = np.arange(n).astype(str).astype(object)
    score = rng.random((n, 1)) * 0.9
    nothing = np.full((n, 1), np.nan)
    then = Scores(ids, ids, ("x",), nothing, score, np.round(score), {}, "binary", "m")
    now = replace(then, y_score=rng.random((n, 1)) * 0.9 + 0.02)
    told = drift(then, replace(now, y_pred=np.round(now.y_score)), QUICK)
    assert told["verdict"] == "stable"
    assert ks_2samp(then.y_score[:, 0], now.y_score[:, 0]).pvalue < 1e-6


def test_who_came_is_told_and_judged():
    then, now = sample(), sample(seed=1)
    keep = (now.groups["sex"] != "male") | (np.arange(len(now.sample_ids)) % 4 == 0)
    columns = {name: getattr(now, name)[keep] for name in ("sample_ids", "patient_ids", "y_true", "y_score", "y_pred")}
    fewer = replace(now, groups={name: values[keep] for name, values in now.groups.items()}, **columns)
    told = drift(then, fewer, QUICK)
    assert one(told, "mix_shift", group="male")["verdict"] == "drifted"
    row = next(row for row in told["people"] if row["group"] == "male")
    assert row["n_now"] == (fewer.groups["sex"] == "male").sum()
    assert row["share_now"] == pytest.approx(np.mean(fewer.groups["sex"] == "male"), abs=1e-6)
    unknown = next(row for row in told["people"] if row["attribute"] == "sex" and row["group"] is None)
    assert unknown["n_then"] == sum(group is None for group in then.groups["sex"])


def test_a_group_that_is_new_or_gone_or_an_attribute_that_is_not_recorded_is_told():
    then, now = sample(), sample(seed=1)
    groups = {"sex": now.groups["sex"].copy(), "age_group": now.groups["age_group"]}
    groups["sex"][groups["sex"] == "male"] = "diverse"
    told = drift(then, replace(now, groups=groups), QUICK)
    assert told["new"]["sex"] == ["diverse"]
    assert told["absent"] == {"then": [], "now": ["race"]}
    assert one(told, "mix_shift", group="male")["verdict"] == "drifted"  # from most to none, which is nobody's count
    assert next(row for row in told["people"] if row["group"] == "male")["n_now"] == 0


def rank(rows):
    return np.linalg.matrix_rank(np.array(rows, dtype=float)) if len(rows) else 0


@pytest.mark.parametrize("seed", range(6))
def test_no_small_count_follows_from_the_others(seed):
    """An attacker who adds and subtracts what is shown of a side, and knows the totals, has no count of 1 to 9."""
    rng = np.random.default_rng(seed)

    def side(n):
        given = sample(n=n, seed=int(rng.integers(1000)))
        rows = len(given.sample_ids)
        race = rng.choice(["a", "b", "c", "d"], rows, p=[0.8, 0.14, 0.04, 0.02]).astype(object)
        if seed % 2:
            race[rng.random(rows) < 0.05] = None
        return replace(given, groups={**given.groups, "race": race})

    then, now = side(300), side(450)
    told = drift(then, now, QUICK)
    small = 0
    for given, when in ((then, "then"), (now, "now")):
        for attribute in given.groups:
            rows = [row for row in told["people"] if row["attribute"] == attribute]
            true = [int((given.groups[attribute] == row["group"]).sum()) for row in rows[:-1]]
            true.append(sum(group is None for group in given.groups[attribute]))
            known = [np.ones(len(rows))]  # the total
            for k, row in enumerate(rows):
                shown = row[f"n_{when}"]
                assert (row[f"share_{when}"] is None) == (not isinstance(shown, int))
                if isinstance(shown, int):
                    assert shown == true[k]
                    assert shown == 0 or shown >= 10 or row["group"] is None
                    known.append(np.eye(len(rows))[k])
                elif isinstance(shown, str) and 0 < true[k] < 10:
                    small += 1
            for k, count in enumerate(true[:-1]):
                if 0 < count < 10:
                    assert rank([*known, np.eye(len(rows))[k]]) > rank(known)
    assert small > 0
    tiny = {row["group"] for row in told["people"] if "<10" in (row["n_then"], row["n_now"])}
    assert not {f["group"] for f in told["findings"] if f["group"]} & tiny


def test_a_prevalence_that_would_tell_a_small_count_is_not_compared():
    then, now = sample(), sample(seed=1)
    few = np.flatnonzero(now.groups["sex"] == "female")
    truth = now.y_true.copy()
    truth[few] = 0
    truth[few[:4]] = 1
    told = drift(then, replace(now, y_true=truth), QUICK)
    assert found_in(told, "prevalence_shift", group="female") == []
    assert found_in(told, "auc_drop", group="female") == []
    assert "female" in told["unjudged"]["glaucoma"]["sex"]


def test_nothing_of_a_row_is_in_the_result():
    text = json.dumps(drift(sample(), sample(seed=1), QUICK), allow_nan=False)
    assert "image-" not in text
    assert "patient-" not in text


@pytest.mark.parametrize("name", ["score_shift", "dpd", "auc_drop"])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, float("nan")])
def test_limits_that_are_none_are_refused(name, value):
    with pytest.raises(ConfigError, match="limit"):
        Limits(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("min_cell", 0), ("resamples", 5), ("level", 1.0), ("level", 0.2)])
def test_what_else_cannot_be_asked_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        Asked(**{name: value})


def test_a_gap_may_also_have_a_limit_itself():
    then = sample(n=2400)
    then = moved(then, then.groups["sex"] == "female")
    now = sample(n=2400, seed=1)
    now = moved(now, now.groups["sex"] == "female")
    told = drift(then, now, replace(QUICK, limits=Limits(dpd=0.15)))
    assert one(told, "dpd_rise", attribute="sex")["verdict"] != "drifted"
    itself = one(told, "dpd", attribute="sex")
    assert itself["verdict"] == "drifted"
    assert itself["low"] > 0.15
