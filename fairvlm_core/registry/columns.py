"""What goes into a registered model and what comes out, by name. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence

from fairvlm_core.cohort.table import ATTRIBUTES

ARTIFACT = "fairvlm"
IMAGE = "image"
# What a model must never be told about a person. The signature declares these columns only so that they arrive here and
# are refused: MLflow silently drops a column that is not declared, and the caller would think that it was used.
REFUSED = (*ATTRIBUTES, "age")


def output_columns(labels: Sequence[str], kind: str) -> list[str]:
    """Names of the columns that `predict` returns."""
    names = [f"{what}_{label}" for what in ("score", "label") for label in labels]
    return [*names, "predicted", "version"] if kind == "multiclass" else [*names, "version"]
