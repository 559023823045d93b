"""How training went, recipe by recipe: whether the losses had anything to work on, and whether they worked.

Where a method changes nothing, this says why: anchors without positives (`skipped`), no negatives above the margin,
experts that nobody is sent to, a token that loses its experts, a term that is small beside the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairvlm_core.experiments.chain import Run
from fairvlm_core.experiments.schedule import place
from fairvlm_core.files import read_json

LEFT_OUT = ("epoch", "score")
HISTORY = "history.json"


def diagnostics(runs: Sequence[Run], out: Path, *, trained: str) -> list[dict[str, Any]]:
    """What the judged step logged in the last epoch of its last phase.

    Returns:
        For each recipe that trains {recipe, phase, models, epochs, best_epoch, figures}: `figures` has name -> the
        mean over the models (seeds, and attributes where each has one) of the mean over the last epoch, `best_epoch`
        the mean of the epochs that validation selected. A figure that a recipe does not log is absent.
    """
    found = []
    for name in dict.fromkeys(run.recipe.name for run in runs if trained in run.work):
        folders = dict.fromkeys(
            place(run.work[trained], out) for run in runs if run.recipe.name == name and trained in run.work
        )
        histories = [read_json(folder / HISTORY, made_by=trained) for folder in folders]
        phase = list(histories[0])[-1]
        lasts = [history[phase][-1] for history in histories]
        best = [read_json(folder / "metrics.json", made_by=trained).get("best_epoch") for folder in folders]
        figures = {
            figure: float(np.mean([last[figure] for last in lasts if figure in last]))
            for figure in lasts[0]
            if figure not in LEFT_OUT
        }
        found.append(
            {
                "recipe": name,
                "phase": phase,
                "models": len(folders),
                "epochs": len(histories[0][phase]),
                "best_epoch": float(np.mean([epoch for epoch in best if epoch is not None] or [0])),
                "figures": figures,
            }
        )
    return found
