"""The rows that stand in every table beside the methods: see `heads.baselines` for what they are."""

from __future__ import annotations

import dataclasses

from fairvlm_core.experiments.grid import HEAD, Experiment, Params, Recipe
from fairvlm_core.experiments.heads import BAYES, LINEAR_PROBE, MAJORITY

# Every image once: nobody who fits a linear probe would throw images away, and balancing is a method's part.
WHOLE_COHORT = {"stratify.majority_cap": None, "stratify.oversample_cap": 1.0}
GENERATED = "generated"


def _baseline(name: str, title: str, head: str, **options: object) -> Recipe:
    overrides = {**WHOLE_COHORT, **{f"{HEAD}.{key}": value for key, value in options.items()}}
    return Recipe(name, title, overrides, head, baseline=True)


EVERYWHERE = (
    _baseline("majority", "Majority class", MAJORITY),
    _baseline("linear_probe", "Linear probe of the base", LINEAR_PROBE),
)
KNOWN_TRUTH = (
    _baseline("bayes_image", "Best possible from the image", BAYES, groups=False),
    _baseline("bayes_honest", "Best possible from the image without its marker", BAYES, groups=False, shortcut=False),
    _baseline("bayes", "Best possible from image and groups", BAYES),
)


def with_baselines(experiment: Experiment, params: Params) -> Experiment:
    """The experiment with its baselines behind the methods; of a generated cohort with what is possible at all."""
    dataset = experiment.params.get("ingest.dataset", (params.get("ingest") or {}).get("dataset", GENERATED))
    names = {recipe.name for recipe in experiment.recipes}
    added = [
        recipe for recipe in (*EVERYWHERE, *(KNOWN_TRUTH if dataset == GENERATED else ())) if recipe.name not in names
    ]
    return dataclasses.replace(experiment, recipes=(*experiment.recipes, *added))
