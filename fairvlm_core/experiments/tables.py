"""The table of an experiment: mean and standard deviation over seeds, and the tests against the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fairvlm_core.evaluation.report.words import attribute_name, number, parity
from fairvlm_core.evaluation.significance import holm, paired_t_test
from fairvlm_core.experiments.grid import Experiment, Recipe
from fairvlm_core.experiments.heads import POSTPROCESS

if TYPE_CHECKING:
    from rich.table import Table

OVERALL = ("accuracy", "auc")
BY_ATTRIBUTE = ("es_auc", "dpd", "eod")
RANKING = ("auc", "es_auc")  # what a randomised decision, which is no ranking, does not have
ACROSS = "mean over attributes"
LEVEL = 0.05

# Attribute that a model is for (None: one model for all of them) -> the content of evaluation.json of each seed.
Judged = Mapping[str | None, Sequence[Mapping[str, Any]]]
Judgements = Mapping[str, Judged]


def summarise(experiment: Experiment, found: Judgements, *, min_cell: int) -> dict[str, Any]:
    """The content of the table, as JSON: null where a number does not exist, never NaN.

    Every number is that of the test split; thresholds and epochs were chosen on validation. What evaluate suppressed or
    could not judge is missing here, too. The family of a Holm correction is all the recipes that are compared with
    the reference by the same measure (and attribute).

    Args:
        found: recipe -> attribute -> the content of evaluation.json of each seed, in the order of the seeds.

    Returns:
        experiment, title, reference, seeds, kind, labels, n, min_cell, apart, attributes; `recipes`: a list of {name,
        title, overrides, head, measures}, the latter a list of {metric, attribute (null for overall), values (per
        seed), mean, sd, n}; `tests`: a list of {recipe, metric, attribute, n, difference, sd, statistic, p_value,
        p_holm, cohens_d}. Where each attribute has its own model, every measure belongs to an attribute, and
        those of "mean over attributes" are means over the models.
    """
    models = found[experiment.reference]
    first = next(iter(models.values()))[0]
    single = [name for name in models if name is not None] if experiment.apart else list(first["test"]["attributes"])
    attributes = [*single, *([ACROSS] if len(single) > 1 else [])]
    measures: list[tuple[str, str | None]] = [] if experiment.apart else [(metric, None) for metric in OVERALL]
    by_attribute = (*OVERALL, *BY_ATTRIBUTE) if experiment.apart else BY_ATTRIBUTE
    measures += [(metric, attribute) for attribute in attributes for metric in by_attribute]
    values = {
        recipe.name: {measure: _values(recipe, found[recipe.name], *measure) for measure in measures}
        for recipe in experiment.recipes
    }
    others = [recipe for recipe in experiment.recipes if recipe.name != experiment.reference]
    tests: list[dict[str, Any]] = []
    for metric, attribute in measures:
        reference = _numbers(values[experiment.reference][metric, attribute])
        family = [paired_t_test(_numbers(values[recipe.name][metric, attribute]), reference) for recipe in others]
        for recipe, test, corrected in zip(others, family, holm([test.p_value for test in family]), strict=True):
            numbers = {name: _json(value) for name, value in dataclasses.asdict(test).items()}
            shown = {"recipe": recipe.name, "metric": metric, "attribute": attribute}
            tests.append({**shown, **numbers, "n": test.n, "p_holm": _json(corrected)})
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "reference": experiment.reference,
        "seeds": len(next(iter(models.values()))),
        "kind": first["kind"],
        "labels": first["labels"],
        "n": first["test"]["n"],
        "min_cell": min_cell,
        "apart": experiment.apart,
        "attributes": attributes,
        "recipes": [
            {
                "name": recipe.name,
                "title": recipe.title,
                "overrides": {key: _plain(value) for key, value in recipe.overrides.items()},
                "head": recipe.head,
                "measures": [
                    {"metric": metric, "attribute": attribute, **_described(values[recipe.name][metric, attribute])}
                    for metric, attribute in measures
                ],
            }
            for recipe in experiment.recipes
        ],
        "tests": tests,
    }


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


def metric_name(metric: str, kind: str) -> str:
    """A metric as the reader sees it."""
    return {"accuracy": "accuracy", "auc": "AUC", "es_auc": "ES-AUC", "dpd": parity(kind)[0], "eod": "EOD"}[metric]


def spread(found: Mapping[str, Any], seeds: int) -> str:
    """Mean and standard deviation as text.

    >>> spread({"mean": 0.8123, "sd": 0.01, "n": 5}, 5), spread({"mean": 0.8, "sd": None, "n": 1}, 5)
    ('0.812 ± 0.010', '0.800 (1 of 5)')
    """
    if found["mean"] is None:
        return "–"
    shown = number(found["mean"]) + ("" if found["sd"] is None else f" ± {number(found['sd'])}")
    return shown if found["n"] == seeds else f"{shown} ({found['n']} of {seeds})"


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The main table: a row per recipe and attribute; a star marks a significant difference from the reference."""
    lines = []
    for name, title in titles(summary).items():
        for i, attribute in enumerate(summary["attributes"] or [None]):
            overall = [_cell(summary, name, metric, attribute if summary["apart"] else None) for metric in OVERALL]
            by = [_cell(summary, name, metric, attribute) if attribute else "–" for metric in BY_ATTRIBUTE]
            shown = attribute_name(attribute) if attribute else "–"
            once = [title, *overall] if i == 0 else ["", "", ""]  # what is said of a model, in the first of its rows
            lines.append([once[0], shown, *overall, *by] if summary["apart"] else [*once, shown, *by])
    return lines


def heads(summary: Mapping[str, Any]) -> list[str]:
    """Heads of the main table."""
    overall, by = ([metric_name(metric, summary["kind"]) for metric in part] for part in (OVERALL, BY_ATTRIBUTE))
    return ["method", "attribute", *overall, *by] if summary["apart"] else ["method", *overall, "attribute", *by]


def markdown(summary: Mapping[str, Any]) -> str:
    """Both tables as Markdown: the methods, and every test."""
    named = titles(summary)
    tests = [
        [
            named[test["recipe"]],
            metric_name(test["metric"], summary["kind"]),
            attribute_name(test["attribute"]) if test["attribute"] else "–",
            _signed(test["difference"]),
            number(test["statistic"], 2),
            p_text(test["p_value"]),
            p_text(test["p_holm"]),
            number(test["cohens_d"], 2),
        ]
        for test in summary["tests"]
    ]
    names = ["method", "measure", "attribute", "difference", "t", "p", "p (Holm)", "Cohen's d"]
    main = _table(heads(summary), rows(summary), words=(0, heads(summary).index("attribute")))
    parts = [f"# {summary['title']}", "", *main, "", caption(summary)]
    parts += [
        "",
        f"## Each method minus {named[summary['reference']]}, paired over the seeds",
        "",
        *_table(names, tests, words=(0, 1, 2)),
    ]
    return "\n".join([*parts, ""])


def terminal(summary: Mapping[str, Any]) -> Table:
    """The table for the terminal, narrow enough for it: of the attributes only the mean."""
    from rich import box
    from rich.table import Table

    last = summary["attributes"][-1] if summary["attributes"] else None
    which = "All numbers here" if summary["apart"] else "ES-AUC and gaps"
    over = "" if last is None else f" {which}: {attribute_name(last)}."
    table = Table(box=box.SIMPLE_HEAD, caption=caption(summary) + over, caption_justify="left", pad_edge=False)
    table.add_column("method")
    for metric in (*OVERALL, *BY_ATTRIBUTE):
        table.add_column(metric_name(metric, summary["kind"]), justify="right", min_width=7)
    for name, title in titles(summary).items():
        cells = [_cell(summary, name, metric, last if summary["apart"] else None) for metric in OVERALL]
        cells += ["–" if last is None else _cell(summary, name, metric, last) for metric in BY_ATTRIBUTE]
        table.add_row(title, *cells)
    return table


def caption(summary: Mapping[str, Any]) -> str:
    """How to read the table."""
    reference = titles(summary)[summary["reference"]]
    seeds, cell = summary["seeds"], summary["min_cell"]
    images = f"Test split, {summary['n']:,} images"
    if seeds > 1:
        sentences = [
            f"{images}; mean ± standard deviation over {seeds} seeds of the training.",
            f"* differs from {reference}: paired two-sided t-test over the seeds, p < {LEVEL} after Holm's correction "
            "over the methods.",
        ]
    else:
        sentences = [f"{images}; one seed, so nothing can be said about chance."]
    if summary["apart"]:
        mean = " The mean over attributes is that over the models." if ACROSS in summary["attributes"] else ""
        sentences.append(f"Each attribute has its own model, and its row the numbers of that model.{mean}")
    sentences += [
        f"Thresholds and epochs were chosen on validation; groups of fewer than {cell} images are left out; "
        "– where there is no number.",
    ]
    if len(summary["labels"]) > 1:
        sentences.append("AUC and gaps are means over the labels, each against the rest.")
    if any(recipe["head"] == POSTPROCESS for recipe in summary["recipes"]):
        sentences.append("Post-processed decisions are randomised and rank nobody, so they have no AUC.")
    return " ".join(sentences)


def p_text(value: float | None) -> str:
    """A p-value as text, exact however small.

    >>> p_text(0.0421), p_text(0.0000123), p_text(None)
    ('0.0421', '1.2e-05', '–')
    """
    return "–" if value is None else f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"


def _cell(summary: Mapping[str, Any], recipe: str, metric: str, attribute: str | None) -> str:
    """Mean and standard deviation, with a star where Holm's correction leaves the difference significant."""
    sure = any(
        test["p_holm"] is not None and test["p_holm"] < LEVEL
        for test in summary["tests"]
        if (test["recipe"], test["metric"], test["attribute"]) == (recipe, metric, attribute)
    )
    return spread(measure(summary, recipe, metric, attribute), summary["seeds"]) + (" *" if sure else "")


def _values(recipe: Recipe, found: Judged, metric: str, attribute: str | None) -> list[float | None]:
    """A measure on the test split of every seed, from the model that it is about."""
    if attribute == ACROSS and None not in found:
        each = [_values(recipe, found, metric, one) for one in found]
        return [_described(values)["mean"] for values in zip(*each, strict=True)]
    tests = [evaluation["test"] for evaluation in found[None if None in found else attribute]]
    if recipe.head == POSTPROCESS and metric in RANKING:
        return [None] * len(tests)
    if metric in OVERALL:
        return [test["overall"][metric] for test in tests]
    if attribute == ACROSS:
        return [test["across"][metric]["mean"] for test in tests]
    return [test["attributes"].get(attribute, {}).get(metric) for test in tests]


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


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _table(names: Sequence[str], lines: Sequence[Sequence[str]], *, words: Sequence[int]) -> list[str]:
    marks = ["---" if i in words else "---:" for i in range(len(names))]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (names, marks, *lines)]
