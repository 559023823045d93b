"""Grids as data, and the plan that is made of one: what is shared, and what is wrong before anything runs."""

from __future__ import annotations

import dataclasses

import pytest

from fairvlm_core.errors import ConfigError
from fairvlm_core.experiments import EXPERIMENTS, load_experiment
from fairvlm_core.experiments.chain import plan, work_of
from fairvlm_core.experiments.grid import Experiment, Recipe, changed

# Of the suite, one of its experiments of each kind.
TABLES = {name: load_experiment(name) for name in EXPERIMENTS if name != "controlled"}
GRIDS = TABLES | {grid.name: grid for grid in load_experiment("controlled").experiments["all"]}
EACH = pytest.mark.parametrize("name", GRIDS)


def count(runs, step):
    """How many different folders a step has."""
    return sum(work.step == step for work, _ in work_of(runs))


@EACH
def test_every_recipe_is_valid_at_both_sizes(name):
    grid = GRIDS[name]
    assert grid.name == name
    for params in ({}, changed({}, grid.toy, where=name)):
        runs = plan(grid, params, seeds=5)
        of_one_seed = len(runs) // 5
        assert {run.recipe.name for run in runs[:of_one_seed]} == {recipe.name for recipe in grid.recipes}
        assert [run.seed for run in runs[::of_one_seed]] == [0, 1, 2, 3, 4]
        for run in runs:
            assert grid.trained in run.work
            assert (run.attribute is None) != grid.apart
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
    def keys(name, recipe):
        runs = plan(load_experiment(name), {}, seeds=2)
        return {run.work["evaluate"].key for run in runs if run.recipe.name == recipe}

    assert keys("fairmed_table2", "fairmed_vlm") == keys("fairmed_table4", "fairmed_vlm")
    for recipe in load_experiment("fairmed_table2").recipes:
        assert keys("fairmed_table3", recipe.name) == keys("fairmed_table2", recipe.name)
    full = keys("fairmoe_table1", "fair_moe")
    assert len(full) == 2 * 2  # seeds and attributes
    others = [f"fairmoe_table{number}" for number in range(3, 7)]
    assert all(keys(name, "fair_moe") == full for name in (*others, "fairmoe_settings"))
    # Table 1 has the methods of Table 2, too, and without the terms F there is what Table 2 calls by another name.
    assert keys("fairmoe_table2", "fairclip") == keys("fairmoe_table1", "fairclip")
    experts = keys("fairmoe_table2", "fairclip_experts")
    assert experts == keys("fairmoe_table1", "fairclip_experts") == keys("fairmoe_table3", "no_dispersion")
    assert not full & keys("fairmoe_routing", "fair_moe")  # there, one model is for all attributes


F = ("embedding_image_weight", "embedding_text_weight", "feature_image_weight", "feature_text_weight")
ABLATIONS = {
    "fairmoe_table3": {
        "Without dispersion (all F)": dict.fromkeys(F, 0.0),
        "Without L_distance": {"distance_weight": 0.0},
    },
    "fairmoe_table4": {
        "Without F_EI": {"embedding_image_weight": 0.0},
        "Without F_ET": {"embedding_text_weight": 0.0},
        "Without F_FI": {"feature_image_weight": 0.0},
        "Without F_FT": {"feature_text_weight": 0.0},
    },
    "fairmoe_table5": {
        "Without embedding mixtures": {"places": ("feature_image", "feature_text")},
        "Without feature mixtures": {"places": ("embedding_image", "embedding_text")},
    },
    "fairmoe_table6": {
        "Without text mixtures": {"places": ("embedding_image", "feature_image")},
        "Without image mixtures": {"places": ("embedding_text", "feature_text")},
    },
    "fairmoe_settings": {
        "Two experts": {"experts": 2},
        "Eight experts": {"experts": 8},
        "Capacity 0.5": {"capacity": 0.5},
        "One expert per token": {"top_k": 1},
        "As in the authors' code": {
            "experts": 10,
            "top_k": 3,
            "capacity": 0.8,
            "residual": False,
            "distance_weight": 1e-4,
            **dict.fromkeys(F, 1e-4),
        },
    },
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_its_title_says_and_nothing_else(name):
    runs = plan(load_experiment(name), {}, seeds=1)
    full = {run.attribute: run.work for run in runs if run.recipe.title == "Fair-MoE"}
    assert {run.recipe.title for run in runs} == {"Fair-MoE", *ABLATIONS[name]}
    for run in runs:
        for step, work in run.work.items():
            whole = dataclasses.asdict(full[run.attribute][step].config)
            changes = {key: value for key, value in dataclasses.asdict(work.config).items() if value != whole[key]}
            assert changes == (ABLATIONS[name].get(run.recipe.title, {}) if step == "fair_moe" else {})


def test_the_mixtures_are_all_that_table_2_adds_to_fairclip():
    runs = {run.recipe.name: run for run in plan(load_experiment("fairmoe_table2"), {}, seeds=1)}
    before, after = (
        dataclasses.asdict(runs[name].work["fair_moe"].config) for name in ("fairclip", "fairclip_experts")
    )
    assert {key for key in before if before[key] != after[key]} == {"experts"}


def test_the_tables_are_laid_out_as_in_the_papers():
    layouts = {name: grid.layout for name, grid in TABLES.items()}
    assert all(layouts[f"fairmoe_table{i}"].metrics[:4] == ("es_auc", "auc", "dpd", "eod") for i in (1, 2, 3))
    assert all(layouts[f"fairmoe_table{i}"].rows == "attributes" for i in (1, 2, 3))
    assert all(
        (layouts[f"fairmoe_table{i}"].rows, layouts[f"fairmoe_table{i}"].metrics) == ("wide", ("es_auc",))
        for i in (4, 5, 6)
    )
    assert (layouts["fairmed_table3"].rows, layouts["fairmed_table3"].metrics) == ("wide", ("dpd", "eod"))


@EACH
def test_a_title_can_begin_a_sentence(name):
    assert all(recipe.title[0].isupper() for recipe in GRIDS[name].recipes)


def test_each_attribute_has_its_own_model_on_the_same_images():
    grid = load_experiment("fairmoe_table1")
    params = {"fair_moe": {"attributes": ["race", "sex", "language"]}}
    runs = plan(grid, params, seeds=2)
    assert [(run.seed, run.recipe.name, run.attribute) for run in runs[:4]] == [
        (0, "clip", "race"),
        (0, "clip", "sex"),
        (0, "clip", "language"),
        (0, "fairclip", "race"),
    ]
    assert all(run.work["fair_moe"].config.attributes == (run.attribute,) for run in runs)
    for step in ("ingest", "validate", "stratify", "base_models"):
        assert count(runs, step) == 1
    assert count(runs, "fair_moe") == count(runs, "evaluate") == 2 * 4 * 3
    told = {work.step: words for work, words in work_of(runs)}
    assert told["stratify"] == "for all runs"
    assert told["fair_moe"] == "Fair-MoE, language, seed 1"

    together = plan(dataclasses.replace(grid, apart=False), params, seeds=2)
    assert [run.attribute for run in together] == [None] * 2 * 4
    assert {run.work["fair_moe"].config.attributes for run in together} == {("race", "sex", "language")}
    assert {run.work["base_models"].key for run in (*runs, *together)} == {runs[0].work["base_models"].key}
    # A model for a single attribute is the same whichever way it is asked for.
    alone = {"fair_moe": {"attributes": ["sex"]}}
    keys = [
        [run.work["evaluate"].key for run in plan(dataclasses.replace(grid, apart=apart), alone, seeds=1)]
        for apart in (True, False)
    ]
    assert keys[0] == keys[1] == [run.work["evaluate"].key for run in runs if (run.seed, run.attribute) == (0, "sex")]


def test_only_the_judged_step_knows_of_the_attribute():
    grid = dataclasses.replace(load_experiment("fairmed_table2"), apart=True)
    runs = plan(grid, {}, seeds=1)
    together = plan(load_experiment("fairmed_table2"), {}, seeds=1)
    assert count(runs, "stage1") == count(together, "stage1")
    assert count(runs, "stage2") == 2 * count(together, "stage2")
    for run in runs:
        assert run.work["stage2"].config.attributes == (run.attribute,)
        if run.recipe.head != "model":
            assert run.work[run.recipe.head if run.recipe.head in run.work else "predict"].config["attributes"] == [
                run.attribute
            ]


def test_fair_moe_may_start_from_stage_2_which_its_attributes_share():
    params = {"fair_moe": {"init_from": "stage2", "attributes": ["race", "sex"]}}
    runs = plan(load_experiment("fairmoe_table1"), params, seeds=2)
    assert count(runs, "stage1") == count(runs, "stage2") == 2
    assert count(runs, "fair_moe") == 2 * 4 * 2
    for run in runs:
        assert run.work["fair_moe"].inputs["start"].key == run.work["stage2"].key
        assert run.work["predict"].inputs["model"].key == run.work["fair_moe"].key


def test_mistakes_about_the_attributes_are_told_before_anything_runs():
    grid = load_experiment("fairmoe_table1")
    with pytest.raises(ConfigError, match=r"needs an attribute(.|\n)*fair_moe.attributes"):
        plan(grid, {"fair_moe": {"attributes": []}}, seeds=1)
    other = Recipe("other", "Other", {"fair_moe.attributes": ("race",)})
    with pytest.raises(ConfigError, match="cannot change the attributes"):
        plan(dataclasses.replace(grid, recipes=(*grid.recipes, other)), {}, seeds=1)
    twice = plan(grid, {"fair_moe": {"attributes": ["sex", "sex"]}}, seeds=1)
    assert [run.attribute for run in twice] == ["sex"] * 4


def test_the_base_models_do_not_depend_on_a_recipe():
    """They stand for a published checkpoint, so every recipe starts from the same one."""
    runs = plan(load_experiment("fairmed_table4"), {}, seeds=1)
    unbalanced = next(run for run in runs if run.recipe.name == "no_balanced_sampling")
    assert unbalanced.work["stratify"].key != unbalanced.work["base_models"].inputs["cohort"].key
    assert len({run.work["stage1"].inputs["base"].key for run in runs}) == 1


def test_work_comes_after_what_it_reads():
    for grid in GRIDS.values():
        seen = set()
        for work, _ in work_of(plan(grid, {}, seeds=2)):
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


def test_what_a_training_does_not_look_at_is_no_other_training():
    grid = load_experiment("fairmed_table2")
    weights = [{"stage2": {"adversary_weight": alpha}, "stage1": {"dro_step": 0.5}} for alpha in (1.0, 0.3)]
    one, other = ({run.recipe.name: run.work for run in plan(grid, given, seeds=1)} for given in weights)
    same = {name for name in one if one[name]["evaluate"].key == other[name]["evaluate"].key}
    # The head on frozen embeddings takes its weight from there, too, but stands on the same standard model.
    assert same == set(one) - {"adversarial", "adversarial_head"}
    assert one["adversarial_head"]["stage2"].key == other["adversarial_head"]["stage2"].key
    assert one["group_dro"]["stage1"].config.dro_step == 0.5


def test_the_options_of_a_head_are_overrides():
    grid = load_experiment("fairmed_table2")
    heads = [r for r in grid.recipes if r.name == "adversarial_head"]
    (frozen,) = heads
    weaker = dataclasses.replace(grid, recipes=(*grid.recipes, frozen.derive("weaker", "Weaker", {"head.alpha": 0.25})))
    runs = {run.recipe.name: run.work for run in plan(weaker, {}, seeds=1)}
    assert [runs[name]["predict"].config["alpha"] for name in ("adversarial_head", "weaker")] == [1.0, 0.25]
    assert runs["weaker"]["stage2"].key == runs["standard"]["stage2"].key
    wrong = dataclasses.replace(grid, recipes=(*grid.recipes, grid.recipes[0].derive("w", "W", {"head.alpha": 1.0})))
    with pytest.raises(ConfigError, match='"model" has no option "alpha"'):
        plan(wrong, {}, seeds=1)


def test_one_option_of_the_data_set_is_changed_and_the_others_stay():
    given = {"ingest": {"options": {"patients": 100, "shortcut": 1.0}}}
    assert changed(given, {"ingest.options.shortcut": 0.0}, where="")["ingest"] == {
        "options": {"patients": 100, "shortcut": 0.0}
    }
    assert given["ingest"]["options"]["shortcut"] == 1.0
