"""Candidates: chosen on validation and on nothing else, the same number for every method, followed by the ablations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from experiments.fairmed import FULL
from fairvlm_core.errors import ConfigError
from fairvlm_core.evaluation.predictions import SCHEMA, write_predictions
from fairvlm_core.experiments import load_experiment
from fairvlm_core.experiments.chain import plan
from fairvlm_core.experiments.grid import Experiment, Times, resolved
from fairvlm_core.experiments.heads import POSTPROCESS
from fairvlm_core.experiments.runner import check
from fairvlm_core.experiments.schedule import place
from fairvlm_core.experiments.tuning import TUNING_SEED, choose, select, settled, trials, value_of
from fairvlm_core.steps import stage2

RATES = tuple({"stage2.learning_rate": rate} for rate in (0.001, 0.002, 0.004))
GRID = Experiment(
    "tuned",
    "Tuned",
    (
        FULL.derive("other", "Other", {"stage2.fairness_weight": 0.0}, candidates=RATES),
        FULL.derive("ablation", "Ablation", {"stage2.fairness_weight": 0.0}, follows="fairmed_vlm"),
        FULL.derive("after", "After", head=POSTPROCESS, follows="other"),
        FULL.derive(
            "fairmed_vlm",
            "FairMed-VLM",
            candidates=tuple({**rate, "stage2.fairness_weight": 0.5} for rate in RATES),
        ),
    ),
    reference="fairmed_vlm",
)


def predictions(path, quality, seed):
    """Scores of 200 images on validation and on test; `quality` says how well each split is ranked."""
    rng = np.random.default_rng(seed)
    columns = {name: [] for name in SCHEMA.names}
    truths = {}
    for split, good in quality.items():
        truth = rng.integers(0, 2, 200)
        score = 1 / (1 + np.exp(-(good * (truth - 0.5) + rng.normal(size=200))))
        sex = np.array(["female", "male"])[rng.integers(0, 2, 200)]
        truths[split] = (truth, score.astype(np.float32), sex)
        for i in range(200):
            row = {
                "sample_id": f"{split}{i}",
                "patient_id": f"{split}{i}",
                "split": split,
                "label": "x",
                "y_true": int(truth[i]),
                "y_score": float(score[i]),
                "sex": sex[i],
                "model": "m",
                "seed": seed,
            }
            for name in columns:
                columns[name].append(row.get(name))
    path.mkdir(parents=True)
    write_predictions(pa.table(columns, schema=SCHEMA), path / "predictions.parquet", kind="binary")
    return truths


def es_auc(truth, score, sex):
    area = roc_auc_score(truth, score)
    gaps = sum(abs(area - roc_auc_score(truth[sex == one], score[sex == one])) for one in ("female", "male"))
    return area / (1 + gaps)


def test_validation_chooses_where_test_would_choose_another(tmp_path):
    params = {"stage2": {"attributes": ["sex"]}}
    tried = trials(GRID, params)
    assert list(tried) == ["other", "fairmed_vlm"]
    expected = {}
    for name, candidates in tried.items():
        found = []
        for number, runs in enumerate(candidates):
            (run,) = runs
            # The second is the best on validation, and on test the first, by far.
            quality = {"validation": [1.0, 4.0, 2.0][number], "test": [9.0, 0.1, 0.1][number]}
            truths = predictions(place(run.work["predict"], tmp_path), quality, seed=number)
            found.append(es_auc(*truths["validation"]))
        expected[name] = found
    chosen, told = choose(GRID, tried, tmp_path, {})
    for one in told:
        assert (one["criterion"], one["seed"], one["chosen"]) == ("es_auc", TUNING_SEED, 1)
        assert [c["value"] for c in one["candidates"]] == pytest.approx(expected[one["recipe"]], abs=1e-6)
    overrides = {recipe.name: recipe.overrides for recipe in chosen.recipes}
    assert overrides["fairmed_vlm"] == {"stage2.learning_rate": 0.002, "stage2.fairness_weight": 0.5}
    # An ablation takes over the choice, less its part; a head on the other's predictions finds the same model again.
    assert overrides["ablation"] == {"stage2.learning_rate": 0.002, "stage2.fairness_weight": 0.0}
    runs = {run.recipe.name: run for run in plan(chosen, params, seeds=1)}
    assert runs["after"].work["stage2"].config.fairness_weight == 0.1  # its own recipe's, not that of "other"
    assert runs["after"].work["stage2"].config.learning_rate == 0.002


def test_a_trial_scores_validation_alone_with_a_seed_that_no_table_has():
    for candidates in trials(GRID, {}).values():
        for runs in candidates:
            for run in runs:
                assert run.seed == TUNING_SEED
                assert run.work["stage2"].config.seed == TUNING_SEED
                assert run.work["predict"].config.splits == ("validation",)
                assert not {"tune_thresholds", "evaluate"} & set(run.work)
    with pytest.raises(ConfigError, match="no table can report"):
        check(GRID, {}, Path("nowhere"), seeds=TUNING_SEED + 1, root=None)


def test_a_candidate_that_cannot_be_trained_is_not_chosen(tmp_path):
    tried = trials(GRID, {"stage2": {"attributes": ["sex"]}})
    failed = {}
    for candidates in tried.values():
        for number, runs in enumerate(candidates):
            if number == 1:
                failed[runs[0].work["stage2"].key] = "The loss is not finite."
            else:
                predictions(place(runs[0].work["predict"], tmp_path), {"validation": 1.0 + number}, seed=number)
    _, told = choose(GRID, tried, tmp_path, failed)
    for one in told:
        assert one["chosen"] == 2
        assert one["candidates"][1] == {
            "overrides": one["candidates"][1]["overrides"],
            "value": None,
            "reason": "The loss is not finite.",
        }


def test_of_equal_values_the_first_and_without_any_the_first():
    assert select([0.1, 0.7, 0.7]) == 1
    assert select([None, 0.2, None]) == 1
    assert select([None, None]) == 0


def test_where_no_group_can_be_judged_there_is_no_value(tmp_path):
    predictions(tmp_path / "one", {"validation": 2.0}, seed=1)
    assert value_of(tmp_path / "one", "es_auc", ["race"]) is None
    assert value_of(tmp_path / "one", "auc", ["race"]) > 0.5


def test_every_method_has_the_same_number_of_candidates():
    full = FULL.derive("full", "Full", candidates=RATES)
    with pytest.raises(ConfigError, match="few has 2 candidates where another recipe has 3"):
        Experiment("e", "E", (full, FULL.derive("few", "Few", candidates=RATES[:2])), "full")
    with pytest.raises(ConfigError, match="plain has 0 candidates"):
        Experiment("e", "E", (full, FULL.derive("plain", "Plain")), "full")
    with pytest.raises(ConfigError, match="follows nobody"):
        Experiment("e", "E", (full, FULL.derive("lost", "Lost", follows="nobody")), "full")
    with pytest.raises(ConfigError, match="cannot have candidates and follow"):
        FULL.derive("both", "Both", candidates=RATES, follows="full")
    with pytest.raises(ConfigError, match="rank nobody"):
        FULL.derive("after", "After", head=POSTPROCESS, candidates=RATES)
    with pytest.raises(ConfigError, match="cannot be selected by dto"):
        dataclasses.replace(GRID, criterion="dto")


def test_a_wrong_candidate_is_told_before_anything_runs(tmp_path):
    wrong = ({"stage2.learning_rat": 0.1}, {})
    grid = Experiment("e", "E", (FULL.derive("full", "Full", candidates=wrong),), "full")
    with pytest.raises(ConfigError, match=r"learning_rat(.|\n)*learning_rate"):
        check(grid, {}, tmp_path, seeds=1, root=None)


def test_a_multiple_is_of_what_the_parameters_say():
    halves = ({"stage2.learning_rate": Times(0.5)}, {"stage2.fairness_weight": 10.0})
    grid = Experiment("e", "E", (FULL.derive("full", "Full", candidates=halves),), "full")
    default = stage2.Config().learning_rate
    for params, value in (({}, default / 2), ({"stage2": {"learning_rate": 0.004}}, 0.002)):
        (recipe,) = resolved(grid, params).recipes
        assert recipe.candidates == ({"stage2.learning_rate": value}, {"stage2.fairness_weight": 10.0})
    own = dataclasses.replace(grid, params={"stage2.learning_rate": 0.1})
    assert resolved(own, {}).recipes[0].candidates[0] == {"stage2.learning_rate": 0.05}
    for key, known in (("stage2.learning_rat", "learning_rate"), ("stag2.learning_rate", "stage2")):
        wrong = FULL.derive("full", "Full", candidates=({key: Times(0.5)}, {}))
        with pytest.raises(ConfigError, match=rf"{key}(.|\n)*{known}"):
            resolved(dataclasses.replace(grid, recipes=(wrong,)), {})


def test_the_controlled_grid_follows_its_own_rules():
    suite = load_experiment("controlled")
    assert list(suite.experiments) == [
        "none",
        "representation",
        "prevalence",
        "weak_signal",
        "shortcut",
        "label_noise",
        "all",
    ]
    options = {}
    for setting, grids in suite.experiments.items():
        for grid in grids:
            assert grid.budget == 2
            grid = resolved(grid, {})
            chosen = settled(grid, {r.name: r.candidates[1] for r in grid.recipes if r.candidates})
            for run in plan(chosen, {"ingest": {"options": {"patients": 50}}}, seeds=1):
                options[setting] = run.work["ingest"].config.options
    strengths = ("representation", "prevalence", "weak_signal", "shortcut")
    for name, given in options.items():
        assert given["patients"] == 50
        on = {bias for bias in strengths if given[bias]} | ({"label_noise"} if given["label_noise"] else set())
        assert on == ({*strengths, "label_noise"} if name == "all" else set() if name == "none" else {name})
        assert given.get("noise_group", "") == ("female" if "label_noise" in on else "")
    with pytest.raises(ConfigError, match='no setting "shortcuts"'):
        suite.only(["shortcuts"])
    assert list(suite.only(["all", "none"]).experiments) == ["none", "all"]
