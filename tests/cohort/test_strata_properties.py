"""Whatever the cohort: no patient in two splits, no cap exceeded, nothing invented, and every row traceable."""

import math
import statistics
from collections import Counter, defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cohorts import cases

from fairvlm_core.cohort.kinds import of_file, of_table
from fairvlm_core.cohort.splits import RARE_COMBINATION
from fairvlm_core.cohort.strata import plan, planned, stratify
from fairvlm_core.cohort.table import REPEATING, SPLITS
from fairvlm_core.errors import CohortError


def refused(case):
    """Whether there are too few patients to carve what is missing; if so, that is what must be said."""
    splits = defaultdict(set)
    for row in case.rows:
        splits[row["patient_id"]].add(row["split"])
    present = set().union(*splits.values()) if splits else set()
    shares = {"validation": case.config.validation_share, "test": case.config.test_share}
    missing = [name for name, share in shares.items() if share and name not in present]
    free = sum(not found & {"validation", "test"} for found in splits.values())
    if missing and free <= len(missing):
        with pytest.raises(CohortError, match=f"There are {free} patients to divide"):
            stratify(case.table, case.config)
        return True
    return False


def without(row, *names):
    return {key: value for key, value in row.items() if key not in names}


def cell_of(row, case):
    """The row's groups; None where one is unknown."""
    groups = tuple(row[name] for name in case.config.attributes)
    return None if None in groups else groups


def split_rows(case):
    """The given rows with the split that they get."""
    codes = plan(of_table(case.table), case.config).split
    return [row | {"split": SPLITS[code]} for row, code in zip(case.rows, codes, strict=True)]


@settings(max_examples=120, deadline=None)
@given(cases())
def test_no_patient_is_in_two_splits_and_what_is_judged_is_what_was_given(case):
    if refused(case):
        return
    given_rows, found = split_rows(case), stratify(case.table, case.config).to_pylist()
    splits = defaultdict(set)
    for row in given_rows:
        splits[row["patient_id"]].add(row["split"])
    assert all(len(names) == 1 for names in splits.values())

    official = {row["patient_id"]: row["split"] for row in case.rows if row["split"]}
    present = set(official.values())
    free = [patient for patient in splits if official.get(patient) in (None, "train")]
    for patient, name in official.items():
        assert splits[patient] == {name} or (name == "train" and splits[patient].isdisjoint(present - {"train"}))
    remaining = len(free)
    for name, share in (("test", case.config.test_share), ("validation", case.config.validation_share)):
        carved = [patient for patient in free if splits[patient] == {name}]
        if share and name not in present:
            assert len(carved) == min(max(round(share * len(free)), 1), remaining - 1)
            remaining -= len(carved)
        else:
            assert not carved

    # Every row of validation and test, once, in its order, with all that it had.
    judged = [row for row in given_rows if row["split"] != "train"]
    assert [row for row in found if row["split"] != "train"] == judged


@settings(max_examples=120, deadline=None)
@given(cases())
def test_nothing_is_invented_and_no_cap_is_exceeded(case):
    if refused(case):
        return
    given_rows, found = split_rows(case), stratify(case.table, case.config).to_pylist()
    source = {row["sample_id"]: row for row in given_rows}
    assert len(source) == len(given_rows)
    times = Counter(row["sample_id"] for row in found)
    # In the order of the given rows, each copy behind the one before it; equal to the row but for its number.
    order = [(name, copy) for name in source for copy in range(times[name])]
    assert [(row["sample_id"], row["copy"]) for row in found] == order
    assert all(without(row, "copy") == without(source[row["sample_id"]], "copy") for row in found)

    train = [row for row in given_rows if row["split"] == "train"]
    before = Counter(cell_of(row, case) for row in train)
    after = Counter(cell_of(row, case) for row in found if row["split"] == "train")
    known = [size for cell, size in before.items() if cell is not None]
    median = int(statistics.median(known)) if known else 0
    over, most = case.config.oversample_cap, case.config.majority_cap
    for cell, size in before.items():
        if cell is None:
            target = size
        elif size > median:
            target = size if most is None else min(size, int(most * median))
        else:
            target = min(median, math.floor(over * size))
        assert after[cell] == target
        counts = [times[row["sample_id"]] for row in train if cell_of(row, case) == cell]
        assert {*counts} <= {target // size, -(-target // size)}  # as evenly as it can be
    assert not set(after) - set(before)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_labels_keep_their_shares_in_each_cell(case):
    if refused(case):
        return
    given_rows, found = split_rows(case), stratify(case.table, case.config).to_pylist()
    labels = Counter(tuple(row["labels"]) for row in given_rows if row["split"] == "train")
    width = len(next(iter(labels), ()))
    often = [sum(count for key, count in labels.items() if key[j] == 1) for j in range(width)]

    def pool(row):
        """Its combination of labels, or if that is rare its rarest label."""
        key = tuple(row["labels"])
        if labels[key] >= RARE_COMBINATION or width == 1:
            return key
        return min((often[j], j) for j in range(width) if key[j] == 1)[1] if 1 in key else "none"

    before, after = (
        Counter((cell_of(row, case), pool(row)) for row in rows if row["split"] == "train")
        for rows in (given_rows, found)
    )
    sizes, kept = Counter(), Counter()
    for (cell, _), count in before.items():
        sizes[cell] += count
    for (cell, _), count in after.items():
        kept[cell] += count
    for (cell, key), count in before.items():
        assert abs(after[cell, key] - count * kept[cell] / sizes[cell]) < 1


@settings(max_examples=80, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(case, random):
    if refused(case):
        return
    order = list(range(len(case.table)))
    random.shuffle(order)
    shuffled = case.table.take(pa.array(order, pa.int64()))
    keys = [("sample_id", "ascending"), ("copy", "ascending")]
    result = stratify(case.table, case.config)
    assert stratify(shuffled, case.config).sort_by(keys).equals(result.sort_by(keys))
    # Nor do the other rows' places: what is kept comes in the order in which it was given.
    place = {name: i for i, name in enumerate(shuffled.column("sample_id").to_pylist())}
    places = [place[name] for name in stratify(shuffled, case.config).column("sample_id").to_pylist()]
    assert places == sorted(places)


def parquet(batches, schema):
    """The bytes of the file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema) as file:
        for batch in batches:
            file.write_batch(batch)
    return sink.getvalue()


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 80), st.integers(1, 80))
def test_the_same_seed_gives_the_same_bytes_however_the_rows_are_stored(case, chunk, group):
    if refused(case):
        return
    result = stratify(case.table, case.config)
    again = stratify(case.table, case.config)
    assert parquet(result.to_batches(), result.schema) == parquet(again.to_batches(), again.schema)
    assert result.schema.equals(case.table.schema, check_metadata=True)

    parts = pa.Table.from_batches(case.table.to_batches(max_chunksize=chunk), schema=case.table.schema)
    assert stratify(parts, case.config).equals(result)
    large = case.table.cast(
        pa.schema([f.with_type(pa.large_string()) if f.type == pa.string() else f for f in case.table.schema])
    ).replace_schema_metadata(case.table.schema.metadata)
    assert stratify(large, case.config).cast(result.schema).equals(result)

    sink = pa.BufferOutputStream()
    pq.write_table(case.table, sink, row_group_size=group)
    source = of_file(pq.ParquetFile(pa.BufferReader(sink.getvalue()), read_dictionary=REPEATING, pre_buffer=False))
    streamed = planned(source, plan(source, case.config))
    assert pa.Table.from_batches(streamed, schema=source.schema).cast(result.schema).equals(result)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_the_counts_of_the_plan_are_those_of_the_rows(case):
    if refused(case):
        return
    found = plan(of_table(case.table), case.config)
    places = {name: i for i, name in enumerate(found.cells)}
    for rows, counts, patients in (
        (split_rows(case), found.rows_before, found.patients_before),
        (stratify(case.table, case.config).to_pylist(), found.rows_after, found.patients_after),
    ):
        for s, name in enumerate(SPLITS):
            own = [(places.get(cell_of(row, case), len(places)), row) for row in rows if row["split"] == name]
            expected = Counter(place for place, _ in own)
            assert counts[s].tolist() == [expected[i] for i in range(len(places) + 1)]
            expected = Counter(place for place, _ in {(place, row["patient_id"]) for place, row in own})
            assert patients[s].tolist() == [expected[i] for i in range(len(places) + 1)]
