"""Check the cohort and its images with Great Expectations; a broken cohort stops the run and says what is wrong."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairvlm_core.config import Port, check, option

if TYPE_CHECKING:
    from fairvlm_core.cohort.expectations import Check

INPUTS = {"cohort": Port("Folder that ingest wrote: cohort.parquet and images/.")}
OUTPUTS = {"out": Port("Folder to write: validation.json, validation.html.")}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; }
p { color: #52606d; margin-top: .2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem; border-bottom: 1px solid #e1e6eb; }
.ok { color: #1b7f4b; } .warning { color: #9a5b00; font-weight: 600; }
code { font-size: .85em; color: #52606d; }
"""


@dataclass(frozen=True)
class Config:
    """From where on a cohort deserves a warning."""

    min_group: int = option(30, "Warn about groups and label values with fewer images.", low=1)
    max_unknown: float = option(0.2, "Warn about an attribute that is unknown in a larger share.", low=0, high=1)

    def __post_init__(self) -> None:
        check(self)


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path]) -> dict[str, Any]:
    """Write what was checked, or raise.

    Raises:
        CohortError: naming every rule that is broken, the first row and column that break it, and the mend.
    """
    import pyarrow.parquet as pq
    from rich.console import Console

    from fairvlm_core.cohort.expectations import examine, refuse
    from fairvlm_core.cohort.images import INDEX_FILE, STORE, ImageStore
    from fairvlm_core.cohort.table import COHORT_FILE, read_cohort
    from fairvlm_core.files import sha256, write_json, written

    file = inputs["cohort"] / COHORT_FILE
    table = read_cohort(file)
    ImageStore.open(inputs["cohort"])  # raises where its two files do not fit together
    stored = pq.read_table(inputs["cohort"] / STORE / INDEX_FILE).column("image").combine_chunks()
    checks = examine(table, stored, min_group=config.min_group, max_unknown=config.max_unknown)
    refuse(checks, where=str(file))

    warnings = [found for found in checks if not found.success]
    for found in warnings:
        Console(stderr=True).print(
            f"Warning: it does not hold that {found.rule} ({found.observed}). {found.mend}", markup=False
        )
    validation = {
        "success": True,
        "cohort_sha256": sha256(file),
        "rows": len(table),
        "checks": [dataclasses.asdict(found) for found in checks],
    }
    write_json(outputs["out"] / "validation.json", validation)
    with written(outputs["out"] / "validation.html") as partial:
        partial.write_text(_page(checks, len(table)))
    return {"rows": len(table), "checks": len(checks), "warnings": len(warnings)}


def _page(checks: Sequence[Check], rows: int) -> str:
    """One self-contained page: what needs attention first."""
    lines = []
    for found in sorted(checks, key=lambda found: found.success):
        status, remark = ("ok", "") if found.success else ("warning", f"{found.observed}. {found.mend}")
        cells = (found.column.replace("_", " "), found.rule, remark)
        shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        kind = f"<td><code>{html.escape(found.expectation)}</code></td>"
        lines.append(f'<tr><td class="{status}">{status}</td>{shown}{kind}</tr>')
    warnings = sum(not found.success for found in checks)
    header = "".join(f"<th>{name}</th>" for name in ("Result", "Column", "Rule", "Remark", "Expectation"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Validation of the cohort</title>
<style>{STYLE}</style>
</head>
<body>
<h1>The cohort passed its validation</h1>
<p>{rows:,} images, {len(checks)} checks, warnings: {warnings}</p>
<table>
<tr>{header}</tr>
{chr(10).join(lines)}
</table>
</body>
</html>
"""
