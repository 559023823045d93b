"""Grids as data, and the plan that is made of one: what is shared, and what is wrong before anything runs."""

from __future__ import annotations

import dataclasses

import pytest

from fairvlm_core.errors import ConfigError
from fairvlm_core.experiments import EXPERIMENTS, load_experiment
from fairvlm_core.experiments.grid import Experiment, Recipe, changed
from fairvlm_core.experiments.runner import plan, work_of

EACH = pytest.mark.parametrize("name", EXPERIMENTS)


def count(runs, step):
    """How many different folders a step has."""
    return sum(work.step == step for work, _ in work_of(runs))


@EACH
def test_every_recipe_is_valid_at_both_sizes(name):
    grid = load_experiment(name)
    assert grid.name == name
    for params in ({}, changed({}, grid.toy, where=name)):
        runs = plan(grid, params, seeds=5)
        assert len(runs) == 5 * len(grid.recipes)
        assert [run.seed for run in runs[:: len(grid.recipes)]] == [0, 1, 2, 3, 4]
        for run in runs:
            assert grid.trained in run.work
            for step in {"stage1", "stage2", "fair_moe"} & set(run.work):
                config = run.work[step].config
                assert config.seed == run.seed
                for key, value in run.recipe.overrides.items():
                    if key.startswith(f"{step}."):
                        assert getattr(config, key.split(".")[1]) == value


def test_what_does_not_differ_is_done_once():
    runs = plan(load_experiment("fairmed_table4"), {}, seeds=3)
    for step in ("ingest", "validate", "base_models"):
        assert count(runs, step) == 1
    assert count(runs, "stratify") == 2  # balanced, and not
    # The fairness loss comes after Stage 1, so the full method and that without it share theirs.
    assert count(runs, "stage1") == 3 * 4
    assert count(runs, "stage2") == count(runs, "predict") == count(runs, "evaluate") == 3 * 5


def test_post_processing_takes_the_predictions_of_the_standard_model():
    runs = {run.recipe.name: run for run in plan(load_experiment("fairmed_table2"), {}, seeds=1)}
    standard, after = runs["standard"].work, runs["postprocessed"].work
    assert after["predict"].key == standard["predict"].key
    assert after["evaluate"].key != standard["evaluate"].key
    assert {name: work.step for name, work in after["evaluate"].inputs.items()} == {
        "predictions": "postprocess",
        "thresholds": "postprocess",
    }
    assert standard["evaluate"].inputs["thresholds"].step == "tune_thresholds"


def test_a_head_reads_the_standard_model_and_not_its_predictions():
    runs = {run.recipe.name: run for run in plan(load_experiment("fairmed_table2"), {}, seeds=1)}
    standard, head = runs["standard"].work, runs["adversarial_head"].work
    assert head["predict"].step == "adversarial_head"
    assert head["predict"].inputs["model"].key == standard["stage2"].key
    assert head["evaluate"].inputs["thresholds"].inputs["predictions"].key == head["predict"].key


def test_fair_moe_is_compared_with_clip_and_fairclip_on_the_same_images():
    runs = {run.recipe.name: run for run in plan(load_experiment("fairmoe_table1"), {}, seeds=1)}
    configs = {name: run.work["fair_moe"].config for name, run in runs.items()}
    assert {name: config.experts for name, config in configs.items()} == {
        "clip": 0,
        "fairclip": 0,
        "fairclip_experts": 4,
        "fair_moe": 4,
    }
    terms = [
        "distance_weight",
        *(f"{kind}_{side}_weight" for kind in ("embedding", "feature") for side in ("image", "text")),
    ]
    weights = {name: [getattr(config, term) for term in terms] for name, config in configs.items()}
    assert weights == {
        "clip": [0] * 5,
        "fairclip": [1, 0, 0, 0, 0],
        "fairclip_experts": [1, 0, 0, 0, 0],
        "fair_moe": [1] * 5,
    }
    for run in runs.values():
        assert not {"stage1", "stage2"} & set(run.work)
        assert run.work["predict"].inputs["model"].key == run.work["fair_moe"].key
        assert run.work["stratify"].key == runs["clip"].work["stratify"].key
    with pytest.raises(ConfigError, match="cannot judge stage1"):
        dataclasses.replace(load_experiment("fairmoe_table1"), trained="stage1")


def test_two_tables_in_one_folder_share_the_full_method():
    keys = [
        {
            run.work["evaluate"].key
            for run in plan(load_experiment(name), {}, seeds=2)
            if run.recipe.name == "fairmed_vlm"
        }
        for name in EXPERIMENTS
    ]
    assert keys[0] == keys[1]


def test_the_base_models_do_not_depend_on_a_recipe():
    """They stand for a published checkpoint, so every recipe starts from the same one."""
    runs = plan(load_experiment("fairmed_table4"), {}, seeds=1)
    unbalanced = next(run for run in runs if run.recipe.name == "no_balanced_sampling")
    assert unbalanced.work["stratify"].key != unbalanced.work["base_models"].inputs["cohort"].key
    assert len({run.work["stage1"].inputs["base"].key for run in runs}) == 1


def test_work_comes_after_what_it_reads():
    for name in EXPERIMENTS:
        seen = set()
        for work, _ in work_of(plan(load_experiment(name), {}, seeds=2)):
            assert all(given.key in seen for given in work.inputs.values())
            seen.add(work.key)


def test_a_change_is_another_folder_from_there_on():
    grid = load_experiment("fairmed_table4")
    before = plan(grid, {}, seeds=1)[0].work
    after = plan(grid, {"stage2": {"epochs": 7}}, seeds=1)[0].work
    differing = {step for step in before if before[step].key != after[step].key}
    assert differing == {"stage2", "predict", "tune_thresholds", "evaluate"}


def test_another_release_is_another_experiment(tmp_path):
    release = tmp_path / "release"
    (release / "images").mkdir(parents=True)
    (release / "table.csv").write_text("a,b\n1,2\n")
    (release / "images" / "1.png").write_bytes(b"picture")
    grid = load_experiment("fairmed_table4")

    def key():
        return plan(grid, {}, seeds=1, root=release)[0].work["evaluate"].key

    first = key()
    assert key() == first != plan(grid, {}, seeds=1)[0].work["evaluate"].key
    (release / "table.csv").write_text("a,b\n1,3\n")  # the same size
    second = key()
    assert second != first
    (release / "images" / "2.png").write_bytes(b"picture")
    assert key() not in (first, second)


def test_a_recipe_derives_from_another_in_a_line():
    full = Recipe("full", "Full", {"stage2.epochs": 3, "stage2.margin": 0.1})
    other = full.derive("other", "Other", {"stage2.epochs": 4})
    assert other.overrides == {"stage2.epochs": 4, "stage2.margin": 0.1}
    assert full.overrides["stage2.epochs"] == 3
    assert other.derive("late", "Late", head="postprocess").derive("later", "Later").head == "postprocess"
    with pytest.raises(ConfigError, match='no head "postproces"'):
        other.derive("late", "Late", head="postproces")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"stage2.fairnes_weight": 0.0}, ["fairnes_weight", "recipe wrong", "fairness_weight"]),
        ({"stage2.fairness_weight": -1.0}, ["fairness_weight cannot be -1.0"]),
        ({"stage3.epochs": 1}, ['"stage3.epochs"', 'Did you mean "stage']),
        ({"stage2": 1}, ['"stage2" names no step']),
        ({"ingest.image_size": 128}, ["cannot change ingest"]),
        ({"base_models.seed": 3}, ["cannot change base_models"]),
    ],
)
def test_a_wrong_recipe_is_told_before_anything_runs(overrides, words):
    grid = load_experiment("fairmed_table4")
    wrong = dataclasses.replace(grid, recipes=(*grid.recipes, Recipe("wrong", "Wrong", overrides)))
    with pytest.raises(ConfigError) as caught:
        plan(wrong, {}, seeds=1)
    for word in words:
        assert word in str(caught.value)


def test_mistakes_in_the_grid_and_its_name():
    full = Recipe("full", "Full")
    with pytest.raises(ConfigError, match="different names"):
        Experiment("e", "E", (full, full), "full")
    with pytest.raises(ConfigError, match="reference"):
        Experiment("e", "E", (full,), "fulll")
    with pytest.raises(ConfigError, match='Did you mean "fairmed_table2"'):
        load_experiment("fairmed_tabel2")
    with pytest.raises(ConfigError, match="needs a seed"):
        plan(load_experiment("fairmed_table4"), {}, seeds=0)
