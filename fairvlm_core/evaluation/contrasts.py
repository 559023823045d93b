"""The chosen model against others: how much better or fairer, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairvlm_core.evaluation.bootstrap import RESAMPLES, Path
from fairvlm_core.evaluation.paired import Difference, differences
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.significance import delong, holm

MEASURES: dict[str, Path] = {
    "auc": ("overall", "auc"),
    "accuracy": ("overall", "accuracy"),
    "es_auc": ("across", "es_auc", "mean"),
    "dpd": ("across", "dpd", "mean"),
    "eod": ("across", "eod", "mean"),
}
WORST_GROUP = "worst_group_auc"


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
        rows += [
            {"model": name, "measure": measure, **_numbers(found.get(path), measure, chosen, other)}
            for measure, path in MEASURES.items()
        ]
    for measure in MEASURES:
        _correct([row for row in rows if row["measure"] == measure])
    return [_as_json(row) for row in rows]


def against_champion(
    chosen: Scores, champion: Scores, *, resamples: int = RESAMPLES, min_cell: int = 10, seed: int = 0
) -> list[dict[str, Any]]:
    """Each measure of the chosen model minus that of the model in use, on the same images, as JSON.

    Whether to replace the champion is one question, asked before today's numbers are seen, and apart from how the new
    models compare among themselves. It is answered by whichever measures differ: so its tests are a family of their
    own, and Holm's correction is over the measures. The family of `contrasts` stays as it is without a champion.

    Returns:
        A list of {measure, attribute, difference, low, high, p_value, p_holm}, null where there is none: `MEASURES`
        (their attribute is null), then `worst_group_auc` of each attribute. Intervals and tests as of `contrasts`.
    """
    found = differences(chosen, champion, resamples=resamples, min_cell=min_cell, seed=seed)
    places: list[tuple[str, str | None]] = [(measure, None) for measure in MEASURES]
    places += [(WORST_GROUP, attribute) for attribute in chosen.groups]
    rows = [
        {"measure": measure, "attribute": attribute}
        | _numbers(found.get(path_of(measure, attribute)), measure, chosen, champion)
        for measure, attribute in places
    ]
    _correct(rows)
    return [_as_json(row) for row in rows]


def path_of(measure: str, attribute: str | None) -> Path:
    """Where a measure stands in a judgement.

    >>> path_of("eod", None), path_of("worst_group_auc", "sex")
    (('across', 'eod', 'mean'), ('attributes', 'sex', 'worst_group_auc'))
    """
    return MEASURES[measure] if attribute is None else ("attributes", attribute, measure)


def _numbers(one: Difference | None, measure: str, chosen: Scores, other: Scores) -> dict[str, float]:
    if one is None:
        return dict.fromkeys(("difference", "low", "high", "p_value"), np.nan)
    p = one.p_value
    if measure == "auc" and len(chosen.labels) == 1 and not np.isnan(one.estimate):
        p = _delong(chosen, other)
    return {"difference": one.estimate, "low": one.low, "high": one.high, "p_value": p}


def _correct(family: Sequence[dict[str, Any]]) -> None:
    """Add Holm's p-values to the rows of a family, in place."""
    for row, p in zip(family, holm([row["p_value"] for row in family]), strict=True):
        row["p_holm"] = float(p)


def _as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in row.items()}


def _delong(chosen: Scores, other: Scores) -> float:
    """The other's rows in the order of the chosen model's."""
    place = {name: i for i, name in enumerate(other.sample_ids)}
    order = [place[name] for name in chosen.sample_ids]
    first, second = chosen.y_score[:, 0], other.y_score[order, 0]
    return delong(chosen.y_true[:, 0], first, second, patients=chosen.patient_ids).p_value
