"""The chosen model against the others, from models whose differences are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_bootstrap import predictions

from fairvlm_core.evaluation.contrasts import MEASURES, against_champion, contrasts
from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.paired import differences
from fairvlm_core.evaluation.significance import delong, holm


def noisier(scores, spread, seed=1):
    noise = np.random.default_rng(seed).normal(0, spread, scores.y_score.shape)
    score = np.clip(scores.y_score + noise, 0, 1)
    return dataclasses.replace(scores, y_score=score, y_pred=(score > 0.5).astype(float))


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_differences_intervals_and_corrected_tests(kind):
    scores = predictions(kind, ties=False)
    order = np.random.default_rng(0).permutation(400)
    worse = noisier(scores, 0.4)
    moved = dataclasses.replace(
        worse,
        **{name: getattr(worse, name)[order] for name in ("sample_ids", "patient_ids", "y_true", "y_score", "y_pred")},
        groups={name: values[order] for name, values in worse.groups.items()},
    )
    found = contrasts(scores, {"same": scores, "worse": moved}, resamples=300)
    assert [(row["model"], row["measure"]) for row in found] == [
        (model, measure) for model in ("same", "worse") for measure in MEASURES
    ]
    told = {(row["model"], row["measure"]): row for row in found}
    assert all(told["same", measure]["difference"] == 0 for measure in MEASURES)
    assert told["same", "auc"]["p_value"] == 1
    one, other = judge(scores), judge(worse)
    row = told["worse", "auc"]
    assert row["difference"] == pytest.approx(one["overall"]["auc"] - other["overall"]["auc"], abs=1e-5)
    assert 0 < row["low"] < row["difference"] < row["high"]
    eod = told["worse", "eod"]
    assert eod["difference"] == pytest.approx(one["across"]["eod"]["mean"] - other["across"]["eod"]["mean"], abs=1e-5)
    bootstrap = differences(scores, worse, resamples=300)["overall", "auc"].p_value
    if kind == "binary":
        wanted = delong(scores.y_true[:, 0], scores.y_score[:, 0], worse.y_score[:, 0], patients=scores.patient_ids)
        assert row["p_value"] == pytest.approx(wanted.p_value)
    else:
        assert row["p_value"] == bootstrap
    assert [told[model, "auc"]["p_holm"] for model in ("same", "worse")] == pytest.approx(
        holm([told[model, "auc"]["p_value"] for model in ("same", "worse")])
    )


def test_what_cannot_be_compared_is_null():
    scores = dataclasses.replace(predictions(n=60), groups={})
    found = {row["measure"]: row for row in contrasts(scores, {"other": noisier(scores, 0.1)}, resamples=100)}
    numbers = dict.fromkeys(("difference", "low", "high", "p_value", "p_holm"))
    assert found["eod"] == {"model": "other", "measure": "eod", **numbers}
    assert found["auc"]["low"] is not None


def test_the_champion_is_a_family_of_its_own():
    scores = predictions(ties=False)
    champion = noisier(scores, 0.4)
    found = against_champion(scores, champion, resamples=300)
    attributes = list(scores.groups)
    assert [(row["measure"], row["attribute"]) for row in found] == [
        *((measure, None) for measure in MEASURES),
        *(("worst_group_auc", attribute) for attribute in attributes),
    ]
    alike = contrasts(scores, {"champion": champion}, resamples=300)
    for row, other in zip(found, alike, strict=False):
        assert [row[key] for key in ("difference", "low", "high", "p_value")] == [
            other[key] for key in ("difference", "low", "high", "p_value")
        ]
    one, other = judge(scores)["attributes"], judge(champion)["attributes"]
    for row in found[len(MEASURES) :]:
        worst = [judged[row["attribute"]]["worst_group_auc"] for judged in (one, other)]
        assert row["difference"] == pytest.approx(worst[0] - worst[1], abs=1e-5)
        assert row["low"] < row["high"]
    # Holm by hand, over all the rows: the k-th smallest of m times m - k + 1, never smaller than the one before.
    ordered = sorted(found, key=lambda row: row["p_value"])
    least = 0.0
    for k, row in enumerate(ordered):
        least = max(least, min(row["p_value"] * (len(ordered) - k), 1.0))
        assert row["p_holm"] == pytest.approx(least)
