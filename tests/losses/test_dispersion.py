import pytest
import torch
from comparing import assert_nothing_to_learn, assert_raised_to_float32, assert_same

from fairvlm_core.losses import gate_dispersion


def variance(column):
    mean = sum(column) / len(column)
    return sum((value - mean) ** 2 for value in column) / len(column)


def loop(batch, *groups):
    experts = batch.shape[-1]
    total = 0.0 * (batch.sum() + sum(group.sum() for group in groups))
    for group in groups:
        for j in range(experts):
            if group.numel():
                mine, theirs = list(batch[..., j].flatten()), list(group[..., j].flatten())
                total = total + (variance(mine) - variance(theirs)) ** 2
    return total


def dispersion(batch, *groups):
    return gate_dispersion(batch, groups)


@pytest.mark.parametrize(
    "shapes",
    [
        [(6, 4), (3, 4), (5, 4)],
        [(3, 5, 4), (2, 5, 4), (1, 5, 4), (4, 2, 4)],
        [(6, 1), (1, 1)],
        [(6, 4), (0, 4), (3, 4)],
        [(2, 2, 3, 2), (5, 2)],
    ],
)
def test_equals_a_loop(shapes):
    g = torch.Generator().manual_seed(len(shapes))
    tensors = [torch.rand(shape, generator=g) for shape in shapes]
    assert assert_same(dispersion, loop, *tensors) > 0


def test_a_stacked_tensor_is_a_sequence_of_groups():
    batch, groups = torch.rand(5, 3), torch.rand(2, 4, 3)
    torch.testing.assert_close(gate_dispersion(batch, groups), gate_dispersion(batch, list(groups)))


@pytest.mark.parametrize(
    "shapes", [[(4, 3)], [(4, 3), (0, 3)], [(0, 3), (4, 3)], [(1, 3), (1, 3)], [(0, 5, 3), (0, 5, 3)]]
)
def test_nothing_to_compare_is_a_connected_zero(shapes):
    assert_nothing_to_learn(dispersion, *(torch.rand(shape) for shape in shapes))


def test_groups_that_spread_as_the_batch_have_no_loss():
    gates = torch.rand(6, 4)
    assert gate_dispersion(gates, [gates.flip(0), gates + 1]).item() == pytest.approx(0.0, abs=1e-12)


def test_gradcheck_and_precision():
    tensors = [torch.rand(4, 3), torch.rand(3, 3), torch.rand(1, 3)]
    assert torch.autograd.gradcheck(dispersion, [tensor.double().requires_grad_() for tensor in tensors])
    assert_raised_to_float32(dispersion, *tensors)


def test_bad_shapes():
    with pytest.raises(ValueError, match="group_gates"):
        gate_dispersion(torch.rand(4, 3), [torch.rand(4, 2)])
    with pytest.raises(ValueError, match="batch_gates"):
        gate_dispersion(torch.rand(3), [])
