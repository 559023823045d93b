"""Training curves: what was minimised and how validation went, per phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VALIDATION = ("auc", "es_auc", "worst_group_auc")
# Figures that say whether a loss had anything to work on: in history.json, not in the picture.
DIAGNOSTICS = ("anchors", "positives", "negatives", "skipped", "gradient_norm")
ROUTING = "routing."  # how tokens meet experts, likewise
QUIET = {"epoch", "score", "dto", *DIAGNOSTICS, *VALIDATION}


def draw_history(history: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Write a PNG: one column per phase, its loss terms above, the validation figures below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(2, len(history), figsize=(7 * len(history), 6.4), squeeze=False, layout="constrained")
    beside: dict[str, Any] = {"fontsize": 8, "frameon": False, "loc": "upper left", "bbox_to_anchor": (1, 1)}
    for column, (phase, epochs) in enumerate(history.items()):
        above, below = axes[:, column]
        x = [epoch["epoch"] for epoch in epochs]
        for name in [name for name in epochs[0] if name not in QUIET and not name.startswith(ROUTING)]:
            above.plot(x, [epoch[name] for epoch in epochs], marker="o", markersize=3, label=name.replace("_", " "))
        above.set(title=phase.replace("_", " ").capitalize(), ylabel="mean over the epoch", ylim=(0, None))
        above.legend(**beside)
        drawn = [name for name in VALIDATION if name in epochs[0]]
        for name in drawn:
            below.plot(x, [epoch[name] for epoch in epochs], marker="o", markersize=3, label=name.replace("_", " "))
        if drawn:
            below.legend(**beside)
            best = max(epochs, key=lambda epoch: epoch["score"])["epoch"]
            below.axvline(best, color="0.6", linestyle=":", linewidth=1)
        above.set(xlabel="" if drawn else "epoch")
        below.set(xlabel="epoch (dotted: selected)", ylabel="validation")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        below.set_visible(bool(drawn))
    figure.savefig(path, dpi=110)
    plt.close(figure)
