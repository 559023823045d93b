"""The benchmark of the bootstrap compares like with like. Nothing here is timed."""

import runpy
from pathlib import Path

import pytest

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "bootstrap.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="bootstrap")


def test_both_sides_come_to_the_same_numbers(benchmark):
    assert benchmark["difference"](benchmark["predictions"](300)) < 1e-9


def test_the_table_names_each_comparison(benchmark):
    races = benchmark["races"](sizes=(200,), resamples=64)
    results = [benchmark["run"](race, 2, 64) for race in races]
    rows = [line.split(" | ") for line in benchmark["table"](results, 0.0).splitlines()[2:4]]
    assert [(row[0], row[2]) for row in rows] == [(f"| {race.name}", race.peer) for race in races]
    assert [len(result.ratios) for result in results] == [2, 2]
