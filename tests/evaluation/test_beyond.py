"""Gaps at other thresholds, groups within groups, and all numbers of the page as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io

import numpy as np
import pytest
from test_bootstrap import predictions

from fairvlm_core.evaluation.bootstrap import intervals
from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.metrics import equalized_odds_difference
from fairvlm_core.evaluation.report.beyond import (
    THRESHOLDS,
    gap_curve,
    intersection_section,
    thresholds_section,
)
from fairvlm_core.evaluation.report.content import Champion, Content, Selection
from fairvlm_core.evaluation.report.spreadsheet import numbers_csv
from fairvlm_core.evaluation.report.subjects import Subject, with_intervals


def subject(kind="binary", title="model", **changes):
    scores = dataclasses.replace(predictions(kind), **changes)
    return Subject(title, scores, judge(scores), {})


def rows_of(subjects, **more):
    text = numbers_csv(Content("Report", subjects, "test", "", **more))
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_the_curve_is_the_gap_at_each_threshold(kind):
    one = subject(kind)
    scores = one.scores
    groups = scores.groups["race"].copy()
    groups[groups == "rare"] = None  # too few to be judged
    found = gap_curve(one, "race")
    for place in (0, 30, 50, 77, 100):
        wanted = [
            equalized_odds_difference(truth, (score >= THRESHOLDS[place]).astype(float), groups=groups)
            for truth, score in zip(scores.y_true.T, scores.y_score.T, strict=True)
        ]
        assert found[place] == pytest.approx(np.mean(wanted))
    assert found[0] == 0
    assert "polyline" in thresholds_section([one])


def test_without_groups_there_is_nothing_to_draw():
    one = subject(groups={"sex": np.full(400, "female", dtype=object)})
    assert "no gap to show" in thresholds_section([one])
    assert intersection_section([one]) == ""


def test_small_cells_are_suppressed_in_the_map_and_absent_from_the_csv():
    scores = predictions()
    sex, age = scores.groups["sex"], scores.groups["age_group"]
    keep = np.flatnonzero((sex == "female") & (age == "60+"))
    age[keep[4:]] = "0-39"  # four women of 60 and over are left
    one = with_intervals(Subject("model", scores, judge(scores), {}))
    shown = intersection_section([one])
    assert "n = &lt;10" in shown
    assert "female 60+ suppressed" in shown
    rows = rows_of([one])
    assert not [row for row in rows if row["group"] == "female, 60+" and row["metric"] != "n"]
    told = {(row["attribute"], row["group"], row["label"], row["metric"]): row for row in rows}
    area = told["", "", "", "auc"]
    assert float(area["value"]) == one.judgement["overall"]["auc"]
    assert float(area["low"]) < float(area["value"]) < float(area["high"])
    gap = told["sex", "", "", "eod"]
    assert float(gap["p"]) == pytest.approx(one.p_values["sex"]["eod"], abs=1e-6)
    women = told["sex", "female", "", "auc"]
    assert float(women["value"]) == one.judgement["attributes"]["sex"]["groups"]["female"]["auc"]
    assert len(rows) > 150


def test_differences_answers_thresholds_and_the_cohort_are_in_the_csv():
    answered = dataclasses.replace(predictions(), y_answer=predictions().y_pred)
    new = Subject("new", answered, judge(answered), {"x": 0.25})
    numbers = {"measure": "auc", "difference": 0.0512345678, "low": 0.01, "high": None, "p_value": 0.01, "p_holm": 0.02}
    nothing = {"measure": "eod", **dict.fromkeys(("difference", "low", "high", "p_value", "p_holm"))}
    worst = numbers | {"measure": "worst_group_auc", "attribute": "sex"}
    cells = [
        {"sex": "female", "age_group": "0-39", "train_before": 60, "train_after": 78},
        {"sex": "male", "age_group": "80+", "train_before": None, "train_after": None},
    ]
    rows = rows_of(
        [new, subject(title="old")],
        selection=Selection("new", "auc", [], {}),
        against=[{"model": "old", **numbers}, {"model": "old", **nothing}],
        champion=Champion("Champion (version 3)", True, [worst]),
        strata={"attributes": ["sex", "age_group"], "cells": cells},
    )
    told = {(row["model"], row["attribute"], row["group"], row["metric"]): row for row in rows}
    against = told["new minus old", "", "", "auc"]
    assert (against["value"], against["low"], against["high"], against["p"]) == ("0.051235", "0.01", "", "0.02")
    assert ("new minus old", "", "", "eod") not in told
    assert told["new minus Champion (version 3)", "sex", "", "worst_group_auc"]["p"] == "0.02"
    assert told["", "sex x age_group", "female, 0-39", "train_after"]["value"] == "78"
    assert ("", "sex x age_group", "male, 80+", "train_before") not in told
    assert told["new", "", "", "threshold"]["value"] == "0.25"
    assert float(told["new", "", "", "answers_agreement"]["value"]) == 1
    women = new.judgement["answers"]["attributes"]["sex"]["female"]
    assert float(told["new", "sex", "female", "answers_accuracy"]["value"]) == women["accuracy"]
    assert ("old", "", "", "answers_agreement") not in told


def test_a_name_cannot_break_the_csv():
    one = subject(title='=cmd,"x"\n')
    rows = list(csv.reader(io.StringIO(numbers_csv(Content("Report", [one], "test", "")))))
    assert {len(row) for row in rows} == {9}
    assert rows[1][0] == '\'=cmd,"x"\n'  # and no spreadsheet takes it for a formula


def test_the_csv_has_each_label_over_all_images():
    one = subject("multilabel")
    one = dataclasses.replace(one, sure=intervals(one.scores, resamples=100))
    told = {(row["label"], row["metric"]): row for row in rows_of([one]) if row["label"] and not row["attribute"]}
    for label, numbers in one.judgement["per_label"].items():
        assert {metric: told[label, metric]["value"] for metric in numbers} == {m: str(v) for m, v in numbers.items()}
        ends = one.sure["overall"]["auc_per_label"][label]
        assert [told[label, "auc"][end] for end in ("low", "high")] == [str(end) for end in ends]
        assert told[label, "tpr"]["low"] == ""
