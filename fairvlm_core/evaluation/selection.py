"""Which model, or which epoch, is the best on validation: by accuracy alone, or by accuracy and fairness together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def pareto_front(performance: Sequence[float | None], gap: Sequence[float | None]) -> list[bool]:
    """Which of n models are on the Pareto front of performance (higher is better) against gap (lower is better).

    A model is on it where no other has at least its performance and at most its gap, and one of them better. Models
    that agree in both are on it together. A model that lacks one of the two (None or NaN) is not, and hides nobody.

    Args:
        performance: accuracy or AUC of each model, [n].
        gap: DPD, EOD or the like of each model, [n].

    Raises:
        ValueError: when the two are not of the same length.

    >>> pareto_front([0.80, 0.78, 0.75, 0.80, None], [0.10, 0.05, 0.07, 0.10, 0.01])
    [True, True, False, True, False]
    """
    points = {
        i: (float(best), float(worst))
        for i, (best, worst) in enumerate(zip(performance, gap, strict=True))
        if best is not None and worst is not None and not math.isnan(best) and not math.isnan(worst)
    }
    on, least, last = [False] * len(performance), math.inf, None
    # From the best performance down, of equal ones the smallest gap first: only a smaller gap than all before is new.
    for i, point in sorted(points.items(), key=lambda item: (-item[1][0], item[1][1])):
        on[i] = point[1] < least or point == last
        if on[i]:
            least, last = point[1], point
    return on


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
