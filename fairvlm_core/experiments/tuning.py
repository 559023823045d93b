"""Choose among a recipe's candidates on validation, with a seed that no table reports; test is not even scored.

Every method of a table has the same number of candidates. What an ablation would be tuned to is not asked: it leaves
out a part of what was tuned, and takes over the rest of the choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairvlm_core.experiments.chain import Run, plan
from fairvlm_core.experiments.grid import Experiment, Params, Recipe
from fairvlm_core.experiments.schedule import place

TUNING_SEED = 100


def trials(experiment: Experiment, params: Params, root: Path | None = None) -> dict[str, list[list[Run]]]:
    """The runs of each candidate, by recipe and in the order of the candidates; they end with validation's scores."""
    found = {}
    for recipe in experiment.recipes:
        if len(recipe.candidates) > 1:
            tried = tuple(
                dataclasses.replace(
                    recipe,
                    name=f"{recipe.name} {number}",
                    title=f"{recipe.title}, candidate {number}",
                    overrides={**recipe.overrides, **candidate},
                    candidates=(),
                )
                for number, candidate in enumerate(recipe.candidates, start=1)
            )
            grid = dataclasses.replace(experiment, recipes=tried, reference=tried[0].name)
            runs = plan(grid, params, seeds=[TUNING_SEED], root=root, test=False)
            found[recipe.name] = [[run for run in runs if run.recipe.name == one.name] for one in tried]
    return found


def choose(
    experiment: Experiment, tried: Mapping[str, Sequence[Sequence[Run]]], out: Path, failed: Mapping[str, str]
) -> tuple[Experiment, list[dict[str, Any]]]:
    """Give each recipe what is best on validation.

    Args:
        tried: see `trials`; their work is done.
        failed: key of the work that could not be done -> why. A candidate that needs it is not chosen.

    Returns:
        The experiment with the choices as overrides and no candidates; and for each tuned recipe {recipe, criterion,
        seed, candidates: [{overrides, value, reason}], chosen: its number from 0}.
    """
    told = []
    chosen = {recipe.name: recipe.candidates[0] for recipe in experiment.recipes if recipe.candidates}
    for name, candidates in tried.items():
        recipe = next(recipe for recipe in experiment.recipes if recipe.name == name)
        listed, values = [], []
        for overrides, runs in zip(recipe.candidates, candidates, strict=True):
            why = [failed[work.key] for run in runs for work in run.work.values() if work.key in failed]
            value = None if why else _over_models(experiment, runs, out)
            listed.append({"overrides": plain(overrides), "value": value, "reason": why[0] if why else ""})
            values.append(value)
        best = select(values)
        chosen[name] = recipe.candidates[best]
        which = {"recipe": name, "criterion": experiment.criterion, "seed": TUNING_SEED}
        told.append({**which, "candidates": listed, "chosen": best})
    return settled(experiment, chosen), told


def settled(experiment: Experiment, chosen: Mapping[str, Mapping[str, Any]]) -> Experiment:
    """The experiment whose recipes have what was chosen for them; see `Recipe.follows`."""
    by_name = {recipe.name: recipe for recipe in experiment.recipes}

    def settle(recipe: Recipe) -> Recipe:
        choice = chosen.get(recipe.follows or recipe.name, {})
        before = by_name[recipe.follows].overrides if recipe.follows else recipe.overrides
        own = {key: value for key, value in recipe.overrides.items() if key not in before or before[key] != value}
        return dataclasses.replace(recipe, overrides={**recipe.overrides, **choice, **own}, candidates=(), follows="")

    return dataclasses.replace(experiment, recipes=tuple(settle(recipe) for recipe in experiment.recipes))


def select(values: Sequence[float | None]) -> int:
    """The place of the highest value; of equal ones, and where there is none, the first."""
    known = [-np.inf if value is None else value for value in values]
    return known.index(max(known))


def value_of(predictions: Path, criterion: str, attributes: Sequence[str]) -> float | None:
    """A criterion on the validation split of one model's scores, as training selects an epoch; null without one."""
    from fairvlm_core.evaluation.judgement import judge
    from fairvlm_core.evaluation.predictions import read_predictions, scores
    from fairvlm_core.evaluation.selection import criterion as value
    from fairvlm_core.evaluation.thresholds import decide

    given = scores(read_predictions(predictions), "validation")
    # A ranking needs no decisions, but a judgement has some.
    given = dataclasses.replace(given, y_pred=decide(given.y_score, np.full(len(given.labels), 0.5), given.kind))
    known = [name for name in attributes if name in given.groups]
    return value(criterion, judge(given), known)


def plain(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as JSON has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}


def _over_models(experiment: Experiment, candidate: Sequence[Run], out: Path) -> float | None:
    """The mean over the models of one candidate, of which there are several where each attribute has its own."""
    found = [
        value_of(place(run.work["predict"], out), experiment.criterion, run.work[experiment.trained].config.attributes)
        for run in candidate
    ]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None
