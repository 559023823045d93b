"""Calibrate the scores, decide at the fixed thresholds, and judge both, overall and for every group.

Validation and test are judged alike; small groups are suppressed, and groups that cannot be judged are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import Port, check, option
from fairvlm_core.errors import PredictionsError

METHODS = ("percentile", "bca")

INPUTS = {
    "predictions": Port("Folder that predict wrote."),
    "thresholds": Port("Folder that tune_thresholds wrote for the same model."),
}
OUTPUTS = {
    "out": Port(
        "Folder to write: predictions.parquet with calibrated scores and decisions, evaluation.json, roc.png (and "
        "attention.png)."
    )
}


@dataclass(frozen=True)
class Config:
    """How sure the numbers are, and what may be published."""

    min_cell: int = option(10, "Groups with fewer images are suppressed.", low=1)
    resamples: int = option(1000, "Resamples of the patients for the intervals of 95 %, and permutations.", low=100)
    interval: str = option(
        "percentile",
        "How intervals are made; bca is bias-corrected and accelerated. Gaps and worst groups have their own.",
        choices=METHODS,
    )
    seed: int = option(0, "Seed of the resamples; equal seeds make two models' numbers comparable.", low=0)

    def __post_init__(self) -> None:
        check(self)


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write calibrated scores and decisions, the judgement of each split, and the ROC curves per group on test."""
    import shutil

    import pyarrow.compute as pc

    from fairvlm_core.evaluation.attention import ATTENTION_FILE
    from fairvlm_core.evaluation.calibration import calibrate_table
    from fairvlm_core.evaluation.certainty import certainty
    from fairvlm_core.evaluation.judgement import judge
    from fairvlm_core.evaluation.predictions import (
        PREDICTIONS_FILE,
        kind_of,
        read_predictions,
        scores,
        write_predictions,
    )
    from fairvlm_core.evaluation.report.pictures import roc_picture
    from fairvlm_core.evaluation.report.subjects import Subject
    from fairvlm_core.evaluation.thresholds import add_decisions
    from fairvlm_core.files import read_json, write_json

    table = read_predictions(inputs["predictions"])
    file = inputs["thresholds"] / "thresholds.json"
    fixed = read_json(file, made_by="tune_thresholds")
    _refuse_others(fixed, table, where=str(file))
    # Thresholds that were not tuned on calibrated scores have no calibration: the scores stay as they are.
    table = add_decisions(calibrate_table(table, fixed.get("calibration")), fixed["thresholds"])
    write_predictions(table, outputs["out"] / PREDICTIONS_FILE, kind=kind_of(table))
    present = set(pc.unique(table.column("split")).to_pylist())
    judged = {}
    for split in ("validation", "test"):
        if split in present or split == "test":
            given = scores(table, split)
            judged[split] = judge(given, min_cell=config.min_cell)
    # Of validation nothing is claimed, so that its numbers need no intervals.
    sure, p_values = certainty(
        given, resamples=config.resamples, method=config.interval, min_cell=config.min_cell, seed=config.seed
    )
    judged["test"] |= {"intervals": sure, "p_values": p_values}
    write_json(
        outputs["out"] / "evaluation.json",
        {"model": given.model, "kind": given.kind, "labels": list(given.labels), "thresholds": fixed, **judged},
    )
    roc_picture(Subject(given.model, given, judged["test"], fixed["thresholds"]), outputs["out"] / "roc.png")
    if (inputs["predictions"] / ATTENTION_FILE).is_file():
        # The picture goes with the model's figures, to where its report is made.
        shutil.copyfile(inputs["predictions"] / ATTENTION_FILE, outputs["out"] / ATTENTION_FILE)
    return {key: value for split, found in judged.items() for key, value in _flat(split, found).items()}


def _refuse_others(fixed: Mapping[str, Any], table: Any, *, where: str) -> None:
    """Thresholds belong to one model and its labels."""
    import pyarrow.compute as pc

    for column, expected in (("label", fixed["labels"]), ("model", [fixed["model"]])):
        found = pc.unique(table.column(column)).to_pylist()
        if set(found) != set(expected):
            raise PredictionsError(
                f"The thresholds are for the {column} {', '.join(expected)}, the predictions have {', '.join(found)}.",
                where=where,
                mend="Run `fairvlm tune_thresholds` on these predictions.",
            )


def _flat(split: str, judged: Mapping[str, Any]) -> dict[str, float | int]:
    """The judgement's main numbers under flat names; those that do not exist are absent."""
    values = {f"{split}_n": judged["n"]}
    for name in ("accuracy", "balanced_accuracy", "auc", "ece", "brier"):
        values[f"{split}_{name}"] = judged["overall"][name]
    for attribute, found in judged["attributes"].items():
        for name in ("es_auc", "dpd", "eod", "tpr_gap", "worst_group_auc", "worst_group_ece"):
            values[f"{split}_{name}_{attribute.replace(' ', '_')}"] = found[name]
    for name in ("accuracy", "undecided", "agreement"):
        values[f"{split}_answer_{name}"] = judged.get("answers", {}).get(name)
    return {key: value for key, value in values.items() if value is not None}
