"""Gaps at other thresholds, groups within groups, and all numbers as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io

import numpy as np
import pytest
from test_bootstrap import predictions

from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.metrics import equalized_odds_difference
from fairvlm_core.evaluation.report.beyond import (
    THRESHOLDS,
    gap_curve,
    intersection_section,
    numbers_csv,
    thresholds_section,
)
from fairvlm_core.evaluation.report.subjects import Subject, with_intervals


def subject(kind="binary", title="model", **changes):
    scores = dataclasses.replace(predictions(kind), **changes)
    return Subject(title, scores, judge(scores), {})


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
    rows = list(csv.DictReader(io.StringIO(numbers_csv([one]))))
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


def test_a_name_cannot_break_the_csv():
    one = subject(title='=cmd,"x"\n')
    rows = list(csv.reader(io.StringIO(numbers_csv([one]))))
    assert {len(row) for row in rows} == {9}
    assert rows[1][0] == '\'=cmd,"x"\n'  # and no spreadsheet takes it for a formula
