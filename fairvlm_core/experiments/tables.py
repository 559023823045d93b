"""The table of an experiment as text, in the paper's layout: for a file as Markdown, and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fairvlm_core.evaluation.report.words import attribute_name, number, parity
from fairvlm_core.experiments.grid import ACROSS, ATTRIBUTES, BY_ATTRIBUTE, METHODS, OVERALL, WIDE
from fairvlm_core.experiments.heads import MAJORITY, POSTPROCESS
from fairvlm_core.experiments.sections import sections, table
from fairvlm_core.experiments.summary import GAPS, about, front, in_one, measure, titles

if TYPE_CHECKING:
    from rich.table import Table

LEVEL = 0.05
FRONT = "Pareto front"
READS = "†"  # marks a method that must know the patient's group when it decides

Summary = Mapping[str, Any]
Cells = dict[tuple[str, str | None], str]  # metric, attribute (None: about everybody) -> the number as text


def metric_name(metric: str, kind: str) -> str:
    """A metric as the reader sees it."""
    return {"accuracy": "accuracy", "auc": "AUC", "es_auc": "ES-AUC", "dpd": parity(kind)[0], "eod": "EOD"}[metric]


def marked(summary: Summary) -> dict[str, str]:
    """Title of each recipe by name, with a mark on those that read the demographics at inference."""
    return {
        recipe["name"]: recipe["title"] + (f" {READS}" if recipe["reads_groups"] else "")
        for recipe in summary["recipes"]
    }


def baselines(summary: Summary) -> list[str]:
    """Names of the recipes that are yardsticks and no methods."""
    return [recipe["name"] for recipe in summary["recipes"] if recipe["baseline"]]


def spread(found: Mapping[str, Any], seeds: int) -> str:
    """Mean and standard deviation as text.

    >>> spread({"mean": 0.8123, "sd": 0.01, "n": 5}, 5), spread({"mean": 0.8, "sd": None, "n": 1}, 5)
    ('0.812 ± 0.010', '0.800 (1 of 5)')
    """
    if found["mean"] is None:
        return "–"
    shown = number(found["mean"]) + ("" if found["sd"] is None else f" ± {number(found['sd'])}")
    return shown if found["n"] == seeds else f"{shown} ({found['n']} of {seeds})"


def heads(summary: Summary, layout: str | None = None) -> list[str]:
    """Heads of the main table, or of another layout."""
    names = {metric: metric_name(metric, summary["kind"]) for metric in (*OVERALL, *BY_ATTRIBUTE)}
    rows = layout or summary["layout"]["rows"]
    if rows == WIDE:
        return ["method", "measure", *map(attribute_name, _with_numbers(summary))]
    if rows == ATTRIBUTES:
        return ["attribute", "method", *(names[metric] for metric in summary["layout"]["metrics"]), FRONT]
    overall, by = ([names[metric] for metric in part] for part in (OVERALL, BY_ATTRIBUTE))
    first = ["method", "attribute", *overall] if summary["apart"] else ["method", *overall, "attribute"]
    return [*first, *by, FRONT]


def rows(summary: Summary, layout: str | None = None) -> list[list[str]]:
    """The main table, or another layout of it: a star marks a significant difference from the reference.

    Under a recipe stand the numbers that were published for it, if there are any; not where the layout is another one.
    """
    make = {METHODS: _by_method, ATTRIBUTES: _by_attribute, WIDE: _wide}[layout or summary["layout"]["rows"]]
    return make(summary, [] if layout else summary["published"])


def markdown(summary: Summary) -> str:
    """All tables as Markdown: that of the paper, all measures where it leaves some out, and every test."""
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
    parts = [f"# {summary['title']}", "", *table(heads(summary), rows(summary)), "", caption(summary)]
    for i, source in enumerate(summary["sources"], start=1):
        parts += ["", f"[{i}] {source['citation']}. {source['note']}"]
    if summary["layout"]["rows"] == WIDE:
        parts += ["", "## All measures", "", *table(heads(summary, METHODS), rows(summary, METHODS))]
    names = ["method", "measure", "attribute", "difference", "t", "p", "p (Holm)", "Cohen's d"]
    against = f"## Each method minus {named[summary['reference']]}, paired over the seeds"
    shown = {metric: metric_name(metric, summary["kind"]) for metric in (*OVERALL, *BY_ATTRIBUTE)}
    return "\n".join([*parts, "", against, "", *table(names, tests), *sections(summary, shown), ""])


def terminal(summary: Summary) -> Table:
    """The table for the terminal, narrow enough for it: of the attributes only the mean."""
    from rich import box
    from rich.table import Table

    last = in_one(summary)
    which = "All numbers here" if summary["apart"] else "ES-AUC and gaps"
    over = "" if last is None else f" {which}: {attribute_name(last)}."
    table = Table(box=box.SIMPLE_HEAD, caption=caption(summary) + over, caption_justify="left", pad_edge=False)
    named = marked(summary)
    # No word of a title is cut: it would lose what tells it from others, or its mark.
    table.add_column("method", min_width=max(len(word) for title in named.values() for word in title.split()))
    for metric in (*OVERALL, *BY_ATTRIBUTE):
        table.add_column(metric_name(metric, summary["kind"]), justify="right", min_width=7)
    for name, title in named.items():
        cells = [cell(summary, name, metric, about(summary, metric, last)) for metric in OVERALL]
        cells += ["–" if last is None else cell(summary, name, metric, last) for metric in BY_ATTRIBUTE]
        table.add_row(title, *cells)
    return table


def caption(summary: Summary) -> str:
    """How to read the table."""
    reference = titles(summary)[summary["reference"]]
    seeds, cell, kind = summary["seeds"], summary["min_cell"], summary["kind"]
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
    if summary["attributes"]:
        gaps = " or ".join(metric_name(gap, kind) for gap in GAPS)
        sentences.append(
            f"{FRONT}: the gap ({gaps}) for which no other method is better in accuracy or gap and as good in the "
            "other, by the means alone."
        )
    if any(recipe["reads_groups"] for recipe in summary["recipes"]):
        sentences.append(f"{READS} needs the patient's demographics at inference, which no other method here does.")
    if any(recipe["head"] == POSTPROCESS for recipe in summary["recipes"]):
        sentences.append("Post-processed decisions are randomised and rank nobody, so they have no AUC.")
    if baselines(summary):
        sentences.append(
            f"The methods from {titles(summary)[baselines(summary)[0]]} on are yardsticks, computed once and neither "
            f"tested nor on a {FRONT}."
        )
    if any(recipe["head"] == MAJORITY for recipe in summary["recipes"]):
        sentences.append("The majority class is one score for everybody: no gap, an AUC of 0.5, and no use.")
    if summary["published"]:
        sentences.append(
            "Rows that begin with published are the papers' numbers for the same data set, with their models, splits "
            "and thresholds; they were not tested against ours."
        )
    return " ".join(sentences)


def p_text(value: float | None) -> str:
    """A p-value as text, exact however small.

    >>> p_text(0.0421), p_text(0.0000123), p_text(None)
    ('0.0421', '1.2e-05', '–')
    """
    return "–" if value is None else f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"


def _by_method(summary: Summary, published: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A block for each method, with a row for each attribute."""
    lines, apart = [], summary["apart"]

    def block(title: str, attributes: Sequence[str | None], cell: Any, last: Any) -> None:
        for i, attribute in enumerate(attributes):
            overall = [cell(metric, about(summary, metric, attribute)) for metric in OVERALL]
            by = [cell(metric, attribute) if attribute else "–" for metric in BY_ATTRIBUTE]
            shown = attribute_name(attribute) if attribute else "–"
            once = [title, *overall] if i == 0 else ["", "", ""]  # what is said of a model, in the first of its rows
            front_of = "–" if attribute is None else last(attribute)
            lines.append([once[0], shown, *overall, *by, front_of] if apart else [*once, shown, *by, front_of])

    for name, title in marked(summary).items():
        block(
            title,
            summary["attributes"] or [None],
            lambda metric, attribute, name=name: cell(summary, name, metric, attribute),
            lambda attribute, name=name: _fronts(summary, name, attribute),
        )
        for words, numbers in _published(published, name):
            named = [attribute for attribute in dict.fromkeys(key[1] for key in numbers) if attribute]
            block(words, named or [None], lambda *key, numbers=numbers: numbers.get(key, "–"), lambda _: "–")
    return lines


def _by_attribute(summary: Summary, published: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A block for each attribute, with a row for each method."""
    lines, metrics = [], summary["layout"]["metrics"]
    for attribute in summary["attributes"]:
        shown = attribute_name(attribute)
        for name, title in marked(summary).items():
            cells = [cell(summary, name, metric, about(summary, metric, attribute)) for metric in metrics]
            lines.append([shown, title, *cells, _fronts(summary, name, attribute)])
            shown = ""
            for words, numbers in _published(published, name):
                if any(key[1] == attribute for key in numbers):
                    lines.append(["", words, *(numbers.get((metric, attribute), "–") for metric in metrics), "–"])
    return lines


def _wide(summary: Summary, published: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each method and measure, with a column for each attribute."""
    attributes, lines = _with_numbers(summary), []
    shown = {metric: metric_name(metric, summary["kind"]) for metric in summary["layout"]["metrics"]}
    for name, title in marked(summary).items():
        ours: Cells = {(metric, one): cell(summary, name, metric, one) for metric in shown for one in attributes}
        for words, numbers in ((title, ours), *_published(published, name)):
            known = [metric for metric in shown if any((metric, one) in numbers for one in attributes)]
            lines += [
                [words if i == 0 else "", shown[metric], *(numbers.get((metric, one), "–") for one in attributes)]
                for i, metric in enumerate(known)
            ]
    return lines


def _with_numbers(summary: Summary) -> list[str]:
    """The attributes for which some method has one of the measures of the layout: a wide table has no empty columns."""
    return [
        attribute
        for attribute in summary["attributes"]
        if any(
            measure(summary, name, metric, attribute)["mean"] is not None
            for name in titles(summary)
            for metric in summary["layout"]["metrics"]
        )
    ]


def _published(published: Sequence[Mapping[str, Any]], recipe: str) -> list[tuple[str, Cells]]:
    """What was published for a recipe: for each source and model a title and its numbers."""
    found: dict[tuple[int, str], Cells] = {}
    for one in published:
        if one["recipe"] == recipe:
            cells = found.setdefault((one["source"], one["model"]), {})
            cells[one["metric"], one["attribute"]] = spread({**one, "n": 0}, 0)
    return [(f"published, {model} [{source + 1}]", cells) for (source, model), cells in found.items()]


def _fronts(summary: Summary, recipe: str, attribute: str) -> str:
    """The gaps for which a recipe is on the front of accuracy against them."""
    on = [metric_name(gap, summary["kind"]) for gap in GAPS if recipe in front(summary, gap, attribute)]
    return ", ".join(on) or "–"


def cell(summary: Summary, recipe: str, metric: str, attribute: str | None) -> str:
    """Mean and standard deviation, with a star where Holm's correction leaves the difference significant."""
    sure = any(
        test["p_holm"] is not None and test["p_holm"] < LEVEL
        for test in summary["tests"]
        if (test["recipe"], test["metric"], test["attribute"]) == (recipe, metric, attribute)
    )
    once = recipe in baselines(summary)
    return spread(measure(summary, recipe, metric, attribute), 1 if once else summary["seeds"]) + (" *" if sure else "")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"
