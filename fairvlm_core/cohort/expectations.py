"""What a cohort must fulfil before anything is trained on it, as Great Expectations suites.

Errors stop the run; warnings are shown and kept. What cannot be said of a column (labels are lists, a patient has many
rows) is first derived into one. No check carries a row's content: only row numbers, counts and names of vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fairvlm_core.cohort.expectation_drift import Drift, compare
from fairvlm_core.cohort.expectation_frames import count_frame, row_frame, wrong_columns
from fairvlm_core.cohort.expectation_reference import Reference, add_reference, reference_expectations
from fairvlm_core.cohort.expectation_suites import Check, expect, validated
from fairvlm_core.cohort.table import ATTRIBUTES, SCHEMA, SPLITS, groups_of, task_of
from fairvlm_core.errors import CohortError

OLDEST = 120  # years
INGEST_AGAIN = "Run `fairvlm ingest` again."


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        checks: one per expectation.
        suites: Great Expectations' results, suite by suite, fit for publication.
        drift: the cohort beside the reference; None without one, and where the cohort breaks a rule.
    """

    checks: list[Check]
    suites: dict[str, dict[str, Any]]
    drift: Drift | None = None


def examine(table: pa.Table, stored: pa.Array, config: Any, reference: Reference | None = None) -> Examination:
    """Check a cohort and the image store that belongs to it.

    Args:
        table: the cohort, with its metadata.
        stored: the keys of the image store.
        config: the fields of `fairvlm_core.steps.validate.Config`.
        reference: an earlier cohort to compare it with.

    Returns:
        What was found. If the columns are not those of a cohort, only this is said.

    Raises:
        CohortError: when the reference serves another task.
    """
    schema = _check_schema(table.schema)
    if not schema.success:
        return Examination([schema], {})
    rows, of_rows = row_frame(table, stored), row_expectations(table, config.max_unknown)
    if reference is not None:
        reference.require_task(task_of(table))
        add_reference(rows, table, reference)
        of_rows += reference_expectations()
    checks, suites = [schema], {}
    found, suites["rows"] = validated(rows, of_rows, unit="rows", min_cell=config.min_cell)
    checks += found
    counts = count_frame(table)
    found, suites["groups"] = validated(
        counts, count_expectations(config.min_group), unit="groups", min_cell=config.min_cell, names=counts["name"]
    )
    checks += found
    if reference is None or any(check.severity == "error" and not check.success for check in checks):
        return Examination(checks, suites)
    found, more, drift = compare(table, rows["image_seen"].to_numpy(), reference, config)
    return Examination([*checks, *found], suites | more, drift)


def refuse(checks: Sequence[Check], *, where: str) -> None:
    """Raise if an error is among the checks.

    Raises:
        CohortError: with every broken rule, the first row and column that break it, and how to mend it.
    """
    broken = [check for check in checks if check.severity == "error" and not check.success]
    if not broken:
        return
    first = broken[0]
    if len(broken) == 1:
        what = f"The cohort breaks a rule: {first.rule} ({first.observed})."
    else:
        lines = [f"- {check.rule} ({check.observed}, first in {_place(check)}). {check.mend}" for check in broken]
        what = "\n".join([f"The cohort breaks {len(broken)} rules:", *lines])
    raise CohortError(what, where=f"{where}, {_place(first)}", mend=first.mend)


def _place(check: Check) -> str:
    return f"column {check.column}" if check.row is None else f"row {check.row}, column {check.column}"


def _check_schema(schema: pa.Schema) -> Check:
    """Whether the columns are those of a cohort: nothing else can be asked before."""
    wrong = wrong_columns(schema)
    return Check(
        rule="the columns are there and have their types",
        column=wrong[0].name if wrong else "all",
        severity="error",
        success=not wrong,
        observed=f"{len(wrong)} of {len(SCHEMA)} columns are missing or have another type",
        row=None,
        mend=f"It should be a column of the type {wrong[0].type}: run `fairvlm ingest` again." if wrong else "",
        expectation="schema",
    )


def row_expectations(table: pa.Table, max_unknown: float) -> list[Any]:
    """What must hold for `row_frame`: ids, images, splits, ages, groups, labels."""
    return [
        expect("ExpectTableRowCountToBeBetween", "all", "there is at least one row", INGEST_AGAIN, min_value=1),
        *(
            expect("ExpectColumnValuesToNotBeNull", field.name, f"no row lacks its {field.name}", INGEST_AGAIN)
            for field in SCHEMA
            if not field.nullable and field.name != "labels"
        ),
        expect(
            "ExpectCompoundColumnsToBeUnique",
            "sample_id",
            "no image is listed twice",
            "Remove the repeated rows from the release's table, or give the images different names.",
            column_list=["sample_id", "copy"],
        ),
        expect(
            "ExpectColumnValuesToBeInSet",
            "image_stored",
            "every image is in the image store",
            "Run `fairvlm ingest` again: the cohort and its images folder belong together.",
            of="image",
            value_set=[True],
        ),
        expect(
            "ExpectColumnValuesToBeInSet",
            "image_shared",
            "no image belongs to two patients",
            "Give all rows of an image the same patient: otherwise it can be in training and in test.",
            of="patient_id",
            value_set=[False],
        ),
        expect(
            "ExpectColumnValuesToBeInSet",
            "split",
            f"a split is one of {', '.join(SPLITS)}, or empty",
            "Rename it in the release's table.",
            value_set=list(SPLITS),
        ),
        expect(
            "ExpectColumnValuesToBeBetween",
            "patient_splits",
            "no patient is in two splits",
            "Give all rows of a patient the same split, or leave their split empty.",
            of="split",
            max_value=1,
        ),
        expect(
            "ExpectColumnValuesToBeBetween",
            "age",
            f"an age lies between 0 and {OLDEST} years",
            "Correct it in the release's table, or leave it empty where it is unknown.",
            min_value=0,
            max_value=OLDEST,
        ),
        *(wanted for attribute in ATTRIBUTES for wanted in _of_attribute(table, attribute, max_unknown)),
        *_of_labels(table),
    ]


def _of_attribute(table: pa.Table, attribute: str, max_unknown: float) -> list[Any]:
    groups = groups_of(table)
    if attribute not in groups:
        return [
            expect(
                "ExpectColumnValuesToBeNull",
                attribute,
                f"{attribute} is empty, for the cohort documents no groups of it",
                "List its groups in the cohort's metadata.",
            )
        ]
    return [
        expect(
            "ExpectColumnValuesToBeInSet",
            attribute,
            f"{attribute} is one of {', '.join(groups[attribute])}, or empty",
            "Rename it in the release's table, and leave it empty where it is unknown.",
            value_set=list(groups[attribute]),
        ),
        expect(
            "ExpectColumnValuesToNotBeNull",
            attribute,
            f"{attribute} is unknown in at most {100 * max_unknown:g}% of the rows",
            "Rows of unknown group count in no fairness metric; give the demographics where they are known.",
            warn=True,
            mostly=1 - max_unknown,
        ),
    ]


def _of_labels(table: pa.Table) -> list[Any]:
    task = task_of(table)
    wanted = [
        (
            "label_count",
            len(task.labels),
            f"every row has {len(task.labels)} labels" if len(task.labels) > 1 else "every row has one label",
            INGEST_AGAIN,
        ),
        ("label_strange", 0, "a label is 0, 1, or empty where it is uncertain", "Correct it in the release's table."),
    ]
    if task.kind == "multiclass":
        mend = "Mark one class per image, or leave the image out."
        wanted += [
            ("label_positive", 1, "every image has exactly one class", mend),
            ("label_unknown", 0, "no class is left uncertain", mend),
        ]
    return [
        expect("ExpectColumnValuesToBeInSet", column, rule, mend, of="labels", value_set=[value])
        for column, value, rule, mend in wanted
    ]


def count_expectations(min_group: int) -> list[Any]:
    """What must hold for `count_frame`: the sizes of groups and label values."""
    return [
        expect(
            "ExpectColumnValuesToBeBetween",
            "images",
            f"every group and every label value has at least {min_group} images",
            "Metrics of smaller groups are uncertain: merge groups (ingest.age_edges), or collect more.",
            of="labels and groups",
            warn=True,
            min_value=min_group,
        )
    ]
