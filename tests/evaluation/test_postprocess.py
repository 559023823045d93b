"""Post-processing against fairlearn's own predictions."""

from __future__ import annotations

import generated_predictions as generated
import numpy as np
import pyarrow as pa
import pytest
from fairlearn.metrics import equalized_odds_difference
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.linear_model import LogisticRegression

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.metrics import equalized_odds_difference as odds_difference
from fairvlm_core.evaluation.postprocess import SUFFIX, decision_seed, postprocess, score_of
from fairvlm_core.evaluation.predictions import kind_of, read_predictions, scores, write_predictions
from fairvlm_core.evaluation.thresholds import decided, tune
from fairvlm_core.steps import execute, tune_thresholds


def known_sexes(**options):
    """A binary table in which everybody's sex is known and women have nothing but chance decide about them."""
    frame = generated.table("binary", bias=1.8, **options).to_pandas()
    frame["sex"] = frame["sex"].fillna("male")
    return pa.Table.from_pandas(frame, schema=generated.predictions.SCHEMA, preserve_index=False)


class Scores01(LogisticRegression):
    """A fitted classifier whose probability is its only feature."""

    def predict_proba(self, X):
        return np.column_stack([1 - X[:, 0], X[:, 0]])


def by_fairlearn(validation, given, j, groups, seed, objective):
    """fairlearn's decisions in the way its documentation shows, through a classifier's probabilities."""
    known = ~np.isnan(validation.y_true[:, j])
    classifier = Scores01().fit([[0.0], [1.0]], [0, 1])
    optimizer = ThresholdOptimizer(
        estimator=classifier,
        constraints="equalized_odds",
        objective=objective,
        prefit=True,
        predict_method="predict_proba",
    )
    optimizer.fit(
        validation.y_score[known, j : j + 1], validation.y_true[known, j], sensitive_features=groups[0][known]
    )
    return optimizer.predict(given.y_score[:, j : j + 1], sensitive_features=groups[1], random_state=seed)


@pytest.mark.parametrize("objective", ["balanced_accuracy_score", "accuracy_score"])
@pytest.mark.parametrize("seed", [0, 3])
def test_decisions_are_those_of_fairlearn(objective, seed):
    table = known_sexes()
    found = postprocess(table, ["sex"], seed=seed, objective=objective)
    assert found.groups == {"glaucoma": ["female", "male"]}
    assert found.plain == {"glaucoma": []}
    validation = scores(table, "validation")
    for split in ("validation", "test"):
        given, after = scores(table, split), scores(found.table, split)
        groups = validation.groups["sex"], given.groups["sex"]
        expected = by_fairlearn(validation, given, 0, groups, decision_seed(seed, split, 0), objective)
        np.testing.assert_array_equal(after.y_score[:, 0] >= 0.5, expected == 1)
        np.testing.assert_array_equal(after.sample_ids, given.sample_ids)
        np.testing.assert_array_equal(after.y_true, given.y_true)
        assert after.model == "stage1" + SUFFIX


def test_the_odds_are_more_equal_than_before():
    table = known_sexes(n=6000)
    validation, before = scores(table, "validation"), scores(table, "test")
    threshold = tune(validation.y_true, validation.y_score)[0]
    after = scores(postprocess(table, ["sex"], seed=0).table, "test")
    truth, sex = before.y_true[:, 0], before.groups["sex"]
    plain = equalized_odds_difference(truth, before.y_score[:, 0] >= threshold, sensitive_features=sex)
    equalized = equalized_odds_difference(truth, after.y_score[:, 0] >= 0.5, sensitive_features=sex)
    assert plain > 0.2
    assert equalized < 0.1
    assert equalized == pytest.approx(odds_difference(truth, after.y_score[:, 0] >= 0.5, groups=sex))


def test_unknown_and_unjudgeable_groups_keep_the_plain_decision():
    table = generated.table("binary")
    found = postprocess(table, ["race"], seed=1)
    # Nobody Asian is positive in this table; six Pacific Islanders are too few to be sure of both.
    assert "Asian" in found.plain["glaucoma"]
    assert {"Black", "White"} <= set(found.groups["glaucoma"])
    validation = scores(table, "validation")
    threshold = tune(validation.y_true, validation.y_score)[0]
    changed = 0
    for attribute, treated in (("race", found.groups["glaucoma"]), ("sex", ["female", "male"])):
        result = postprocess(table, [attribute], seed=1).table
        for split in ("validation", "test"):
            before, after = scores(table, split), scores(result, split)
            rows = ~np.isin(before.groups[attribute].astype(str), treated)
            assert rows.any()
            plain = before.y_score >= threshold
            np.testing.assert_array_equal(after.y_score[rows] >= 0.5, plain[rows])
            changed += ((after.y_score >= 0.5) != plain).sum()
    assert changed > 0


def test_several_attributes_mean_their_intersection():
    table = generated.table("binary", n=3000)
    both = postprocess(table, ["sex", "age_group"], seed=0)
    assert "female, 0-39" in both.groups["glaucoma"]
    assert len(both.groups["glaucoma"]) + len(both.plain["glaucoma"]) == 8
    frame = table.to_pandas()
    joined = frame["sex"] + ", " + frame["age_group"]  # missing where one is
    frame["language"] = joined.where(joined.notna(), None)
    alone = postprocess(
        pa.Table.from_pandas(frame, schema=generated.predictions.SCHEMA, preserve_index=False), ["language"], seed=0
    )
    assert alone.groups == both.groups
    assert alone.table.column("y_score").equals(both.table.column("y_score"))


def test_each_label_has_its_own_optimizer_and_its_own_chance():
    table = generated.table("multilabel", n=2400)
    found = postprocess(table, ["sex"], seed=0).table
    validation, before, after = scores(table, "validation"), scores(table, "test"), scores(found, "test")
    rows = before.groups["sex"] != None  # noqa: E711 - elementwise
    known = validation.groups["sex"] != None  # noqa: E711
    for j in range(len(before.labels)):
        sub = type(validation)(**{**vars(validation), "y_true": validation.y_true.copy()})
        sub.y_true[~known] = np.nan
        groups = validation.groups["sex"].astype(str), before.groups["sex"].astype(str)
        groups[1][~rows] = "male"  # their decision is not compared
        expected = by_fairlearn(sub, before, j, groups, decision_seed(0, "test", j), "balanced_accuracy_score")
        np.testing.assert_array_equal((after.y_score[:, j] >= 0.5)[rows], (expected == 1)[rows])
    assert len({decision_seed(0, split, j) for split in ("validation", "test") for j in range(4)}) == 8
    np.testing.assert_array_equal(np.isnan(after.y_true), np.isnan(before.y_true))


def test_a_class_is_chosen_among_the_classes():
    table = generated.table("multiclass", n=1500).replace_schema_metadata({"fairvlm.kind": "multiclass"})
    found = postprocess(table, ["sex"], seed=0).table
    assert kind_of(found) == "multiclass"
    before, after = scores(table, "test"), scores(found, "test")
    chosen = decided(after, {}).y_pred
    np.testing.assert_array_equal(chosen.sum(1), 1)
    unknown = np.array([value is None for value in before.groups["sex"]])
    np.testing.assert_array_equal(chosen[unknown].argmax(1), before.y_score[unknown].argmax(1))
    # Where exactly one class says yes, it is the one.
    yes = after.y_score >= 0.5
    single = yes.sum(1) == 1
    assert single.mean() > 0.2
    np.testing.assert_array_equal(chosen[single] == 1, yes[single])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    table = generated.table("binary")
    first, again, other = (postprocess(table, ["sex"], seed=seed).table for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)
    write_predictions(first, tmp_path / "predictions.parquet", kind=kind_of(first))
    kept = read_predictions(tmp_path)
    assert kept.column("y_score").to_pylist() == first.column("y_score").to_pylist()
    assert set(kept.column("split").to_pylist()) == {"validation", "test"}
    # The usual steps take it as they take any model's predictions.
    execute("tune_thresholds", tune_thresholds.Config(), {"predictions": tmp_path}, {"out": tmp_path / "thresholds"})


def test_rounding_to_float32_turns_no_decision():
    probability = np.array([0.3, 0.3, 0.3, 0.0, 1.0])
    drawn = np.array([0.3, 0.3 + 1e-12, 0.3 - 1e-12, 1e-12, 1 - 1e-12])
    score = score_of(probability, drawn)
    assert score.dtype == np.float32
    assert (score >= 0.5).tolist() == [True, False, True, False, True]
    assert ((score >= 0) & (score <= 1)).all()


def test_mistakes_are_told():
    table = generated.table("binary")
    with pytest.raises(PredictionsError, match='no groups for the attribute "language"'):
        postprocess(table, ["language"], seed=0)
    with pytest.raises(PredictionsError, match='split "validation"'):
        postprocess(table.filter(pa.compute.equal(table.column("split"), "test")), ["sex"], seed=0)


def test_one_group_alone_is_left_as_it_is():
    frame = generated.table("binary").to_pandas()
    frame["sex"] = "female"
    table = pa.Table.from_pandas(frame, schema=generated.predictions.SCHEMA, preserve_index=False)
    found = postprocess(table, ["sex"], seed=0)
    assert found.groups == {"glaucoma": []}
    assert found.plain == {"glaucoma": ["female"]}
    validation, before, after = scores(table, "validation"), scores(table, "test"), scores(found.table, "test")
    threshold = tune(validation.y_true, validation.y_score)[0]
    np.testing.assert_array_equal(after.y_score >= 0.5, before.y_score >= threshold)
