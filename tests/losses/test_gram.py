import pytest
import torch
from comparing import value_and_gradients

from fairvlm_core.losses import cross_group_contrast, fairness_terms, moment_alignment
from fairvlm_core.losses.gram import gram_of

LABELS, GROUPS = torch.arange(12) % 2, torch.arange(12).unsqueeze(1) % 3


def losses(x):
    return cross_group_contrast(x, LABELS, GROUPS) + moment_alignment(x, LABELS, GROUPS, covariance_weight=1.0)


def test_the_length_of_a_row_does_not_matter():
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    length = torch.ones(12, 1)
    length[1], length[4], length[7], length[9] = 1e25, 1e-10, 1e30, 1e-5
    value, (gradient,) = value_and_gradients(losses, x * length)
    expected, (wanted,) = value_and_gradients(losses, x)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient * length, wanted, rtol=1e-4, atol=1e-6)


def test_a_row_without_direction_has_no_cosine():
    x = torch.randn(4, 6)
    x[2] = 0.0
    cosines = gram_of(x).cosines
    assert (cosines[2] == 0).all()
    assert (cosines[:, 2] == 0).all()
    assert cosines.diagonal()[[0, 1, 3]] == pytest.approx(1.0)


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_cosines_are_those_of_float64(spread):
    """Close together, the cosines are right to the last digits of float64; elsewhere to those of float32."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(600, generator=g) + spread * torch.randn(30, 600, generator=g)
    unit = torch.nn.functional.normalize(x.double())
    error = (torch.from_numpy(gram_of(x).cosines) - unit @ unit.T).abs().max()
    assert error < (1e-14 if spread < 0.1 else 1e-6)


@pytest.mark.parametrize("loss", [cross_group_contrast, moment_alignment])
def test_a_nan_is_not_hidden(loss):
    x = torch.randn(12, 20)
    x[3, 5] = torch.nan
    assert loss(x, LABELS, GROUPS).isnan()


def test_no_graph_is_kept_without_need():
    x = torch.randn(12, 20)
    assert not losses(x).requires_grad
    with torch.no_grad():
        assert not losses(x.requires_grad_()).requires_grad


def test_embeddings_changed_before_backward_are_noticed():
    x = torch.randn(12, 20, requires_grad=True)
    z = x * 1.0
    value = losses(z)
    with torch.no_grad():
        z.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_backward_under_autocast_stays_in_float32():
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(2))
    gradients = []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms = fairness_terms(leaf, LABELS, GROUPS)
            (terms["contrast"] + terms["moments"]).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
