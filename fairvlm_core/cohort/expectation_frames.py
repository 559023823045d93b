"""A cohort as the frames that Great Expectations reads, in columns of numbers and codes.

Great Expectations reads numbered ids and coded groups several times as fast as text (benchmarks/validation.md), and
what a cell holds cannot get into its results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.cohort.table import ATTRIBUTES, SCHEMA, SPLITS, groups_of, task_of

STRANGE = "(not in the vocabulary)"  # stands for whatever a vocabulary does not have


def wrong_columns(schema: pa.Schema) -> list[pa.Field]:
    """The columns of a cohort that are missing or have another type."""
    return [field for field in SCHEMA if field.name not in schema.names or schema.field(field.name).type != field.type]


def row_frame(table: pa.Table, stored: pa.Array) -> pd.DataFrame:
    """One line per row of the cohort: its columns but note and labels, and what is derived from lists and other rows.

    Args:
        table: has the columns of `SCHEMA`.
        stored: the keys of the image store.

    Returns:
        Ids as their numbers (NaN where null or blank), groups and split as categories, age in years; `image_stored`,
        `image_shared` (another row gives the image to another patient), `patient_splits` (how many splits the patient
        is in), `label_count`, `label_strange` (neither 0, 1 nor null), `label_positive`, `label_unknown` (numbers).
    """
    numbers = {name: numbered(table.column(name)) for name in ("sample_id", "patient_id", "image", "source")}
    groups = groups_of(table)
    vocabularies = {"split": SPLITS} | {name: groups.get(name, ()) for name in ATTRIBUTES}
    copy = table.column("copy").cast(pa.float64())
    return pd.DataFrame(
        {
            **{name: np.where(number > 0, number, np.nan) for name, number in numbers.items()},
            "copy": copy.to_numpy(),
            "age": years(table.column("age")),
            **{name: categories(table.column(name), names) for name, names in vocabularies.items()},
            "image_stored": pc.is_in(table.column("image"), value_set=stored).to_numpy(),
            "image_shared": _several(numbers["image"], numbers["patient_id"]),
            "patient_splits": _splits_per_patient(numbers["patient_id"], codes(table.column("split"), SPLITS)),
            **_label_counts(table),
        }
    )


def count_frame(table: pa.Table) -> pd.DataFrame:
    """One line per group and per label value: its name, its column, and how many images it has."""
    task, groups = task_of(table), groups_of(table)
    lines = []
    for attribute in (name for name in ATTRIBUTES if name in groups):
        names, code = groups[attribute], codes(table.column(attribute), groups[attribute])
        counts = np.bincount(code[code >= 0], minlength=len(names))
        lines += [(f"{attribute} {name}", attribute, int(counts[k])) for k, name in enumerate(names)]
    values = label_values(table)
    if values is not None:
        for value, word in ((1, "present"), (0, "absent")):
            counts = (values == value).sum(axis=0)
            lines += [(f"{name} {word}", "labels", int(n)) for name, n in zip(task.labels, counts, strict=True)]
    return pd.DataFrame(lines, columns=["name", "column", "images"])


def label_values(table: pa.Table) -> np.ndarray | None:
    """Labels as int8 [n, L], -1 where they are neither 0 nor 1; None where a row has another number of labels."""
    width, lists = len(task_of(table).labels), table.column("labels").combine_chunks()
    if not pc.all(pc.equal(pc.fill_null(pc.list_value_length(lists), -1), width), min_count=0).as_py():
        return None
    flat = pc.fill_null(pc.list_flatten(lists), -1).to_numpy()
    return np.where((flat == 0) | (flat == 1), flat, np.int8(-1)).reshape(len(table), width)


def numbered(column: pa.ChunkedArray) -> np.ndarray:
    """Number the values of a text column from 1 on, int64 [n]; 0 where null or blank."""
    encoded = column.combine_chunks().dictionary_encode()
    words = encoded.dictionary
    number = np.arange(1, len(words) + 2)
    number[:-1][
        pc.or_(pc.equal(pc.binary_length(words), 0), pc.utf8_is_space(words)).to_numpy(zero_copy_only=False)
    ] = 0
    number[-1] = 0  # what the index -1 finds
    return number[pc.fill_null(encoded.indices, -1).to_numpy()]


def codes(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """The place of each value among the names, int64 [n]; len(names) where it is none of them, -1 where null."""
    encoded = column.combine_chunks().dictionary_encode()
    place = {name: code for code, name in enumerate(names)}
    code = np.array([*(place.get(word, len(names)) for word in encoded.dictionary.to_pylist()), -1])
    return code[pc.fill_null(encoded.indices, -1).to_numpy()]


def categories(column: pa.ChunkedArray, names: Sequence[str]) -> pd.Categorical:
    """The values as categories; whatever is none of the names becomes `STRANGE`."""
    return pd.Categorical.from_codes(codes(column, names).astype(np.int16), categories=[*names, STRANGE])


def years(column: pa.ChunkedArray) -> np.ndarray:
    """Ages as float64 [n], NaN where null. A NaN that is no null becomes infinite: it is in no range, nor unknown."""
    ages = column.to_numpy().astype(np.float64)
    ages[np.isnan(ages) & pc.is_valid(column).to_numpy()] = np.inf
    return ages


def _several(owned: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Whether what a row names also stands in a row of another owner, bool [n]; number 0 is nothing and nobody."""
    known = (owned > 0) & (owner > 0)
    first, last = (
        np.full(owned.max(initial=0) + 1, np.iinfo(np.int64).max),
        np.zeros(owned.max(initial=0) + 1, np.int64),
    )
    np.minimum.at(first, owned[known], owner[known])
    np.maximum.at(last, owned[known], owner[known])
    return known & (first < last)[owned]


def _splits_per_patient(patient: np.ndarray, split: np.ndarray) -> np.ndarray:
    """How many different splits the patient of each row is in, int64 [n]; no split is none, nobody is in none."""
    seen = np.zeros((patient.max(initial=0) + 1, len(SPLITS) + 1), dtype=bool)
    known = (patient > 0) & (split >= 0)
    seen[patient[known], split[known]] = True
    return seen.sum(axis=1)[patient]


def _label_counts(table: pa.Table) -> dict[str, np.ndarray]:
    """How many labels each row has, and how many of them are strange, positive, unknown, int64 [n]."""
    lists = table.column("labels").combine_chunks()
    flat = pc.list_flatten(lists)
    values, unknown = pc.fill_null(flat, -1).to_numpy(), pc.is_null(flat).to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    ends = lengths.cumsum()

    def count(which: np.ndarray) -> np.ndarray:
        rows = np.searchsorted(ends, np.flatnonzero(which), side="right")
        return np.bincount(rows, minlength=len(table))

    found = {"label_count": lengths, "label_strange": count((values != 0) & (values != 1) & ~unknown)}
    if task_of(table).kind == "multiclass":
        found |= {"label_positive": count(values == 1), "label_unknown": count(unknown)}
    return found
