"""Who is trained on and who is judged: shared pictures come into one split, and earlier patients keep theirs."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cohorts import cases

from fairvlm_core.cohort.duplicates import read_pairs
from fairvlm_core.cohort.kinds import of_table
from fairvlm_core.cohort.strata import plan, planned
from fairvlm_core.cohort.table import SPLITS, Task, cohort_table
from fairvlm_core.errors import CohortError
from fairvlm_core.steps.stratify import Config

TASK = Task("binary", ("edema",), ("edema",), ("no edema",))
GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40+")}
PAIR = ("sample_id_a", "sample_id_b", "patient_id_a", "patient_id_b")


def cohort(patients, split=None):
    """Two rows for each patient; `split` maps some of them to their official one."""
    rows = [
        {
            "sample_id": f"{patient}-{k}",
            "patient_id": patient,
            "image": f"{patient}-{k}.png",
            "labels": [int(number % 3 == 0)],
            "sex": GROUPS["sex"][number % 2],
            "age_group": GROUPS["age_group"][number // 2 % 2],
            "split": (split or {}).get(patient),
            "source": "made",
        }
        for number, patient in enumerate(patients)
        for k in range(2)
    ]
    return cohort_table(rows, task=TASK, groups=GROUPS)


def pairs_of(rows, places):
    """The table of duplicates, given places of rows."""
    columns = zip(*[
        (rows[a]["sample_id"], rows[b]["sample_id"], rows[a]["patient_id"], rows[b]["patient_id"]) for a, b in places
    ], strict=True) if len(places) else [()] * 4  # fmt: skip
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(PAIR, columns, strict=True)})


def people(count, start=0):
    return [f"p{i:04d}" for i in range(start, start + count)]


def splits_of(table, found):
    """Patient -> split."""
    return dict(zip(table.column("patient_id").to_pylist(), [SPLITS[code] for code in found.split], strict=True))


def stratified(table, found):
    source = of_table(table)
    return pa.Table.from_batches(planned(source, found), schema=source.schema)


@st.composite
def cases_with_duplicates(draw):
    case = draw(cases())
    count = len(case.table)
    most = draw(st.sampled_from([1, 5, 40]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    places = random.integers(0, count, (most, 2)) if count else np.zeros((0, 2), int)
    return case, [(a, b) for a, b in places.tolist() if a != b]


def joined(rows, places, official):
    """The sets of patients that are one, as a plain search finds them; who is in an official split stays alone."""
    sets = {row["patient_id"]: {row["patient_id"]} for row in rows}
    for a, b in places:
        first, second = rows[a]["patient_id"], rows[b]["patient_id"]
        if {official.get(first), official.get(second)} & {"validation", "test"}:
            continue
        both = sets[first] | sets[second]
        for patient in both:
            sets[patient] = both
    return sets


@settings(max_examples=150, deadline=None)
@given(cases_with_duplicates(), st.randoms(use_true_random=False))
def test_no_picture_is_in_two_splits(case_and_places, random):
    case, places = case_and_places
    rows = case.rows
    duplicates = pairs_of(rows, places)
    official = {row["patient_id"]: row["split"] for row in rows if row["split"]}
    sets = joined(rows, places, official)
    shares = {"validation": case.config.validation_share, "test": case.config.test_share}
    missing = [name for name, share in shares.items() if share and name not in official.values()]
    free = {frozenset(own) for own in sets.values() if official.get(min(own)) not in ("validation", "test")}
    if missing and len(free) <= len(missing):
        with pytest.raises(CohortError, match=f"There are {len(free)} patients to divide"):
            plan(of_table(case.table), case.config, duplicates=duplicates)
        return
    found = plan(of_table(case.table), case.config, duplicates=duplicates)
    split = splits_of(case.table, found)
    assert all(split[row["patient_id"]] == SPLITS[code] for row, code in zip(rows, found.split, strict=True))
    for own in sets.values():
        assert len({split[patient] for patient in own}) == 1
    for patient, name in official.items():
        assert name == "train" or split[patient] == name

    order = [SPLITS.index(split[row["patient_id"]]) for row in rows]
    leaking = {a if order[a] < order[b] else b for a, b in places if order[a] != order[b]}
    assert found.leaking == len(leaking)
    result = stratified(case.table, found).to_pylist()
    times = Counter(row["sample_id"] for row in result)
    assert not [i for i in leaking if times[rows[i]["sample_id"]]]
    # What is judged is all there, but for those.
    judged = [row["sample_id"] for i, row in enumerate(rows) if order[i] > 0 and i not in leaking]
    assert [row["sample_id"] for row in result if row["split"] != "train"] == judged
    assert found.rows_before.sum() == len(rows) - len(leaking)

    # Neither the order of the rows nor that of the pairs, nor who comes first in one, matters.
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)
    swapped = [(b, a) for a, b in reversed(places)]
    table = case.table.take(pa.array(shuffled, pa.int64()))
    again = plan(of_table(table), case.config, duplicates=pairs_of(rows, swapped))
    assert splits_of(table, again) == split
    keys = [("sample_id", "ascending"), ("copy", "ascending")]
    assert stratified(table, again).sort_by(keys).equals(stratified(case.table, found).sort_by(keys))


def test_without_shared_pictures_nothing_changes():
    table = cohort(people(80))
    alone, with_none = (plan(of_table(table), Config(), duplicates=pairs) for pairs in (None, pairs_of([], [])))
    assert (alone.split == with_none.split).all()
    assert (alone.times == with_none.times).all()


def test_pairs_of_rows_that_are_gone_are_passed_over():
    table = cohort(people(80))
    gone = cohort(people(40, start=78)).to_pylist()
    duplicates = pairs_of(gone, [(0, 10), (12, 20), (30, 31)])  # known and gone; both gone
    assert plan(of_table(table), Config(), duplicates=duplicates).leaking == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(30, 120),
    st.integers(0, 60),
    st.integers(0, 2**30),
    st.sampled_from([{}, {"validation_share": 0.0}, {"test_share": 0.5}]),
)
def test_patients_of_an_earlier_cohort_keep_their_split(earlier, new, seed, shares):
    old = cohort(people(earlier))
    before = plan(of_table(old), Config(seed=1, **shares))
    known, config = splits_of(old, before), Config(seed=seed, **shares)
    table = cohort(people(earlier + new))
    found = splits_of(table, plan(of_table(table), config, reference=of_table(stratified(old, before))))
    kept = set(stratified(old, before).column("patient_id").to_pylist())
    assert all(found[patient] == known[patient] for patient in kept)
    drawn = Counter(name for patient, name in found.items() if patient not in kept)
    total = sum(drawn.values())
    for name, share in (("test", config.test_share), ("validation", config.validation_share)):
        assert drawn[name] == min(round(share * total), total)


def test_nobody_new_needs_no_drawing():
    old = cohort(people(60))
    before = plan(of_table(old), Config(majority_cap=None))
    again = plan(of_table(old), Config(seed=9, majority_cap=None), reference=of_table(stratified(old, before)))
    assert (again.split == before.split).all()


def test_who_shares_a_picture_with_an_earlier_patient_follows():
    old = cohort(people(60))
    before = plan(of_table(old), Config(majority_cap=None))
    known = splits_of(old, before)
    of = {name: next(patient for patient in known if known[patient] == name) for name in SPLITS}
    table = cohort(people(90))
    rows = table.to_pylist()
    place = {row["sample_id"]: i for i, row in enumerate(rows)}
    places = [(place[f"p{60 + k:04d}-0"], place[f"{of[name]}-1"]) for k, name in enumerate(SPLITS)]
    # Of two splits the one nearest to training, where it has been learnt from; and what follows, follows alone.
    places += [(place["p0063-0"], place[f"{of['test']}-0"]), (place["p0063-1"], place[f"{of['validation']}-0"])]
    reference = of_table(stratified(old, before))
    found = plan(of_table(table), Config(seed=3), duplicates=pairs_of(rows, places), reference=reference)
    split = splits_of(table, found)
    assert [split[f"p{60 + k:04d}"] for k in range(3)] == list(SPLITS)
    assert split["p0063"] == "validation"
    assert found.leaking == 1  # p0063-0, which is in test, too


def test_an_official_test_patient_who_was_trained_on_is_refused():
    old = cohort(people(60))
    before = plan(of_table(old), Config())
    trained = next(patient for patient, name in splits_of(old, before).items() if name == "train")
    table = cohort(people(60), {trained: "test"})
    with pytest.raises(CohortError, match="1 patient nearer to test") as caught:
        plan(of_table(table), Config(), reference=of_table(stratified(old, before)), where="file")
    assert caught.value.where == "file, column split"
    assert trained not in str(caught.value)


def test_official_training_patients_stay_where_the_release_has_a_test_split():
    old = cohort(people(60))
    before = plan(of_table(old), Config(majority_cap=None))
    known = splits_of(old, before)
    now = {patient: "test" if name == "test" else "train" for patient, name in known.items()}
    moved = next(patient for patient, name in known.items() if name == "test")
    now[moved] = "train"
    table = cohort(people(60), now)
    found = splits_of(table, plan(of_table(table), Config(), reference=of_table(stratified(old, before))))
    assert found[moved] == "train"
    # Validation the release does not have: there they are as before.
    assert all(found[patient] == "validation" for patient, name in known.items() if name == "validation")


def test_an_earlier_cohort_without_splits_is_refused():
    table = cohort(people(60))
    with pytest.raises(CohortError, match="has a split") as caught:
        plan(of_table(table), Config(), reference=of_table(table))
    assert caught.value.where == "stratify.reference"


def test_the_pairs_are_read_as_text(tmp_path):
    file = tmp_path / "duplicates.csv"
    file.write_text("sample_id_a,sample_id_b,patient_id_a,patient_id_b,split_a\n1,02,7,07,\n")
    found = read_pairs(file)
    assert found.to_pydict() == {
        "sample_id_a": ["1"], "sample_id_b": ["02"], "patient_id_a": ["7"], "patient_id_b": ["07"],
    }  # fmt: skip
    file.write_text("sample_id_a,sample_id_b,patient_id_a,patient_id_b\n")
    assert len(read_pairs(file)) == 0


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "sample_id_a,sample_id_b,patient_id_a,patient_id_b\nSECRET\n"])
def test_a_broken_table_of_pairs_is_named_and_not_quoted(tmp_path, text):
    file = tmp_path / "duplicates.csv"
    file.write_text(text)
    with pytest.raises(CohortError, match="not a table of duplicate pictures") as caught:
        read_pairs(file)
    assert str(file) in caught.value.where
    assert "SECRET" not in str(caught.value)
