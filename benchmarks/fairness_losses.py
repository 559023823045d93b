"""The fairness losses from one Gram matrix, beside d x d covariances and the two products they cannot do without.

python benchmarks/fairness_losses.py            # prints the table; two minutes, 3 GB, one thread
python benchmarks/fairness_losses.py --write    # also writes it to benchmarks/fairness_losses.md

A call is a forward and a backward pass. Ours and the peer's take turns after both were shown to give the same value and
gradient. What the rows mean is in benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from side_by_side import command, machine, one_thread, speedups, spread, take_turns
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fairvlm_core.losses import cross_group_contrast, fairness_terms, moment_alignment
from fairvlm_core.losses.gram import from_cosines
from fairvlm_core.losses.moments import find_cells, moments_by_covariances, moments_part
from fairvlm_core.losses.pairs import codes_of

SECONDS = 0.3  # how long each side works, at least, before it is the other's turn
WIDTH = 4096  # of the projector's output, which is the hidden size of a 7B language model
COVARIANCE_WEIGHT = 0.1

Pass = Callable[[], tuple[float, Tensor]]


@dataclass(frozen=True)
class Race:
    """Two ways to the same value and gradient; a call is one forward and one backward pass."""

    name: str
    peer: str
    ours: Pass
    theirs: Pass
    equal: bool = True


@dataclass(frozen=True)
class Result:
    """Milliseconds per call (medians over the rounds), and theirs / ours of each round."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]


def batch(n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings with cosines about 0.5, 2 labels, and 2 sexes and 3 age groups as attributes."""
    random = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d, generator=random) + torch.randn(d, generator=random)
    labels = torch.randint(0, 2, (n,), generator=random)
    groups = torch.stack([torch.randint(0, count, (n,), generator=random) for count in (2, 3)], 1)
    return x, labels, groups


def passes(loss: Callable[[Tensor], Tensor], x: Tensor) -> Pass:
    """A call that gives the value of a loss and its gradient by x."""
    leaf = x.clone().requires_grad_()

    def call() -> tuple[float, Tensor]:
        leaf.grad = None
        value = loss(leaf)
        value.backward()
        assert leaf.grad is not None
        return value.item(), leaf.grad

    return call


def by_shape(labels: Tensor, groups: Tensor) -> Callable[[Tensor], Tensor]:
    """Moment alignment as training calls it."""
    return lambda x: moment_alignment(x, labels, groups, covariance_weight=COVARIANCE_WEIGHT)


def by_gram(labels: Tensor, groups: Tensor) -> Callable[[Tensor], Tensor]:
    """Moment alignment in the n x n form, whatever the shape."""

    def loss(x: Tensor) -> Tensor:
        cells = find_cells(codes_of(labels, groups), COVARIANCE_WEIGHT, "mean")
        return from_cosines(x, lambda cosines, _: moments_part(cells, cosines))[0]

    return loss


def by_covariances(labels: Tensor, groups: Tensor) -> Callable[[Tensor], Tensor]:
    """Moment alignment in the d x d form, whatever the shape."""

    def loss(x: Tensor) -> Tensor:
        return moments_by_covariances(x, find_cells(codes_of(labels, groups), COVARIANCE_WEIGHT, "mean"))

    return loss


def both_terms(labels: Tensor, groups: Tensor) -> Callable[[Tensor], Tensor]:
    """Contrast and moments together."""

    def loss(x: Tensor) -> Tensor:
        terms = fairness_terms(x, labels, groups, covariance_weight=COVARIANCE_WEIGHT)
        return torch.as_tensor(terms["contrast"]) + torch.as_tensor(terms["moments"])

    return loss


def one_by_one(labels: Tensor, groups: Tensor) -> Callable[[Tensor], Tensor]:
    """Contrast and moments, each with its own Gram matrix."""

    def loss(x: Tensor) -> Tensor:
        return cross_group_contrast(x, labels, groups) + by_shape(labels, groups)(x)

    return loss


def two_products(x: Tensor) -> Pass:
    """X X^T and an n x n matrix times X, in float32: what the losses cannot do without."""
    weights = torch.rand(len(x), len(x))

    def call() -> tuple[float, Tensor]:
        product = x @ x.T
        return float(product[0, 0]), weights @ x

    return call


def races(*, small: int = 64, large: int = 256, width: int = WIDTH, many: int = 1024, narrow: int = 64) -> list[Race]:
    """All comparisons; other sizes than the defaults serve the tests."""
    made = []
    for n in (small, large):
        x, *who = batch(n, width)
        ours = passes(by_shape(*who), x)
        made.append(Race(f"moments, n {n}, d {width}", "d x d covariances", ours, passes(by_covariances(*who), x)))
    x, *who = batch(many, narrow)
    ours = passes(by_shape(*who), x)
    made.append(Race(f"moments, n {many}, d {narrow}", "n x n Gram matrix", ours, passes(by_gram(*who), x)))
    for n in (small, large):
        x, *who = batch(n, width)
        ours = passes(both_terms(*who), x)
        made.append(Race(f"both, n {n}, d {width}", "each by itself", ours, passes(one_by_one(*who), x)))
        made.append(Race(f"both, n {n}, d {width}", "the two products alone", ours, two_products(x), equal=False))
    return made


def difference(race: Race) -> float:
    """The largest relative difference between both sides, of value or gradient."""
    (value, gradient), (their_value, their_gradient) = race.ours(), race.theirs()
    of_gradient = (gradient - their_gradient).norm() / their_gradient.norm()
    return max(abs(value / their_value - 1), of_gradient.item())


def run(race: Race, rounds: int) -> Result:
    """Let both work in turn; who begins alternates."""
    if race.equal and difference(race) > 1e-3:
        raise RuntimeError(f"{race.name}: both sides differ by {difference(race):.1e}.")
    ours, theirs = take_turns(lambda _: race.ours(), lambda _: race.theirs(), rounds=rounds, seconds=SECONDS)
    return Result(race, 1e3 * statistics.median(ours), 1e3 * statistics.median(theirs), speedups(ours, theirs))


def peak_memory(call: Pass) -> float:
    """Most bytes that a call holds beside its inputs: those of torch and those of NumPy, as if both peaked at once."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        tracemalloc.start()
        call()
        numpy_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    steps = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(np.cumsum(steps).max(initial=0), 0) + numpy_peak


def table(results: Sequence[Result], memory: dict[str, float]) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = ["| | ms | peer | its ms | ratio (lowest to highest) |", "| --- | ---: | --- | ---: | ---: |"]
    for result in results:
        race = result.race
        ratio = spread(result.ratios, 0 if statistics.median(result.ratios) > 20 else 2)
        lines.append(f"| {race.name} | {result.ours:.2f} | {race.peer} | {result.theirs:,.2f} | {ratio} |")
    lines += ["", "Peak memory beyond the inputs, the gradient included: "]
    lines[-1] += ", ".join(f"{name}: {size / 1e6:.1f} MB" for name, size in memory.items()) + "."
    return "\n".join([*lines, "", f"{machine('torch', 'numpy')} Rounds: {len(results[0].ratios)}."]) + "\n"


def measure(rounds: int) -> str:
    with one_thread():
        compared = races()
        memory = {race.name: peak_memory(race.ours) for race in compared if not race.equal}
        return table([run(race, rounds) for race in compared], memory)


if __name__ == "__main__":
    command(__file__, __doc__, "Fairness losses", measure)
