"""The benchmark of the mixture of experts compares like with like. Nothing here is timed."""

import re
import runpy
from pathlib import Path

import pytest
import side_by_side
import torch

import fairvlm_core
from fairvlm_core.models.moe import EmbeddingMoE

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "moe.py"
BATCH, TOKENS, WIDTH = 24, 9, 8


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="moe_benchmark")


@pytest.fixture(scope="module")
def races(benchmark):
    return benchmark["races"](batch=BATCH, tokens=TOKENS, width=WIDTH, top_k=2)


def test_both_sides_have_the_same_outputs_and_gradients(benchmark, races):
    compared = [race for race in races if race.equal]
    assert len(compared) == 2
    for race in compared:
        assert benchmark["difference"](race) < 1e-5
        assert 0 < race.dropped < race.pooled == BATCH
        out, gates, *gradients = race.ours()
        assert (out.norm(dim=-1) > 0).sum() >= BATCH - race.dropped
        assert ((gates[:, 0] > 0).sum(-1) < 2).sum() == race.dropped
        # By x, the two layers of the gate, and those of each expert.
        assert len(gradients) == 1 + 4 + 4 * gates.shape[-1]
        assert all(gradient.norm() > 0 for gradient in gradients[:5])


@pytest.mark.parametrize("place", [0, 1, 2, 3, -1])
def test_a_difference_is_noticed(benchmark, races, place):
    """Of the output, the gates and the gradients by x, a layer of the gate and one of an expert."""
    race = races[0]
    wrong = race.ours()
    wrong[place] = wrong[place] + 0.01
    other = benchmark["Race"](race.name, race.peer, lambda: wrong, race.theirs, True, 1, 1)
    with pytest.raises(RuntimeError, match="differ"):
        benchmark["run"](other, 1)


def test_a_number_that_is_none_is_noticed(benchmark, races):
    race = races[0]
    wrong = [torch.full_like(value, float("nan")) for value in race.ours()]
    other = benchmark["Race"](race.name, race.peer, lambda: wrong, race.theirs, True, 1, 1)
    with pytest.raises(RuntimeError, match="differ"):
        benchmark["run"](other, 1)


def test_a_pooled_token_must_have_lost_an_expert(benchmark, races):
    race = races[0]
    with pytest.raises(RuntimeError, match="lost"):
        benchmark["run"](benchmark["Race"](race.name, race.peer, race.ours, race.theirs, True), 1)


@pytest.mark.parametrize("capacity", [0.3, 1.0, 9.0])
def test_the_loop_is_the_mixture_on_every_token(benchmark, capacity):
    torch.manual_seed(0)
    moe, x = EmbeddingMoE(6, num_experts=3, capacity=capacity).double(), torch.randn(4, 7, 6).double()
    torch.testing.assert_close(benchmark["loop_over_experts"](moe, x), moe(x))


def test_the_dense_peers_do_the_work_that_is_named(benchmark, races):
    """All tokens, or as many rows as tokens are kept, counted over the experts."""
    for one, dense, gate, every in zip(races[0::4], races[1::4], races[2::4], races[3::4], strict=True):
        kept = int((one.ours()[1] > 0).sum())
        assert dense.theirs()[0].shape == (BATCH, WIDTH)
        assert dense.theirs()[1].shape == (BATCH, TOKENS, WIDTH)
        assert gate.theirs()[0].shape == one.ours()[1].shape
        assert every.ours()[0].shape == (BATCH, TOKENS, WIDTH)
        assert every.theirs()[0].shape == (kept, WIDTH)
        assert int(re.search(r"([\d,]+) rows", every.peer).group(1).replace(",", "")) == kept


def test_the_table_names_each_comparison(benchmark, races, monkeypatch):
    monkeypatch.setattr(side_by_side, "calls_in", lambda call, seconds: 1)
    results = [benchmark["run"](race, 2) for race in races]
    lines = benchmark["table"](results).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:10]] == [f"| {race.name}" for race in races]
    assert [line.split(" | ")[-1] != " |" for line in lines[2:10]] == [race.equal for race in races]
    assert f"Pooled tokens that lost an expert to the capacity: {races[0].dropped} of {BATCH}, " in lines[11]
