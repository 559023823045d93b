"""Patients are split before anything is repeated; the training rows are balanced over cells; the rest is left alone."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fairvlm_core.cohort.kinds import of_table, read_kinds
from fairvlm_core.cohort.sampling import target_sizes
from fairvlm_core.cohort.splits import label_strata
from fairvlm_core.cohort.strata import plan, stratify
from fairvlm_core.cohort.table import SCHEMA, SPLITS, Task, cohort_table
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


def split_only(table, config):
    """The cohort with its splits, before it is balanced."""
    planned = plan(of_table(table), dataclasses.replace(config, allow_empty_cells=True))
    names = pa.array(SPLITS).take(pa.array(planned.split))
    return table.set_column(table.column_names.index("split"), table.schema.field("split"), names)


def train_sizes(table, config):
    """Training rows of each cell, before and after; then those of unknown group."""
    planned = plan(of_table(table), config)
    return planned.rows_before[0], planned.rows_after[0]


@pytest.mark.parametrize("task", [BINARY, MULTILABEL], ids=["binary", "multilabel"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_cell_keeps_its_label_distribution(task, seed):
    table = random_cohort(task=task, seed=seed)
    split, balanced = split_only(table, Config(seed=seed)), stratify(table, Config(seed=seed))

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
    frame = split_only(table, Config()).to_pandas()
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
    frame = split_only(cohort(rows), Config()).to_pandas()
    positive = frame[frame["labels"].map(lambda row: row[0] == 1)]
    assert positive["split"].value_counts().to_dict() == pytest.approx({"train": 26, "test": 8, "validation": 6}, abs=1)


def test_official_splits_win_and_only_what_is_missing_is_carved():
    rows = [(f"t{i}", "male", "40+", [i % 2], "test") for i in range(50)]
    rows += [(f"p{i}", "female", "0-39", [i % 2], "train" if i % 2 else None) for i in range(200)]
    rows += [("t0", "male", "40+", [1], None)]  # a further image of a test patient
    frame = split_only(cohort(rows), Config()).to_pandas()
    assert (frame["split"] == "test").sum() == 51
    assert frame["split"].iloc[-1] == "test"
    assert (frame["split"] == "validation").sum() == 30
    assert (frame["split"] == "train").sum() == 170

    complete = cohort([*rows[:50], *((f"v{i}", "male", "40+", [0], "validation") for i in range(9)), *rows[50:]])
    frame = split_only(complete, Config()).to_pandas()
    assert frame["split"].value_counts().to_dict() == {"train": 200, "test": 51, "validation": 9}


def test_a_share_of_zero_carves_nothing():
    table = random_cohort(n=100, patients=80)
    splits = set(split_only(table, Config(validation_share=0, test_share=0)).column("split").to_pylist())
    assert splits == {"train"}


def test_the_seed_decides_who_is_chosen():
    table = random_cohort()
    first, again, other = (stratify(table, Config(seed=seed)) for seed in (3, 3, 4))
    assert first.equals(again)
    assert (first.to_pandas()["split"] == "test").any()

    def test_patients(result):
        frame = result.to_pandas()
        return set(frame.loc[frame["split"] == "test", "patient_id"])

    kept = test_patients(first) & test_patients(other)
    assert 0.05 < len(kept) / len(test_patients(first)) < 0.5  # as chance would have it: about 0.2


def test_the_seed_decides_which_rows_are_kept():
    """Also of a stratum of one: over the seeds it is kept as often as its share says."""
    rows = [(f"p{i}", "female", "0-39", [i % 2], "train") for i in range(200)]
    rows += [(f"q{i}", "male", "0-39", [int(i == 0)], "train") for i in range(600)]
    table, n = cohort(rows), 100
    seeds = [Config(attributes=("sex",), validation_share=0, test_share=0, seed=seed) for seed in range(n)]
    kept = np.array([plan(of_table(table), config).times for config in seeds])
    assert kept[:, :200].sum(axis=1).tolist() == [260] * n
    assert kept[:, 200:].sum(axis=1).tolist() == [400] * n
    for row, share in ((0, 1.3), (1, 1.3), (200, 2 / 3), (201, 2 / 3), (799, 2 / 3)):
        assert abs(kept[:, row].mean() - share) < 4 * (share % 1 * (1 - share % 1) / n) ** 0.5
    together = np.corrcoef(kept[:, 201:].T)  # who is kept with whom is chance, too
    assert abs(together[np.triu_indices(599, 1)].mean()) < 0.01


def test_caps_are_parameters():
    table = random_cohort(unknown=0)
    before, after = (sizes[:-1] for sizes in train_sizes(table, Config(majority_cap=None, oversample_cap=1)))
    np.testing.assert_array_equal(after, before)
    median = int(np.median(before))
    mild = train_sizes(table, Config(majority_cap=1.5, oversample_cap=3))[1][:-1]
    for size, result in zip(before, mild, strict=True):
        assert result == (min(size, int(1.5 * median)) if size > median else min(median, 3 * size))
    assert max(stratify(table, Config(oversample_cap=1.5)).column("copy").to_pylist()) == 1
    often = max(stratify(table, Config(oversample_cap=10)).column("copy").to_pylist()) + 1
    assert often == -(-median // before.min()) > 2


def test_other_attributes_and_none():
    table = random_cohort()
    before, after = train_sizes(table, Config(attributes=("sex",)))
    assert after[0] == min(int(1.3 * before[0]), int(np.median(before[:2])))
    assert after[1] == int(np.median(before[:2]))
    assert after[2] == before[2] > 0
    assert stratify(table, Config(attributes=())).equals(split_only(table, Config(attributes=())))


def test_target_sizes_of_no_cells():
    np.testing.assert_array_equal(target_sizes(np.array([0, 0])), [0, 0])


def test_cells_follow_the_vocabularies():
    rows = [("a", "male", "0-39", [0], "train"), ("b", None, "40+", [0], "train"), ("c", "male", None, [0], "train")]
    planned = plan(of_table(cohort(rows)), Config(allow_empty_cells=True, validation_share=0, test_share=0))
    assert planned.cells == [("female", "0-39"), ("female", "40+"), ("male", "0-39"), ("male", "40+")]
    assert planned.rows_before[0].tolist() == [0, 0, 1, 0, 2]


def test_counts_of_rows_and_of_patients():
    rows = [("a", "male", "40+", [0], "train")] * 3 + [
        ("b", "male", "40+", [0], "train"),
        ("b", "female", "40+", [0], "train"),  # in two cells
        ("c", None, "40+", [0], "test"),
    ]
    config = Config(attributes=("sex",), allow_empty_cells=True, validation_share=0)
    planned = plan(of_table(cohort(rows)), config)
    assert planned.rows_before.tolist() == [[1, 4, 0], [0, 0, 0], [0, 0, 1]]
    assert planned.patients_before.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert planned.rows_after[0].tolist() == [1, 2, 0]
    assert planned.patients_after[0][0] == 1
    assert planned.patients_after[0][1] in (1, 2)


def strata_of(values):
    """The stratum of each row by its labels."""
    different = sorted({tuple(2 if v is None else v for v in row) for row in values})
    rows = [different.index(tuple(2 if v is None else v for v in row)) for row in values]
    return label_strata(np.array(different, np.uint8), np.bincount(rows))[rows]


def test_many_labels_make_the_same_strata_as_their_tuples():
    """45 labels of three values are more than 64 bits; combinations of ten rows or more stay apart."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 3, (30, 45))
    kinds[:2] = 0
    kinds[1] = [2**64 // 3**j % 3 for j in reversed(range(45))]  # as a number in base 3 it overflows to the former
    values = [[None if v == 2 else int(v) for v in kinds[k]] for k in np.repeat(np.arange(30), 12)]
    task = Task("multilabel", *[tuple(f"{j}" for j in range(45))] * 3)
    table = cohort([(f"p{i}", "male", "40+", row, "train") for i, row in enumerate(values)], task)
    kinds = read_kinds(of_table(table), {})
    np.testing.assert_array_equal(kinds.labels[kinds.of], [[2 if v is None else v for v in row] for row in values])
    strata = label_strata(kinds.labels, np.bincount(kinds.of))[kinds.of]
    pairs = {(tuple(v), s) for v, s in zip(values, strata, strict=True)}
    assert len(pairs) == len({v for v, _ in pairs}) == len({s for _, s in pairs}) == 30


def test_rare_combinations_are_pooled_by_their_rarest_label():
    common = [[0, 0, 0]] * 20 + [[1, 0, 0]] * 30 + [[0, 1, 0]] * 20 + [[0, 0, 1]] * 12
    rare = [[1, 1, 0], [1, 1, 1], [1, 0, 1], [0, None, 0]]
    strata = strata_of(common + rare)
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
    assert train_sizes(cohort(rows), LENIENT)[1][1] == 0


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


def test_rows_of_different_label_counts_are_refused():
    with pytest.raises(CohortError) as caught:
        stratify(cohort([*PEOPLE[:-1], (*PEOPLE[-1][:3], [0, 1], None)]), Config())
    assert caught.value.where.endswith("column labels")


@pytest.mark.parametrize("value", [-1, 2])
def test_a_label_that_is_no_label_is_placed_but_not_shown(value):
    rows = [*PEOPLE[:9], ("secret", "male", "40+", [value], None), *PEOPLE[9:]]
    error = broken(rows, Config())
    assert error.what == "A label is neither 0 nor 1 nor empty."
    assert error.where == "data/cohort.parquet, row 9, column labels"


def test_errors_name_the_row_of_the_file_also_in_a_later_batch():
    table = cohort([*PEOPLE, ("secret", "neither", "40+", [1], None)])
    parts = pa.concat_tables([table.slice(0, 40), table.slice(40)])
    with pytest.raises(CohortError) as caught:
        stratify(parts, Config())
    assert caught.value.where == f"row {len(PEOPLE)}, column sex"


def test_no_rows_at_all():
    nothing = cohort([])
    with pytest.raises(CohortError, match="0 patients to divide"):
        stratify(nothing, LENIENT)
    config = Config(allow_empty_cells=True, validation_share=0, test_share=0)
    assert stratify(nothing, config).equals(nothing)
