"""What a cohort must fulfil before anything is trained on it, as Great Expectations suites.

Errors stop the run; warnings are shown and kept. What cannot be said of a column (labels are lists, a patient has many
rows) is first derived into one. No check carries a row's content: only row numbers, counts and names of vocabularies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.cohort.table import ATTRIBUTES, SCHEMA, SPLITS, groups_of, task_of
from fairvlm_core.errors import CohortError

OLDEST = 120  # years


@dataclass(frozen=True)
class Check:
    """The outcome of one expectation.

    Attributes:
        rule: what must hold, in words.
        column: of the cohort.
        severity: an `error` stops the run.
        success: whether it holds.
        observed: how often it does not, in words.
        row: the first row that breaks it, counted from 0.
        mend: what to do about it.
        expectation: its type in Great Expectations, or `schema`.
    """

    rule: str
    column: str
    severity: Literal["error", "warning"]
    success: bool
    observed: str
    row: int | None
    mend: str
    expectation: str


def examine(table: pa.Table, stored: pa.Array, *, min_group: int = 30, max_unknown: float = 0.2) -> list[Check]:
    """Check a cohort and the image store that belongs to it.

    Args:
        table: the cohort, with its metadata.
        stored: the keys of the image store.
        min_group: warn about groups and label values with fewer images.
        max_unknown: warn about a published attribute whose group is unknown in a larger share of the rows.

    Returns:
        One entry per expectation. If the columns are not those of a cohort, only this is said.
    """
    schema = _check_schema(table.schema)
    if not schema.success:
        return [schema]
    rows = _validated(_row_frame(table, stored), _row_expectations(table, max_unknown), unit="rows")
    counts = _count_frame(table)
    groups = _validated(counts, _count_expectations(min_group), unit="groups", names=counts["name"])
    return [schema, *rows, *groups]


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
    wrong = [field for field in SCHEMA if field.name not in schema.names or schema.field(field.name).type != field.type]
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


def _row_frame(table: pa.Table, stored: pa.Array) -> pd.DataFrame:
    """One line per row of the cohort: its plain columns, and those derived from lists and from other rows."""
    frame = table.drop_columns(["note", "labels"]).to_pandas(types_mapper=pd.ArrowDtype)
    lists = table.column("labels").combine_chunks()
    values = pc.fill_null(pc.list_flatten(lists), -1).to_numpy()
    unknown = pc.is_null(pc.list_flatten(lists)).to_numpy(zero_copy_only=False)
    row = pc.list_parent_indices(lists).to_numpy()

    def count(which: np.ndarray) -> np.ndarray:
        return np.bincount(row[which], minlength=len(table))

    frame["label_count"] = count(np.ones(len(values), dtype=bool))
    frame["label_strange"] = count((values != 0) & (values != 1) & ~unknown)
    frame["label_positive"] = count(values == 1)
    frame["label_unknown"] = count(unknown)
    frame["image_stored"] = pc.is_in(table.column("image"), value_set=stored).to_numpy()
    frame["patient_splits"] = _splits_per_patient(table)
    return frame


def _splits_per_patient(table: pa.Table) -> np.ndarray:
    """How many different splits the patient of each row is in, int64 [n]; a null split is none."""
    patient, split = _numbered(table.column("patient_id")), _numbered(table.column("split"))
    width = split.max(initial=0) + 1
    pairs = np.unique((patient * width + split)[(patient > 0) & (split > 0)])
    return np.bincount(pairs // width, minlength=patient.max(initial=0) + 1)[patient]


def _numbered(column: pa.ChunkedArray) -> np.ndarray:
    """Number the values of a column from 1 on, int64 [n], 0 where null."""
    indices = column.combine_chunks().dictionary_encode().indices
    return pc.fill_null(indices, -1).to_numpy().astype(np.int64) + 1


def _count_frame(table: pa.Table) -> pd.DataFrame:
    """One line per group and per label value: its name, its column, and how many images it has."""
    lines = []
    for attribute, names in groups_of(table).items():
        counts = dict(zip(*(c.to_pylist() for c in table.column(attribute).value_counts().flatten()), strict=True))
        lines += [(f"{attribute} {name}", attribute, counts.get(name, 0)) for name in names]
    task = task_of(table)
    flat = pc.list_flatten(table.column("labels").combine_chunks()).to_numpy(zero_copy_only=False)
    if len(flat) == len(table) * len(task.labels):
        values = flat.reshape(len(table), len(task.labels))
        lines += [
            (f"{name} present", "labels", int(n)) for name, n in zip(task.labels, (values == 1).sum(0), strict=True)
        ]
        lines += [
            (f"{name} absent", "labels", int(n)) for name, n in zip(task.labels, (values == 0).sum(0), strict=True)
        ]
    return pd.DataFrame(lines, columns=["name", "column", "images"])


def _row_expectations(table: pa.Table, max_unknown: float) -> list[Any]:
    gxe = _great_expectations().expectations
    task, groups = task_of(table), groups_of(table)
    found = []

    def expect(
        kind: Any, column: str, rule: str, mend: str, *, of: str = "", warn: bool = False, **arguments: Any
    ) -> None:
        target = {} if "column_list" in arguments else {"column": column}
        meta = {"rule": rule, "mend": mend, "of": of or column}
        severity = "warning" if warn else "critical"
        found.append(kind(**target, **arguments, meta=meta, severity=severity))

    ingest_again = "Run `fairvlm ingest` again."
    for field in SCHEMA:
        if not field.nullable and field.name != "labels":
            expect(gxe.ExpectColumnValuesToNotBeNull, field.name, f"no row lacks its {field.name}", ingest_again)
    expect(
        gxe.ExpectCompoundColumnsToBeUnique,
        "sample_id",
        "no image is listed twice",
        "Remove the repeated rows from the release's table, or give the images different names.",
        column_list=["sample_id", "copy"],
    )
    expect(
        gxe.ExpectColumnValuesToBeInSet,
        "image_stored",
        "every image is in the image store",
        "Run `fairvlm ingest` again: the cohort and its images folder belong together.",
        of="image",
        value_set=[True],
    )
    expect(
        gxe.ExpectColumnValuesToBeInSet,
        "split",
        f"a split is one of {', '.join(SPLITS)}, or empty",
        "Rename it in the release's table.",
        value_set=list(SPLITS),
    )
    expect(
        gxe.ExpectColumnValuesToBeBetween,
        "patient_splits",
        "no patient is in two splits",
        "Give all rows of a patient the same split, or leave their split empty.",
        of="split",
        max_value=1,
    )
    expect(
        gxe.ExpectColumnValuesToBeBetween,
        "age",
        f"an age lies between 0 and {OLDEST} years",
        "Correct it in the release's table, or leave it empty where it is unknown.",
        min_value=0,
        max_value=OLDEST,
    )
    for attribute in ATTRIBUTES:
        if attribute not in groups:
            expect(
                gxe.ExpectColumnValuesToBeNull,
                attribute,
                f"{attribute} is empty, for the cohort documents no groups of it",
                "List its groups in the cohort's metadata.",
            )
            continue
        expect(
            gxe.ExpectColumnValuesToBeInSet,
            attribute,
            f"{attribute} is one of {', '.join(groups[attribute])}, or empty",
            "Rename it in the release's table, and leave it empty where it is unknown.",
            value_set=list(groups[attribute]),
        )
        expect(
            gxe.ExpectColumnValuesToNotBeNull,
            attribute,
            f"{attribute} is unknown in at most {max_unknown:.0%} of the rows",
            "Rows of unknown group count in no fairness metric; give the demographics where they are known.",
            warn=True,
            mostly=1 - max_unknown,
        )
    expect(
        gxe.ExpectColumnValuesToBeInSet,
        "label_count",
        f"every row has {len(task.labels)} labels" if len(task.labels) > 1 else "every row has one label",
        ingest_again,
        of="labels",
        value_set=[len(task.labels)],
    )
    expect(
        gxe.ExpectColumnValuesToBeInSet,
        "label_strange",
        "a label is 0, 1, or empty where it is uncertain",
        "Correct it in the release's table.",
        of="labels",
        value_set=[0],
    )
    if task.kind == "multiclass":
        for column, wanted, rule in (
            ("label_positive", 1, "every image has exactly one class"),
            ("label_unknown", 0, "no class is left uncertain"),
        ):
            mend = "Mark one class per image, or leave the image out."
            expect(gxe.ExpectColumnValuesToBeInSet, column, rule, mend, of="labels", value_set=[wanted])
    return found


def _count_expectations(min_group: int) -> list[Any]:
    gxe = _great_expectations().expectations
    meta = {
        "rule": f"every group and every label value has at least {min_group} images",
        "mend": "Metrics of smaller groups are uncertain: merge groups (ingest.age_edges), or collect more.",
        "of": "labels and groups",
    }
    return [gxe.ExpectColumnValuesToBeBetween(column="images", min_value=min_group, meta=meta, severity="warning")]


def _validated(
    frame: pd.DataFrame, expectations: list[Any], *, unit: str, names: pd.Series | None = None
) -> list[Check]:
    """Run a suite over a frame whose index is 0, 1, ...; with `names`, what is observed names the lines at fault."""
    gx = _great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("cohort").add_dataframe_asset(unit)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(name=unit, expectations=expectations)
    validation = batch.validate(suite, result_format={"result_format": "SUMMARY", "partial_unexpected_count": 20})
    order = {expectation.meta["rule"]: place for place, expectation in enumerate(expectations)}
    results = sorted(validation.results, key=lambda result: order[result.expectation_config.meta["rule"]])
    return [_check(result, unit=unit, names=names) for result in results]


def _check(result: Any, *, unit: str, names: pd.Series | None) -> Check:
    config, found = result.expectation_config, result.result
    if "unexpected_count" not in found:
        raise RuntimeError(f"Great Expectations could not evaluate {config.type}: {result.exception_info}")
    lines = found.get("partial_unexpected_index_list") or []
    observed = f"{found['unexpected_count']:,} of {found['element_count']:,} {unit} break it"
    return Check(
        rule=config.meta["rule"],
        column=config.meta["of"],
        severity="warning" if str(getattr(config.severity, "value", config.severity)) == "warning" else "error",
        success=bool(result.success),
        observed=observed if names is None or not lines else f"{observed}: {', '.join(names[i] for i in lines)}",
        row=int(lines[0]) if lines and names is None else None,
        mend=config.meta["mend"],
        expectation=config.type,
    )


def _great_expectations() -> Any:
    """Import it late (it takes seconds), and without its analytics."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations

    return great_expectations
