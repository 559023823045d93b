"""The chosen model against each of the others: how much better or fairer, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fairvlm_core.evaluation.bootstrap import RESAMPLES, Path, differences
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.significance import delong, holm

MEASURES: dict[str, Path] = {
    "auc": ("overall", "auc"),
    "accuracy": ("overall", "accuracy"),
    "es_auc": ("across", "es_auc", "mean"),
    "dpd": ("across", "dpd", "mean"),
    "eod": ("across", "eod", "mean"),
}


def contrasts(
    chosen: Scores, others: Mapping[str, Scores], *, resamples: int = RESAMPLES, min_cell: int = 10, seed: int = 0
) -> list[dict[str, Any]]:
    """Each measure of the chosen model minus that of each other, on the same images, as JSON.

    Intervals and p-values are of the paired bootstrap over patients; for one label the AUC's p-value is DeLong's, with
    the variance for several images of a patient. Holm's correction is over all the tests of one measure.

    Returns:
        A list of {model, measure (of `MEASURES`), difference, low, high, p_value, p_holm}, null where there is none.
    """
    rows: list[dict[str, Any]] = []
    for name, other in others.items():
        found = differences(chosen, other, resamples=resamples, min_cell=min_cell, seed=seed)
        for measure, path in MEASURES.items():
            one = found.get(path)
            p = np.nan if one is None else one.p_value
            if measure == "auc" and len(chosen.labels) == 1 and one is not None and not np.isnan(one.estimate):
                p = _delong(chosen, other)
            numbers = (np.nan,) * 3 if one is None else (one.estimate, one.low, one.high)
            rows.append(
                {"model": name, "measure": measure, **dict(zip(("difference", "low", "high"), numbers, strict=True))}
            )
            rows[-1]["p_value"] = p
    for measure in MEASURES:
        family = [row for row in rows if row["measure"] == measure]
        for row, p in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_holm"] = float(p)
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def _delong(chosen: Scores, other: Scores) -> float:
    """The other's rows in the order of the chosen model's."""
    place = {name: i for i, name in enumerate(other.sample_ids)}
    order = [place[name] for name in chosen.sample_ids]
    first, second = chosen.y_score[:, 0], other.y_score[order, 0]
    return delong(chosen.y_true[:, 0], first, second, patients=chosen.patient_ids).p_value
