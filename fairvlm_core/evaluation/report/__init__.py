"""The fairness report: from a predictions file, or from the comparison of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairvlm_core.evaluation.report.page import page
from fairvlm_core.evaluation.report.subjects import (
    Subject,
    read_subject,
    require_same_images,
    subjects_in,
)
from fairvlm_core.evaluation.report.tables import summary_table
from fairvlm_core.evaluation.report.words import Selection
from fairvlm_core.files import read_json, written

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.json"


def write_report(predictions: Path, out: Path, *, min_cell: int = 10) -> None:
    """Write a self-contained HTML report on any predictions file, of one model or of several.

    Args:
        predictions: the file, or the folder that holds `predictions.parquet`.
        out: the HTML file to write.
        min_cell: groups with fewer images are suppressed.

    Raises:
        PredictionsError: when the file breaks the contract, or its models were not given the same images.
    """
    from fairvlm_core.evaluation.predictions import read_predictions

    subjects, split, how = subjects_in(read_predictions(predictions), min_cell=min_cell, where=predictions)
    _write(out, page(subjects, title="Fairness report", split=split, how=how))


def write_side_by_side(folders: Mapping[str, Path], out: Path, *, title: str, min_cell: int) -> None:
    """Write the report of models that evaluate judged on the same images, without selecting one.

    Args:
        folders: a model's title -> the folder that evaluate wrote for it.
    """
    subjects = [read_subject(folder, name, "test", min_cell=min_cell, sure=True) for name, folder in folders.items()]
    require_same_images(subjects, where=", ".join(map(str, folders.values())))
    _write(out, page(subjects, title=title, split="test", how=subjects[0].how))


def write_comparison(
    subjects: Sequence[Subject],
    out: Path,
    *,
    selection: Selection,
    strata: Mapping[str, Any] | None,
    pictures: Mapping[str, bytes] | None = None,
    against: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report of a comparison: models on test, which one validation selected, and the training cohort.

    Args:
        pictures: a model's title -> PNG of where it looks; they become part of the page.
        against: what `contrasts` says of the selected model and the others.
    """
    title = "Fairness of the compared models"
    more: dict[str, Any] = {"strata": strata, "selection": selection, "pictures": pictures or {}, "against": against}
    _write(out, page(subjects, title=title, split="test", how=subjects[0].how, **more))


def print_summary(folder: Path) -> None:
    """Print the table of all models that `compare` wrote into `folder`, and where the report is."""
    from rich.console import Console

    console = Console()
    console.print(summary_table(read_json(folder / COMPARISON_FILE, made_by="compare")))
    # A path is copied from the terminal: it is not wrapped, and nothing in it is markup.
    console.print(f"Report: {folder / REPORT_FILE}", markup=False, highlight=False, soft_wrap=True)


def _write(out: Path, text: str) -> None:
    with written(out) as partial:
        partial.write_text(text, encoding="utf-8")
