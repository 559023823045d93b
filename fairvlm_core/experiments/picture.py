"""The pictures of an experiment: every seed as a dot, and accuracy against the gaps with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fairvlm_core.evaluation.report.words import attribute_name
from fairvlm_core.experiments.heads import MAJORITY
from fairvlm_core.experiments.summary import GAPS, about, front, in_one, measure
from fairvlm_core.experiments.tables import READS, baselines, marked, metric_name
from fairvlm_core.files import written

# Metric, whether it is about an attribute, and which way is better.
PANELS = (
    ("accuracy", False, "higher"),
    ("auc", False, "higher"),
    ("es_auc", True, "higher"),
    ("dpd", True, "lower"),
    ("eod", True, "lower"),
)
DOT, LINE, REFERENCE, FRONT = "#1273a3", "#1d2733", "#c4532f", "#7a8794"
YARDSTICK = "#8a6d00"
# Colour and shape of each method in turn; neither repeats before both have, so that they can be told apart in grey.
COLOURS = ("#1273a3", "#8a6d00", "#5b8c3a", "#7d4fa0", "#2a9d96", "#a8447a", "#4a5a6a")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """A panel per measure, a row per recipe; the reference is drawn in its own colour, with a line through its mean."""
    # The mean over the attributes, or the only one; a measure of its own model belongs to an attribute, too.
    last = in_one(summary)
    panels = [
        (metric, last if by_attribute or summary["apart"] else None, better)
        for metric, by_attribute, better in PANELS
        if not by_attribute or last
    ]
    named = _drawn(summary)
    names, yardsticks = list(named), baselines(summary)
    figure = Figure(figsize=(2.4 + 2.3 * len(panels), 1.3 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (metric, attribute, better) in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            found = measure(summary, name, metric, attribute)
            colour = REFERENCE if name == summary["reference"] else YARDSTICK if name in yardsticks else DOT
            known = [value for value in found["values"] if value is not None]
            panel.plot(known, [i + 0.18] * len(known), "o", color=colour, markersize=4, alpha=0.55, markeredgewidth=0)
            if found["mean"] is not None:
                panel.errorbar(
                    found["mean"], i - 0.12, xerr=found["sd"], fmt="D", color=colour, markersize=5, capsize=3
                )
        reference = measure(summary, summary["reference"], metric, attribute)["mean"]
        if reference is not None:
            panel.axvline(reference, color=REFERENCE, linewidth=0.8, linestyle=":")
        panel.set_title(metric_name(metric, summary["kind"]), loc="left", fontsize=10, color=LINE)
        panel.set_xlabel(
            f"{'' if attribute is None else f'{attribute_name(attribute)}, '}{better} is better", fontsize=7
        )
        _plain(panel)
    axes[0].set_yticks(range(len(names)), [named[name] for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    if any(recipe["reads_groups"] for recipe in summary["recipes"]):
        figure.supxlabel(f"{READS} needs the patient's demographics at inference", fontsize=7, color=LINE)
    _save(figure, path)


def draw_front(summary: Mapping[str, Any], path: Path) -> None:
    """Accuracy against each gap: mean and standard deviation over the seeds, and the Pareto front as a line.

    Methods on the front are filled. The gaps are means over the attributes. Nothing is drawn without attributes.
    """
    attribute = in_one(summary)
    if attribute is None:
        return
    named, kind = _drawn(summary), summary["kind"]
    figure = Figure(figsize=(9.6, 3.6 + 0.08 * len(named)), layout="constrained")
    panels = figure.subplots(1, len(GAPS), squeeze=False, sharey=True)[0]
    for panel, gap in zip(panels, GAPS, strict=True):
        on = front(summary, gap, attribute)
        points = {name: _point(summary, name, gap, attribute) for name in named}
        corner = sorted((points[name][0]["mean"], points[name][1]["mean"]) for name in on)
        if corner:
            _stairs(panel, corner)
        for i, (name, (x, y)) in enumerate(points.items()):
            colour = REFERENCE if name == summary["reference"] else COLOURS[i % len(COLOURS)]
            shape = SHAPES[i % len(SHAPES)]
            panel.plot([], [], shape, color=colour, markersize=7, label=named[name])  # in the key, drawn or not
            if x["mean"] is None or y["mean"] is None:
                continue
            panel.errorbar(
                x["mean"],
                y["mean"],
                xerr=x["sd"],
                yerr=y["sd"],
                fmt=shape,
                color=colour,
                ecolor=f"{colour}80",
                elinewidth=0.9,
                capsize=2,
                markersize=7,
                markerfacecolor=colour if name in on else "white",
            )
        panel.set_xlabel(f"{metric_name(gap, kind)}, {attribute_name(attribute)} (lower is better)", fontsize=8)
        _plain(panel)
    panels[0].set_ylabel("accuracy (higher is better)", fontsize=8)
    panels[0].set_title(f"{summary['title']}: accuracy against the gap", loc="left", fontsize=10, color=LINE)
    handles, words = panels[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside right center", fontsize=8, frameon=False)
    seeds = summary["seeds"]
    told = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    told += "; filled, and joined by the line: on the Pareto front of the means."
    if any(recipe["reads_groups"] for recipe in summary["recipes"]):
        told += f" {READS} needs the patient's demographics at inference."
    figure.supxlabel(told, fontsize=7, color=LINE)
    _save(figure, path)


def _drawn(summary: Mapping[str, Any]) -> dict[str, str]:
    """Titles of what is drawn: an AUC of 0.5, the majority's, would press all the others together."""
    left_out = {recipe["name"] for recipe in summary["recipes"] if recipe["head"] == MAJORITY}
    return {name: title for name, title in marked(summary).items() if name not in left_out}


def _point(summary: Mapping[str, Any], name: str, gap: str, attribute: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gap and accuracy of a recipe."""
    return (
        measure(summary, name, gap, attribute),
        measure(summary, name, "accuracy", about(summary, "accuracy", attribute)),
    )


def _stairs(panel: Any, corner: Sequence[tuple[float, float]]) -> None:
    """The edge of what the methods on the front reach: with a gap so large, no accuracy above the line was seen."""
    panel.step(*zip(*corner, strict=True), where="post", color=FRONT, linewidth=1.2, zorder=1)


def _plain(panel: Any) -> None:
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", color="#e8ecf0")
    panel.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    with written(path) as partial:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
