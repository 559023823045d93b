"""The benchmark of the group batches compares like with like. Nothing here is timed."""

import dataclasses
import runpy
from pathlib import Path

import pytest
import side_by_side

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "group_batches.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="group_batches")


@pytest.fixture(scope="module")
def races(benchmark):
    return benchmark["races"](batch=9, group=4, width=96, layers=2, image=32, words=9)


def test_groups_in_the_batch_are_groups_by_themselves(benchmark, races):
    assert [race.encoded for race in races] == [(9, 21)] * 2
    for race, terms in zip(races, (1, 5), strict=True):
        assert benchmark["difference"](race) < 1e-4
        found = race.ours()
        assert all(value.ndim == 0 and value > 0 for value in found[: 1 + terms])
        assert all(value.isfinite().all() for value in race.theirs())


def test_a_difference_is_noticed(benchmark, races):
    found = races[0].separate()
    changed = dataclasses.replace(races[0], separate=lambda: [found[0] * 1.01, *found[1:]])
    with pytest.raises(RuntimeError, match="by themselves differ"):
        benchmark["run"](changed, 1)


def test_the_table_names_each_comparison(benchmark, races, monkeypatch):
    monkeypatch.setattr(side_by_side, "calls_in", lambda call, seconds: 1)
    results = [benchmark["run"](race, 1) for race in races]
    rows = benchmark["table"](results).splitlines()[2:4]
    assert [row.split(" | ")[0] for row in rows] == [f"| {race.name}" for race in races]
