"""An experiment in numbers: mean and standard deviation over seeds, tests against the reference, the Pareto fronts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairvlm_core.evaluation.selection import pareto_front
from fairvlm_core.evaluation.significance import holm, paired_t_test
from fairvlm_core.experiments.grid import ACROSS, BY_ATTRIBUTE, OVERALL, WORST, Experiment, Recipe
from fairvlm_core.experiments.heads import HEADS, MODEL, READS_GROUPS
from fairvlm_core.experiments.published import SOURCES, published

RANKING = ("auc", "es_auc")  # what a randomised decision, which is no ranking, does not have
GAPS = ("dpd", "eod")
SMALLER = GAPS  # the better; of the other measures, the larger

# Attribute that a model is for (None: one model for all of them) -> the content of evaluation.json of each seed.
Judged = Mapping[str | None, Sequence[Mapping[str, Any]]]
Judgements = Mapping[str, Judged]


def summarise(
    experiment: Experiment, found: Judgements, *, min_cell: int, dataset: str | None = None
) -> dict[str, Any]:
    """The content of the table, as JSON: null where a number does not exist, never NaN.

    Every number is that of the test split; thresholds and epochs were chosen on validation. What evaluate suppressed or
    could not judge is missing here, too. The family of a Holm correction is all the recipes that are compared with
    the reference by the same measure (and attribute). Baselines are in no family and on no front: they are there in
    every table, so that with them every comparison of two methods would be harder for nothing that it asks.

    The interval of a measure is about the patients, and its ends are the means over the seeds of the ends that evaluate
    found. The standard deviation of a mean is at most the mean of the standard deviations, so that this is no narrower
    than an interval of the mean.

    Args:
        found: recipe -> attribute -> the content of evaluation.json of each seed, in the order of the seeds; of a
            baseline, the only one.
        dataset: `ingest.dataset` of the run; published numbers are of the same data set, or there are none.

    Returns:
        experiment, title, reference, seeds, kind, labels, n, min_cell, dataset, apart, layout {rows, metrics},
        attributes; `recipes`: a list of {name, title, overrides, head, reads_groups, baseline, measures}, the latter a
        list of {metric, attribute (null for overall), values (per seed), mean, sd, n, interval ([low, high] or null)};
        `tests`: a list of {recipe, metric,
        attribute, n, difference, sd, statistic, p_value, p_holm, cohens_d}; `fronts`: a list of {attribute, gap,
        recipes}, the recipes that no other beats in both accuracy and this gap; `published`: a list of {recipe, model,
        attribute, metric, mean, sd, source}, and `sources`: a list of {citation, note}, the n-th of which has the
        source n - 1. `tuning`, `follows`, `diagnostics` and `provenance` are empty: whoever ran it fills them in.
        Where each attribute has its own model, every measure belongs to an attribute, and those of "mean over
        attributes" are means over the models.
    """
    models = found[experiment.reference]
    first = next(iter(models.values()))[0]
    single = [name for name in models if name is not None] if experiment.apart else list(first["test"]["attributes"])
    several = [ACROSS, *([WORST] if experiment.layout.worst else [])] if len(single) > 1 else []
    attributes = [*single, *several]
    measures: list[tuple[str, str | None]] = [] if experiment.apart else [(metric, None) for metric in OVERALL]
    by_attribute = (*OVERALL, *BY_ATTRIBUTE) if experiment.apart else BY_ATTRIBUTE
    measures += [(metric, attribute) for attribute in attributes for metric in by_attribute]
    values = {
        recipe.name: {measure: _values(recipe, found[recipe.name], *measure) for measure in measures}
        for recipe in experiment.recipes
    }
    summary: dict[str, Any] = {
        "experiment": experiment.name,
        "title": experiment.title,
        "reference": experiment.reference,
        "seeds": len(next(iter(models.values()))),
        "kind": first["kind"],
        "labels": first["labels"],
        "n": first["test"]["n"],
        "min_cell": min_cell,
        "dataset": dataset,
        "apart": experiment.apart,
        "layout": {"rows": experiment.layout.rows, "metrics": list(experiment.layout.metrics)},
        "attributes": attributes,
        "recipes": [
            {
                "name": recipe.name,
                "title": recipe.title,
                "overrides": {key: _plain(value) for key, value in recipe.overrides.items()},
                "head": recipe.head,
                "reads_groups": recipe.head in READS_GROUPS,
                "baseline": recipe.baseline,
                "measures": [
                    {
                        "metric": metric,
                        "attribute": attribute,
                        **_described(values[recipe.name][metric, attribute]),
                        "interval": _interval(recipe, found[recipe.name], metric, attribute),
                    }
                    for metric, attribute in measures
                ],
            }
            for recipe in experiment.recipes
        ],
        "tests": _tests(experiment, values, measures),
    }
    summary["fronts"] = [
        {"attribute": attribute, "gap": gap, "recipes": _front(summary, gap, attribute)}
        for attribute in attributes
        for gap in GAPS
    ]
    shown = published(experiment.name, dataset, apart=experiment.apart)
    keys = list(dict.fromkeys(one.source for one in shown))
    summary["published"] = [{**dataclasses.asdict(one), "source": keys.index(one.source)} for one in shown]
    summary |= {"tuning": [], "follows": {}, "diagnostics": [], "provenance": {}}
    summary["sources"] = [{"citation": SOURCES[key].citation, "note": SOURCES[key].note} for key in keys]
    return summary


def measure(summary: Mapping[str, Any], recipe: str, metric: str, attribute: str | None = None) -> dict[str, Any]:
    """One measure of one recipe: values, mean, sd, n."""
    return next(
        found
        for described in summary["recipes"]
        if described["name"] == recipe
        for found in described["measures"]
        if (found["metric"], found["attribute"]) == (metric, attribute)
    )


def titles(summary: Mapping[str, Any]) -> dict[str, str]:
    """Title of each recipe by name, in the order of the table."""
    return {recipe["name"]: recipe["title"] for recipe in summary["recipes"]}


def about(summary: Mapping[str, Any], metric: str, attribute: str | None) -> str | None:
    """The attribute that a measure has in a row about `attribute`: none for what is said of one model for all."""
    return None if metric in OVERALL and not summary["apart"] else attribute


def in_one(summary: Mapping[str, Any]) -> str | None:
    """The attribute that stands for all of them: their mean, or the only one; None without attributes."""
    names = summary["attributes"]
    return ACROSS if ACROSS in names else names[-1] if names else None


def front(summary: Mapping[str, Any], gap: str, attribute: str) -> list[str]:
    """The recipes on the Pareto front of accuracy against a gap, by the means over the seeds."""
    return next(
        found["recipes"] for found in summary["fronts"] if (found["attribute"], found["gap"]) == (attribute, gap)
    )


def _front(summary: Mapping[str, Any], gap: str, attribute: str) -> list[str]:
    names = [recipe["name"] for recipe in summary["recipes"] if not recipe["baseline"]]
    accuracy = [measure(summary, name, "accuracy", about(summary, "accuracy", attribute))["mean"] for name in names]
    gaps = [measure(summary, name, gap, attribute)["mean"] for name in names]
    return [name for name, on in zip(names, pareto_front(accuracy, gaps), strict=True) if on]


def _tests(
    experiment: Experiment,
    values: Mapping[str, Mapping[tuple[str, str | None], list[float | None]]],
    measures: Sequence[tuple[str, str | None]],
) -> list[dict[str, Any]]:
    others = [recipe for recipe in experiment.recipes if recipe.name != experiment.reference and not recipe.baseline]
    tests: list[dict[str, Any]] = []
    for metric, attribute in measures:
        reference = _numbers(values[experiment.reference][metric, attribute])
        family = [paired_t_test(_numbers(values[recipe.name][metric, attribute]), reference) for recipe in others]
        for recipe, test, corrected in zip(others, family, holm([test.p_value for test in family]), strict=True):
            numbers = {name: _json(value) for name, value in dataclasses.asdict(test).items()}
            shown = {"recipe": recipe.name, "metric": metric, "attribute": attribute}
            tests.append({**shown, **numbers, "n": test.n, "p_holm": _json(corrected)})
    return tests


def _values(recipe: Recipe, found: Judged, metric: str, attribute: str | None) -> list[float | None]:
    """A measure on the test split of every seed, from the model that it is about."""
    if attribute in (ACROSS, WORST) and None not in found:
        each = [_values(recipe, found, metric, one) for one in found]
        return [_joined(metric, attribute, values) for values in zip(*each, strict=True)]
    tests = [evaluation["test"] for evaluation in found[None if None in found else attribute]]
    if not _ranks(recipe) and metric in RANKING:
        return [None] * len(tests)
    if metric in OVERALL:
        return [test["overall"][metric] for test in tests]
    if attribute in (ACROSS, WORST):
        return [test["across"][metric]["mean" if attribute == ACROSS else "worst"] for test in tests]
    return [test["attributes"].get(attribute, {}).get(metric) for test in tests]


def _interval(recipe: Recipe, found: Judged, metric: str, attribute: str | None) -> list[float] | None:
    """The interval of a measure over the patients; see `summarise`."""
    if not _ranks(recipe) and metric in RANKING:
        return None
    if attribute in (ACROSS, WORST) and None not in found:
        # Other models, other draws of the decisions: what is said of each attribute does not add up to an interval.
        return None
    ends = []
    for evaluation in found[None if None in found else attribute]:
        sure = evaluation["test"].get("intervals", {})
        if metric in OVERALL:
            ends.append(sure.get("overall", {}).get(metric))
        elif attribute in (ACROSS, WORST):
            ends.append(sure.get("across", {}).get(metric, {}).get("mean" if attribute == ACROSS else "worst"))
        else:
            ends.append(sure.get("attributes", {}).get(attribute, {}).get(metric))
    known = [pair for pair in ends if pair is not None]
    return [float(end) for end in np.mean(known, axis=0)] if known else None


def _ranks(recipe: Recipe) -> bool:
    return recipe.head == MODEL or HEADS[recipe.head].ranks


def _joined(metric: str, attribute: str | None, values: Sequence[float | None]) -> float | None:
    """The mean or the worst over the models of several attributes; null where none has the measure."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(np.mean(known)) if attribute == ACROSS else (max if metric in SMALLER else min)(known)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def _described(values: Sequence[float | None]) -> dict[str, Any]:
    known = np.array([value for value in values if value is not None])
    return {
        "values": list(values),
        "mean": _json(known.mean()) if len(known) else None,
        "sd": _json(known.std(ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }


def _json(value: float) -> float | None:
    """Every digit is kept: a p-value may be small."""
    return None if np.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
