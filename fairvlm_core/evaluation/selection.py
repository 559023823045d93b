"""Which model, or which epoch, is the best on validation: accuracy alone, or accuracy and fairness together."""

from __future__ import annotations

import math
from typing import Any

from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.predictions import Scores

CRITERIA = ("auc", "es_auc", "worst_group_auc", "dto")


def criterion_value(judged: dict[str, Any], criterion: str) -> float | None:
    """The value of a criterion, higher is better; None where it cannot be computed.

    auc: macro AUC. es_auc: mean over the attributes. worst_group_auc: the lowest over attributes and groups. dto: minus the
    distance to the utopia point, where AUC is 1 and the mean gap in equalized odds is 0.

    Args:
        judged: what `judge` returned for the validation split.
    """
    area = judged["overall"]["auc"]
    if criterion == "auc":
        return area
    if criterion == "es_auc":
        return judged["across"]["es_auc"]["mean"]
    if criterion == "worst_group_auc":
        found = [a["worst_group_auc"] for a in judged["attributes"].values() if a["worst_group_auc"] is not None]
        return min(found) if found else None
    gap = judged["across"]["eod"]["mean"]
    return None if area is None or gap is None else -math.hypot(1 - area, gap)


def selection_figures(scores: Scores, criterion: str) -> dict[str, float]:
    """The figures that training logs after an epoch, and `score`, by which the epoch is selected.

    Where the criterion cannot be computed (a split without known groups), AUC takes its place.
    """
    judged = judge(scores, min_cell=1)
    figures = {name: criterion_value(judged, name) for name in CRITERIA}
    score = figures[criterion] if figures[criterion] is not None else figures["auc"]
    return {name: value for name, value in figures.items() if value is not None} | {"score": 0.0 if score is None else score}
