"""The training loop: it learns, selects on validation, and resumes to the same weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fairvlm_core.errors import FairVLMError
from fairvlm_core.training import engine
from fairvlm_core.training.engine import Schedule, fit, one_pass


class Stopped(Exception):
    """Stands for the end of the process."""


def problem(checkpoint, *, stop_at=None, key="run", epochs=4, scores=None, rate=0.05):
    """A small regression with dropout and random batches; optionally cut off at a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    data = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    truth = data.sum(1, keepdim=True)
    taken = []

    seen = torch.zeros(())

    def losses(batch, generator):
        seen.add_(1)
        if stop_at is not None and len(taken) == stop_at:
            raise Stopped
        taken.append(batch)
        noise = torch.randn(len(batch), 1, generator=generator) * 0.1
        error = (model(data[batch]) - truth[batch] + noise + seen / 100).square().mean()
        return {"loss": error, "error": error.detach()}

    def batches(epoch):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(epoch))
        return list(order.split(12))

    values = iter(scores or [])
    history = fit(
        dict(model.named_parameters()),
        schedule=Schedule(epochs, rate),
        batches=batches,
        gradients=one_pass(losses),
        validate=(lambda: {"auc": (v := next(values)), "score": v}) if scores else None,
        checkpoint=checkpoint,
        key=key,
        seed=7,
        label="Test",
        buffers={"seen": seen},
        faster={"0.bias": 3.0},
    )
    return model.state_dict(), history, len(taken)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns(tmp_path):
    _, history, _ = problem(tmp_path / "a", epochs=12)
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert [epoch["epoch"] for epoch in history] == list(range(1, 13))


@pytest.mark.parametrize("stop_at", [0, 3, 5, 13, 19])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(engine, "CHECKPOINT_EVERY", 3)
    whole, history, _ = problem(tmp_path / "whole")
    with pytest.raises(Stopped):
        problem(tmp_path / "cut", stop_at=stop_at)
    resumed, resumed_history, taken = problem(tmp_path / "cut")
    assert same(whole, resumed)
    assert resumed_history == history
    assert taken <= 20 - (stop_at - stop_at % 3 if stop_at % 5 else stop_at)


def test_a_finished_run_is_not_trained_again(tmp_path):
    whole, history, _ = problem(tmp_path / "a")
    again, same_history, taken = problem(tmp_path / "a")
    assert taken == 0
    assert same(whole, again)
    assert history == same_history


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path):
    with pytest.raises(Stopped):
        problem(tmp_path / "a", stop_at=10, key="other")
    _, _, taken = problem(tmp_path / "a", key="run")
    assert taken == 20


def test_the_best_epoch_on_validation_is_kept(tmp_path):
    best, history, _ = problem(tmp_path / "a", scores=[0.5, 0.9, 0.6, 0.9])
    two, _, _ = problem(tmp_path / "b", epochs=4, scores=[0.5, 0.9, 0.1, 0.1])
    last, _, _ = problem(tmp_path / "c", scores=[0.5, 0.6, 0.7, 0.8])
    assert same(best, two)  # of equal scores the first
    assert not same(best, last)
    assert [epoch["score"] for epoch in history] == [0.5, 0.9, 0.6, 0.9]


def test_a_loss_that_explodes_is_told_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CHECKPOINT_EVERY", 2)
    parameter = nn.Parameter(torch.ones(1))

    def losses(batch, generator):
        gap = (parameter / (0 if batch == 5 else 1)).sum()
        return {"task": parameter.sum(), "gap": gap, "loss": gap + parameter.sum()}

    with pytest.raises(FairVLMError, match=r"the term gap is not finite in epoch 2, batch 3") as error:
        fit(
            {"p": parameter},
            schedule=Schedule(2, 0.1),
            batches=lambda epoch: [3 * epoch, 3 * epoch + 1, 3 * epoch + 2],
            gradients=one_pass(losses),
            validate=None,
            checkpoint=tmp_path / "a",
            key="k",
            seed=0,
            label="Test",
        )
    assert str(tmp_path / "a") in str(error.value)
    assert (tmp_path / "a").exists()
    assert torch.isfinite(parameter).all()


def test_the_learning_rate_warms_up_and_decays_to_a_tenth():
    schedule = Schedule(10, 1.0, warmup=0.1)
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))
