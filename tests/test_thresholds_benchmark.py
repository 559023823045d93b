"""The benchmark of the thresholds compares like with like. Nothing here is timed."""

import dataclasses
import runpy
from pathlib import Path

import pytest
import side_by_side

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "thresholds.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="thresholds")


@pytest.fixture(scope="module")
def races(benchmark):
    return benchmark["races"](n=400, few=100)


def test_both_sides_decide_alike(benchmark, races):
    for race in races:
        benchmark["check"](race)
        assert race.truth.shape == race.score.shape
        assert 0 < race.truth.mean() < 1


def test_another_decision_is_noticed(benchmark, races):
    changed = dataclasses.replace(races[0], theirs=lambda truth, score: races[0].theirs(truth, score) + 0.01)
    with pytest.raises(RuntimeError, match="labels are decided differently"):
        benchmark["run"](changed, 1)


def test_the_table_names_each_comparison(benchmark, races, monkeypatch):
    monkeypatch.setattr(side_by_side, "calls_in", lambda call, seconds: 1)
    results = [benchmark["run"](race, 2) for race in races]
    rows = [line.split(" | ") for line in benchmark["table"](results).splitlines()[2 : 2 + len(races)]]
    assert [(row[0], row[2]) for row in rows] == [(f"| {race.name}", race.peer) for race in races]
