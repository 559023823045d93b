"""One Gram matrix for every loss on pairs of samples: cosines in, values and gradients out.

A loss that reads the embeddings [n, d] only through their cosines needs two matrix products of n x n x d, X X^T forward
and its mirror backward, and nothing else that grows with d. What lies between is n x n: small, so it is done in float64
on the host, in compiled loops, and each loss gives its gradient together with its value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairvlm_core.compiled import compiled
from fairvlm_core.losses.pairs import NO_DIRECTION, as_float

# Squared lengths between these neither overflow nor vanish in a float32 product; other rows are scaled first.
SHORTEST, LONGEST = 1e-16, 1e30
# A float32 product leaves an error of about 3e-7 in a cosine c. Covariances are made of 1 - c, so where samples lie
# nearer together than this, too few digits remain and the product is done in float64.
NEAR = 0.95
COLUMNS = 512  # how many columns of the embeddings are float64 at a time


class Part(NamedTuple):
    """The value of a loss and its gradient with respect to the cosines, float64.

    Attributes:
        value: the loss.
        gradient: [n, n], by c_ij and c_ji together: symmetric, and twice what it is for an entry by itself.
        lent: [r, m], by the cosines to the rows of the loan; None where the loss does not read them.
    """

    value: float
    gradient: np.ndarray
    lent: np.ndarray | None = None


class Loan(NamedTuple):
    """Constant unit rows [m, d] that the samples `borrowers` [r] of the batch are compared with, too."""

    borrowers: Tensor
    unit: Tensor


class Gram(NamedTuple):
    """The cosines of a batch and what leads back from them to the embeddings.

    Attributes:
        cosines: float64 [n, n]; 0 for a row without direction, also with itself.
        inverse: float64 [n], 1 / length of `rows`; 0 for a row without direction.
        rows: [n, d], the embeddings or, where their lengths are extreme, the embeddings / scale.
        scale: [n, 1], or None where nothing had to be scaled.
    """

    cosines: np.ndarray
    inverse: np.ndarray
    rows: Tensor
    scale: Tensor | None


Evaluate = Callable[[np.ndarray, "np.ndarray | None"], Part]


def from_cosines(embeddings: Tensor, *evaluate: Evaluate, loan: Loan | None = None) -> tuple[Tensor, ...]:
    """Scalars that depend on the cosines between the embeddings, with gradient with respect to the embeddings.

    Args:
        embeddings: [n, d].
        evaluate: functions of the cosines [n, n] and, with a loan, the cosines [r, m] of its borrowers with its rows,
            both float64 and not to be changed.
        loan: rows from outside the batch; they get no gradient.

    Returns:
        A scalar per function in the embeddings' dtype, at least float32. They can be differentiated once: to a second
        derivative the gradient is a constant.
    """
    (x,) = as_float(embeddings)
    values: tuple[Tensor, ...] = _FromCosines.apply(x, loan, evaluate)
    return values


def gram_of(embeddings: Tensor) -> Gram:
    """Cosines between the rows of [n, d]; no gradient flows."""
    (x,) = as_float(embeddings.detach())
    product = _quick_product if x.device.type == "cpu" else _exact_product
    made, fair, near = _normalised(product(x))
    scale = None
    if not fair:
        scale = x.abs().amax(-1, keepdim=True)
        empty = scale <= NO_DIRECTION
        scale = scale.masked_fill(empty, 1.0)
        x = x.masked_fill(empty, 0.0) / scale
        made, _, near = _normalised(product(x))
    n = len(x)
    # A row is near itself, and a few near others do no harm.
    if product is _quick_product and x.dtype != torch.float64 and near > min(3 * n, n * n / 2):
        made, _, _ = _normalised(_exact_product(x))
    return Gram(*made, x, scale)


@compiled
def _normalised(product: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], bool, int]:
    """From X X^T [n, n]: (cosines, 1 / length); whether all lengths are in range; how many cosines are near 1."""
    n = len(product)
    cosines, inverse = np.empty((n, n)), np.zeros(n)
    fair, near = True, 0
    for i in range(n):
        square = np.float64(product[i, i])
        # Written so that a NaN is not in range, and stays visible.
        if not (square > SHORTEST and square < LONGEST):
            fair = False
        if square != 0:
            inverse[i] = 1 / np.sqrt(square)
    for i in range(n):
        for j in range(n):
            cosine = product[i, j] * inverse[i] * inverse[j]
            near += cosine > NEAR
            # Rounding must not lift a copy above a margin of 1.
            cosines[i, j] = 1.0 if cosine > 1.0 else cosine
    return (cosines, inverse), fair, near


def _quick_product(x: Tensor) -> np.ndarray:
    """X X^T of [n, d] in the dtype of x; NumPy sees that it is symmetric, which saves up to half of the work."""
    array = x.numpy()
    with np.errstate(over="ignore"):  # rows too long for their dtype are scaled afterwards
        return array @ array.T


def _exact_product(x: Tensor) -> np.ndarray:
    """X X^T of [n, d] in float64, a few columns at a time. Off the CPU a float32 product may be TF32, of 3 digits."""
    gram = x.new_zeros((len(x), len(x)), dtype=torch.float64)
    for columns in x.split(COLUMNS, 1):
        wide = columns.double()
        gram.addmm_(wide, wide.T)
    return gram.cpu().numpy()


def _mix(weights: Tensor, rows: Tensor) -> Tensor:
    """weights [a, m] @ rows [m, d], in the dtype of rows; computed in it on the CPU, in float64 elsewhere."""
    if rows.device.type == "cpu":
        return weights @ rows
    return (weights.double() @ rows.double()).to(rows.dtype)


class _FromCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loan: Loan | None, evaluate: tuple[Evaluate, ...]) -> tuple[Tensor, ...]:
        cosines, inverse, rows, scale = gram_of(x)
        lent = None
        if loan is not None:
            borrowed = (rows[loan.borrowers].double() @ loan.unit.double().T).cpu().numpy()
            lent = borrowed * inverse[loan.borrowers.cpu().numpy(), None]
        parts = [function(cosines, lent) for function in evaluate]
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x if scale is None else rows)
            ctx.scale, ctx.loan = scale, loan
            # The rest of the gradient is linear in what flows back, so it is laid out now: backward needs no host.
            ctx.pulls = [_pulls(part, cosines, inverse, loan, lent, x) for part in parts]
        return tuple(x.new_tensor(part.value) for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            pulls = [weight * pull for weight, (pull, _) in zip(weights, ctx.pulls, strict=True)]
            gradient = _mix(functools.reduce(Tensor.add_, pulls), rows)
            for weight, (_, outside) in zip(weights, ctx.pulls, strict=True):
                if outside is not None:
                    unit = ctx.loan.unit.to(rows.dtype)
                    gradient.index_add_(0, ctx.loan.borrowers, _mix(weight * outside, unit))
            if ctx.scale is not None:
                gradient = gradient / ctx.scale
        return gradient, None, None


def _pulls(
    part: Part, cosines: np.ndarray, inverse: np.ndarray, loan: Loan | None, lent: np.ndarray | None, x: Tensor
) -> tuple[Tensor, Tensor | None]:
    """How a loss pulls at the rows: gradient [n, d] = [n, n] @ rows (+ [r, m] @ the loan's rows). Both are like x."""
    along, outside = np.zeros(len(cosines)), None
    if loan is not None and lent is not None and part.lent is not None:
        borrowers = loan.borrowers.cpu().numpy()
        along[borrowers] += np.einsum("ij,ij->i", part.lent, lent)
        outside = torch.from_numpy(part.lent * inverse[borrowers, None]).to(x)
    return torch.from_numpy(_pull(part.gradient, cosines, inverse, along)).to(x), outside


@compiled
def _pull(gradient: np.ndarray, cosines: np.ndarray, inverse: np.ndarray, along: np.ndarray) -> np.ndarray:
    """float64 [n, n]. A unit row cannot move along itself: what points there is taken off, on the diagonal.

    along: [n], how far the loan pulls each row along itself.
    """
    pull = np.empty_like(gradient)
    for i in range(len(gradient)):
        own = along[i]
        for j in range(len(gradient)):
            own += gradient[i, j] * cosines[i, j]
            pull[i, j] = gradient[i, j] * inverse[i] * inverse[j]
        pull[i, i] -= own * inverse[i] * inverse[i]
    return pull
