"""Fix the calibration of the scores and one decision threshold per label on validation, before the test split is read.

Scores are calibrated first (see `evaluation.calibration`), so that thresholds belong to calibrated scores. A label's
threshold is the best one by a rule, by default that of the largest F1 (FairMed-VLM, thresholds); multi-class tasks
decide by argmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import Port, check, option

RULES = ("f1", "youden", "sensitivity", "specificity")
INPUTS = {"predictions": Port("Folder that predict wrote.")}
OUTPUTS = {"out": Port("Folder to write: thresholds.json.")}


@dataclass(frozen=True)
class Config:
    """How thresholds are found. None can be set by hand, for it would not be fixed on validation."""

    calibrate: bool = option(
        True, "Turn scores into probabilities first: Platt scaling per label, for several diagnoses one temperature."
    )
    rule: str = option(
        "f1",
        "What a threshold makes largest: F1; youden, sensitivity + specificity; or, where one of them must reach the "
        "target (sensitivity, as in screening, or specificity), the other.",
        choices=RULES,
    )
    target: float = option(0.9, "What the rules sensitivity and specificity must reach on validation.", low=0, high=1)

    def __post_init__(self) -> None:
        check(self)


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write thresholds.json: the kind, labels, rule, n, calibration (or null), and label -> threshold with its F1."""
    import numpy as np

    from fairvlm_core.evaluation.calibration import calibrated, fit, left_alone
    from fairvlm_core.evaluation.predictions import read_predictions, scores
    from fairvlm_core.evaluation.thresholds import decide, f1, tune
    from fairvlm_core.files import write_json

    given = scores(read_predictions(inputs["predictions"]), "validation")
    calibration = fit(given.y_true, given.y_score, given.labels, given.kind) if config.calibrate else None
    given = calibrated(given, calibration)
    alone = {} if calibration is None else left_alone(calibration, given.labels)
    for reason, labels in alone.items():
        print(f"Not calibrated: {', '.join(labels)} ({reason}).", flush=True)
    single = given.kind == "multiclass"
    thresholds = None if single else tune(given.y_true, given.y_score, rule=config.rule, target=config.target)
    decisions = decide(given.y_score, thresholds, given.kind)
    quality = {
        label: f1(truth, decision)
        for label, truth, decision in zip(given.labels, given.y_true.T, decisions.T, strict=True)
    }
    known = [value for value in quality.values() if not np.isnan(value)]
    write_json(
        outputs["out"] / "thresholds.json",
        {
            "model": given.model,
            "kind": given.kind,
            "labels": list(given.labels),
            "split": "validation",
            "n": len(given.sample_ids),
            "calibration": calibration,
            "rule": "argmax" if single else config.rule,
            "target": config.target if config.rule in ("sensitivity", "specificity") and not single else None,
            "thresholds": {}
            if thresholds is None
            else {label: float(value) for label, value in zip(given.labels, thresholds, strict=True)},
            "f1": {label: None if np.isnan(value) else round(value, 6) for label, value in quality.items()},
        },
    )
    metrics: dict[str, Any] = {"n": len(given.sample_ids), "labels": len(given.labels)}
    metrics["calibrated"] = 0 if calibration is None else len(given.labels) - sum(map(len, alone.values()))
    if known:
        metrics["macro_f1"] = float(np.mean(known))
    return metrics
