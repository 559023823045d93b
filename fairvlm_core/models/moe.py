"""The fairness-oriented mixture of experts (Fair-MoE): sparse routing of tokens (embedding) and of features.

Both modules return the sparse gate weights beside their output: `fairvlm_core.losses.gate_dispersion` reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """Where a mixture sends its tokens; M experts, [..., M] being [B, T, M], or [B, M] of a feature mixture.

    Attributes:
        logits: what the gate says, in float32 at least.
        routed: bool, the experts that Top_r gives a token; none to padding.
        kept: bool, those that also have a slot for it (Top_c).
        gates: the sparse weights, 0 where not kept.
    """

    logits: Tensor
    routed: Tensor
    kept: Tensor
    gates: Tensor

    def select(self, rows: Tensor) -> Routing:
        """The routing of some of the samples."""
        return Routing(*(part[rows] for part in self))


def _mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out))


def _gate(kind: str, dim: int, num_experts: int) -> nn.Module:
    if kind == "mlp":
        return _mlp(dim, max(dim // 4, 1), num_experts)
    if kind == "linear":
        return nn.Linear(dim, num_experts)
    raise ValueError(f'gate must be "mlp" or "linear", not "{kind}".')


def _check_sizes(dim: int, num_experts: int, top_k: int) -> None:
    if dim < 1 or num_experts < 1:
        raise ValueError(f"dim and num_experts must be at least 1, not {dim} and {num_experts}.")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must lie between 1 and the number of experts, {num_experts}, not {top_k}.")


def _gate_logits(gate: nn.Module, x: Tensor) -> Tensor:
    """In float32 at least: [..., D] -> [..., M]."""
    logits = gate(x)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def top_experts(weights: Tensor, top_k: int) -> Tensor:
    """Top_r: mask [..., M] of the k largest weights of each token; equal weights go to the lower expert."""
    order = weights.detach().argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, order[..., :top_k], True)


def top_tokens(weights: Tensor, routed: Tensor, slots: Tensor, protect: Tensor | None = None) -> Tensor:
    """Top_c: of the tokens routed to an expert, those that it has a slot for, per sample.

    Args:
        weights: [B, T, M].
        routed: [B, T, M] bool.
        slots: [B], how many tokens each expert takes from the sample.
        protect: int64 [B], the token of each sample that comes first, whatever its weights.

    Returns:
        [B, T, M] bool; the largest weights stay, equal weights go to the earlier token.
    """
    rank_key = weights.detach()
    if protect is not None:
        first = torch.arange(weights.shape[1], device=weights.device) == protect.to(weights.device).unsqueeze(1)
        rank_key = rank_key + 2.0 * first.unsqueeze(-1)  # weights end at 1
    order = rank_key.masked_fill(~routed, -1.0).argsort(dim=1, descending=True, stable=True)
    has_slot = torch.arange(weights.shape[1], device=weights.device) < slots.unsqueeze(1)
    return routed & torch.zeros_like(routed).scatter_(1, order, has_slot.unsqueeze(-1).expand_as(order))


def mix_experts(x: Tensor, gates: Tensor, kept: Tensor, experts: Iterable[nn.Module]) -> Tensor:
    """Sum over the experts of gate weight times expert output; each expert sees only the tokens it keeps.

    An expert that keeps no token is called all the same, with none: its parameters then have a zero gradient and not
    a missing one, which data-parallel training would wait for.

    Args:
        x: [N, D].
        gates: [N, M].
        kept: [N, M] bool.
        experts: M modules, each callable on [..., D].

    Returns:
        [N, D] in the dtype of x, summed in that of the gates.
    """
    # One gather for all experts, sorted by expert: in the backward pass each gather would fill an [N, D] of its own.
    # And index_select, not x[rows], whose gradient depends on which of several threads on a CPU adds first.
    expert_of, rows = kept.T.nonzero(as_tuple=True)
    counts = kept.sum(0).tolist()
    inputs, weights = x.index_select(0, rows).split(counts), gates[rows, expert_of].unsqueeze(1).split(counts)
    out = x.new_zeros(x.shape, dtype=gates.dtype)
    for expert, into, tokens, weight in zip(experts, rows.split(counts), inputs, weights, strict=True):
        out.index_add_(0, into, expert(tokens).to(gates.dtype) * weight)
    return out.to(x.dtype)


class EmbeddingMoE(nn.Module):
    """Mixture of experts in place of the MLP of a transformer block (Fair-MoE, embedding MoE).

    Top_r keeps the k largest of a token's softmax weights; Top_c then keeps, per expert and
    sample, the alpha = ceil(capacity * T * top_k / num_experts) tokens with the largest weight, alpha between 1 and T,
    the number of unmasked tokens of the sample. A token that no expert keeps gets 0. All of this happens within a
    sample, so that a prediction does not depend on the batch it is made in.

    Args:
        dim: D.
        num_experts: M.
        top_k: k.
        capacity: C, greater than 0; 1 gives the experts as many slots as there are routed tokens.
        hidden: width of the experts' hidden layer, 4 D by default.
        gate: "mlp" (D -> D/4 -> M) or "linear".
        renormalise: scale the weights that a token keeps to sum 1. By default they stay as the softmax gave them, as in
            the paper, so a token that loses experts also loses size.

    Attributes:
        gate: [..., D] to logits [..., M].
        experts: M modules, [..., D] to [..., D].

    Raises:
        ValueError: sizes out of range or an unknown gate.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_experts: int = 4,
        top_k: int = 2,
        capacity: float = 1.0,
        hidden: int | None = None,
        gate: str = "mlp",
        renormalise: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(dim, num_experts, top_k)
        if not capacity > 0:
            raise ValueError(f"capacity must be greater than 0, not {capacity}.")
        self.dim, self.top_k, self.capacity, self.renormalise = dim, top_k, capacity, renormalise
        self.gate = _gate(gate, dim, num_experts)
        width = 4 * dim if hidden is None else hidden
        self.experts = nn.ModuleList(_mlp(dim, width, dim) for _ in range(num_experts))

    @classmethod
    def from_mlp(cls, mlp: nn.Module, dim: int, *, num_experts: int = 4, **options: Any) -> EmbeddingMoE:
        """An embedding MoE whose experts are copies of a pretrained MLP, callable on [..., dim]; options as above.

        No noise is added: the gate starts at random, so the experts see different tokens and part by themselves.
        """
        moe = cls(dim, num_experts=num_experts, hidden=1, **options)
        moe.experts = nn.ModuleList(copy.deepcopy(mlp) for _ in range(num_experts))
        reference = next(mlp.parameters(), None)
        return moe if reference is None else moe.to(reference)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, read: Tensor | None = None, protect: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Route the tokens.

        Args:
            x: [B, T, D].
            mask: [B, T], true (or 1) where a token counts; by default all do. A masked token gets 0 and takes no slot.
            read: int64 [B], the one token of each sample whose output is needed; by default all are. In the last block
                nothing else reaches the feature, and experts that run on one token of T cost a T-th. The routing and
                the gate weights are the same, for they depend on all tokens.
            protect: int64 [B], the one token of each sample that keeps its top_k experts, whatever the capacity.

        Returns:
            out [B, T, D] without the residual, 0 where it is not read, and the sparse gate weights [B, T, M] after
            Top_r and Top_c.

        Raises:
            ValueError: shapes that do not fit.
        """
        routing = self.route(x, mask, protect)
        return self.mix(x, routing, read), routing.gates

    def route(self, x: Tensor, mask: Tensor | None = None, protect: Tensor | None = None) -> Routing:
        """Where the tokens go, all of them, whichever are read; arguments as of a call."""
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be [B, T, D] with D = {self.dim}, not {list(x.shape)}.")
        tokens = torch.full(x.shape[:1], x.shape[1], device=x.device)
        if mask is not None:
            if mask.shape != x.shape[:2]:
                raise ValueError(f"mask must be [B, T] = {list(x.shape[:2])}, not {list(mask.shape)}.")
            mask = mask.to(x.device, torch.bool)
            tokens = mask.sum(1)
            # What padding holds is nobody's business; a NaN in it would reach the gate's gradient through the softmax.
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        logits = _gate_logits(self.gate, x)
        weights = logits.softmax(-1)
        routed = top_experts(weights, self.top_k)
        if mask is not None:
            routed &= mask.unsqueeze(-1)
        kept = top_tokens(weights, routed, self._slots(tokens), protect)
        gates = weights.masked_fill(~kept, 0.0)
        if self.renormalise:
            # A token that keeps no expert has nothing to scale, and no gradient.
            gates = gates / gates.sum(-1, keepdim=True).masked_fill(~kept.any(-1, keepdim=True), 1.0)
        return Routing(logits, routed, kept, gates)

    def mix(self, x: Tensor, routing: Routing, read: Tensor | None = None) -> Tensor:
        """What the experts make of x [B, T, D]: [B, T, D], 0 where it is not read."""
        gates, kept = routing.gates, routing.kept
        if read is None:
            return mix_experts(x.flatten(0, 1), gates.flatten(0, 1), kept.flatten(0, 1), self.experts).view_as(x)
        place = torch.arange(len(x), device=x.device), read.to(x.device)
        out = mix_experts(x[place], gates[place], kept[place], self.experts)
        return torch.zeros_like(x).index_put_(place, out)

    def _slots(self, tokens: Tensor) -> Tensor:
        """alpha [B] for the number of tokens [B]; in float64, for in float32 3.0000001 would be rounded up to 4.

        The ceiling of a positive number is 1 at least, so only a sample without tokens has no slot.
        """
        available = tokens.double()
        exact = (self.capacity * available * self.top_k / len(self.experts)).ceil()
        return torch.minimum(exact, available).long()


class FeatureMoE(nn.Module):
    """Mixture of experts on the pooled feature, before the projection (Fair-MoE, feature MoE): Top_r only.

    Args:
        dim: D; the experts' hidden layer has 4 D units, the gate D/4.
        num_experts: M.
        top_k: k.
        residual: add the input and start with zero output layers, so that training begins at the pretrained feature.
            False is the paper's literal form, which replaces the feature from the first step on.

    Raises:
        ValueError: sizes out of range.
    """

    def __init__(self, dim: int, *, num_experts: int = 4, top_k: int = 2, residual: bool = True) -> None:
        super().__init__()
        _check_sizes(dim, num_experts, top_k)
        self.dim, self.top_k, self.residual = dim, top_k, residual
        self.gate = _gate("mlp", dim, num_experts)
        self.experts = nn.ModuleList()
        for _ in range(num_experts):
            expert = _mlp(dim, 4 * dim, dim)
            if residual:
                for parameter in expert[-1].parameters():
                    nn.init.zeros_(parameter)
            self.experts.append(expert)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, D] to out [B, D] and the sparse gate weights [B, M]; ValueError for another shape."""
        routing = self.route(x)
        return self.mix(x, routing), routing.gates

    def route(self, x: Tensor) -> Routing:
        """Where the features [B, D] go."""
        if x.ndim != 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be [B, D] with D = {self.dim}, not {list(x.shape)}.")
        logits = _gate_logits(self.gate, x)
        weights = logits.softmax(-1)
        kept = top_experts(weights, self.top_k)
        return Routing(logits, kept, kept, weights.masked_fill(~kept, 0.0))

    def mix(self, x: Tensor, routing: Routing) -> Tensor:
        """What the experts make of x [B, D], and x itself where they add to it."""
        out = mix_experts(x, routing.gates, routing.kept, self.experts)
        return x + out if self.residual else out


@torch.no_grad()
def routing_statistics(gates: Tensor, mask: Tensor | None = None, token: int | Tensor = 0) -> dict[str, float]:
    """What to log of a mixture of experts: whether it collapses, and whether the token that is read loses its experts.

    After the last attention tokens no longer mix, so only the token that is pooled (CLS of an image, EOT of a text) can
    change the feature: it matters that this one keeps an expert.

    Args:
        gates: sparse weights [B, T, M], or [B, M] of a feature MoE.
        mask: [B, T], true where a token counts.
        token: the position that is pooled, one for all samples or [B].

    Returns:
        expert_load_<j>: share of the assignments that go to expert j; they sum to 1.
        gate_entropy: mean entropy (nats) of a token's weights, scaled to sum to 1, over tokens that keep an expert.
        dropped_tokens: share of the tokens that lost every expert.
        cls_drop_rate: share of the samples whose pooled token lost every expert.
        Each is 0 where there is nothing to count.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if gates.ndim == 2:
        gates = gates.unsqueeze(1)
    if gates.ndim != 3:
        raise ValueError(f"gates must be [B, T, M] or [B, M], not {list(gates.shape)}.")
    if mask is None:
        mask = gates.new_ones(gates.shape[:2], dtype=torch.bool)
    elif mask.shape != gates.shape[:2]:
        raise ValueError(f"mask must be [B, T] = {list(gates.shape[:2])}, not {list(mask.shape)}.")
    mask = mask.to(gates.device, torch.bool)
    weights = gates[mask].double()
    assigned = weights > 0
    load = assigned.sum(0) / assigned.sum().clamp_min(1)
    served = assigned.any(-1)
    shares = weights[served] / weights[served].sum(-1, keepdim=True)
    pooled = gates[torch.arange(len(gates), device=gates.device), token]
    statistics = {f"expert_load_{j}": float(share) for j, share in enumerate(load)}
    statistics["gate_entropy"] = float(torch.special.entr(shares).sum() / served.sum().clamp_min(1))
    statistics["dropped_tokens"] = float((~served).sum() / max(len(served), 1))
    statistics["cls_drop_rate"] = float((pooled == 0).all(-1).sum() / max(len(pooled), 1))
    return statistics
