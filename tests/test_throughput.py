"""The benchmark compares like with like: ours and the peer do the same work. Nothing here is timed."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import side_by_side

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "throughput.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="throughput")


@pytest.fixture(scope="module")
def races(benchmark, tmp_path_factory):
    return benchmark["races"](tmp_path_factory.mktemp("races"), pictures=3, patients=240, batch_size=8)


def test_both_store_the_same_pictures(races):
    race = races[0]
    ours, theirs = race.ours(0), race.theirs(0)
    assert ours.shape == (race.images, 64, 64, 3)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("place", [1, 2, 3], ids=["stage 1", "stage 1, many questions", "stage 2"])
def test_packed_questions_have_the_loss_of_the_usual_batch(races, place):
    """Same images, same answers: before the first update, L_inst is what the plain batch minimises."""
    race = races[place]
    terms, plain = race.ours(0), race.theirs(0)
    assert terms["instruction"] == pytest.approx(plain.item(), rel=1e-4)
    assert race.ours(0)["instruction"] != terms["instruction"]  # a step was done
    assert race.theirs(0).item() != plain.item()


def test_a_step_of_fair_moe_and_its_peer_learn(races):
    race = races[4]
    ours, theirs = race.ours(0), race.theirs(0)
    assert math.isfinite(ours["loss"].item())
    assert race.ours(0)["loss"].item() != ours["loss"].item()
    assert race.theirs(0).item() != theirs.item()


def test_a_round_counts_the_images_of_both(benchmark, monkeypatch):
    done = {"ours": 0, "theirs": 0}

    def step(name):
        def work(_):
            done[name] += 1

        return work

    monkeypatch.setattr(side_by_side, "calls_in", lambda step, seconds: 2)
    result = benchmark["run"](benchmark["Race"]("ours", "peer", step("ours"), step("theirs"), 5), 3)
    assert done == {"ours": 7, "theirs": 7}  # one before the rounds, then two per round
    assert len(result.ratios) == 3
    text = benchmark["table"]([result])
    assert text.splitlines()[2].startswith("| ours; batch 5 | ")
    assert "torch " in text.splitlines()[-1]
