"""The gradient of a loss that couples all images of a batch, when the language model takes only some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fairvlm_core.losses.pairs import as_float
from fairvlm_core.training import ranks
from fairvlm_core.training.sharding import summed_gradients

Terms = dict[str, "Tensor | float"]


def mean_pooled(image_tokens: Tensor) -> Tensor:
    """z [m, d] of tokens [m, P, d], in float32 at least: in half precision it would depend on how a batch is split."""
    return as_float(image_tokens)[0].mean(1)


def batch_gradient(
    parts: Sequence[np.ndarray],
    count: int,
    *,
    tokens: Callable[[np.ndarray], Tensor],
    coupled: Callable[[Tensor], Terms],
    separate: Callable[[np.ndarray, Tensor], Terms],
    embed: Callable[[Tensor], Tensor] = mean_pooled,
    parameters: Iterable[nn.Parameter],
    correct: Callable[[list[Tensor], list[Tensor]], list[Tensor]] | None = None,
) -> Terms:
    """Leave the gradient of coupled(z) + sum of separate(part) in the parameters, and return the terms.

    z is the embedding of *all* images, by default the mean-pooled projector output: a contrastive loss of 64 images is
    not the sum of those of its parts (FairMed-VLM, Stage 2). Where the batch is in several parts, or on several ranks,
    the gradient is taken in two passes (gradient caching): the first computes z without a graph and d coupled / dz from
    it; the second goes through the parts one by one and adds z . (d coupled / dz), whose gradient is the chain rule's
    other half. Memory is that of one part, and the result is that of a single pass.

    Args:
        parts: rows of this rank's share of the batch, each in one part.
        count: images of the whole batch, over all ranks.
        tokens: part -> image tokens [m, P, d], with a graph where gradients are enabled.
        coupled: z [count, d] -> terms; every rank computes it.
        embed: image tokens -> z of these images.
        separate: part, its tokens -> terms that add up over the parts; "against" may be one of them, see `correct`.
        parameters: what is trained; over several ranks their gradients are summed.
        correct: gradient of "loss", gradient of "against" -> the gradient to leave (adversarial debiasing).

    Returns:
        The terms of both, summed over parts and ranks and detached; "loss" is the sum of both losses.
    """
    parameters = list(parameters)
    opposed = [torch.zeros_like(p) for p in parameters] if correct else []

    def backward(loss: Tensor | float, own: Terms) -> dict[str, float]:
        if opposed:
            gradients = torch.autograd.grad(
                _tensor(own["against"]), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for total, gradient in zip(opposed, gradients, strict=True):
                total += gradient
        _tensor(loss).backward()
        return {name: _figure(value) for name, value in own.items() if name != "against"}

    def corrected() -> None:
        if correct:
            plain = [_gradient(p) for p in parameters]
            for parameter, gradient in zip(parameters, correct(plain, ranks.added(opposed)), strict=True):
                parameter.grad = gradient

    if len(parts) == 1 and ranks.size() == 1:
        image_tokens = tokens(parts[0])
        shared, own = coupled(embed(image_tokens)), separate(parts[0], image_tokens)
        figures = backward(shared["loss"] + own["loss"], own)
        corrected()
        return _joined(shared, figures)

    # Whatever is random in a forward pass (dropout) must be the same in both.
    seeds = torch.randint(2**31, (len(parts),)).tolist()
    pooled = []
    with torch.no_grad():
        for part, seed in zip(parts, seeds, strict=True):
            torch.manual_seed(seed)
            pooled.append(embed(tokens(part)))
    z = ranks.gather_rows(in_rows(pooled, parts), count).requires_grad_()
    shared = coupled(z)
    loss = _tensor(shared["loss"])
    cached = torch.autograd.grad(loss, z)[0] if loss.requires_grad else torch.zeros_like(z)
    mine = cached[ranks.share(count)]

    sums: dict[str, float] = {}
    for part, seed in zip(parts, seeds, strict=True):
        torch.manual_seed(seed)
        image_tokens = tokens(part)
        again = embed(image_tokens)
        own = separate(part, image_tokens)
        figures = backward(own["loss"] + (again * mine[part]).sum(), own)
        sums = {name: sums.get(name, 0.0) + value for name, value in figures.items()}
    for parameter, summed in zip(parameters, summed_gradients(parameters), strict=True):
        parameter.grad = summed
    corrected()
    return _joined(shared, ranks.add(sums))


def in_rows(found: Sequence[Tensor], parts: Sequence[np.ndarray]) -> Tensor:
    """What was found for each part, in the order of the rows."""
    return torch.cat(list(found))[np.argsort(np.concatenate(list(parts)), kind="stable")]


def _joined(shared: Terms, own: dict[str, float]) -> Terms:
    terms = {name: value.detach() if isinstance(value, Tensor) else value for name, value in shared.items()}
    return {**own, **terms, "loss": float(terms["loss"]) + own["loss"]}


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _figure(value: Tensor | float) -> float:
    return value.detach().item() if isinstance(value, Tensor) else value


def _tensor(value: Tensor | float) -> Tensor:
    assert isinstance(value, Tensor)
    return value
