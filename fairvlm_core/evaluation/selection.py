"""Which model, or which epoch, is the best on validation: by accuracy alone, or by accuracy and fairness together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation import CRITERIA
from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.predictions import Scores


def criterion(name: str, judgement: Mapping[str, Any], attributes: list[str]) -> float | None:
    """The value of a selection criterion for one model on validation; null where it cannot be computed.

    `es_auc` is the mean over the attributes, `worst_group_auc` the smallest. `dto` is the distance of (AUC, mean
    equalized odds difference) from the utopia point (1, 0), which does not depend on the models compared.
    """
    area = judgement["overall"]["auc"]
    if name == "auc":
        return area
    metric = {"es_auc": "es_auc", "worst_group_auc": "worst_group_auc", "dto": "eod"}[name]
    found = [judgement["attributes"][attribute][metric] for attribute in attributes]
    known = [value for value in found if value is not None]
    if not known or area is None:
        return None
    if name == "worst_group_auc":
        return min(known)
    mean = sum(known) / len(known)
    return mean if name == "es_auc" else ((1 - area) ** 2 + mean**2) ** 0.5


def select(name: str, values: Mapping[str, float | None]) -> str:
    """The best model; of equal ones the first, which is the simplest."""
    known = {model: value for model, value in values.items() if value is not None}
    if not known:
        raise PredictionsError(
            f"No model can be selected by {name}: no attribute has enough groups that can be judged on validation.",
            where="compare.criterion",
            mend="Select by auc, name other attributes, or enlarge the validation split.",
        )
    return (min if name == "dto" else max)(known, key=known.__getitem__)


def selection_figures(scores: Scores, criterion_name: str) -> dict[str, float]:
    """What training logs after an epoch: all criteria that exist, and `score` (higher is better), which selects it.

    Groups too small to be published take no part, for these figures are published with the training curves. Where the
    criterion cannot be computed (no attribute with two groups that can be judged), AUC takes its place.
    """
    judged = judge(scores)
    attributes = list(scores.groups)
    figures = {name: criterion(name, judged, attributes) for name in CRITERIA}
    chosen = criterion_name if figures[criterion_name] is not None else "auc"
    value = figures[chosen]
    score = 0.0 if value is None else -value if chosen == "dto" else value
    return {name: value for name, value in figures.items() if value is not None} | {"score": score}
