"""The same two figures as PNG, for places that show pictures and no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fairvlm_core.evaluation.report.charts import tradeoff_axes
from fairvlm_core.evaluation.report.subjects import Subject, group_curves
from fairvlm_core.evaluation.report.words import attribute_name, count
from fairvlm_core.files import written

COLOURS = ("#1273a3", "#c4532f", "#2a8757", "#7d55a8", "#a8740a", "#4d5b69")
STYLES = ("-", "--", ":", "-.")
MARKS = "os^D"


def roc_picture(subject: Subject, path: Path) -> None:
    """ROC curves of one model, a panel per attribute and a line per group that can be judged."""
    names = [name for name in subject.judgement["attributes"] if " x " not in name]
    figure = Figure(figsize=(3.6 * max(len(names), 1), 4.0), layout="constrained")
    panels = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=False):
        groups = subject.judgement["attributes"][name]["groups"]
        for i, (group, (fpr, tpr)) in enumerate(group_curves(subject, name).items()):
            axes.plot(
                fpr,
                tpr,
                STYLES[i % len(STYLES)],
                color=COLOURS[i % len(COLOURS)],
                label=f"{group} (n = {count(groups[group]['n'])}): {groups[group]['auc']:.3f}",
            )
        axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=0.8)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.set_title(f"AUC by {attribute_name(name)}", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7, loc="lower right")
    if not names:
        panels[0].set_axis_off()
        panels[0].text(0.5, 0.5, "no demographic attribute", ha="center")
    _save(figure, path)


def tradeoff_picture(subjects: Sequence[Subject], path: Path) -> None:
    """Accuracy against the equalized odds difference, a panel per attribute and a mark per model."""
    names = list(subjects[0].judgement["attributes"])
    figure = Figure(figsize=(3.2 * max(len(names), 1), 3.6), layout="constrained")
    panels = figure.subplots(1, max(len(names), 1), squeeze=False, sharey=True)[0]
    xs, ys = tradeoff_axes(subjects)
    for axes, name in zip(panels, names, strict=False):
        for i, subject in enumerate(subjects):
            gap = subject.judgement["attributes"][name]["eod"]
            if gap is not None:
                axes.scatter(
                    gap,
                    subject.judgement["overall"]["accuracy"],
                    s=60,
                    marker=MARKS[i % len(MARKS)],
                    color=COLOURS[i % len(COLOURS)],
                    label=subject.title,
                )
        axes.set(xlim=(xs[0], xs[-1]), ylim=(ys[0], ys[-1]), xticks=xs, yticks=ys)
        axes.set_xlabel("equalized odds difference")
        axes.set_title(attribute_name(name), loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e8ecf0")
        axes.set_axisbelow(True)
    if names:
        panels[0].set_ylabel("accuracy")
        handles = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(subjects), frameon=False)
    else:
        panels[0].set_axis_off()
        panels[0].text(0.5, 0.5, "no demographic attribute", ha="center")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with written(path) as partial:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
