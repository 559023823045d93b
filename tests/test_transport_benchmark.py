"""The benchmark of the transport distances compares like with like. Nothing here is timed."""

import dataclasses
import math
import runpy
from pathlib import Path

import pytest
import side_by_side

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "transport.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="transport")


@pytest.fixture(scope="module")
def races(benchmark):
    return benchmark["races"](sizes=((6, 2, 8), (9, 3, 4)))


def test_both_sides_come_to_the_linear_programme(benchmark, races):
    assert len(races) == 4
    for race in races:
        assert max(benchmark["differences"](race.ours, race.exact)) < 1e-5
        value, gradient = benchmark["differences"](race.converged, race.exact)
        assert value < 1e-3
        assert gradient < 1e-1
        assert all(gradient.norm() > 0 for gradient in race.ours()[1])


@pytest.mark.parametrize(
    ("side", "named", "factor"), [("ours", "ours", 1.001), ("ours", "ours", math.nan), ("converged", "the peer", 1.5)]
)
@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_a_difference_is_noticed(benchmark, races, side, named, factor, wrong):
    value, gradients = getattr(races[0], side)()
    if wrong == "value":
        value = value * factor
    else:
        gradients = [gradients[0] * factor, *gradients[1:]]
    changed = dataclasses.replace(races[0], **{side: lambda: (value, gradients)})
    with pytest.raises(RuntimeError, match=f"{named} and the linear programme differ"):
        benchmark["run"](changed, 1)


def test_the_table_names_each_comparison(benchmark, races, monkeypatch):
    monkeypatch.setattr(side_by_side, "calls_in", lambda call, seconds: 1)
    results = [benchmark["run"](race, 2) for race in races]
    rows = [line.split(" | ") for line in benchmark["table"](results).splitlines()[2:6]]
    assert [(row[0], row[2]) for row in rows] == [(f"| {race.name}", race.peer) for race in races]
