"""Patients are split before anything is repeated; the training rows are balanced over cells; the rest is left alone."""

import dataclasses
import statistics
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvlm_core.cohort.strata import (
    balance,
    cells,
    count_cells,
    label_strata,
    split_patients,
    stratify,
    target_sizes,
)
from fairvlm_core.cohort.table import SCHEMA, Task, cohort_table
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.steps.stratify import Config

GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40+")}
PHRASES = tuple(f"finding {j}" for j in range(3))
BINARY = Task("binary", PHRASES[:1], PHRASES[:1], PHRASES[:1])
MULTILABEL = Task("multilabel", PHRASES, PHRASES, PHRASES)
LENIENT = Config(allow_empty_cells=True)


def cohort(rows, task=BINARY):
    """Rows of (patient, sex, age group, labels, split); samples and images are numbered."""
    return cohort_table(
        (
            {
                "sample_id": f"s{i}",
                "patient_id": patient,
                "image": f"{i}.png",
                "note": f"note {i}",
                "labels": labels,
                "sex": sex,
                "age_group": age_group,
                "split": split,
                "source": "made",
            }
            for i, (patient, sex, age_group, labels, split) in enumerate(rows)
        ),
        task=task,
        groups=GROUPS,
    )


def random_cohort(n=3000, patients=2000, task=BINARY, seed=0, unknown=0.05, split=None):
    random = np.random.default_rng(seed)
    sexes = random.choice(["female", "male", None], n, p=[0.3 - unknown / 2, 0.7 - unknown / 2, unknown])
    ages = random.choice(["0-39", "40+", None], n, p=[0.2 - unknown / 2, 0.8 - unknown / 2, unknown])
    labels = (random.random((n, len(task.labels))) < np.linspace(0.1, 0.4, len(task.labels))).astype(int)
    people = random.choice(patients, n)
    return cohort(
        [(f"p{p}", s, a, row, split) for p, s, a, row in zip(people, sexes, ages, labels.tolist(), strict=True)], task
    )


@st.composite
def cohorts(draw):
    """Small cohorts of every kind: patients of several rows, official splits or none, unknown groups and labels."""
    task = draw(st.sampled_from([BINARY, MULTILABEL]))
    official = draw(st.sampled_from([(None,), (None, "train"), ("train", "validation", "test"), (None, "test")]))
    patient_splits = draw(st.lists(st.sampled_from(official), min_size=4, max_size=30))
    row = st.tuples(
        st.integers(0, len(patient_splits) - 1),
        st.sampled_from(["female", "male", "male", "male", None]),
        st.sampled_from(["0-39", "40+", "40+", None]),
        st.lists(st.sampled_from([0, 0, 1, None]), min_size=len(task.labels), max_size=len(task.labels)),
        st.booleans(),
    )
    drawn = draw(st.lists(row, max_size=80))
    rows = [(f"p{i}", "female", "0-39", [0] * len(task.labels), split) for i, split in enumerate(patient_splits)]
    # A patient's further rows carry the official split or none.
    rows += [(f"p{p}", sex, age, labels, patient_splits[p] if own else None) for p, sex, age, labels, own in drawn]
    if not {"train", None} & set(patient_splits):
        rows += [(f"q{i}", "male", "40+", [1] * len(task.labels), None) for i in range(3)]
    return cohort(rows, task)


def can_split(table):
    """Enough patients are free for training and each split to be carved."""
    splits = defaultdict(set)
    for row in table.to_pylist():
        splits[row["patient_id"]].add(row["split"])
    official = set().union(*splits.values())
    free = [p for p, found in splits.items() if not found & {"validation", "test"}]
    wanted = len({"validation", "test"} - official)
    return not wanted or len(free) > wanted


def same_but(row, *names):
    return {key: value for key, value in row.items() if key not in names}


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.integers(0, 5))
def test_nothing_leaks_nothing_is_invented_and_no_cap_is_exceeded(table, seed):
    config = dataclasses.replace(LENIENT, seed=seed)
    if not can_split(table):
        with pytest.raises(CohortError, match="patients to divide"):
            stratify(table, config)
        return
    given_rows = {row["sample_id"]: row for row in table.to_pylist()}
    result = stratify(table, config).to_pylist()

    splits = defaultdict(set)
    for row in result:
        splits[row["patient_id"]].add(row["split"])
        source = given_rows[row["sample_id"]]
        assert same_but(row, "split", "copy") == same_but(source, "split", "copy")
        if source["split"] in ("validation", "test"):
            assert row["split"] == source["split"]
    assert all(len(found) == 1 and found <= {"train", "validation", "test"} for found in splits.values())

    copies = defaultdict(list)
    for row in result:
        copies[row["sample_id"]].append(row["copy"])
    assert all(found == list(range(len(found))) for found in copies.values())

    # What is judged is every row that is given, once, in its order.
    split_of = {patient: found.pop() for patient, found in splits.items()}
    judged = [s for s, row in given_rows.items() if split_of.get(row["patient_id"]) in ("validation", "test")]
    assert [row["sample_id"] for row in result if row["split"] != "train"] == judged

    before = split_patients(table, config).to_pylist()
    cell = {row["sample_id"]: (row["sex"], row["age_group"]) for row in before}
    sizes = Counter(cell[row["sample_id"]] for row in before if row["split"] == "train")
    after = Counter(cell[row["sample_id"]] for row in result if row["split"] == "train")
    known = {key: size for key, size in sizes.items() if None not in key}
    for key, size in sizes.items():
        if None in key:
            assert after[key] == size  # belongs to no cell: kept once
        else:
            median = int(statistics.median(known.values()))
            assert after[key] == (median if size > median else min(median, int(1.3 * size)))


@settings(max_examples=40, deadline=None)
@given(cohorts(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(table, random):
    if not can_split(table):
        return
    order = list(range(len(table)))
    random.shuffle(order)
    keys = [("sample_id", "ascending"), ("copy", "ascending")]
    shuffled = stratify(table.take(order), LENIENT)
    assert shuffled.sort_by(keys).equals(stratify(table, LENIENT).sort_by(keys))


@pytest.mark.parametrize("task", [BINARY, MULTILABEL], ids=["binary", "multilabel"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_cell_keeps_its_label_distribution(task, seed):
    split = split_patients(random_cohort(task=task, seed=seed), Config(seed=seed))
    balanced = balance(split, Config(seed=seed))

    def counted(table):
        frame = table.to_pandas()
        frame = frame[frame["split"] == "train"].dropna(subset=["sex", "age_group"])
        return frame.assign(key=frame["labels"].map(lambda row: tuple(row))).groupby(["sex", "age_group", "key"]).size()

    before, after = counted(split), counted(balanced)
    total_before, total_after = (c.groupby(level=[0, 1]).sum() for c in (before, after))
    assert not total_before.equals(total_after)
    often = before.groupby(level=2).sum()
    compared = 0
    for (sex, age_group, key), count in before.items():
        if often[key] >= 10:  # rarer combinations are pooled
            expected = count * total_after[sex, age_group] / total_before[sex, age_group]
            assert abs(after.get((sex, age_group, key), 0) - expected) < 1
            compared += 1
    assert compared >= 8


@pytest.mark.parametrize("official", [None, "train"])
def test_both_missing_splits_are_carved_in_proportion_from_every_label_and_cell(official):
    table = random_cohort(n=4000, patients=10**9, split=official)  # a patient each
    frame = split_patients(table, Config()).to_pandas()
    shares = frame["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.001)
    assert shares["validation"] == pytest.approx(0.15, abs=0.001)
    frame["label"] = frame["labels"].map(lambda row: row[0])
    frame["cell"] = [
        f"{a} {b}" if pd.notna(a) and pd.notna(b) else "unknown"
        for a, b in zip(frame.sex, frame.age_group, strict=True)
    ]
    counts = frame.groupby(["cell", "label", "split"]).size().unstack(fill_value=0)
    assert len(counts) == 10
    sizes = counts.sum(axis=1)
    assert (abs(counts["test"] - 0.2 * sizes) <= 1).all()
    assert (abs(counts["validation"] - 0.15 * sizes) <= 2).all()


def test_a_patient_with_several_images_counts_where_it_is_rarest():
    """Forty patients have one positive image among ten: each split gets its share of these patients."""
    rows = []
    for i in range(400):
        rows += [(f"p{i}", "male", "40+", [int(i < 40 and j == 7)], None) for j in range(10)]
    frame = split_patients(cohort(rows), Config()).to_pandas()
    positive = frame[frame["labels"].map(lambda row: row[0] == 1)]
    assert positive["split"].value_counts().to_dict() == pytest.approx({"train": 26, "test": 8, "validation": 6}, abs=1)


def test_official_splits_win_and_only_what_is_missing_is_carved():
    rows = [(f"t{i}", "male", "40+", [i % 2], "test") for i in range(50)]
    rows += [(f"p{i}", "female", "0-39", [i % 2], "train" if i % 2 else None) for i in range(200)]
    rows += [("t0", "male", "40+", [1], None)]  # a further image of a test patient
    frame = split_patients(cohort(rows), Config()).to_pandas()
    assert (frame["split"] == "test").sum() == 51
    assert frame["split"].iloc[-1] == "test"
    assert (frame["split"] == "validation").sum() == 30
    assert (frame["split"] == "train").sum() == 170

    complete = cohort([*rows[:50], *((f"v{i}", "male", "40+", [0], "validation") for i in range(9)), *rows[50:]])
    frame = split_patients(complete, Config()).to_pandas()
    assert frame["split"].value_counts().to_dict() == {"train": 200, "test": 51, "validation": 9}


def test_a_share_of_zero_carves_nothing():
    table = random_cohort(n=100, patients=80)
    splits = set(split_patients(table, Config(validation_share=0, test_share=0)).column("split").to_pylist())
    assert splits == {"train"}


def test_the_seed_decides_who_is_chosen():
    table = random_cohort()
    first, again, other = (stratify(table, Config(seed=seed)) for seed in (3, 3, 4))
    assert first.equals(again)
    assert count_cells(first, GROUPS)["test"].sum() > 0

    def test_patients(result):
        frame = result.to_pandas()
        return set(frame.loc[frame["split"] == "test", "patient_id"])

    kept = test_patients(first) & test_patients(other)
    assert 0.05 < len(kept) / len(test_patients(first)) < 0.5  # as chance would have it: about 0.2


def test_caps_are_parameters():
    table = split_patients(random_cohort(unknown=0), Config())
    before = count_cells(table, ["sex", "age_group"])["train"][:-1]
    median = int(np.median(before))
    kept = count_cells(balance(table, Config(majority_cap=None, oversample_cap=1)), ["sex", "age_group"])["train"][:-1]
    np.testing.assert_array_equal(kept, before)
    mild = count_cells(balance(table, Config(majority_cap=1.5, oversample_cap=3)), ["sex", "age_group"])["train"][:-1]
    for size, result in zip(before, mild, strict=True):
        assert result == (min(size, int(1.5 * median)) if size > median else min(median, 3 * size))
    assert max(balance(table, Config(oversample_cap=3)).column("copy").to_pylist()) == 2


def test_other_attributes_and_none():
    table = split_patients(random_cohort(), Config())
    by_sex = count_cells(balance(table, Config(attributes=("sex",))), ["sex"])["train"]
    before = count_cells(table, ["sex"])["train"]
    assert by_sex[0] == min(int(1.3 * before[0]), int(np.median(before[:2])))
    assert by_sex[1] == int(np.median(before[:2]))
    assert balance(table, Config(attributes=())).equals(table)


def test_target_sizes_of_no_cells():
    np.testing.assert_array_equal(target_sizes(np.array([0, 0])), [0, 0])


def test_cells_follow_the_vocabularies():
    names, codes = cells(
        cohort([("a", "male", "0-39", [0], None), ("b", None, "40+", [0], None)]), ["sex", "age_group"]
    )
    assert names == [("female", "0-39"), ("female", "40+"), ("male", "0-39"), ("male", "40+")]
    assert codes.tolist() == [2, -1]


def test_counts_of_rows_and_of_patients():
    rows = [("a", "male", "40+", [0], "train")] * 3 + [
        ("b", "male", "40+", [0], "train"),
        ("c", None, "40+", [0], "test"),
    ]
    assert count_cells(cohort(rows), ["sex"])["train"].tolist() == [0, 4, 0]
    assert count_cells(cohort(rows), ["sex"], of="patients")["train"].tolist() == [0, 2, 0]
    assert count_cells(cohort(rows), ["sex"], of="patients")["test"].tolist() == [0, 0, 1]


def test_many_labels_make_the_same_strata_as_their_tuples():
    """45 labels of three values are more than 64 bits; combinations of ten rows or more stay apart."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 3, (30, 45))
    kinds[:2] = 0
    kinds[1] = [2**64 // 3**j % 3 for j in reversed(range(45))]  # as a number in base 3 it overflows to the former
    values = [[None if v == 2 else int(v) for v in kinds[k]] for k in np.repeat(np.arange(30), 12)]
    strata = label_strata(pa.table({"labels": pa.array(values, pa.list_(pa.int8()))}))
    pairs = {(tuple(v), s) for v, s in zip(values, strata, strict=True)}
    assert len(pairs) == len({v for v, _ in pairs}) == len({s for _, s in pairs}) == 30


def test_rare_combinations_are_pooled_by_their_rarest_label():
    common = [[0, 0, 0]] * 20 + [[1, 0, 0]] * 30 + [[0, 1, 0]] * 20 + [[0, 0, 1]] * 12
    rare = [[1, 1, 0], [1, 1, 1], [1, 0, 1], [0, None, 0]]
    strata = label_strata(pa.table({"labels": pa.array(common + rare, pa.list_(pa.int8()))}))
    assert len(set(strata[:82])) == 4
    both, *third, nothing = strata[82:]
    assert third[0] == third[1]  # label 2 is the rarest
    assert len({both, third[0], nothing} | set(strata[:82])) == 7


def test_schema_and_metadata_are_kept():
    table = random_cohort()
    result = stratify(table, Config())
    assert result.schema.equals(table.schema, check_metadata=True)
    assert result.schema.equals(SCHEMA)


def test_a_table_in_several_chunks_gives_the_same():
    table = random_cohort(n=500)
    parts = pa.concat_tables([table.slice(0, 17), table.slice(17, 300), table.slice(317)])
    assert stratify(parts, LENIENT).equals(stratify(table, LENIENT))


def test_without_metadata_the_groups_are_those_that_occur():
    table = random_cohort()
    bare = table.replace_schema_metadata(None)
    assert stratify(bare, Config()).equals(stratify(table, Config()))


def broken(rows, config, *, error=CohortError):
    with pytest.raises(error) as caught:
        stratify(cohort(rows), config, where="data/cohort.parquet")
    assert "secret" not in str(caught.value)
    return caught.value


PEOPLE = [(f"p{i}", s, a, [i % 2], None) for i in range(25) for s in GROUPS["sex"] for a in GROUPS["age_group"]]


def test_a_patient_in_two_official_splits_is_refused_with_both_rows():
    rows = [
        *PEOPLE,
        ("secret", "male", "40+", [1], "test"),
        ("x", "male", "40+", [1], "train"),
        ("secret", "male", "40+", [1], "train"),
    ]
    error = broken(rows, Config())
    assert error.what.startswith("1 patient is in two splits")
    assert error.where == "data/cohort.parquet, rows 100 and 102, column split"
    assert error.mend


def test_an_empty_cell_is_named_with_what_to_merge():
    rows = [row for row in PEOPLE if row[1:3] != ("female", "40+")]
    error = broken(rows, Config())
    assert error.what == 'No training row is in the cell "female x 40+".'
    assert "ingest.age_edges" in error.mend
    assert "allow_empty_cells" in error.mend
    result = stratify(cohort(rows), LENIENT)
    assert count_cells(result, ["sex", "age_group"])["train"][1] == 0


def test_an_attribute_that_nobody_published_is_named():
    error = broken([(p, None, a, y, s) for p, _, a, y, s in PEOPLE], Config())
    assert error.what == 'Not one training row has a known "sex", so it has no cells to balance.'
    assert "stratify.attributes" in error.mend


def test_a_misspelt_attribute_gets_the_nearest_name():
    error = broken(PEOPLE, Config(attributes=("sex", "age_grop")), error=ConfigError)
    assert error.mend == 'Did you mean "age_group"?'


@pytest.mark.parametrize(
    ("place", "value", "column"), [(1, "secret", "sex"), (2, "secret", "age_group"), (4, "secret", "split")]
)
def test_a_value_outside_the_vocabulary_is_placed_but_not_shown(place, value, column):
    rows = [list(row) for row in PEOPLE]
    rows[7][place] = value
    error = broken(rows, Config())
    assert error.where == f"data/cohort.parquet, row 7, column {column}"


def test_too_few_patients_are_not_split():
    error = broken([("secret", "male", "40+", [0], None), ("b", "male", "40+", [0], None)], Config())
    assert error.what == "There are 2 patients to divide into training and test and validation."


def test_a_balanced_cohort_is_not_balanced_again():
    with pytest.raises(CohortError, match="balanced already"):
        stratify(stratify(random_cohort(), Config()), Config())


def test_a_row_without_a_patient_is_refused():
    table = cohort(PEOPLE)
    ids = [None if i == 4 else p for i, p in enumerate(table.column("patient_id").to_pylist())]
    table = table.set_column(1, "patient_id", pa.array(ids, pa.string()))
    with pytest.raises(CohortError) as caught:
        stratify(table, Config())
    assert caught.value.where == "row 4, column patient_id"


def test_balancing_before_splitting_is_refused():
    with pytest.raises(CohortError) as caught:
        balance(cohort([(*row[:4], "train" if i else None) for i, row in enumerate(PEOPLE)]), Config())
    assert caught.value.where == "row 0, column split"


def test_rows_of_different_label_counts_are_refused():
    with pytest.raises(CohortError) as caught:
        stratify(cohort([*PEOPLE[:-1], (*PEOPLE[-1][:3], [0, 1], None)]), Config())
    assert caught.value.where.endswith("column labels")
