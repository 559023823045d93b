"""The benchmark of the validation compares like with like. Nothing here is timed."""

import runpy
from pathlib import Path

import pytest

import fairvlm_core
from fairvlm_core.cohort.expectation_frames import STRANGE, row_frame
from fairvlm_core.cohort.table import SPLITS

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "validation.py"
ROWS = 3000


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="validation_benchmark")


@pytest.fixture(scope="module")
def races(benchmark):
    return benchmark["races"](benchmark["cohort"](ROWS), benchmark["cohort"](ROWS, seed=1))


def test_both_sides_find_the_same_in_a_sound_and_in_a_broken_cohort(benchmark):
    for broken in (False, True):
        benchmark["require_same"](benchmark["cohort"](ROWS, breaks=broken), broken=broken)


def test_a_broken_cohort_breaks_rules_of_every_kind(benchmark):
    table = benchmark["cohort"](ROWS, breaks=True)
    frame = row_frame(table, table.column("image").combine_chunks()[1:])
    found = {
        rule
        for rule, holds, *_ in benchmark["compactly"](frame, benchmark["row_expectations"](table, 0.2))
        if not holds
    }
    assert {
        "a label is 0, 1, or empty where it is uncertain",
        "an age lies between 0 and 120 years",
        "every image is in the image store",
        "no image belongs to two patients",
        "no image is listed twice",
        "no patient is in two splits",
        "sex is one of female, male, or empty",
    } <= found


def test_mistakes_that_are_not_found_are_noticed(benchmark):
    with pytest.raises(RuntimeError, match="1 rules are broken, not 11"):
        benchmark["require_same"](benchmark["cohort"](ROWS), broken=True)


def test_both_frames_have_the_same_columns(benchmark):
    table = benchmark["cohort"](ROWS, breaks=True)
    stored = table.column("image").combine_chunks()[1:]
    ours, plain = row_frame(table, stored), benchmark["plain_frame"](table, stored)
    assert set(ours) == set(plain)
    for name in ("label_count", "label_strange", "image_stored", "image_shared", "patient_splits", "age", "copy"):
        assert (ours[name].fillna(-1) == plain[name].fillna(-1)).all(), name
    for name in ("sex", "age_group", "race", "ethnicity", "language", "split"):
        known = plain[name].where(plain[name].isna() | (plain[name] != "elsewhere"), STRANGE)
        assert (ours[name].astype("str").fillna("") == known.astype("str").fillna("")).all(), name
    for name in ("sample_id", "patient_id", "image", "source"):
        assert ours.groupby(name)[name].transform("size").eq(plain.groupby(name)[name].transform("size")).all(), name


def test_a_difference_is_noticed(benchmark, races):
    race = races[0]

    def wrong():
        rule, holds, count, row = race.ours()[0]
        return [(rule, holds, count + 1, row), *race.ours()[1:]]

    with pytest.raises(RuntimeError, match="differ"):
        benchmark["run"](benchmark["Race"](race.name, wrong, race.theirs, race.peer), 1)


def test_the_cohort_is_as_large_as_it_says(benchmark):
    table = benchmark["cohort"](ROWS)
    assert table.num_rows == ROWS
    assert len(table.column("patient_id").unique()) == ROWS // 3
    assert set(table.column("split").to_pylist()) == set(SPLITS)
    assert len(table.column("labels")[0]) == 14


def test_the_table_names_each_race(benchmark, races):
    results = [benchmark["run"](race, 2) for race in races]
    lines = benchmark["table_of"](results, ROWS).splitlines()
    assert lines[0].startswith("| 3,000 rows |")
    assert [line.split(" | ")[0] for line in lines[2:6]] == [f"| {race.name}" for race in races]
    assert [bool(race.theirs) for race in races] == [True, True, False, False]
    assert all(len(result.ours) == 2 for result in results)
    assert lines[4].endswith("|  |  |  |")
    assert "great-expectations" in lines[-1]
