"""What `fairvlm monitor` does: read two predictions files, compare them, and write what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairvlm_core.evaluation.monitoring.charts import curves
from fairvlm_core.evaluation.monitoring.drift import drift
from fairvlm_core.evaluation.monitoring.evidence import Asked
from fairvlm_core.evaluation.monitoring.inputs import read_pair
from fairvlm_core.evaluation.monitoring.numbers import Pair
from fairvlm_core.evaluation.monitoring.page import page, short, table
from fairvlm_core.evaluation.monitoring.words import verdict
from fairvlm_core.files import write_json, written

JSON_FILE, PAGE_FILE, SHORT_FILE = "monitor.json", "monitor.html", "monitor.md"


def monitor(
    reference: Path,
    current: Path,
    out: Path,
    asked: Asked,
    *,
    raw: bool = False,
    reference_split: str = "test",
    split: str | None = None,
) -> dict[str, Any]:
    """Compare a month of predictions with those of the test set, and write monitor.json, monitor.html and monitor.md.

    Args:
        reference, current, raw, reference_split, split: see `read_pair`.
        out: the folder.

    Returns:
        What monitor.json says: that of `drift`, and `sentences` (the verdict in words), `models` (then and now) and
        `overlap` (whether patients are in both).

    Raises:
        PredictionsError: for files that cannot be compared; nothing is written then.
    """
    then, now = read_pair(reference, current, raw=raw, reference_split=reference_split, split=split)
    told = drift(then, now, asked) | {
        "models": [then.model, now.model],
        "overlap": bool(set(then.patient_ids) & set(now.patient_ids)),
    }
    told["sentences"] = verdict(told)
    pair = Pair.of(then, now)
    drawn = {label: curves(pair.label(j), asked.min_cell) for j, label in enumerate(then.labels)}
    write_json(out / JSON_FILE, told)
    texts = {PAGE_FILE: page(told, drawn), SHORT_FILE: short(told, full=f"`{PAGE_FILE}` beside this file")}
    for name, text in texts.items():
        with written(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return told


def print_monitor(told: dict[str, Any], out: Path) -> None:
    """Print the table, the verdict in words, and where the page is."""
    from rich.console import Console

    console = Console()
    console.print(table(told))
    for line in told["sentences"]:
        console.print(line, markup=False, highlight=False)
    console.print(f"Report: {out / PAGE_FILE}", markup=False, highlight=False, soft_wrap=True)
