"""Each expectation catches the cohort that breaks it, and only that one does."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest

from fairvlm_core.cohort.expectation_frames import STRANGE, label_values, row_frame
from fairvlm_core.cohort.expectations import examine, refuse
from fairvlm_core.cohort.table import SCHEMA, Task, cohort_table
from fairvlm_core.errors import CohortError
from fairvlm_core.steps.validate import Config

TASKS = {
    "binary": Task("binary", ("glaucoma",), ("glaucoma",), ("a healthy eye",)),
    "multiclass": Task("multiclass", ("nv", "mel"), ("a nevus", "a melanoma")),
    "multilabel": Task("multilabel", ("edema", "fracture"), ("edema", "a fracture"), ("no edema", "no fracture")),
}
LABELS = {
    "binary": ([0], [1], [None], [1]),
    "multiclass": ([1, 0], [0, 1], [0, 1], [1, 0]),
    "multilabel": ([1, 0], [0, 1], [1, 1], [None, 0]),
}
GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40+")}
STORED = pa.array([f"{i}.png" for i in range(40)])


def cohort(kind="binary", rows=40, **changed):
    """A sound cohort of 40 rows; `changed` gives columns that replace whole columns, or {row: value}."""
    columns = {
        "sample_id": [f"s{i}" for i in range(rows)],
        "patient_id": [f"p{i // 2}" for i in range(rows)],
        "image": [f"{i}.png" for i in range(rows)],
        "labels": [LABELS[kind][i % 4] for i in range(rows)],
        "sex": [("female", "male")[i % 2] for i in range(rows)],
        "age": [30.0 + i for i in range(rows)],
        "age_group": [("0-39", "40+")[i % 2] for i in range(rows)],
        "split": [("train", None, "test", "validation")[i // 2 % 4] for i in range(rows)],
        "source": ["made"] * rows,
        "copy": [0] * rows,
    }
    for name, change in changed.items():
        columns.setdefault(name, [None] * rows)
        for row, value in change.items():
            columns[name][row] = value
    arrays = [pa.array(columns.get(field.name, [None] * rows), field.type) for field in SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    metadata = cohort_table([], task=TASKS[kind], groups=GROUPS).schema.metadata
    return table.replace_schema_metadata(metadata)


def examined(table, stored=STORED, **limits):
    return examine(table, stored, Config(**{"min_group": 1, **limits}))


def failures(table, stored=STORED, **limits):
    return [check for check in examined(table, stored, **limits).checks if not check.success]


@pytest.mark.parametrize("kind", TASKS)
def test_a_sound_cohort_passes(kind):
    assert failures(cohort(kind)) == []


# name: (kind, change, the rule, how many rows break it, the first of them, column)
BROKEN = {
    "no patient": ("binary", {"patient_id": {7: None, 9: None}}, "no row lacks its patient_id", 2, 7, "patient_id"),
    "no sample": ("binary", {"sample_id": {7: None}}, "no row lacks its sample_id", 1, 7, "sample_id"),
    "no source": ("binary", {"source": {0: None}}, "no row lacks its source", 1, 0, "source"),
    "blank patient": ("binary", {"patient_id": {7: "", 9: " "}}, "no row lacks its patient_id", 2, 7, "patient_id"),
    "no copy number": ("binary", {"copy": {3: None}}, "no row lacks its copy", 1, 3, "copy"),
    "listed twice": ("binary", {"sample_id": {8: "s5"}}, "no image is listed twice", 2, 5, "sample_id"),
    "two patients": (
        "binary",
        {"image": {9: "2.png"}},
        "no image belongs to two patients",
        2,
        2,
        "patient_id",
    ),
    "no picture": ("binary", {"image": {11: "secret.png"}}, "every image is in the image store", 1, 11, "image"),
    "strange split": (
        "binary",
        {"split": {20: "secret", 21: "secret"}},
        "a split is one of train, validation, test, or empty",
        2,
        20,
        "split",
    ),
    "two splits": ("binary", {"split": {5: "train"}}, "no patient is in two splits", 2, 4, "split"),
    "too old": ("binary", {"age": {6: 300.0}}, "an age lies between 0 and 120 years", 1, 6, "age"),
    "too young": ("binary", {"age": {6: -1.0, 9: -1.0}}, "an age lies between 0 and 120 years", 2, 6, "age"),
    "not an age": ("binary", {"age": {6: float("nan")}}, "an age lies between 0 and 120 years", 1, 6, "age"),
    "strange sex": ("binary", {"sex": {12: "secret"}}, "sex is one of female, male, or empty", 1, 12, "sex"),
    "strange age group": (
        "binary",
        {"age_group": {12: "secret"}},
        "age_group is one of 0-39, 40+, or empty",
        1,
        12,
        "age_group",
    ),
    "undocumented groups": (
        "binary",
        {"race": {13: "secret"}},
        "race is empty, for the cohort documents no groups of it",
        1,
        13,
        "race",
    ),
    "label too few": ("multilabel", {"labels": {3: [1]}}, "every row has 2 labels", 1, 3, "labels"),
    "label too many": ("binary", {"labels": {3: [1, 1]}}, "every row has one label", 1, 3, "labels"),
    "no labels": ("binary", {"labels": {3: []}}, "every row has one label", 1, 3, "labels"),
    "strange label": (
        "multilabel",
        {"labels": {3: [2, 0], 4: [0, -1]}},
        "a label is 0, 1, or empty where it is uncertain",
        2,
        3,
        "labels",
    ),
    "two classes": ("multiclass", {"labels": {2: [1, 1]}}, "every image has exactly one class", 1, 2, "labels"),
    "no class": ("multiclass", {"labels": {2: [0, 0]}}, "every image has exactly one class", 1, 2, "labels"),
    "uncertain class": ("multiclass", {"labels": {2: [None, 1]}}, "no class is left uncertain", 1, 2, "labels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_cohort_is_caught(name):
    kind, change, rule, count, row, column = BROKEN[name]
    found = failures(cohort(kind, **change))
    errors = [check for check in found if check.severity == "error"]
    assert [check.rule for check in errors] == [rule]
    assert (errors[0].row, errors[0].column) == (row, column)
    assert errors[0].observed == f"{count} of 40 rows break it ({count / 40:.1%})"
    with pytest.raises(CohortError) as caught:
        refuse(found, where="data/cohort.parquet")
    assert caught.value.where == f"data/cohort.parquet, row {row}, column {column}"
    assert rule in caught.value.what
    assert caught.value.mend
    assert "secret" not in str(caught.value)


def test_a_row_without_labels_at_all_is_caught():
    lists = pa.array([None if i == 3 else [1] for i in range(40)], pa.list_(pa.int8()))
    table = cohort()
    table = table.set_column(table.schema.get_field_index("labels"), pa.field("labels", lists.type), lists)
    errors = [check for check in failures(table) if check.severity == "error"]
    assert [(check.rule, check.row) for check in errors] == [("every row has one label", 3)]


def test_every_broken_rule_is_told_with_its_place_and_mend():
    table = cohort(sex={12: "secret"}, age={6: 300.0}, image={1: "secret1.png", 2: "secret2.png"})
    with pytest.raises(CohortError) as caught:
        refuse(failures(table), where="cohort.parquet")
    lines = caught.value.what.splitlines()
    assert lines[0] == "The cohort breaks 3 rules:"
    assert lines[1].startswith(
        "- every image is in the image store (2 of 40 rows break it (5.0%), first in row 1, column image). Run"
    )
    assert "row 6, column age" in lines[2]
    assert "row 12, column sex" in lines[3]
    assert caught.value.where == "cohort.parquet, row 1, column image"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "another type"])
def test_columns_that_are_not_a_cohorts(change):
    table = cohort()
    place = table.schema.get_field_index("age")
    table = table.remove_column(place)
    if change == "another type":
        table = table.add_column(place, "age", pa.array(["30"] * 40))
    (found,) = examined(table).checks
    assert not found.success
    assert found.column == "age"
    assert "float" in found.mend
    with pytest.raises(CohortError) as caught:
        refuse([found], where="cohort.parquet")
    assert caught.value.where == "cohort.parquet, column age"


def test_small_groups_and_rare_labels_are_warnings_that_name_them():
    rare = cohort(
        "multilabel", labels={i: [0, 1] for i in range(40)} | {0: [1, 1]}, sex=dict.fromkeys(range(1, 40), "male")
    )
    (found,) = failures(rare, min_group=5)
    assert found.severity == "warning"
    assert found.observed == "3 of 8 groups break it: sex female, edema present, fracture absent"
    refuse([found], where="cohort.parquet")  # stops nothing
    (found,) = failures(rare, min_group=1)
    assert found.observed == "1 of 8 groups break it: fracture absent"


def test_the_limit_of_small_groups_is_inclusive():
    assert failures(cohort(), min_group=10) == []  # ten negatives, the smallest
    assert [check.observed for check in failures(cohort(), min_group=11)] == ["1 of 6 groups break it: glaucoma absent"]


def test_many_unknown_groups_are_a_warning():
    table = cohort(sex=dict.fromkeys(range(9)))
    (found,) = failures(table, min_cell=9)
    assert (found.severity, found.column, found.row) == ("warning", "sex", 0)
    assert found.rule == "sex is unknown in at most 20% of the rows"
    assert found.observed == "9 of 40 rows break it (22.5%)"
    assert failures(table, max_unknown=0.225) == []
    (found,) = failures(table, max_unknown=0.125)
    assert found.rule == "sex is unknown in at most 12.5% of the rows"


def test_fewer_people_than_may_be_shown_are_not_counted():
    table = cohort(sex=dict.fromkeys(range(9)))
    (found,) = failures(table, min_cell=10)
    assert found.observed == "fewer than 10 of 40 rows break it"
    told = json.dumps(examined(table, min_cell=10).suites["rows"])
    assert "22.5" not in told
    assert "77.5" not in told
    assert "22.5" in json.dumps(examined(table, min_cell=9).suites["rows"])


def test_a_repeated_row_is_not_listed_twice():
    table = cohort(sample_id={1: "s0"}, patient_id={1: "p0"}, copy={1: 1})
    assert failures(table) == []


def test_a_cohort_in_chunks_counts_its_rows_through():
    table = cohort(sex={25: "secret"})
    parts = pa.concat_tables([table.slice(0, 10), table.slice(10)])
    assert [(check.row, check.column) for check in failures(parts)] == [(25, "sex")]


def test_a_larger_cohort_agrees_with_a_plain_count():
    random = np.random.default_rng(0)
    ages = random.uniform(-20, 150, 40)
    (found,) = failures(cohort(age=dict(enumerate(ages))))
    strange = np.flatnonzero((ages < 0) | (ages > 120))
    assert found.observed.startswith(f"{len(strange)} of 40 rows break it")
    assert found.row == strange[0]


def test_nothing_is_reported_home():
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_no_rows_are_no_cohort():
    (found,) = failures(cohort(rows=0), max_unknown=0, min_group=1)[:1]
    assert (found.rule, found.severity) == ("there is at least one row", "error")
    with pytest.raises(CohortError, match="at least one row"):
        refuse([found], where="cohort.parquet")


def test_the_same_image_of_the_same_patient_is_not_shared():
    assert failures(cohort(image={1: "0.png"})) == []


def test_a_row_without_an_image_is_in_no_store():
    rules = [check.rule for check in failures(cohort(image={5: None}))]
    assert rules == ["no row lacks its image", "every image is in the image store"]


@pytest.mark.parametrize("kind", TASKS)
def test_the_frame_of_rows_agrees_with_a_loop(kind):
    random = np.random.default_rng(1)

    def drawn(*values):
        return dict(enumerate(np.array(values, dtype=object)[random.integers(len(values), size=40)]))

    table = cohort(
        kind,
        patient_id=drawn("a", "b", "c", "d", None, ""),
        image=drawn("0.png", "1.png", "elsewhere.png", None),
        split=drawn("train", "test", "secret", None),
        sex=drawn("female", "male", "secret", None),
        labels=drawn((1, 0), (0, None), (2, -1, 1), (), (1, 1)),
        age=drawn(3.0, float("nan"), None, 150.0),
    )
    rows, frame = table.to_pylist(), row_frame(table, STORED)
    for row, line in zip(rows, frame.itertuples(), strict=True):
        assert np.isnan(line.patient_id) == (not row["patient_id"])
        assert line.image_stored == (row["image"] in ("0.png", "1.png"))
        same_patient = [other for other in rows if row["patient_id"] and other["patient_id"] == row["patient_id"]]
        assert line.patient_splits == len({other["split"] for other in same_patient} - {None})
        owners = {other["patient_id"] for other in rows if other["image"] == row["image"]} - {None, ""}
        assert line.image_shared == bool(row["image"] and row["patient_id"] and len(owners) > 1)
        expected = {"female": "female", "male": "male", "secret": STRANGE}.get(row["sex"])
        assert line.sex == expected or (expected is None and line.sex != line.sex)
        assert line.label_count == len(row["labels"])
        assert line.label_strange == sum(label not in (0, 1, None) for label in row["labels"])
        if kind == "multiclass":
            assert line.label_positive == row["labels"].count(1)
            assert line.label_unknown == row["labels"].count(None)
        age = row["age"]
        assert np.isnan(line.age) if age is None else line.age == (np.inf if age != age else age)
    ids = [row["sample_id"] for row in rows]
    assert [ids.index(row["sample_id"]) for row in rows] == [
        list(frame["sample_id"]).index(number) for number in frame["sample_id"]
    ]


def test_labels_as_a_matrix():
    table = cohort("multilabel", labels={0: [1, None], 1: [5, 0]})
    assert label_values(table)[:3].tolist() == [[1, -1], [-1, 0], [1, 1]]
    assert label_values(cohort("multilabel", labels={3: [1]})) is None
    empty = cohort(rows=0)
    assert label_values(empty).shape == (0, 1)


def test_no_content_of_a_row_gets_into_the_results():
    table = cohort(
        sample_id={8: "secret", 9: "secret"},
        patient_id={3: "secret"},
        image={11: "secret"},
        split={20: "secret"},
        sex={12: "secret"},
        race={13: "secret"},
        source={14: "secret"},
        age={6: 123.5},
    )
    found = examined(table)
    assert len([check for check in found.checks if not check.success]) == 7
    told = json.dumps(found.suites) + repr(found.checks)
    assert "secret" not in told
    assert "123.5" not in told
