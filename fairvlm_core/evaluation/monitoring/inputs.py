"""The two files that `fairvlm monitor` compares, as far as they can be compared.

The reference is what `evaluate` wrote: calibrated scores, and decisions at the fixed thresholds. A month's file has
either the same (what the served model answers), or, with `raw`, scores as `predict` wrote them, which are calibrated
and decided here as `evaluate` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.errors import PredictionsError, nearest
from fairvlm_core.evaluation.calibration import calibrate_table
from fairvlm_core.evaluation.metrics import groups_in
from fairvlm_core.evaluation.predictions import KINDS, Scores, kind_of, read_predictions, scores
from fairvlm_core.evaluation.thresholds import add_decisions
from fairvlm_core.files import read_json

EVALUATION_FILE = "evaluation.json"
ROUNDED = 1e-4  # scores may have been written with four decimals
ALL = "all"


def read_pair(
    reference: Path, current: Path, *, raw: bool = False, reference_split: str = "test", split: str | None = None
) -> tuple[Scores, Scores]:
    """The test set and the month, decided, with the same labels in the same order.

    Args:
        reference: the folder that `evaluate` wrote, or its predictions alone.
        current: as `read_predictions` takes them; `y_true` may be empty throughout.
        raw: the scores of the month are as `predict` wrote them.
        reference_split, split: the rows to take; of the month all, unless a split is named.

    Raises:
        PredictionsError: for files that break the contract, and for two that cannot be compared: of another kind, with
            other labels, thresholds, calibration or names of groups.
    """
    before, now = read_predictions(reference), read_predictions(current)
    then = _one_model(before, reference, reference_split)
    if np.isnan(then.y_pred).any():
        raise PredictionsError(
            "The reference has no decisions.",
            where=f"{reference}, column y_pred",
            mend="Give the folder that `fairvlm evaluate` wrote, not that of predict.",
        )
    now = _of_kind(now, kind_of(before), current)
    _same_labels(set(then.labels), now, current)
    now = _decided(now, reference, current, raw)
    month = _one_model(now, current, split, labels=then.labels)
    if np.isnan(month.y_pred).any():
        raise PredictionsError(
            f"{int(np.isnan(month.y_pred).sum()):,} of {month.y_pred.size:,} rows have no decision.",
            where=f"{current}, column y_pred",
            mend="Give every row one, or leave the column out.",
        )
    _same_thresholds(then, month, current)
    _same_groups(then, month, current)
    return then, month


def _one_model(table: pa.Table, path: Path, split: str | None, *, labels: tuple[str, ...] | None = None) -> Scores:
    """One model's rows of one split, or of all together."""
    models = table.select(["model", "seed"]).group_by(["model", "seed"]).aggregate([])
    if len(models) > 1:
        raise PredictionsError(
            f"There are predictions of {len(models)} models or seeds, and a model in use is one.",
            where=f"{path}, columns model and seed",
            mend="Keep the rows of one of them.",
        )
    splits = pc.unique(table.column("split")).to_pylist()
    if split is None:
        place = table.column_names.index("split")
        table, split = table.set_column(place, "split", pa.array([ALL] * len(table), pa.string())), ALL
    elif split not in splits:
        raise PredictionsError(
            f'There are no predictions for the split "{split}".',
            where=f"{path}, column split",
            mend=nearest(split, splits),
        )
    try:
        return scores(table, split, labels=labels)
    except PredictionsError as error:
        raise PredictionsError(error.what, where=f"{path}, {error.where}".rstrip(", "), mend=error.mend) from None


def _of_kind(table: pa.Table, kind: str, path: Path) -> pa.Table:
    """The table with the reference's kind, which a CSV file cannot say."""
    told = table.schema.metadata or {}
    if b"fairvlm.kind" in told and kind_of(table) != kind:
        raise PredictionsError(
            f"The reference is {_a(kind)} task, and these predictions are of {_a(kind_of(table))} one.",
            where=str(path),
            mend="Compare a model with its own test set.",
        )
    return table.replace_schema_metadata({**told, b"fairvlm.kind": kind.encode()})


def _a(kind: str) -> str:
    return f"a {kind}" if kind in KINDS else f'a "{kind}"'


def _same_labels(known: set[str], table: pa.Table, path: Path) -> None:
    found = set(pc.unique(table.column("label")).to_pylist())
    if found != known:
        raise PredictionsError(
            f"Of the {len(known)} labels of the reference {len(known - found)} are missing, and {len(found - known)} "
            "are others.",
            where=f"{path}, column label",
            mend=f"The labels are {', '.join(sorted(known))}.",
        )


def _decided(table: pa.Table, reference: Path, path: Path, raw: bool) -> pa.Table:
    """The month with decisions: its own, or those that the reference's calibration and thresholds make."""
    given = "y_pred" in table.column_names and table.column("y_pred").null_count < len(table)
    if given:
        if raw:
            raise PredictionsError(
                "These predictions have decisions, so their scores are not raw.",
                where=f"{path}, column y_pred",
                mend="Leave --raw out, or give what predict wrote.",
            )
        return table
    file = reference / EVALUATION_FILE
    if not file.is_file():
        raise PredictionsError(
            "These predictions have no decisions, and the reference does not say how to make them.",
            where=f"{path}, column y_pred",
            mend=f"Pass the folder that evaluate wrote ({EVALUATION_FILE} is in it), or add the column y_pred.",
        )
    fixed: Mapping[str, Any] = read_json(file, made_by="evaluate").get("thresholds", {})
    if fixed.get("calibration") is not None and not raw:
        raise PredictionsError(
            "These predictions have no decisions, so there is no telling whether their scores are calibrated as the "
            "reference's are.",
            where=f"{path}, column y_pred",
            mend="Pass --raw if predict wrote them; else add the decisions (y_pred) that the model in use made.",
        )
    plain = table.drop_columns(["y_pred"]) if "y_pred" in table.column_names else table
    return add_decisions(calibrate_table(plain, fixed.get("calibration")), fixed.get("thresholds", {}))


def _same_thresholds(then: Scores, now: Scores, path: Path) -> None:
    """Decisions of both sides that no one threshold could have made are those of two models.

    Where the reference's are of no single threshold, as after equalising groups, nothing is refused.
    """
    if then.kind == "multiclass":
        chosen = now.y_score[np.arange(len(now.y_score)), now.y_pred.argmax(axis=1)]
        off = (now.y_pred.sum(axis=1) != 1) | (chosen < now.y_score.max(axis=1) - ROUNDED)
        bad = int(off.sum()) if _is_argmax(then) else 0
    else:
        bad = 0
        for j in range(len(then.labels)):
            low, high = _cut(then.y_score[:, j], then.y_pred[:, j])
            if low < high:
                score, said = now.y_score[:, j], now.y_pred[:, j] == 1
                bad += int(((score <= low - ROUNDED) & said).sum() + ((score >= high + ROUNDED) & ~said).sum())
    if bad:
        raise PredictionsError(
            f"{bad:,} of {now.y_pred.size:,} decisions are not those of the reference's thresholds, so that the "
            "thresholds are others, or the scores are calibrated otherwise.",
            where=f"{path}, columns y_score and y_pred",
            mend="Compare a model with its own test set: the folder that evaluate wrote for the registered version.",
        )


def _is_argmax(given: Scores) -> bool:
    rows = np.arange(len(given.y_score))
    return bool((given.y_score[rows, given.y_pred.argmax(axis=1)] == given.y_score.max(axis=1)).all())


def _cut(score: np.ndarray, decision: np.ndarray) -> tuple[float, float]:
    """The highest score that was not positive, and the lowest that was."""
    said = decision == 1
    return float(score[~said].max(initial=-1.0)), float(score[said].min(initial=2.0))


def _same_groups(then: Scores, now: Scores, path: Path) -> None:
    """An attribute whose groups have no name in common was written in other words."""
    for attribute in then.groups:
        if attribute in now.groups:
            known = {group for group, _ in groups_in(then.groups[attribute])}
            if not known & {group for group, _ in groups_in(now.groups[attribute])}:
                raise PredictionsError(
                    f"No group of {attribute} is one of the reference's.",
                    where=f"{path}, column {attribute}",
                    mend=f"Write them as there: {', '.join(map(str, sorted(known)))}.",
                )
