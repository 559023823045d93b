"""The benchmark of the strata compares like with like. Nothing here is timed."""

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import side_by_side
import strata_parquet

import fairvlm_core
from fairvlm_core.cohort.table import read_cohort
from fairvlm_core.steps.stratify import Config

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "strata.py"
ROWS = 6000


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="strata_benchmark")


@pytest.fixture(scope="module")
def races(benchmark):
    return benchmark["races"](ROWS)


@pytest.fixture(scope="module")
def folder(benchmark, tmp_path_factory):
    """A release, and what each side makes of it."""
    folder = tmp_path_factory.mktemp("strata")
    benchmark["write_release"](folder / "cohort.parquet", ROWS)
    for side, work in strata_parquet.SIDES.items():
        work(folder / "cohort.parquet", folder / side)
    return folder


def test_both_sides_take_as_many_rows_of_each_group(benchmark, races):
    assert [len(race.wanted) for race in races] == [12, 12, 6, 6]
    for race in races:
        benchmark["check"](race)
        sizes = np.bincount(race.group)
        assert (race.wanted < sizes).any()
        assert (race.wanted > sizes).any()
        assert len(race.group) == ROWS


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_row_too_few_or_too_often_is_noticed(benchmark, races, side):
    race = races[0]
    rows = getattr(race, side)()
    once = np.flatnonzero(race.wanted < np.bincount(race.group))[0]
    first, second = rows[race.group[rows] == once][:2]
    for wrong in (rows[1:], np.where(rows == second, first, rows)):
        with pytest.raises(RuntimeError, match=f"{side} has not taken"):
            benchmark["check"](dataclasses.replace(race, **{side: lambda wrong=wrong: wrong}))


def test_ours_keeps_the_labels_also_where_the_peer_does_not(races):
    """The row by sex and age group alone: there the peer's labels are what chance makes of them."""
    by_label, by_cell = races[1], races[2]
    for choose, exact in ((by_cell.ours, True), (by_cell.theirs, False)):
        taken = np.bincount(by_label.group[choose()], minlength=12)
        assert (taken == by_label.wanted).all() == exact


def test_the_release_is_what_it_is_said_to_be(folder):
    table = read_cohort(folder)
    assert len(table) == ROWS
    assert len(table["patient_id"].unique()) == ROWS * 2 // 5
    assert 0.01 < table["sex"].null_count / ROWS < 0.05
    assert table["split"].null_count == 0
    patients = table.group_by("patient_id").aggregate([("split", "count_distinct"), ("sex", "count_distinct")])
    assert pc.max(patients["split_count_distinct"]).as_py() == pc.max(patients["sex_count_distinct"]).as_py() == 1


@pytest.mark.parametrize("side", ["pandas", "pandas, Arrow columns"])
def test_both_files_have_the_same_rows_but_for_chance(benchmark, folder, side):
    ours, theirs = folder / "ours" / "cohort.parquet", folder / side / "cohort.parquet"
    benchmark["compare"](ours, theirs)
    table = pq.read_table(theirs)
    for wrong in (table.slice(1), table.slice(0, len(table) - 1)):  # a row that is kept, and one of a cell
        pq.write_table(wrong, folder / "wrong.parquet")
        with pytest.raises(RuntimeError, match="same rows"):
            benchmark["compare"](ours, folder / "wrong.parquet")


def test_the_peer_has_the_caps_of_the_step():
    assert (Config().oversample_cap, Config().majority_cap, Config().attributes) == (1.3, 1, tuple(strata_parquet.KEYS))


def test_a_process_tells_what_it_took(benchmark, folder):
    took = benchmark["process"]("pandas, Arrow columns", folder / "cohort.parquet", folder / "again")
    assert 0.1 < took["seconds"] < 60
    assert 50 < took["megabytes"] < 1000
    assert (folder / "again" / "cohort.parquet").is_file()


def test_the_memory_of_a_process_is_not_that_of_its_parent(benchmark, folder):
    held = np.ones(2**26)
    assert strata_parquet.taken()["megabytes"] > held.nbytes / 1e6 > 500
    took = benchmark["process"]("pandas, Arrow columns", folder / "cohort.parquet", folder / "again")
    assert took["megabytes"] < 400


def test_the_tables_name_each_comparison(benchmark, races, monkeypatch):
    monkeypatch.setattr(side_by_side, "calls_in", lambda call, seconds: 1)
    choices = [benchmark["run"](race, 1) for race in races]
    files = [benchmark["Result"]("Parquet to Parquet", "pandas", 2.0, 12.0, [6.0], (400.0, 7000.0))]
    lines = benchmark["tables"](choices, files, ROWS).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:6]] == [f"| {race.name}" for race in races]
    assert lines[9] == "| Parquet to Parquet | 2.0 | 400 | pandas | 12.0 | 7,000 | 6.0 (6.0 to 6.0) |"
    assert "6,000 rows" in lines[-1]
