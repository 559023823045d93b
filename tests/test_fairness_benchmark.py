"""The benchmark of the fairness losses compares like with like. Nothing here is timed."""

import runpy
from pathlib import Path

import pytest
import side_by_side
import torch

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "fairness_losses.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="fairness_losses")


@pytest.fixture(scope="module")
def races(benchmark):
    return benchmark["races"](small=12, large=24, width=48, many=40, narrow=6)


def test_both_sides_have_the_same_value_and_gradient(benchmark, races):
    compared = [race for race in races if race.equal]
    assert len(compared) == 5
    for race in compared:
        assert benchmark["difference"](race) < 1e-4
        assert race.ours()[1].norm() > 0


def test_a_difference_is_noticed(benchmark, races):
    race = races[0]
    value, gradient = race.ours()
    wrong = benchmark["Race"](race.name, race.peer, lambda: (value, gradient * 1.01), race.theirs)
    with pytest.raises(RuntimeError, match="differ"):
        benchmark["run"](wrong, 1)


def test_the_peak_of_a_call_is_what_it_holds_at_once(benchmark):
    def call():
        for _ in range(3):
            held = torch.ones(1_000_000)
            array = held.double().numpy().copy()
        return array[0], held

    # In torch 4 MB of float32, perhaps twice, and 8 MB of float64; in NumPy 8 MB, once or twice.
    assert 20e6 <= benchmark["peak_memory"](call) <= 33e6


def test_the_table_names_each_comparison(benchmark, races, monkeypatch):
    monkeypatch.setattr(side_by_side, "calls_in", lambda call, seconds: 1)
    results = [benchmark["run"](race, 2) for race in races]
    text = benchmark["table"](results, {"both": 2e6})
    assert [line.split(" | ")[0] for line in text.splitlines()[2:9]] == [f"| {race.name}" for race in races]
    assert "both: 2.0 MB." in text
