"""The baselines' parts against plain float64 loops and numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fairvlm_core.errors import ConfigError
from fairvlm_core.training.baselines import (
    Adversary,
    group_dro_step,
    group_means,
    intersection,
    project_gradients,
    sample_weights,
)


def drawn(kind, *, n=200, unknown=0.1, seed=0):
    """Labels [n, L] and groups [n, 2] with unknowns; the label depends on the group."""
    rng = np.random.default_rng(seed)
    groups = np.stack([rng.integers(2, size=n), rng.integers(3, size=n)], axis=1)
    if kind == "multiclass":
        labels = np.eye(4)[np.minimum(rng.integers(4, size=n), groups.sum(1) + 1)]
    else:
        width = 1 if kind == "binary" else 3
        labels = (rng.random((n, width)) < 0.2 + 0.2 * groups[:, :1]).astype(float)
    gone = rng.random(labels.shape) < unknown
    labels[gone.any(1)[:, None] & np.ones_like(gone) if kind == "multiclass" else gone] = np.nan
    groups[rng.random(groups.shape) < unknown] = -1
    return labels.astype(np.float32), groups


def inverse_share(groups):
    """1 / P(a), None where a is unknown."""
    known = [tuple(row) for row in groups if min(row) >= 0]
    return [len(known) / known.count(tuple(row)) if min(row) >= 0 else None for row in groups]


def kamiran_calders(classes, groups):
    """P(a) P(y) / P(a, y), None where a or y is unknown."""
    pairs = [(y, tuple(a)) if y is not None and min(a) >= 0 else None for y, a in zip(classes, groups, strict=True)]
    known = [pair for pair in pairs if pair is not None]
    weights = []
    for pair in pairs:
        if pair is None:
            weights.append(None)
            continue
        p_y = sum(other[0] == pair[0] for other in known) / len(known)
        p_a = sum(other[1] == pair[1] for other in known) / len(known)
        weights.append(p_a * p_y / (known.count(pair) / len(known)))
    return weights


def mean_one(weights):
    known = [weight for weight in weights if weight is not None]
    mean = sum(known) / len(known)
    return [1.0 if weight is None else weight / mean for weight in weights]


def joint(labels, groups, kind):
    if kind == "multiclass":
        columns = [[None if math.isnan(row[0]) else int(row.argmax()) for row in labels]]
    else:
        columns = [[None if math.isnan(value) else int(value) for value in column] for column in labels.T]
    by_label = [kamiran_calders(column, groups) for column in columns]
    weights = []
    for values in zip(*by_label, strict=True):
        known = [value for value in values if value is not None]
        weights.append(sum(known) / len(known) if known else None)
    return mean_one(weights)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_weights_equal_a_loop(kind):
    labels, groups = drawn(kind)
    given = labels.copy(), groups.copy()
    group = sample_weights("group", labels, groups, kind)
    both = sample_weights("joint", labels, groups, kind)
    np.testing.assert_allclose(group, mean_one(inverse_share(groups)), rtol=1e-6)
    np.testing.assert_allclose(both, joint(labels, groups, kind), rtol=1e-6)
    for weights in (group, both):
        assert weights.dtype == np.float32
        assert weights.mean(dtype=float) == pytest.approx(1, abs=1e-6)
        assert (weights[(groups < 0).any(1)] == 1).all()
    np.testing.assert_array_equal(labels, given[0])
    np.testing.assert_array_equal(groups, given[1])


def test_what_the_weights_are_for():
    """Under the group weights every cell counts alike; under the joint ones the label's rate is the same everywhere."""
    labels, groups = drawn("binary", n=2000, unknown=0)
    cell = intersection(groups)
    totals = np.bincount(cell, sample_weights("group", labels, groups, "binary").astype(float))
    np.testing.assert_allclose(totals, totals[0], rtol=1e-5)
    weights = sample_weights("joint", labels, groups, "binary").astype(float)
    raw = [labels[cell == c, 0].mean() for c in range(6)]
    rates = [np.average(labels[cell == c, 0], weights=weights[cell == c]) for c in range(6)]
    assert max(raw) - min(raw) > 0.15
    np.testing.assert_allclose(rates, labels.mean(), rtol=1e-5)


@pytest.mark.parametrize("scheme", ["group", "joint"])
def test_weights_without_anything_known_are_one(scheme):
    labels, groups = np.full((3, 1), np.nan, dtype=np.float32), np.full((3, 2), -1)
    np.testing.assert_array_equal(sample_weights(scheme, labels, groups, "binary"), 1)
    assert len(sample_weights(scheme, labels[:0], groups[:0], "binary")) == 0
    with pytest.raises(ConfigError, match='Did you mean "joint"'):
        sample_weights("jiont", labels, groups, "binary")


def test_an_intersection_needs_every_attribute():
    groups = np.array([[0, 0], [0, 2], [1, 0], [0, 2], [0, -1], [-1, 0]])
    assert intersection(groups).tolist() == [0, 1, 2, 1, -1, -1]
    assert intersection(np.full((2, 1), -1)).tolist() == [-1, -1]


def test_group_means_are_those_of_the_groups_that_are_there():
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    cells = torch.tensor([2, 0, 2, -1, 0])
    means = group_means(losses, cells, 4)
    assert means.isnan().tolist() == [False, True, False, True]
    assert means[[0, 2]].tolist() == [9.0, 2.5]


def test_a_batch_without_groups_moves_nothing():
    means = group_means(torch.rand(3), torch.full((3,), -1), 2)
    assert means.isnan().all()
    q = torch.tensor([0.3, 0.7])
    assert torch.equal(group_dro_step(means, q, 0.5), q)


def test_group_dro_equals_a_loop():
    rng = np.random.default_rng(3)
    q = torch.tensor(rng.dirichlet(np.ones(5)))
    for absent in ((), (1,), (0, 3)):
        losses = rng.random(5) * 3
        losses[list(absent)] = np.nan
        present = [g for g in range(5) if g not in absent]
        grown = {g: float(q[g]) * math.exp(0.7 * losses[g]) for g in present}
        held = sum(float(q[g]) for g in present)
        expected = [held * grown[g] / sum(grown.values()) if g in grown else float(q[g]) for g in range(5)]
        after = group_dro_step(torch.tensor(losses), q, 0.7)
        np.testing.assert_allclose(after.numpy(), expected, rtol=1e-12)
        assert after.sum().item() == pytest.approx(1, abs=1e-12)
        assert not after.requires_grad
        q = after
    assert torch.equal(
        group_dro_step(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]), 0.0), torch.tensor([0.5, 0.5])
    )


def test_group_dro_with_a_huge_loss_stays_finite():
    q = group_dro_step(torch.tensor([1e4, 1.0, torch.nan]), torch.tensor([0.2, 0.3, 0.5]), 1.0)
    np.testing.assert_allclose(q, [0.5, 0.0, 0.5], atol=1e-7)


def test_group_dro_weighs_the_worst_group_most_in_the_end():
    """With constant losses the weights become those of a softmax over the losses summed up."""
    losses, q = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(40):
        q = group_dro_step(losses, q, 0.1)
    np.testing.assert_allclose(q.numpy(), (40 * 0.1 * losses).softmax(0).numpy(), rtol=1e-10)


def projected(p, a, alpha):
    """The same for one plain vector."""
    square = sum(y * y for y in a)
    share = sum(x * y for x, y in zip(p, a, strict=True)) / square if square else 0.0
    return [x - share * y - alpha * y for x, y in zip(p, a, strict=True)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_the_projection_is_over_all_parameters_as_one_vector(alpha):
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2), (4,), ()]
    p, a = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    found = project_gradients(p, a, alpha)
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in p]
    flat = [value for tensor in found for value in tensor.flatten().tolist()]
    vectors = [[value for tensor in side for value in tensor.flatten().tolist()] for side in (p, a)]
    np.testing.assert_allclose(flat, projected(*vectors, alpha), rtol=1e-5, atol=1e-6)
    # What is left of the task's gradient does not help the adversary, to first order.
    inner = sum((x * y).sum() for x, y in zip(project_gradients(p, a, 0.0), a, strict=True))
    assert abs(float(inner)) < 1e-5


def test_an_adversary_without_gradient_changes_nothing():
    p = [torch.randn(3), torch.randn(2, 2, dtype=torch.float64)]
    found = project_gradients(p, [torch.zeros_like(tensor) for tensor in p], 1.0)
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(found, p, strict=True))
    tiny = [torch.full((3,), 1e-30), torch.full((2, 2), 1e-30, dtype=torch.float64)]
    assert all(tensor.isfinite().all() for tensor in project_gradients(p, tiny, 1.0))
    assert project_gradients([], [], 1.0) == []


def test_bfloat16_gradients_lose_only_their_last_rounding():
    generator = torch.Generator().manual_seed(2)
    p, a = (torch.randn(5000, generator=generator).bfloat16() for _ in range(2))
    (found,) = project_gradients([p], [a], 0.3)
    expected = projected(p.double().tolist(), a.double().tolist(), 0.3)
    assert found.dtype == torch.bfloat16
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=2**-8, atol=1e-6)


def adversary(labels, groups):
    torch.manual_seed(0)
    made = Adversary(labels, groups)
    with torch.no_grad():
        made.sharpness.copy_(torch.tensor([0.5, -2.0, 0.0])[:labels])
    return made.double()


def test_the_adversary_equals_a_loop():
    made = adversary(3, [2, 3])
    generator = torch.Generator().manual_seed(4)
    odds = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    truth = torch.randint(2, (12, 3), generator=generator).double()
    truth[2, 1] = torch.nan
    groups = torch.stack([torch.arange(12) % 2, torch.arange(12) % 3], 1)
    groups[0, 0] = groups[5, 1] = -1

    terms = []
    for k, head in enumerate(made.heads):
        losses = []
        for i in range(12):
            if groups[i, k] < 0:
                continue
            s = [1 / (1 + math.exp(-(1 + abs(c)) * odds[i, j].item())) for j, c in enumerate([0.5, -2.0, 0.0])]
            y = [truth[i, j].item() for j in range(3)]
            seen = s + [0 if math.isnan(b) else a * b for a, b in zip(s, y, strict=True)]
            seen += [0 if math.isnan(b) else a * (1 - b) for a, b in zip(s, y, strict=True)]
            logits = [
                bias + sum(w * x for w, x in zip(row, seen, strict=True))
                for row, bias in zip(head.weight.tolist(), head.bias.tolist(), strict=True)
            ]
            losses.append(math.log(sum(math.exp(z) for z in logits)) - logits[groups[i, k]])
        terms.append(sum(losses) / len(losses))
    assert made.loss(odds, truth, groups).item() == pytest.approx(sum(terms) / 2, rel=1e-12)


def test_nobody_known_gives_the_adversary_nothing_to_learn():
    made, odds = adversary(1, [2]), torch.randn(4, 1, requires_grad=True)
    loss = made.loss(odds, torch.ones(4, 1), torch.full((4, 1), -1))
    loss.backward()
    assert loss.item() == 0
    assert odds.grad.tolist() == [[0.0]] * 4
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in made.parameters())


def test_the_adversary_finds_the_group_only_where_odds_differ():
    """Equalised odds: a score that depends on the group only through the label tells the adversary nothing more."""
    rng = np.random.default_rng(5)
    group = torch.tensor(rng.integers(2, size=(4000, 1)))
    truth = torch.tensor(rng.random((4000, 1)) < 0.5).float()
    noise = torch.tensor(rng.normal(size=(4000, 1))).float()
    fair = 2 * truth - 1 + noise
    unfair = fair + 2 * group
    losses = []
    for odds in (fair, unfair):
        torch.manual_seed(0)
        made = Adversary(1, [2])
        optimizer = torch.optim.LBFGS(made.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure(made=made, odds=odds, optimizer=optimizer):
            optimizer.zero_grad()
            loss = made.loss(odds, truth, group)
            loss.backward()
            return loss

        optimizer.step(closure)
        losses.append(made.loss(odds, truth, group).item())
    assert losses[0] > math.log(2) - 0.005
    assert losses[1] < math.log(2) - 0.1


def test_debiasing_with_the_projection_closes_a_gap_that_plain_training_leaves():
    """Logistic regression on a feature for the label and one for the group, trained against the adversary."""
    rng = np.random.default_rng(6)
    group = rng.integers(2, size=3000)
    # The finding is more frequent in group 1, so a model that is only accurate learns the group.
    truth = (rng.random(3000) < np.where(group == 1, 0.7, 0.2)).astype(float)
    x = torch.tensor(np.stack([truth + rng.normal(size=3000), group + 0.3 * rng.normal(size=3000)], 1)).float()
    given, groups = torch.tensor(truth).float()[:, None], torch.tensor(group)[:, None]

    def train(debias):
        torch.manual_seed(0)
        model, made = torch.nn.Linear(2, 1), Adversary(1, [2])
        against = torch.optim.Adam(made.parameters(), lr=0.02)
        update = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(400):
            odds = model(x)
            parameters = list(model.parameters())
            task = torch.autograd.grad(F.binary_cross_entropy_with_logits(odds, given), parameters, retain_graph=True)
            hindered = made.loss(odds, given, groups)
            if debias:
                task = project_gradients(task, torch.autograd.grad(hindered, parameters, retain_graph=True), 1.0)
            against.zero_grad()
            hindered.backward(inputs=list(made.parameters()))
            for parameter, gradient in zip(parameters, task, strict=True):
                parameter.grad = gradient
            update.step()
            against.step()
        positive = (model(x).detach() > 0).numpy()[:, 0]
        return max(
            abs(positive[(group == 1) & (truth == y)].mean() - positive[(group == 0) & (truth == y)].mean())
            for y in (0, 1)
        )

    plain, debiased = train(False), train(True)
    assert plain > 0.3
    assert debiased < plain / 2
