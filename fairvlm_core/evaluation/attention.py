"""The picture of where models look: which cases are shown, and how (FairMed-VLM, Figure 1).

Attention says what a model read, not why it decided: the picture is an illustration and enters no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairvlm_core.files import written

ATTENTION_FILE = "attention.png"
BRIGHTEST = 99.5  # percentile of the maps at which the colours end: one hot patch must not darken all others
LEAST_RANGE = (0.75, 1.25)  # of the colours: a map that is nearly even must not look uneven


@dataclass(frozen=True)
class Look:
    """One model on one case.

    Attributes:
        title: the model's name as the reader sees it.
        score: its probability of the case's finding.
        patches: float [h, w], sums to 1.
    """

    title: str
    score: float
    patches: np.ndarray


@dataclass(frozen=True)
class Case:
    """An image (uint8 [S, S, 3]), the finding that is asked for, in words, and the models that look at it."""

    image: np.ndarray
    finding: str
    looks: Sequence[Look]


def choose_cases(y_true: np.ndarray, y_score: np.ndarray, kind: str, count: int) -> list[tuple[int, int]]:
    """The most confident right positives: (row, label) of at most `count` images, the most confident first.

    Right is a label that is known to be there and has a score of at least 0.5 (multiclass: the highest of its row).
    Of each image only its most confident finding is shown. Neither the demographics nor the group takes part, and the
    same scores give the same cases.

    Args:
        y_true: [n, L], NaN where unknown; y_score: [n, L].
    """
    truth, score = np.asarray(y_true, dtype=float), np.asarray(y_score, dtype=float)
    chosen = np.eye(score.shape[1])[score.argmax(1)] == 1 if kind == "multiclass" and len(score) else score >= 0.5
    confidence = np.where((truth == 1) & chosen, score, -np.inf)
    best = confidence.max(1) if len(score) else np.zeros(0)
    rows = np.argsort(-best, kind="stable")[:count]
    return [(int(row), int(confidence[row].argmax())) for row in rows if np.isfinite(best[row])]


def attention_picture(cases: Sequence[Case], path: Path) -> None:
    """Draw a row per case: the image, and each model's map over it. Nothing in it tells whose image it is.

    The colours say how many times the attention that an even spread would give, on one scale for a whole row.
    """
    from matplotlib.figure import Figure

    columns = 1 + len(cases[0].looks)
    figure = Figure(figsize=(2.6 * columns + 0.9, 2.75 * len(cases) + 0.35), layout="constrained")
    for axes, case in zip(figure.subplots(len(cases), columns, squeeze=False), cases, strict=True):
        height, width = case.image.shape[:2]
        maps = [look.patches * look.patches.size for look in case.looks]
        low = min(LEAST_RANGE[0], float(np.min(maps)))
        high = max(LEAST_RANGE[1], float(np.percentile(maps, BRIGHTEST)))
        axes[0].imshow(case.image, extent=(0, width, height, 0))
        axes[0].set_title(case.finding, fontsize=9, loc="left")
        grey = case.image.mean(-1)
        for place, look, patches in zip(axes[1:], case.looks, maps, strict=True):
            place.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
            shown = place.imshow(
                patches,
                cmap="inferno",
                vmin=low,
                vmax=high,
                alpha=0.6,
                interpolation="bicubic",
                extent=(0, width, height, 0),
            )
            place.set_title(f"{look.title}: {look.score:.2f}", fontsize=9, loc="left")
        for place in axes:
            place.set_axis_off()
        bar = figure.colorbar(shown, ax=list(axes), shrink=0.85, pad=0.01, aspect=18)
        bar.set_label("attention (1: even)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    with written(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
