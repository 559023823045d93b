"""`fairvlm report` and `fairvlm summary`: what a person reads, from files that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    predictions: Annotated[
        Path, typer.Argument(help="Predictions as Parquet or CSV, or the folder that holds predictions.parquet.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .html, or .md for the short report in Markdown.")],
    min_cell: Annotated[int, typer.Option(help="Groups with fewer images than this are suppressed.")] = 10,
) -> None:
    """Write a fairness report from anybody's predictions file: a self-contained page, or a short one in Markdown."""
    from fairvlm_core.evaluation.report import write_report

    write_report(predictions, out, min_cell=min_cell)
    typer.echo(f"The report is at {out}.")


def summary(comparison: Annotated[Path, typer.Argument(help="Folder that `fairvlm compare` wrote.")]) -> None:
    """Print the table of all models, and where the report is."""
    from fairvlm_core.evaluation.report import print_summary

    print_summary(comparison)
