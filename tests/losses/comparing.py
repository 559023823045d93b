"""Compare a loss with a plain float64 loop, in value and in gradient."""

import torch
from torch import Tensor


def unit(row: Tensor) -> Tensor:
    """The row divided by its length; a zero row stays zero."""
    length = row.detach().norm()
    return row / row.norm() if length > 0 else row * 0.0


def value_and_gradients(loss, *tensors: Tensor, dtype=torch.float32) -> tuple[float, list[Tensor]]:
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    assert value.shape == ()
    assert value.requires_grad, "the result must stay connected to the graph"
    value.backward()
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    for gradient in gradients:
        assert gradient.isfinite().all()
    return value.item(), gradients


def assert_same(loss, loop, *tensors: Tensor, rtol: float = 1e-4, atol: float = 1e-6) -> float:
    """`loss` in float32 and in float64 agrees with `loop` in float64, as do the gradients; returns the value."""
    expected, expected_gradients = value_and_gradients(loop, *tensors, dtype=torch.float64)
    for dtype, r, a in ((torch.float32, rtol, atol), (torch.float64, 1e-8, 1e-10)):
        value, gradients = value_and_gradients(loss, *tensors, dtype=dtype)
        torch.testing.assert_close(value, expected, rtol=r, atol=a)
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            assert gradient.dtype == dtype
            scale = max(1.0, wanted.abs().max().item() if wanted.numel() else 1.0)
            torch.testing.assert_close(gradient.double(), wanted, rtol=r, atol=a * scale)
    return expected


def assert_nothing_to_learn(loss, *tensors: Tensor) -> None:
    """The loss is 0 and its gradient exists and is 0."""
    value, gradients = value_and_gradients(loss, *tensors)
    assert value == 0.0
    for gradient in gradients:
        assert (gradient == 0).all()


def assert_raised_to_float32(loss, *tensors: Tensor) -> None:
    """bfloat16 and float16 inputs give what their float32 copies give, under autocast too."""
    for dtype in (torch.bfloat16, torch.float16):
        halves = [tensor.to(dtype) for tensor in tensors]
        expected = loss(*[half.float() for half in halves])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(*halves)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        _, gradients = value_and_gradients(loss, *halves, dtype=dtype)
        assert all(gradient.dtype == dtype for gradient in gradients)
