"""What each bias does to each method, on the generated cohort, whose ground truth is known: alone, and all together.

fairvlm experiment controlled --params experiments/controlled.yaml --out results/controlled --jobs 2

The biases are those of docs/generated-cohort.md at their documented strength, and labels that are wrong for every fifth
woman. Each setting has a table for FairMed-VLM and one for Fair-MoE, `controlled_SETTING_fairmed` and `_fairmoe`, with
one model for all attributes. Every method is tuned on validation between two candidates. An ablation is not: it is the
full method with what was chosen for that, less one part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from experiments.fairmed_methods import EXPERIMENT as FAIRMED
from experiments.fairmoe_methods import EXPERIMENT as FAIRMOE
from fairvlm_core.experiments.grid import Experiment, Recipe, Suite, both
from fairvlm_core.steps.fair_moe import PLACES

NONE = {"representation": 0.0, "prevalence": 0.0, "weak_signal": 0.0, "shortcut": 0.0, "label_noise": 0.0}
NOISE = {"label_noise": 0.2, "noise_group": "female"}
BIASES: dict[str, dict[str, object]] = {
    "none": {},
    "representation": {"representation": 1.0},
    "prevalence": {"prevalence": 1.0},
    "weak_signal": {"weak_signal": 1.0},
    "shortcut": {"shortcut": 1.0},
    "label_noise": NOISE,
    "all": {"representation": 1.0, "prevalence": 1.0, "weak_signal": 1.0, "shortcut": 1.0, **NOISE},
}
TITLES = {
    "none": "no bias",
    "representation": "representation",
    "prevalence": "prevalence",
    "weak_signal": "weak signal",
    "shortcut": "shortcut",
    "label_noise": "label noise",
    "all": "all of them",
}
Candidates = tuple[Mapping[str, object], ...]

# Two candidates each: of what a method has of its own, or else of the learning rate. The second weight of a fairness
# loss is one at which it can be felt: beside a task loss of 2 to 4 the contrast is some 3, of which lambda 0.1 leaves
# 0.3, the distance is 1e-3, and the dispersions are 1e-7 to 1e-4.
RATES: Candidates = tuple({"stage2.learning_rate": value} for value in (0.001, 0.002))
CANDIDATES: dict[str, Candidates] = {
    "reweighted_group": RATES,
    "reweighted_joint": RATES,
    "resampled": RATES,
    "standard": RATES,
    "adversarial": tuple(both("stage1", "stage2", adversary_weight=alpha) for alpha in (0.3, 1.0)),
    "fairmed_vlm": tuple({"stage2.fairness_weight": weight} for weight in (0.1, 10.0)),
    "clip": tuple({"fair_moe.learning_rate": value} for value in (0.001, 0.002)),
    "fairclip": ({"fair_moe.distance_weight": 1.0}, {"fair_moe.distance_weight": 100.0}),
    "fair_moe": tuple(
        {"fair_moe.distance_weight": distance, **{f"fair_moe.{place}_weight": dispersion for place in PLACES}}
        for distance, dispersion in ((1.0, 1.0), (100.0, 1000.0))
    ),
}
FOLLOWS = {"postprocessed": "standard"}


def tuned(grid: Experiment) -> tuple[Recipe, ...]:
    """Its recipes with their candidates; one that has none takes over the choice of what it is made of."""
    return tuple(
        replace(recipe, candidates=CANDIDATES[recipe.name])
        if recipe.name in CANDIDATES
        else replace(recipe, follows=FOLLOWS.get(recipe.name, grid.reference))
        for recipe in grid.recipes
    )


def tables(setting: str) -> tuple[Experiment, ...]:
    """The tables of one setting: one for each family of models."""
    shared = {
        "ingest.dataset": "generated",
        **{f"ingest.options.{name}": value for name, value in {**NONE, **BIASES[setting]}.items()},
    }
    return tuple(
        replace(
            grid,
            name=f"controlled_{setting}_{family}",
            title=f"{title} on the generated cohort: {TITLES[setting]}",
            recipes=tuned(grid),
            params=shared,
        )
        for family, title, grid in (("fairmed", "FairMed-VLM", FAIRMED), ("fairmoe", "Fair-MoE", FAIRMOE))
    )


EXPERIMENT = Suite(
    name="controlled",
    title="What each bias does to each method, on the generated cohort",
    settings=TITLES,
    experiments={setting: tables(setting) for setting in BIASES},
    untouched="none",
)
