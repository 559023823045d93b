"""Training curves: what was minimised and how validation went, per phase."""

from __future__ import annotations

from pathlib import Path

VALIDATION = ("auc", "es_auc", "worst_group_auc")
QUIET = {"epoch", "score", "gradient_norm", "dto", *VALIDATION}


def draw_history(history: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Write a PNG: one column per phase, its loss terms above, the validation figures below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(history), figsize=(5.5 * len(history), 6.4), squeeze=False, layout="constrained")
    for column, (phase, epochs) in enumerate(history.items()):
        above, below = axes[:, column]
        x = [epoch["epoch"] for epoch in epochs]
        for name in [name for name in epochs[0] if name not in QUIET]:
            above.plot(x, [epoch[name] for epoch in epochs], marker="o", markersize=3, label=name.replace("_", " "))
        above.set(title=phase.replace("_", " ").capitalize(), ylabel="mean over the epoch", yscale="symlog")
        above.legend(fontsize=7, frameon=False)
        drawn = [name for name in VALIDATION if name in epochs[0]]
        for name in drawn:
            below.plot(x, [epoch[name] for epoch in epochs], marker="o", markersize=3, label=name.replace("_", " "))
        if drawn:
            below.legend(fontsize=7, frameon=False)
            best = max(epochs, key=lambda epoch: epoch["score"])["epoch"]
            below.axvline(best, color="0.6", linestyle=":", linewidth=1)
        below.set(
            xlabel="epoch (dotted: selected)" if drawn else "epoch", ylabel="validation" if drawn else "no validation"
        )
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
            axis.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
