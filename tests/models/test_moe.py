import copy
import itertools
import math

import pytest
import torch
from torch import nn

from fairvlm_core.losses import gate_dispersion
from fairvlm_core.models.moe import EmbeddingMoE, FeatureMoE, routing_statistics, top_experts, top_tokens


def chosen_experts(weights, top_k):
    """Indices of the k largest, the lower index first among equals."""
    return sorted(range(len(weights)), key=lambda j: (-weights[j].item(), j))[:top_k]


def embedding_loop(moe, x, mask, protect=None):
    """Token by token, expert by expert."""
    batch, length, dim = x.shape
    experts = len(moe.experts)
    out, gates = [], []
    for b in range(batch):
        tokens = [t for t in range(length) if mask[b, t]]
        weights = {t: moe.gate(x[b, t]).softmax(-1) for t in tokens}
        routed = {t: chosen_experts(weights[t], moe.top_k) for t in tokens}
        alpha = max(1, min(math.ceil(moe.capacity * len(tokens) * moe.top_k / experts), len(tokens)))
        kept = set()
        for j in range(experts):
            first = None if protect is None else int(protect[b])
            asking = sorted((t for t in tokens if j in routed[t]), key=lambda t: (t != first, -weights[t][j].item(), t))
            kept.update((t, j) for t in asking[:alpha])
        if moe.renormalise:
            for t in tokens:
                total = sum(weights[t][j] for j in range(experts) if (t, j) in kept)
                weights[t] = weights[t] / total if torch.is_tensor(total) else weights[t]
        zero = 0.0 * x[b, 0, 0]
        gates.append(
            torch.stack(
                [
                    torch.stack([weights[t][j] if (t, j) in kept else zero for j in range(experts)])
                    for t in range(length)
                ]
            )
        )
        out.append(
            torch.stack(
                [
                    sum(
                        (weights[t][j] * moe.experts[j](x[b, t]) for j in range(experts) if (t, j) in kept),
                        torch.zeros(dim, dtype=x.dtype),
                    )
                    for t in range(length)
                ]
            )
        )
    return torch.stack(out), torch.stack(gates)


def gradients(module, x, out, gates):
    """Of a fixed random functional of both results, for the input and every parameter."""
    g = torch.Generator().manual_seed(0)
    total = sum((r * torch.randn(r.shape, generator=g).to(r.dtype)).sum() for r in (out, gates))
    found = torch.autograd.grad(total, [x, *module.parameters()], allow_unused=True, retain_graph=True)
    return [torch.zeros(1).double() if f is None else f.double() for f in found]


def assert_equals_loop(moe, x, mask, protect=None):
    double = copy.deepcopy(moe).double()
    xd = x.detach().double().requires_grad_()
    expected = embedding_loop(double, xd, mask, protect)
    for module, leaf, rtol, atol in ((moe, x.detach().requires_grad_(), 1e-4, 1e-5), (double, xd, 1e-9, 1e-11)):
        found = module(leaf, mask, protect=protect)
        for mine, wanted in zip(found, expected, strict=True):
            assert mine.dtype == leaf.dtype
            torch.testing.assert_close(mine.double(), wanted, rtol=rtol, atol=atol)
        for mine, wanted in zip(gradients(module, leaf, *found), gradients(double, xd, *expected), strict=True):
            torch.testing.assert_close(mine, wanted.expand_as(mine), rtol=10 * rtol, atol=10 * atol)


@pytest.mark.parametrize("gate", ["mlp", "linear"])
@pytest.mark.parametrize(
    ("experts", "top_k", "capacity"), [(4, 2, 1.0), (4, 1, 0.5), (3, 3, 0.4), (5, 2, 0.01), (2, 1, 9.0), (1, 1, 1.0)]
)
def test_embedding_equals_a_loop(gate, experts, top_k, capacity):
    torch.manual_seed(experts * 10 + top_k)
    moe = EmbeddingMoE(6, num_experts=experts, top_k=top_k, capacity=capacity, hidden=5, gate=gate)
    mask = torch.rand(4, 7) < 0.7
    mask[0], mask[1], mask[2, 1:] = True, False, False
    mask[2, 0] = True
    assert_equals_loop(moe, torch.randn(4, 7, 6) * 3, mask)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("capacity", [0.1, 0.5, 1.0])
def test_a_protected_token_comes_first_and_what_is_kept_may_sum_to_one(capacity, renormalise):
    torch.manual_seed(3)
    moe = EmbeddingMoE(6, num_experts=3, top_k=2, capacity=capacity, hidden=5, renormalise=renormalise)
    x, mask = torch.randn(4, 7, 6), torch.arange(7) < torch.tensor([[7], [5], [3], [1]])
    protect = torch.tensor([6, 0, 2, 0])
    assert_equals_loop(moe, x, mask, protect)
    _, gates = moe(x, mask, protect=protect)
    assert ((gates[torch.arange(4), protect] > 0).sum(-1) == 2).all()
    if capacity < 1:
        _, unprotected = moe(x, mask)
        assert ((unprotected[torch.arange(4), protect] > 0).sum(-1) < 2).any()


def test_equal_tokens_and_equal_experts_are_decided_by_position():
    torch.manual_seed(0)
    moe = EmbeddingMoE(4, hidden=3, capacity=0.5)
    assert_equals_loop(moe, torch.randn(1, 1, 4).repeat(2, 9, 1), torch.ones(2, 9).bool())
    for parameter in moe.gate[-1].parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 9, 4)
    assert_equals_loop(moe, x, torch.ones(2, 9).bool())
    _, gates = moe(x)
    slots = math.ceil(0.5 * 9 * 2 / 4)
    expected = torch.zeros(2, 9, 4)
    expected[:, :slots, :2] = 0.25
    assert torch.equal(gates, expected)


@pytest.mark.parametrize("capacity", [0.2, 1.0])
def test_reading_one_token_gives_what_reading_all_gives_there(capacity):
    """Output, gates and every gradient; with a small capacity some of the tokens that are read lose their experts."""
    torch.manual_seed(2)
    moe = EmbeddingMoE(6, capacity=capacity).double()
    x = (torch.randn(8, 7, 6).double() * 3).requires_grad_()
    mask = torch.rand(8, 7) < 0.7
    read = torch.tensor([int(mask[b].nonzero()[b % int(mask[b].sum())]) for b in range(8)])
    place = torch.arange(8), read
    out, gates = moe(x, mask)
    alone, same_gates = moe(x, mask, read)
    assert torch.equal(gates, same_gates)
    assert torch.allclose(alone[place], out[place], rtol=1e-12, atol=1e-12)
    assert alone.count_nonzero() == out[place].count_nonzero()
    assert (out[place] == 0).all(-1).any() == (capacity < 1)
    mine, wanted = (gradients(moe, x, *both) for both in ((alone[place], same_gates), (out[place], gates)))
    for a, b in zip(mine, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_defaults():
    moe = EmbeddingMoE(8)
    assert len(moe.experts) == 4
    assert moe.gate(torch.randn(2, 3, 8)).shape == (2, 3, 4)
    assert [tuple(p.shape) for p in moe.gate.parameters()] == [(2, 8), (2,), (4, 2), (4,)]
    assert [tuple(p.shape) for p in moe.experts[0].parameters()] == [(32, 8), (32,), (8, 32), (8,)]
    out, gates = moe(torch.randn(2, 10, 8))
    assert out.shape == (2, 10, 8)
    assert gates.shape == (2, 10, 4)
    assert ((gates > 0).sum(-1) <= 2).all()
    assert ((gates > 0).sum(1) <= 5).all()


@pytest.mark.parametrize("capacity", [0.3, 1.0])
def test_a_sample_does_not_depend_on_its_batch_or_its_padding(capacity):
    torch.manual_seed(1)
    moe = EmbeddingMoE(8, capacity=capacity)
    x = torch.randn(5, 9, 8)
    lengths = torch.tensor([9, 4, 1, 7, 2])
    mask = torch.arange(9) < lengths.unsqueeze(1)
    out, gates = moe(x, mask)
    for i, length in enumerate(lengths):
        alone, alone_gates = moe(x[i : i + 1, :length])
        torch.testing.assert_close(out[i, :length], alone[0])
        torch.testing.assert_close(gates[i, :length], alone_gates[0])
    assert (out[~mask] == 0).all()
    assert (gates[~mask] == 0).all()


def test_what_padding_holds_does_not_matter():
    moe = EmbeddingMoE(4)
    x, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    dirty = x.clone()
    dirty[0, 3:] = float("nan")
    dirty.requires_grad_()
    out, gates = moe(dirty, mask)
    torch.testing.assert_close((out, gates), moe(x, mask))
    (out.sum() + gates.square().sum()).backward()
    assert dirty.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in moe.parameters())


@pytest.mark.parametrize("read", [None, torch.tensor([0, 3, 6, 6])])
def test_no_mask_is_a_mask_of_ones(read):
    torch.manual_seed(4)
    moe = EmbeddingMoE(6, num_experts=5, capacity=0.6)
    x = torch.randn(4, 7, 6, requires_grad=True)
    unmasked, masked = moe(x, None, read), moe(x, torch.ones(4, 7), read)
    for mine, wanted in zip(
        [*unmasked, *gradients(moe, x, *unmasked)], [*masked, *gradients(moe, x, *masked)], strict=True
    ):
        assert torch.equal(mine, wanted)


class Recording(nn.Module):
    """What an expert is called with."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, x):
        self.calls.append(x.detach().reshape(-1, x.shape[-1]))
        return self.inner(x)


@pytest.mark.parametrize("read", [None, torch.tensor([5, 0, 2])])
def test_an_expert_is_called_once_and_sees_only_its_own_tokens(read):
    torch.manual_seed(0)
    moe = EmbeddingMoE(6, capacity=0.5)
    moe.experts = nn.ModuleList(Recording(expert) for expert in moe.experts)
    x = torch.randn(3, 8, 6)
    _, gates = moe(x, torch.arange(8).expand(3, 8) < 6, read)
    if read is not None:
        x, gates = (value[torch.arange(3), read] for value in (x, gates))
    for j, expert in enumerate(moe.experts):
        (seen,) = expert.calls
        assert torch.equal(seen, x[gates[..., j] > 0])


def test_the_gradient_does_not_depend_on_which_thread_is_first():
    """With three experts per token a sum in another order would be another number."""
    torch.manual_seed(0)
    moe, x = EmbeddingMoE(16, top_k=3, hidden=4), torch.randn(8, 400, 16, requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = [torch.autograd.grad(moe(x)[0].square().sum(), x)[0] for _ in range(12)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, found[0]) for other in found)


def test_an_idle_expert_has_a_zero_gradient():
    """Data-parallel training waits for the gradient of every parameter."""
    moe = EmbeddingMoE(4, num_experts=3, top_k=1, gate="linear")
    nn.init.zeros_(moe.gate.weight)
    nn.init.zeros_(moe.gate.bias)
    moe(torch.randn(2, 3, 4))[0].sum().backward()
    assert all((p.grad == 0).all() for p in moe.experts[2].parameters())


@pytest.mark.parametrize(("batch", "tokens"), [(0, 3), (2, 0), (0, 0)])
def test_empty_batches(batch, tokens):
    out, gates = EmbeddingMoE(4)(torch.randn(batch, tokens, 4))
    assert out.shape == (batch, tokens, 4)
    assert gates.shape == (batch, tokens, 4)
    out, gates = FeatureMoE(4)(torch.randn(0, 4))
    assert out.shape == gates.shape == (0, 4)


def test_gates_are_float32_in_half_precision():
    torch.manual_seed(0)
    moe, x = EmbeddingMoE(8).bfloat16(), torch.randn(2, 5, 8, dtype=torch.bfloat16)
    out, gates = moe(x)
    assert out.dtype == torch.bfloat16
    assert gates.dtype == torch.float32
    torch.testing.assert_close(out.float(), moe.float()(x.float())[0], rtol=0.05, atol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, gates = moe(x.float())
    assert out.dtype == gates.dtype == torch.float32


def test_half_precision_where_one_token_is_read():
    torch.manual_seed(0)
    moe, x = EmbeddingMoE(8).bfloat16(), torch.randn(2, 5, 8, dtype=torch.bfloat16)
    out, gates = moe(x, read=torch.tensor([0, 4]))
    assert out.dtype == torch.bfloat16
    assert gates.dtype == torch.float32
    place = torch.arange(2), torch.tensor([0, 4])
    torch.testing.assert_close(out[place], moe(x)[0][place], rtol=0.05, atol=0.02)
    assert out[:, 1:4].count_nonzero() == 0


def test_gradcheck():
    torch.manual_seed(0)
    moe = EmbeddingMoE(4, hidden=3, capacity=0.5).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: moe(v), x)
    assert torch.autograd.gradcheck(lambda v: moe(v, torch.ones(2, 5), torch.tensor([1, 3])), x)
    feature = FeatureMoE(4, residual=False).double()
    assert torch.autograd.gradcheck(lambda v: feature(v), x[0].detach().requires_grad_())


def test_experts_start_as_copies_of_a_pretrained_mlp():
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6)).double()
    moe = EmbeddingMoE.from_mlp(mlp, 6, num_experts=3, top_k=3, capacity=9.0)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    # All experts, equal and with weights that sum to 1: the pretrained MLP itself.
    torch.testing.assert_close(moe(x)[0], mlp(x))
    moe(x)[0].square().sum().backward()
    assert all(p.grad is None for p in mlp.parameters())
    assert not torch.allclose(moe.experts[0][0].weight.grad, moe.experts[1][0].weight.grad)
    before = mlp[0].weight.clone()
    with torch.no_grad():
        moe.experts[0][0].weight.zero_()
    assert torch.equal(mlp[0].weight, before)
    assert torch.equal(moe.experts[1][0].weight, before)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_feature_equals_a_loop(top_k):
    torch.manual_seed(top_k)
    moe = FeatureMoE(5, top_k=top_k, residual=False).double()
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    rows, gate_rows = [], []
    for row in x:
        weights = moe.gate(row).softmax(-1)
        chosen = chosen_experts(weights, top_k)
        rows.append(sum(weights[j] * moe.experts[j](row) for j in chosen))
        gate_rows.append(torch.stack([weights[j] if j in chosen else 0.0 * row[0] for j in range(4)]))
    expected = torch.stack(rows), torch.stack(gate_rows)
    found = moe(x)
    torch.testing.assert_close(found, expected)
    for mine, wanted in zip(gradients(moe, x, *found), gradients(moe, x, *expected), strict=True):
        torch.testing.assert_close(mine, wanted.expand_as(mine))


def test_feature_with_residual_starts_as_the_identity_and_learns():
    torch.manual_seed(0)
    moe, x = FeatureMoE(6), torch.randn(16, 6)
    assert torch.equal(moe(x)[0], x)
    target = x.roll(1, 1)
    optimizer = torch.optim.Adam(moe.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (moe(x)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * (x - target).square().mean().item()
    assert len({expert[-1].weight.sum().item() for expert in moe.experts}) == 4


def test_the_gates_carry_the_dispersion_gradient():
    torch.manual_seed(0)
    moe = EmbeddingMoE(6)
    _, gates = moe(torch.randn(4, 5, 6))
    gate_dispersion(gates[:2], [gates[2:3], gates[3:]]).backward()
    assert moe.gate[-1].weight.grad.abs().sum() > 0


def test_top_experts_and_top_tokens_by_hand():
    weights = torch.tensor([[[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.4, 0.2, 0.4]]])
    routed = top_experts(weights, 2)
    assert routed.int().tolist() == [[[1, 1, 0], [1, 1, 0], [1, 0, 1]]]
    kept = top_tokens(weights, routed, torch.tensor([1]))
    assert kept.int().tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]
    kept = top_tokens(weights, routed, torch.tensor([2]))
    assert kept.int().tolist() == [[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]


def test_infinite_capacity_drops_nothing():
    torch.manual_seed(0)
    moe, x = EmbeddingMoE(4, capacity=math.inf), torch.randn(2, 6, 4)
    _, gates = moe(x, torch.arange(6).expand(2, 6) < torch.tensor([[6], [3]]))
    assert (gates > 0).sum(-1).tolist() == [[2] * 6, [2] * 3 + [0] * 3]


def test_ties_among_many():
    assert top_experts(torch.zeros(3, 300), 7).nonzero()[:, 1].tolist() == [*range(7)] * 3
    weights = torch.zeros(1, 300, 1)
    kept = top_tokens(weights, torch.ones(1, 300, 1).bool(), torch.tensor([7]))
    assert kept.flatten().nonzero().flatten().tolist() == [*range(7)]


def test_top_tokens_among_many_equal_weights():
    """Expert by expert, with weights of which many are equal, and another number of slots in each sample."""
    torch.manual_seed(5)
    weights, routed = torch.randint(0, 4, (6, 30, 3)) / 4, torch.rand(6, 30, 3) < 0.6
    slots = torch.tensor([0, 1, 5, 9, 29, 30])
    kept = top_tokens(weights, routed, slots)
    for b, j in itertools.product(range(6), range(3)):
        asking = [t for t in range(30) if routed[b, t, j]]
        wanted = sorted(asking, key=lambda t: (-weights[b, t, j].item(), t))[: slots[b]]
        assert kept[b, :, j].nonzero().flatten().tolist() == sorted(wanted)


def test_routing_statistics_by_hand():
    gates = torch.tensor(
        [
            [[0.0, 0.0], [0.5, 0.0], [0.3, 0.3]],
            [[0.6, 0.2], [0.0, 0.0], [9.0, 9.0]],
        ]
    )
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = routing_statistics(gates, mask)
    entropy = (0 + math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 3
    assert found == pytest.approx(
        {
            "expert_load_0": 3 / 5,
            "expert_load_1": 2 / 5,
            "gate_entropy": entropy,
            "dropped_tokens": 2 / 5,
            "cls_drop_rate": 1 / 2,
        }
    )
    assert routing_statistics(gates, mask, token=torch.tensor([1, 1]))["cls_drop_rate"] == 0.5
    assert routing_statistics(gates, mask, token=1)["cls_drop_rate"] == 0.5
    assert routing_statistics(gates, mask, token=2)["cls_drop_rate"] == 0.0
    assert routing_statistics(gates[:, 0])["cls_drop_rate"] == 0.5
    assert set(routing_statistics(gates[:0]).values()) == {0.0}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 5}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"num_experts": 0}, "num_experts"),
        ({"capacity": 0.0}, "capacity"),
        ({"gate": "cosine"}, "gate"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        EmbeddingMoE(4, **options)


def test_bad_shapes():
    moe = EmbeddingMoE(4)
    with pytest.raises(ValueError, match=r"\[B, T, D\]"):
        moe(torch.randn(3, 4))
    with pytest.raises(ValueError, match="mask"):
        moe(torch.randn(2, 3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        FeatureMoE(4)(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match="gates"):
        routing_statistics(torch.randn(4))
    with pytest.raises(ValueError, match="mask"):
        routing_statistics(torch.rand(2, 3, 4), torch.ones(3, 2))
