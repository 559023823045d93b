import numpy as np
import pytest
import torch
from comparing import assert_nothing_to_learn, assert_raised_to_float32, assert_same, unit, value_and_gradients
from sklearn.covariance import empirical_covariance

from fairvlm_core.losses import moment_alignment
from fairvlm_core.losses.moments import gram_form

NAN = float("nan")


def subsets(labels, groups):
    """Per label and attribute: {group: rows}."""
    if labels.ndim == 1:
        carriers = [[i for i in range(len(labels)) if labels[i] == y] for y in {float(v) for v in labels if v >= 0}]
    else:
        carriers = [[i for i in range(len(labels)) if labels[i, j] == 1] for j in range(labels.shape[1])]
    for rows in carriers:
        for k in range(groups.shape[1]):
            present = {int(groups[i, k]) for i in rows if groups[i, k] >= 0}
            yield {d: [i for i in rows if groups[i, k] == d] for d in sorted(present)}


def loop(x, labels, groups, covariance_weight=0.1, reduction="mean"):
    z = [unit(row) for row in x]
    means, covariances = [], []
    for cells in subsets(labels, groups):
        mu = {d: sum(z[i] for i in rows) / len(rows) for d, rows in cells.items()}
        s = {
            d: sum(torch.outer(z[i] - mu[d], z[i] - mu[d]) for i in rows) / len(rows)
            for d, rows in cells.items()
            if len(rows) >= 2
        }
        for moments, terms in ((mu, means), (s, covariances)):
            if len(moments) >= 2:
                reference = sum(moments.values()) / len(moments)
                terms.extend(((moment - reference) ** 2).sum() for moment in moments.values())
    totals = [
        sum(terms, 0.0 * x.sum()) / (max(len(terms), 1) if reduction == "mean" else 1) for terms in (means, covariances)
    ]
    return totals[0] + covariance_weight * totals[1]


def both(labels, groups, **options):
    return (
        lambda x: moment_alignment(x, labels, groups, **options),
        lambda x: loop(x, labels, groups, **options),
    )


def batch(seed, kind, n=16, d=5):
    g = torch.Generator().manual_seed(seed)
    groups = torch.randint(-1, 4, (n, 2), generator=g)
    groups[:, 1] = groups[:, 1].clamp_max(1)
    if kind == "classes":
        labels = torch.randint(-1, 2, (n,), generator=g)
    else:
        labels = torch.randint(0, 2, (n, 3), generator=g).float()
        labels[torch.rand(n, 3, generator=g) < 0.2] = NAN
    return torch.randn(n, d, generator=g) + 0.5, labels, groups


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
@pytest.mark.parametrize("d", [2, 5, 40])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("covariance_weight", [0.1, 3.0])
def test_equals_a_loop(kind, d, reduction, covariance_weight):
    x, labels, groups = batch(d, kind, d=d)
    functions = both(labels, groups, reduction=reduction, covariance_weight=covariance_weight)
    assert assert_same(*functions, x, rtol=1e-3) > 0


def test_the_defaults_are_the_documented_ones():
    x, labels, groups = batch(0, "classes")
    explicit = moment_alignment(x, labels, groups, covariance_weight=0.1, reduction="mean")
    assert moment_alignment(x, labels, groups) == explicit


def test_covariances_are_those_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    x, groups = torch.randn(9, 3, generator=g), torch.tensor([[0], [0], [0], [1], [1], [1], [1], [2], [2]])
    x = x.double()
    z = (x / x.norm(dim=1, keepdim=True)).numpy()
    covariances = np.stack([empirical_covariance(z[groups[:, 0] == d]) for d in range(3)])
    expected = ((covariances - covariances.mean(0)) ** 2).sum((1, 2)).mean()
    labels = torch.zeros(9)
    with_covariances = moment_alignment(x, labels, groups, covariance_weight=1.0)
    without = moment_alignment(x, labels, groups, covariance_weight=0.0)
    assert (with_covariances - without).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
@pytest.mark.parametrize(("n", "d"), [(12, 4), (13, 12)])
def test_the_shape_chooses_the_form_and_both_agree(n, d, kind):
    """The same samples with zero dimensions appended (Gram form) have the same loss as without (covariances)."""
    x, labels, groups = batch(n + d, kind, n=n, d=d)
    narrow = x.double().requires_grad_()
    wide = torch.cat([x.double(), torch.zeros(n, n + 1)], 1).requires_grad_()
    assert not gram_form(narrow)
    assert gram_form(wide)
    of_narrow, of_wide = (moment_alignment(leaf, labels, groups, covariance_weight=2.0) for leaf in (narrow, wide))
    torch.testing.assert_close(of_narrow, of_wide)
    of_narrow.backward()
    of_wide.backward()
    torch.testing.assert_close(narrow.grad, wide.grad[:, :d])


@pytest.mark.parametrize("spread", [0.3, 0.03, 0.003])
def test_embeddings_that_lie_close_together_keep_their_digits(spread):
    """Cosines of 0.92, 0.999 and 0.99999: of those near 1, a float32 product leaves few digits to a covariance."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, generator=g) + spread * torch.randn(24, 64, generator=g)
    labels, groups = torch.arange(24) % 2, torch.randint(0, 3, (24, 1), generator=g)
    weight = 1 / spread**2  # both parts count
    value, (gradient,) = value_and_gradients(
        lambda e: moment_alignment(e, labels, groups, covariance_weight=weight), x, dtype=torch.float32
    )
    expected, (wanted,) = value_and_gradients(lambda e: loop(e, labels, groups, weight), x, dtype=torch.float64)
    assert value == pytest.approx(expected, rel=1e-5)
    assert (gradient.double() - wanted).norm() < 1e-3 * wanted.norm()


def test_groups_may_have_any_number():
    x, labels, groups = batch(3, "classes", d=40)
    renamed = torch.where(groups >= 0, groups * 10**12 + 7, -5)
    torch.testing.assert_close(moment_alignment(x, labels, renamed), moment_alignment(x, labels, groups))
    torch.testing.assert_close(moment_alignment(x, labels * 1000, groups), moment_alignment(x, labels, groups))


def test_many_dimensions_never_become_a_matrix():
    """d x d in float32 would take 40 GB here."""
    x = torch.randn(8, 100_000, requires_grad=True)
    moment_alignment(x, torch.zeros(8), torch.arange(8).unsqueeze(1) % 2).backward()
    assert x.grad.isfinite().all()


def test_a_group_of_one_has_a_mean_but_no_covariance():
    labels, groups = torch.zeros(5), torch.tensor([[0], [0], [1], [2], [2]])
    assert_same(*both(labels, groups, covariance_weight=1.0), torch.randn(5, 3) + 1)
    # With a single group of two or more there is no covariance to align.
    groups = torch.tensor([[0], [0], [1], [2], [-1]])
    x = torch.randn(5, 3)
    heavy, none = (moment_alignment(x, labels, groups, covariance_weight=w) for w in (100.0, 0.0))
    assert heavy == none
    assert heavy > 0


def test_the_reference_is_not_weighted_by_size():
    x = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    groups = torch.tensor([[0]] * 9 + [[1]])
    # Both means lie at half the distance sqrt(2) from the middle.
    assert moment_alignment(x, torch.zeros(10), groups).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0, 0, 1, 1], [[0], [0], [1], [1]]),  # one group per label
        ([0, 0, 0, 0], [[2], [2], [2], [2]]),
        ([0, 0, 0, 0], [[0], [-1], [0], [-1]]),
        ([0, 1, 2, 3], [[0], [1], [2], [3]]),
        ([-1, -1, -1, -1], [[0], [1], [0], [1]]),
        ([[0.0, NAN]] * 4, [[0], [1], [0], [1]]),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_valid_is_a_connected_zero(labels, groups, reduction):
    labels, groups = torch.tensor(labels), torch.tensor(groups)
    assert_nothing_to_learn(lambda x: moment_alignment(x, labels, groups, reduction=reduction), torch.randn(4, 3))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("kind", ["classes", "multi-label", "no label", "no attribute"])
def test_no_sample_and_one_sample(n, kind):
    labels = {"multi-label": torch.ones(n, 2), "no label": torch.ones(n, 0)}.get(kind, torch.zeros(n))
    groups = torch.zeros(n, 0 if kind == "no attribute" else 2, dtype=torch.long)
    assert_nothing_to_learn(lambda x: moment_alignment(x, labels, groups), torch.randn(n, 3))


@pytest.mark.parametrize("d", [3, 30])
def test_duplicates_and_zero_vectors(d):
    x, labels, groups = batch(4, "classes", n=12, d=d)
    x[1], x[2], x[5] = x[0], x[0], 0.0
    assert_same(*both(labels, groups, covariance_weight=1.0), x, rtol=1e-3)
    same = torch.ones(12, d)
    value = assert_same(*both(labels, groups, covariance_weight=1.0), same)
    assert value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("d", [8, 64])
def test_equal_groups_have_no_loss(d):
    groups = torch.arange(24).unsqueeze(1) // 8
    g = torch.Generator().manual_seed(0)
    for _ in range(100):
        x = torch.randn(8, d, generator=g)
        x = torch.cat([x[torch.randperm(8, generator=g)] for _ in range(3)])
        assert 0 <= moment_alignment(x, torch.zeros(24), groups, covariance_weight=1.0).item() < 1e-7


@pytest.mark.parametrize("d", [3, 12])
def test_gradcheck_and_precision(d):
    x, labels, groups = batch(8, "multi-label", n=8, d=d)
    assert torch.autograd.gradcheck(
        lambda e: moment_alignment(e, labels, groups, covariance_weight=1.0), x.double().requires_grad_()
    )
    assert_raised_to_float32(lambda e: moment_alignment(e, labels, groups), x)


def test_bad_shapes_and_options():
    with pytest.raises(ValueError, match="groups"):
        moment_alignment(torch.ones(2, 2), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="labels"):
        moment_alignment(torch.ones(2, 2), torch.zeros(3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="reduction"):
        moment_alignment(torch.ones(2, 2), torch.zeros(2), torch.zeros(2, 1), reduction="max")
