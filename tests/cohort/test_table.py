"""The cohort contract: what goes in comes out, and what is not a cohort is refused by name."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fairvlm_core.cohort.table import (
    SCHEMA,
    Task,
    age_group,
    age_group_names,
    cohort_table,
    group_codes,
    groups_of,
    label_matrix,
    read_cohort,
    rows_of,
    task_of,
    write_cohort,
)
from fairvlm_core.errors import CohortError

TASK = Task("multilabel", ("edema", "fracture"), ("edema", "a fracture"), ("no edema", "no fracture"))
GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40+")}


def rows():
    return [
        {
            "sample_id": "a",
            "patient_id": "p",
            "image": "a.png",
            "labels": [1, None],
            "sex": "male",
            "split": "train",
            "source": "s",
        },
        {
            "sample_id": "b",
            "patient_id": "p",
            "image": "b.png",
            "labels": [0, 1],
            "sex": None,
            "split": "train",
            "source": "s",
        },
        {
            "sample_id": "c",
            "patient_id": "q",
            "image": "c.png",
            "labels": [None, 0],
            "sex": "female",
            "split": "test",
            "source": "s",
        },
    ]


def test_a_cohort_survives_the_file_with_its_task_and_groups(tmp_path):
    table = cohort_table(rows(), task=TASK, groups=GROUPS)
    write_cohort(table, tmp_path)
    back = read_cohort(tmp_path)
    assert back.equals(table)
    assert back.schema.metadata == table.schema.metadata
    assert back.equals(read_cohort(tmp_path / "cohort.parquet"))
    assert task_of(back) == TASK
    assert groups_of(back) == GROUPS
    assert back.column("copy").to_pylist() == [0, 0, 0]
    assert back.column("race").null_count == 3


def test_labels_and_groups_as_matrices_also_after_filtering():
    table = cohort_table(rows(), task=TASK, groups=GROUPS)
    np.testing.assert_array_equal(label_matrix(table), [[1, np.nan], [0, 1], [np.nan, 0]])
    assert label_matrix(table).dtype == np.float32
    np.testing.assert_array_equal(group_codes(table, ["sex", "age_group"]), [[1, -1], [-1, -1], [0, -1]])
    test = rows_of(table, "test")
    np.testing.assert_array_equal(label_matrix(test), [[np.nan, 0]])
    assert rows_of(table, "validation").num_rows == 0
    assert label_matrix(rows_of(table, "validation")).shape == (0, 2)
    both = pa.concat_tables([test, rows_of(table, "train")])
    np.testing.assert_array_equal(label_matrix(both), [[np.nan, 0], [1, np.nan], [0, 1]])


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0.0, "0-39"),
        (39.9, "0-39"),
        (40.0, "40-59"),
        (59.0, "40-59"),
        (60.0, "60+"),
        (101.0, "60+"),
        (None, None),
        (float("nan"), None),
    ],
)
def test_ages_fall_between_the_edges(age, expected):
    assert age_group(age, (40.0, 60.0)) == expected
    assert age_group_names(()) == ("0+",)


def test_a_label_list_of_the_wrong_length_is_named():
    bad = rows()
    bad[1]["labels"] = [1]
    with pytest.raises(CohortError, match="row 1, column labels"):
        label_matrix(cohort_table(bad, task=TASK, groups=GROUPS))


@pytest.mark.parametrize("lacking", ["patient_id", "split", "copy"])
def test_a_missing_column_is_named(tmp_path, lacking):
    table = cohort_table(rows(), task=TASK, groups=GROUPS)
    pq.write_table(table.drop_columns([lacking]), tmp_path / "cohort.parquet")
    with pytest.raises(CohortError, match=f"column {lacking}"):
        read_cohort(tmp_path)


def test_what_is_not_a_cohort_is_refused(tmp_path):
    with pytest.raises(CohortError, match="missing"):
        read_cohort(tmp_path)
    (tmp_path / "cohort.parquet").write_text("sample_id,patient_id\n")
    with pytest.raises(CohortError, match="not a Parquet file"):
        read_cohort(tmp_path)
    bare = pa.Table.from_pylist([{"copy": 0, **row} for row in rows()], schema=SCHEMA)
    pq.write_table(bare, tmp_path / "cohort.parquet")
    with pytest.raises(CohortError, match=r"no fairvlm\.task"):
        read_cohort(tmp_path)
    with pytest.raises(CohortError):
        write_cohort(bare, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "multi", "labels": ("a",), "concepts": ("a",)}, "cannot be of the kind"),
        ({"kind": "multiclass", "labels": ("a", "b"), "concepts": ("a",)}, "2 labels but 1 concept"),
        ({"kind": "multilabel", "labels": ("a",), "concepts": ("a",)}, "absence"),
        ({"kind": "binary", "labels": ("a", "b"), "concepts": ("a", "b"), "negatives": ("c", "d")}, "has one label"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(CohortError, match=message):
        Task(**fields)


def test_unknown_splits_and_attributes_name_the_nearest():
    table = cohort_table(rows(), task=TASK, groups=GROUPS)
    with pytest.raises(CohortError, match='Did you mean "validation"'):
        rows_of(table, "valid")
    with pytest.raises(CohortError, match='Did you mean "sex"'):
        group_codes(table, ["sexe"])
