"""The embedding mixture of experts, beside a loop over its experts and beside one dense MLP.

python benchmarks/moe.py            # prints the table; four minutes, 2 GB, one thread
python benchmarks/moe.py --write    # also writes it to benchmarks/moe.md

A call is a forward and a backward pass. Ours and the peer's take turns. The loop over the experts must first give the
same output, gate weights and gradients as ours. What the rows mean is in benchmarks/README.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from side_by_side import command, machine, one_thread, speedups, spread, take_turns
from torch import Tensor, nn

from fairvlm_core.models.moe import EmbeddingMoE, top_experts, top_tokens

SECONDS = 0.3  # how long each side works, at least, before it is the other's turn
TOLERANCE = 1e-4  # of the norm of each output and gradient

Pass = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Race:
    """Two ways; a call is one forward and one backward pass and gives the outputs and the gradients.

    Attributes:
        equal: both give the same where a token is read, and it is checked.
        dropped: pooled tokens that lost an expert, of `pooled`; without any, equal results would prove little.
    """

    name: str
    peer: str
    ours: Pass
    theirs: Pass
    equal: bool = False
    dropped: int = 0
    pooled: int = 0


@dataclass(frozen=True)
class Result:
    """Milliseconds per call (medians over the rounds), and theirs / ours of each round."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]
    differ: float | None


def loop_over_experts(moe: EmbeddingMoE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every token through its experts, one expert after the other, as sparse blocks usually do it (Mixtral).

    Routing and capacity are those of `moe`: x [B, T, D] to out [B, T, D] and gates [B, T, M].
    """
    batch, tokens, dim = x.shape
    weights = moe.gate(x).softmax(-1)
    routed = top_experts(weights, moe.top_k)
    slots = min(math.ceil(moe.capacity * tokens * moe.top_k / len(moe.experts)), tokens)
    kept = top_tokens(weights, routed, torch.full((batch,), slots))
    gates = weights.masked_fill(~kept, 0.0)
    states, shares, chosen = x.reshape(-1, dim), gates.flatten(0, 1), kept.flatten(0, 1)
    out = torch.zeros_like(states)
    for number, expert in enumerate(moe.experts):
        (rows,) = torch.where(chosen[:, number])
        current = expert(states[None, rows].reshape(-1, dim)) * shares[rows, number, None]
        out.index_add_(0, rows, current.to(states.dtype))
    return out.view_as(x), gates


def passes(
    forward: Callable[[Tensor], Sequence[Tensor]],
    module: nn.Module,
    x: Tensor,
    arriving: Sequence[Tensor],
    read: Tensor | None = None,
) -> Pass:
    """A call that gives the outputs of `forward` and the gradients by x and by each parameter that has one.

    Args:
        arriving: the gradients that arrive at the outputs.
        read: int64 [B], the one token of each sample whose first output counts; by default all do.
    """
    leaf = x.clone().requires_grad_()

    def call() -> list[Tensor]:
        leaf.grad = None
        module.zero_grad()
        first, *more = forward(leaf)
        torch.autograd.backward([first, *more], arriving)
        found = [first if read is None else first[torch.arange(len(read)), read], *more]
        assert leaf.grad is not None
        return [value.detach() for value in found] + [leaf.grad] + gradients(module)

    return call


def gradients(module: nn.Module) -> list[Tensor]:
    """By the parameters that have one."""
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def races_of(experts: int, *, batch: int, tokens: int, width: int, top_k: int) -> list[Race]:
    """The comparisons for one number of experts; of each sample the first token is the pooled one."""
    torch.manual_seed(experts)
    moe, x = EmbeddingMoE(width, num_experts=experts, top_k=top_k), torch.randn(batch, tokens, width)
    dense, read = moe.experts[0], torch.zeros(batch, dtype=torch.long)
    for_all, for_gates = torch.randn(batch, tokens, width), torch.randn(batch, tokens, experts)
    for_read = torch.zeros_like(for_all)
    for_read[:, 0] = for_all[:, 0]
    with torch.no_grad():
        _, gates = moe(x)
    pairs, dropped = int((gates > 0).sum()), int(((gates[:, 0] > 0).sum(-1) < top_k).sum())

    reading = passes(lambda v: moe(v, read=read), moe, x, [for_read, for_gates], read)
    looping = passes(lambda v: loop_over_experts(moe, v), moe, x, [for_read, for_gates], read)
    gating = passes(lambda v: [moe.gate(v)], moe.gate, x, [for_gates])
    all_dense = passes(lambda v: [dense(v)], dense, x, [for_read], read)
    mixing = passes(moe, moe, x, [for_all, for_gates])
    rows = torch.randn(pairs, width)
    as_many = passes(lambda v: [dense(v)], dense, rows, [torch.randn(pairs, width)])
    one, every = f"{experts} experts, one token read of {tokens}", f"{experts} experts, all {tokens} tokens read"
    return [
        Race(one, "loop over the experts, all tokens", reading, looping, True, dropped, batch),
        Race(one, "dense MLP, all tokens", reading, all_dense),
        Race(one, "its gate alone", reading, gating),
        Race(every, f"dense MLP, {pairs:,} rows", mixing, as_many),
    ]


def races(*, batch: int = 32, tokens: int = 197, width: int = 768, top_k: int = 2) -> list[Race]:
    """All comparisons; other sizes than the defaults, those of CLIP ViT-B/16, serve the tests."""
    shape = {"batch": batch, "tokens": tokens, "width": width, "top_k": top_k}
    return [race for experts in (8, 4) for race in races_of(experts, **shape)]


def difference(race: Race) -> float:
    """The largest difference between both sides in an output or a gradient, relative to its norm."""
    pairs = zip(race.ours(), race.theirs(), strict=True)
    # An expert that serves no pooled token has no gradient but zero, on both sides.
    return max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in pairs)


def run(race: Race, rounds: int) -> Result:
    """Let both work in turn; who begins alternates."""
    differ = difference(race) if race.equal else None
    if differ is not None and not differ <= TOLERANCE:
        raise RuntimeError(f"{race.name}: both sides differ by {differ:.1e}.")
    if race.equal and not race.dropped:
        raise RuntimeError(f"{race.name}: no pooled token lost an expert, so that case was not compared.")
    ours, theirs = take_turns(lambda _: race.ours(), lambda _: race.theirs(), rounds=rounds, seconds=SECONDS)
    ratios = speedups(ours, theirs)
    return Result(race, 1e3 * statistics.median(ours), 1e3 * statistics.median(theirs), ratios, differ)


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = ["| | ms | peer | its ms | ratio (lowest to highest) | differ by at most |"]
    lines.append("| --- | ---: | --- | ---: | ---: | ---: |")
    for result in results:
        race, ratio = result.race, spread(result.ratios, 2 if statistics.median(result.ratios) < 10 else 1)
        differ = "" if result.differ is None else f"{result.differ:.0e}"
        lines.append(f"| {race.name} | {result.ours:,.1f} | {race.peer} | {result.theirs:,.1f} | {ratio} | {differ} |")
    lost = [f"{result.race.dropped} of {result.race.pooled}" for result in results if result.race.equal]
    lines += ["", f"Pooled tokens that lost an expert to the capacity: {', '.join(lost)}."]
    return "\n".join([*lines, "", f"{machine('torch')} Rounds: {len(results[0].ratios)}."]) + "\n"


def measure(rounds: int) -> str:
    with one_thread():
        return table([run(race, rounds) for race in races()])


if __name__ == "__main__":
    command(__file__, __doc__, "Mixture of experts", measure)
