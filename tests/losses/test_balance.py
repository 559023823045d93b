"""The auxiliary losses of a mixture against float64 loops over tokens and experts."""

from __future__ import annotations

import math

import pytest
import torch

from fairvlm_core.losses import importance_loss, load_loss, router_z_loss


def drawn(seed=0, tokens=17, experts=4, top_k=2):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator, dtype=torch.float64) * 2
    routed = torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, logits.topk(top_k).indices, True)
    return logits, routed


def test_importance_is_that_of_a_loop():
    logits, routed = drawn()
    gates = logits.softmax(-1).masked_fill(~routed, 0.0)
    sums = [sum(float(gates[t, j]) for t in range(len(gates))) for j in range(4)]
    mean = sum(sums) / 4
    expected = sum((value - mean) ** 2 for value in sums) / 4 / mean**2
    assert float(importance_loss(gates)) == pytest.approx(expected, rel=1e-12)
    assert float(importance_loss(gates.view(1, 17, 4))) == pytest.approx(expected, rel=1e-12)
    assert float(importance_loss(torch.full((5, 4), 0.25))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_load_is_that_of_a_loop(top_k):
    logits, routed = drawn(top_k=top_k)
    total = 0.0
    for j in range(4):
        share = sum(bool(routed[t, j]) for t in range(17)) / (17 * top_k)
        chance = 0.0
        for t in range(17):
            chance += math.exp(logits[t, j]) / sum(math.exp(logits[t, i]) for i in range(4)) / 17
        total += share * chance
    assert float(load_loss(logits, routed)) == pytest.approx(4 * total, rel=1e-12)


def test_load_lies_between_even_and_collapsed():
    turns = torch.eye(4, dtype=torch.bool).repeat(5, 1)
    assert float(load_loss(turns * 50.0, turns)) == pytest.approx(1)
    first = torch.zeros(20, 4, dtype=torch.bool)
    first[:, 0] = True
    assert float(load_loss(first * 50.0, first)) == pytest.approx(4)


def test_z_is_that_of_a_loop():
    logits, _ = drawn()
    expected = sum(math.log(sum(math.exp(value) for value in row)) ** 2 for row in logits.tolist()) / 17
    assert float(router_z_loss(logits)) == pytest.approx(expected, rel=1e-12)


def test_gradients():
    logits, routed = drawn(tokens=5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(router_z_loss, logits)
    assert torch.autograd.gradcheck(lambda x: load_loss(x, routed), logits)
    assert torch.autograd.gradcheck(lambda x: importance_loss(x.softmax(-1).masked_fill(~routed, 0.0)), logits)


def test_half_precision_is_raised():
    logits, routed = drawn()
    for half, exact in (
        (router_z_loss(logits.bfloat16()), router_z_loss(logits.bfloat16().double())),
        (load_loss(logits.bfloat16(), routed), load_loss(logits.bfloat16().double(), routed)),
    ):
        assert half.dtype == torch.float32
        assert float(half) == pytest.approx(float(exact), rel=1e-5)


def test_no_token_and_no_weight_give_a_zero_with_a_gradient():
    none = torch.zeros(0, 4, requires_grad=True)
    for loss in (importance_loss(none), load_loss(none, torch.zeros(0, 4, dtype=torch.bool)), router_z_loss(none)):
        assert loss.item() == 0
        loss.backward()
    dropped = torch.zeros(3, 4, requires_grad=True)
    importance_loss(dropped).backward()
    assert torch.equal(dropped.grad, torch.zeros(3, 4))


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="one shape"):
        load_loss(torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="leading dimension"):
        importance_loss(torch.zeros(4))
