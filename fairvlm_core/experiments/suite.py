"""The table over all experiments of a suite: what each method does in each setting, beside what is possible there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairvlm_core.evaluation.report.words import attribute_name, number
from fairvlm_core.experiments.grid import Suite
from fairvlm_core.experiments.sections import table
from fairvlm_core.experiments.summary import about, measure
from fairvlm_core.experiments.tables import LEVEL, READS, marked, metric_name, spread

# What the table shows: of everybody, and by attribute.
EVERYBODY = ("accuracy", "auc")
SHOWN = ("es_auc", "eod", "dpd")
DRAWN = ("es_auc", "eod")
BETTER = {"es_auc": 1, "eod": -1, "dpd": -1, "accuracy": 1, "auc": 1}
POSSIBLE = "bayes_image"  # no model that is shown the image alone can know more


def summarise_suite(
    suite: Suite, found: Mapping[str, Mapping[str, Mapping[str, Any]]], *, made: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of the table, as JSON.

    Args:
        found: setting -> name of the experiment -> the content of its table.
        made: where all of it comes from; see `provenance`.

    Returns:
        suite, title, settings [{name, title, experiments}], untouched, seeds, kind, attributes; `methods`: a list of
        {key, title, baseline, reads_groups}, in the order of the table; `cells`: a list of {setting, method, metric,
        attribute, mean, sd, n, interval, once, differs, possible}: `once` where a method has no seeds, `differs`
        whether it differs from the reference of its experiment after Holm's correction, `possible` what the best score
        of an image alone reaches there (null where that is not known).
    """
    first = next(iter(next(iter(found.values())).values()))
    attributes = [name for name in suite.attributes if name in first["attributes"]]
    wanted = [(metric, None) for metric in EVERYBODY] + [(m, name) for name in attributes for m in SHOWN]
    methods: dict[str, dict[str, Any]] = {}
    cells: list[dict[str, Any]] = []
    for setting, tables in found.items():
        for place, summary in enumerate(tables.values()):
            titles = marked(summary)
            for recipe in summary["recipes"]:
                # A yardstick that needs no base model is the same in every experiment of a setting.
                own = not recipe["baseline"] or recipe["name"] == "linear_probe"
                key = f"{recipe['name']} {place}" if own else recipe["name"]
                if not own and any(cell["method"] == key and cell["setting"] == setting for cell in cells):
                    continue
                told = {name: recipe[name] for name in ("baseline", "reads_groups")}
                title = titles[recipe["name"]]
                methods.setdefault(key, {"key": key, "title": title, "family": place if own else None, **told})
                cells += [_cell(summary, recipe, key, setting, *one) for one in wanted]
    order = sorted(methods.values(), key=lambda method: (method["family"] is None, method["family"] or 0))
    return {
        "suite": suite.name,
        "title": suite.title,
        "settings": [
            {"name": name, "title": title, "experiments": list(found[name])} for name, title in suite.settings.items()
        ],
        "untouched": suite.untouched,
        "seeds": first["seeds"],
        "kind": first["kind"],
        "attributes": attributes,
        "methods": order,
        "cells": cells,
        "provenance": made,
    }


def suite_markdown(summary: Mapping[str, Any]) -> str:
    """A table of methods by settings for every measure."""
    parts = [f"# {summary['title']}", "", suite_caption(summary)]
    settings = [setting["title"] for setting in summary["settings"]]
    wanted = dict.fromkeys((cell["metric"], cell["attribute"]) for cell in summary["cells"])
    for metric, attribute in wanted:
        name = metric_name(metric, summary["kind"])
        heading = f"## {name[0].upper()}{name[1:]}" + (f", {attribute_name(attribute)}" if attribute else "")
        parts += ["", heading, "", *table(["method", *settings], suite_rows(summary, metric, attribute))]
    names = "; ".join(
        f"{setting['title']}: {', '.join(f'[{name}]({name}.md)' for name in setting['experiments'])}"
        for setting in summary["settings"]
    )
    return "\n".join([*parts, "", f"All measures, tests, intervals and diagnostics: {names}.", ""])


def suite_rows(summary: Mapping[str, Any], metric: str, attribute: str | None) -> list[list[str]]:
    """One measure: a row for each method, with a column for each setting."""
    return [
        [method["title"], *(_text(summary, method, s["name"], metric, attribute) for s in summary["settings"])]
        for method in summary["methods"]
    ]


def draw_suite(summary: Mapping[str, Any], path: Path) -> None:
    """Methods by settings: the number, and as colour how far it is from what the best score of an image reaches."""
    import numpy as np
    from matplotlib.figure import Figure

    from fairvlm_core.files import written

    attributes, methods, settings = summary["attributes"], summary["methods"], summary["settings"]
    drawn = [method for method in methods if method["key"] != "majority"]  # which has no gap and no use
    columns = max(1, len(attributes))
    size = (3.2 + columns * (0.6 + 0.62 * len(settings)), len(DRAWN) * (1.3 + 0.26 * len(drawn)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(DRAWN), columns, squeeze=False, sharey=True, sharex=True)
    shown = None
    for panels, metric in zip(axes, DRAWN, strict=True):
        for panel, attribute in zip(panels, attributes, strict=False):
            values = np.full((len(drawn), len(settings)), np.nan)
            for i, method in enumerate(drawn):
                for j, setting in enumerate(settings):
                    cell = find(summary, setting["name"], method["key"], metric, attribute)
                    if cell is None or cell["mean"] is None:
                        panel.text(j, i, "–", ha="center", va="center", fontsize=7)
                        continue
                    if cell["possible"] is not None:
                        values[i, j] = BETTER[metric] * (cell["possible"] - cell["mean"])
                    star = "*" if cell["differs"] else ""
                    panel.text(j, i, f"{number(cell['mean'])}{star}", ha="center", va="center", fontsize=6.5)
            # The same colour is the same distance in every panel.
            shown = panel.imshow(values, cmap="RdYlGn_r", vmin=-0.15, vmax=0.15, aspect="auto", alpha=0.75)
            better = "higher" if BETTER[metric] > 0 else "lower"
            title = f"{metric_name(metric, summary['kind'])}, {attribute_name(attribute)}\n{better} is better"
            panel.set_title(title, fontsize=8, loc="left")
            panel.set_yticks(range(len(drawn)), [method["title"] for method in drawn], fontsize=7)
            names = [setting["title"] for setting in settings]
            panel.set_xticks(range(len(settings)), names, fontsize=7, rotation=30, ha="right")
            for edge in (i - 0.5 for i in range(1, len(drawn)) if drawn[i]["family"] != drawn[i - 1]["family"]):
                panel.axhline(edge, color="#1d2733", linewidth=1)
            panel.tick_params(length=0)
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.5, pad=0.01)
        bar.set_label("worse than the best possible from the image", fontsize=7)
        bar.ax.tick_params(labelsize=7)
    figure.supxlabel(f"* differs from the full method of its block, p < {LEVEL} after Holm's correction", fontsize=7)
    with written(path) as partial:
        figure.savefig(partial, format="png", dpi=130, metadata={"Software": None})


def find(
    summary: Mapping[str, Any], setting: str, method: str, metric: str, attribute: str | None
) -> dict[str, Any] | None:
    """One cell; None where the method was not run in the setting."""
    wanted = (setting, method, metric, attribute)
    for cell in summary["cells"]:
        if (cell["setting"], cell["method"], cell["metric"], cell["attribute"]) == wanted:
            found: dict[str, Any] = cell
            return found
    return None


def _cell(
    summary: Mapping[str, Any],
    recipe: Mapping[str, Any],
    key: str,
    setting: str,
    metric: str,
    attribute: str | None,
) -> dict[str, Any]:
    asked = attribute if attribute is not None else about(summary, metric, summary["attributes"][-1])
    value = measure(summary, recipe["name"], metric, asked)
    known = {one["name"] for one in summary["recipes"]}
    differs = any(
        test["p_holm"] is not None and test["p_holm"] < LEVEL
        for test in summary["tests"]
        if (test["recipe"], test["metric"], test["attribute"]) == (recipe["name"], metric, asked)
    )
    return {
        "setting": setting,
        "method": key,
        "metric": metric,
        "attribute": attribute,
        **{name: value[name] for name in ("mean", "sd", "n", "interval")},
        "once": recipe["baseline"],
        "differs": differs,
        "possible": measure(summary, POSSIBLE, metric, asked)["mean"] if POSSIBLE in known else None,
    }


def _text(
    summary: Mapping[str, Any], method: Mapping[str, Any], setting: str, metric: str, attribute: str | None
) -> str:
    cell = find(summary, setting, method["key"], metric, attribute)
    if cell is None:
        return "–"
    return spread(cell, 1 if cell["once"] else summary["seeds"]) + (" *" if cell["differs"] else "")


def suite_caption(summary: Mapping[str, Any]) -> str:
    """How to read the tables."""
    sentences = [
        f"Test split; mean ± standard deviation over {summary['seeds']} seeds of the training."
        if summary["seeds"] > 1
        else "Test split; one seed, so nothing can be said about chance.",
        f"* differs from the full method of its kind, p < {LEVEL} after Holm's correction over the methods.",
        "The best possible scores are computed from the model that the cohort was drawn from, at thresholds tuned like "
        "a model's: a gap that they have, no score of an image can do without at such a threshold.",
    ]
    if any(method["reads_groups"] for method in summary["methods"]):
        sentences.append(f"{READS} needs the patient's demographics at inference.")
    return " ".join(sentences)
