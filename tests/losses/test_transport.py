import numpy as np
import ot
import pytest
import torch
from comparing import assert_nothing_to_learn, assert_raised_to_float32, assert_same
from scipy.stats import wasserstein_distance

from fairvlm_core.losses import transport_distance


def loop(x, y):
    """Every point of x cut into m pieces and every point of y into n: then both have nm equal points."""
    x, y = sorted(x, key=torch.Tensor.item), sorted(y, key=torch.Tensor.item)
    n, m = len(x), len(y)
    return 0.5 * sum((x[q // m] - y[q // n]) ** 2 for q in range(n * m)) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (5, 5), (4, 6), (7, 12), (32, 9)])
def test_equals_a_loop_and_pot(n, m):
    g = torch.Generator().manual_seed(n * 100 + m)
    x, y = torch.randn(n, generator=g), 2 * torch.randn(m, generator=g) + 1
    value = assert_same(transport_distance, loop, x, y)
    exact = ot.emd2_1d(x.double().numpy(), y.double().numpy(), metric="sqeuclidean")
    assert value == pytest.approx(exact / 2, rel=1e-9)


def test_a_large_sample_equals_pot():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=1009), rng.exponential(size=640)
    value = transport_distance(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert value == pytest.approx(ot.wasserstein_1d(x, y, p=2) / 2, rel=1e-9)
    assert value >= wasserstein_distance(x, y) ** 2 / 2


def test_is_a_distance():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, generator=g), torch.randn(10, generator=g)
    torch.testing.assert_close(transport_distance(x, y), transport_distance(y, x))
    assert transport_distance(x, x[torch.randperm(6, generator=g)]).item() == 0
    assert transport_distance(x, x.repeat(3)).item() == 0
    # A shift by s moves all mass by s.
    torch.testing.assert_close(transport_distance(x, x + 3.0), torch.tensor(4.5))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 5)])
def test_ties_have_a_finite_gradient(n, m):
    x, y = torch.ones(n, requires_grad=True), torch.zeros(m, requires_grad=True)
    transport_distance(x, y).backward()
    assert x.grad.sum().item() == pytest.approx(1.0)
    assert y.grad.sum().item() == pytest.approx(-1.0)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_an_empty_side_is_a_connected_zero(n, m):
    assert_nothing_to_learn(transport_distance, torch.randn(n), torch.randn(m))


def test_gradcheck_and_precision():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(4, generator=g), torch.randn(7, generator=g)
    assert torch.autograd.gradcheck(transport_distance, (x.double().requires_grad_(), y.double().requires_grad_()))
    assert_raised_to_float32(transport_distance, x, y)


def test_needs_vectors():
    with pytest.raises(ValueError, match="one-dimensional"):
        transport_distance(torch.ones(2, 2), torch.ones(2))
