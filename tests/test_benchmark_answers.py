"""The benchmark of answers compares like with like: it proves equality before it times. Nothing here is timed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "answers.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="answers")


@pytest.fixture(scope="module")
def small(benchmark, tmp_path_factory):
    """The races with 16 image tokens and a model of one layer: the same code, in a moment."""
    return benchmark["races"](tmp_path_factory.mktemp("races"), 64, 16, count=2, hidden=64, layers=1)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["generate per finding", "generate in a batch", "training"])
def test_both_sides_agree_before_they_are_timed(small, place):
    race = small[0][place]
    assert race.alike()
    assert race.images == 2


def test_scores_that_differ_are_refused(small):
    races, vlm = small
    scored = vlm.score
    vlm.score = lambda images: scored(images) + 0.001
    try:
        with pytest.raises(AssertionError):
            races[0].alike()
    finally:
        del vlm.score


def test_a_round_counts_the_images_of_both_and_proves_first(benchmark):
    done = []

    def work(name):
        return lambda: done.append(name)

    race = benchmark["Race"]("ours", "peer", work("ours"), work("theirs"), lambda: str(done.append("alike")), 2)
    result = benchmark["run"](race, 1)
    assert done[0] == "alike"
    assert {"ours", "theirs"} == set(done[1:])
    assert len(result.ratios) == 1
    text = benchmark["table"]([result], ["- nothing"])
    assert text.splitlines()[2].startswith("| ours | ")


def test_padding_is_counted_as_it_is(benchmark, small):
    lines = benchmark["waste"](small[1], images=4)
    turns = small[1].turns()
    rows = benchmark["padded_rows"]([turns])
    assert rows["input_ids"].shape == (14, max(len(turn.ids) for turn in turns))
    assert int(rows["attention_mask"].sum()) == sum(len(turn.ids) for turn in turns)
    assert (rows["labels"] != -100).sum(1).tolist() == [len(turn.ids) - turn.answer for turn in turns]
    assert torch.equal(rows["labels"][0, turns[0].answer : len(turns[0].ids)], torch.tensor(turns[0].ids[-2:]))
    assert "0.0% packed" in lines[0]
