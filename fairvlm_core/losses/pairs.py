"""What the losses share: precision, unit vectors, and masks over pairs of samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.compiled import compiled

# Rows no longer than this have no direction: they become zero vectors with zero gradient, instead of 1/length ones.
NO_DIRECTION = 1e-12

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Switch autocast off inside a loss: temperatures of 0.07 and squared differences do not survive bfloat16."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = {value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        with torch.autocast(next(iter(devices - {"cpu"}), "cpu"), enabled=False):
            return function(*args, **kwargs)

    return wrapped


def as_float(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in one common floating dtype, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def unit_rows(x: Tensor) -> Tensor:
    """Divide each row of x [n, d] by its Euclidean length; a row without direction becomes 0 and gets no gradient."""
    (x,) = as_float(x)
    # Dividing by the largest entry first keeps the squares in range; the result does not depend on this factor, so
    # its gradient is rightly left out. `<=` and not `>`: a NaN must stay visible.
    scale = x.detach().abs().amax(-1, keepdim=True)
    empty = scale <= NO_DIRECTION
    x = x.masked_fill(empty, 0.0) / scale.masked_fill(empty, 1.0)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).masked_fill(empty, 1.0)


def masked_logsumexp(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logsumexp of the scores [..., n] under a mask, and whether the mask holds anything there.

    Where it holds nothing the value is finite but meaningless. An infinity there would turn into NaN in the backward
    pass.
    """
    any_held = mask.any(-1)
    return scores.masked_fill(~mask & any_held.unsqueeze(-1), -torch.inf).logsumexp(-1), any_held


def check_positive(**values: float) -> None:
    """Raise ValueError for a value that is not greater than 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, not {value}.")


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not "{reduction}".')


def check_samples(embeddings: Tensor, labels: Tensor, groups: Tensor) -> None:
    """Raise ValueError unless the shapes are [n, d], [n] or [n, L], and [n, K]."""
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"embeddings must be [n, d] with d > 0, not {list(embeddings.shape)}.")
    n = len(embeddings)
    if labels.ndim not in (1, 2) or len(labels) != n:
        raise ValueError(f"labels must be [n] or [n, L] with n = {n}, not {list(labels.shape)}.")
    if groups.ndim != 2 or len(groups) != n:
        raise ValueError(f"groups must be [n, K] with n = {n}, not {list(groups.shape)}.")


class Codes(NamedTuple):
    """Labels and groups of a batch as the compiled loops read them.

    Attributes:
        labels: float64 [L, n], a row per label with 1 carried and 0 not; or, of labels [n], one row of classes. -1
            unknown.
        groups: int64 [n, K]; negative = unknown.
        lowest: the least label that a member or an anchor has: 1 where labels are carried or not, 0 of classes.
    """

    labels: np.ndarray
    groups: np.ndarray
    lowest: float


def codes_of(labels: Tensor, groups: Tensor) -> Codes:
    """Labels [n] or [n, L] and groups [n, K], which live anywhere, on the host."""
    y = labels.detach().to("cpu", torch.float64).numpy()
    rows = _known(y if y.ndim == 2 else y[:, None], y.ndim == 2)
    return Codes(rows, groups.detach().to("cpu", torch.int64).numpy(), float(y.ndim - 1))


@compiled
def _known(labels: np.ndarray, carried: bool) -> np.ndarray:
    """The columns of labels [n, L] as rows, -1 for NaN, below 0 and, where labels are carried or not, neither."""
    rows = np.full((labels.shape[1], labels.shape[0]), -1.0)
    for i in range(labels.shape[0]):
        for label in range(labels.shape[1]):
            y = labels[i, label]
            if y >= 0 and (not carried or y == 0 or y == 1):
                rows[label, i] = y
    return rows
