"""Check the cohort and its images with Great Expectations; a broken cohort stops the run and says what is wrong.

With a reference, an earlier cohort, it also tells what has changed since, and stops when patients who were trained on
then would be tested on now.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import Port, check, option

INPUTS = {"cohort": Port("Folder that ingest wrote: cohort.parquet and images/.")}
OUTPUTS = {"out": Port("Folder to write: validation.json, validation.html.")}


@dataclass(frozen=True)
class Config:
    """From where on a cohort deserves a warning."""

    min_group: int = option(30, "Warn about groups and label values with fewer images.", low=1)
    max_unknown: float = option(0.2, "Warn about an attribute that is unknown in a larger share.", low=0, high=1)
    reference: str = option("", "Folder of an earlier cohort to compare this one with, as ingest or stratify wrote it.")
    max_divergence: float = option(
        0.05, "Warn where the groups diverge more from the reference's (Kullback-Leibler; half a PSI of 0.1).", low=0
    )
    max_age_shift: float = option(
        0.1, "Warn where the ages are further apart (Kolmogorov-Smirnov distance).", low=0, high=1
    )
    max_unknown_shift: float = option(
        0.05, "Warn where the share that is unknown differs more from the reference's.", low=0, high=1
    )
    max_prevalence_shift: float = option(
        0.1, "Warn where a label's frequency differs more (Cohen's h; 0.1: 5 points at 50 %, 2 at 3 %).", low=0
    )
    min_cell: int = option(10, "Groups with fewer patients are neither compared nor shown.", low=1)

    def __post_init__(self) -> None:
        check(self)


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path]) -> dict[str, Any]:
    """Write what was checked, or raise.

    Raises:
        CohortError: naming every rule that is broken, the first row and column that break it, and the mend; or saying
            what is wrong with the reference.
        ConfigError: when the reference does not exist.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from rich.console import Console

    from fairvlm_core.cohort.expectation_page import page
    from fairvlm_core.cohort.expectation_reference import read_reference
    from fairvlm_core.cohort.expectations import examine, refuse
    from fairvlm_core.cohort.images import INDEX_FILE, STORE, ImageStore
    from fairvlm_core.cohort.table import COHORT_FILE, read_cohort
    from fairvlm_core.files import sha256, write_json, written

    file = inputs["cohort"] / COHORT_FILE
    table = read_cohort(file)
    ImageStore.open(inputs["cohort"])  # raises where its two files do not fit together
    stored = pq.read_table(inputs["cohort"] / STORE / INDEX_FILE).column("image").combine_chunks()
    reference = read_reference(Path(config.reference)) if config.reference else None
    found = examine(table, stored, config, reference)
    refuse(found.checks, where=str(file))

    warnings = [outcome for outcome in found.checks if not outcome.success]
    for broken in warnings:
        Console(stderr=True).print(
            f"Warning: it does not hold that {broken.rule} ({broken.observed}). {broken.mend}", markup=False
        )
    validation: dict[str, Any] = {
        "success": True,
        "cohort_sha256": sha256(file),
        "rows": len(table),
        "checks": [dataclasses.asdict(outcome) for outcome in found.checks],
        "great_expectations": found.suites,
    }
    if reference is not None and found.drift is not None:
        validation["drift"] = {"reference_sha256": sha256(Path(reference.where)), **dataclasses.asdict(found.drift)}
    write_json(outputs["out"] / "validation.json", validation)
    patients = pc.count_distinct(table.column("patient_id")).as_py()
    facts = {"rows": len(table), "patients": patients, "min_cell": config.min_cell, "reference": config.reference}
    with written(outputs["out"] / "validation.html") as partial:
        partial.write_text(page(found.checks, found.drift, **facts), encoding="utf-8")
    figures = found.drift.figures if found.drift else {}
    return {"rows": len(table), "checks": len(found.checks), "warnings": len(warnings), **figures}
