"""The fairness report: from a predictions file, or from the comparison of models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairvlm_core.evaluation.report.content import Content
from fairvlm_core.evaluation.report.gate import print_gate
from fairvlm_core.evaluation.report.page import page
from fairvlm_core.evaluation.report.short import short
from fairvlm_core.evaluation.report.subjects import read_subject, require_same_images, subjects_in
from fairvlm_core.evaluation.report.tables import summary_table
from fairvlm_core.files import read_json, written

REPORT_FILE = "report.html"
SHORT_FILE = "report.md"
COMPARISON_FILE = "comparison.json"
GATE_FILE = "gate.json"


def write_report(predictions: Path, out: Path, *, min_cell: int = 10) -> None:
    """Write a report on any predictions file, of one model or of several.

    Args:
        predictions: the file, or the folder that holds `predictions.parquet`.
        out: the file to write: a short report in Markdown where its name ends with .md, else a self-contained page.
        min_cell: groups with fewer images are suppressed.

    Raises:
        PredictionsError: when the file breaks the contract, or its models were not given the same images.
    """
    from fairvlm_core.evaluation.predictions import read_predictions

    subjects, split, how = subjects_in(read_predictions(predictions), min_cell=min_cell, where=predictions)
    content = Content("Fairness report", subjects, split, how)
    if out.suffix.lower() == ".md":
        _write(out, short(content, full="`fairvlm report` writes it to a name that ends with .html"))
    else:
        _write(out, page(content))


def write_side_by_side(folders: Mapping[str, Path], out: Path, *, title: str, min_cell: int) -> None:
    """Write the page of models that evaluate judged on the same images, without selecting one.

    Args:
        folders: a model's title -> the folder that evaluate wrote for it.
    """
    subjects = [read_subject(folder, name, "test", min_cell=min_cell, sure=True) for name, folder in folders.items()]
    require_same_images(subjects, where=", ".join(map(str, folders.values())))
    _write(out, page(Content(title, subjects, "test", subjects[0].how)))


def write_comparison(content: Content, folder: Path) -> None:
    """Write the page of a comparison and its short form, for places that show no long page, into a folder."""
    _write(folder / REPORT_FILE, page(content))
    full = f"`{REPORT_FILE}` beside this file; on Kubeflow, the artifact `report` of the step compare"
    _write(folder / SHORT_FILE, short(content, full=full))


def print_summary(folder: Path) -> None:
    """Print the table of all models that `compare` wrote into `folder`, the gate's verdict, and where the report is."""
    from rich.console import Console

    console = Console()
    console.print(summary_table(read_json(folder / COMPARISON_FILE, made_by="compare")))
    print_gate(read_json(folder / GATE_FILE, made_by="compare"), reasons=False)
    # A path is copied from the terminal: it is not wrapped, and nothing in it is markup.
    console.print(f"Report: {folder / REPORT_FILE}", markup=False, highlight=False, soft_wrap=True)


def _write(out: Path, text: str) -> None:
    with written(out) as partial:
        partial.write_text(text, encoding="utf-8")
