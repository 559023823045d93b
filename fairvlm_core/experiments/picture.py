"""The picture of an experiment: every seed as a dot, mean and standard deviation beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fairvlm_core.evaluation.report.words import attribute_name
from fairvlm_core.experiments.tables import measure, metric_name, titles
from fairvlm_core.files import written

# Metric, whether it is about an attribute, and which way is better.
PANELS = (
    ("accuracy", False, "higher"),
    ("auc", False, "higher"),
    ("es_auc", True, "higher"),
    ("dpd", True, "lower"),
    ("eod", True, "lower"),
)
DOT, LINE, REFERENCE = "#1273a3", "#1d2733", "#c4532f"


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """A panel per measure, a row per recipe; the reference is drawn in its own colour, with a line through its mean."""
    # The mean over the attributes, or the only one; a measure of its own model belongs to an attribute, too.
    last = summary["attributes"][-1] if summary["attributes"] else None
    panels = [
        (metric, last if by_attribute or summary["apart"] else None, better)
        for metric, by_attribute, better in PANELS
        if not by_attribute or last
    ]
    named = titles(summary)
    names = list(named)
    figure = Figure(figsize=(2.4 + 2.3 * len(panels), 1.3 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (metric, attribute, better) in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            found = measure(summary, name, metric, attribute)
            colour = REFERENCE if name == summary["reference"] else DOT
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
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", color="#e8ecf0")
        panel.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), [named[name] for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    with written(path) as partial:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
