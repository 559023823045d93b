"""The exact transport distance of a batch to all its groups, beside geomloss as FairCLIP calls it.

python benchmarks/transport.py            # prints the table; a minute or two, one thread
python benchmarks/transport.py --write    # also writes it to benchmarks/transport.md

A call is a forward and a backward pass. Before anything is timed, ours must equal the linear programme that POT solves,
in value and gradient, and geomloss must come close to it when it may anneal slowly. Then ours and geomloss at
FairCLIP's settings take turns. What the rows mean is in benchmarks/README.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ot
import torch
from geomloss import SamplesLoss
from side_by_side import command, machine, one_thread, speedups, spread, take_turns
from torch import Tensor

from fairvlm_core.losses import transport_distances

SECONDS = 0.3  # how long each side works, at least, before it is the other's turn
BLUR = 1e-4  # of FairCLIP's code, which leaves the scaling at geomloss's own
SCALING = 0.5
CONVERGED = 0.99  # the scaling at which geomloss is near its limit, at seventy times the iterations
OURS_WITHIN, PEER_WITHIN = (1e-6, 1e-6), (1e-3, 1e-1)  # of the linear programme, in value and in gradient

Pass = Callable[[], tuple[float, Sequence[Tensor]]]
Loss = Callable[[Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Race:
    """Two ways to the summed distance of a batch to its groups; a call gives it and the gradient by each sample.

    Attributes:
        exact: the linear programme.
        converged: the peer's way at a scaling that converges.
    """

    name: str
    peer: str
    ours: Pass
    theirs: Pass
    exact: Pass
    converged: Pass


@dataclass(frozen=True)
class Result:
    """Milliseconds per call (medians over the rounds), theirs / ours of each round, and what theirs is off by."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]
    off: tuple[float, float]


def cosines(n: int, groups: int, size: int) -> list[Tensor]:
    """Image-text cosines of a batch [n] and of its groups [size], whose means differ by up to a standard deviation."""
    random = torch.Generator().manual_seed(n + groups + size)
    shifts = [0.0, *torch.linspace(-0.05, 0.05, groups).tolist()]
    return [
        0.25 + s + 0.05 * torch.randn(k, generator=random) for s, k in zip(shifts, [n] + [size] * groups, strict=True)
    ]


def passes(loss: Loss, samples: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Pass:
    """A call that gives the value of a loss of batch and groups, and its gradient by each of them."""
    leaves = [sample.to(dtype, copy=True).requires_grad_() for sample in samples]

    def call() -> tuple[float, Sequence[Tensor]]:
        for leaf in leaves:
            leaf.grad = None
        value = loss(leaves[0], leaves[1:])
        value.backward()
        return value.item(), [leaf.grad for leaf in leaves if leaf.grad is not None]

    return call


def in_one_call(x: Tensor, ys: Sequence[Tensor]) -> Tensor:
    """Ours."""
    return transport_distances(x, ys).sum()


def group_by_group(scaling: float) -> Loss:
    """geomloss as FairCLIP calls it."""
    divergence = SamplesLoss(loss="sinkhorn", p=2, blur=BLUR, scaling=scaling)
    return lambda x, ys: torch.stack([divergence(x[:, None], y[:, None]) for y in ys]).sum()


def groups_together(scaling: float) -> Loss:
    """geomloss with all groups as one batch of problems, which FairCLIP does not do."""
    divergence = SamplesLoss(loss="sinkhorn", p=2, blur=BLUR, scaling=scaling)
    return lambda x, ys: divergence(x.repeat(len(ys), 1).unsqueeze(2), torch.stack(list(ys)).unsqueeze(2)).sum()


def linear_programme(samples: Sequence[Tensor]) -> Pass:
    """The cheapest plan at the cost |x - y|^2 / 2, by POT's network simplex in float64."""
    x, *ys = (sample.double() for sample in samples)

    def call() -> tuple[float, Sequence[Tensor]]:
        value, by_x, by_ys = 0.0, torch.zeros_like(x), []
        for y in ys:
            gaps = x[:, None] - y[None, :]
            plan = torch.from_numpy(ot.emd([], [], (gaps**2 / 2).numpy()))
            value += (plan * gaps**2 / 2).sum().item()
            by_x += (plan * gaps).sum(1)
            by_ys.append(-(plan * gaps).sum(0))
        return value, [by_x, *by_ys]

    return call


def races(*, sizes: Sequence[tuple[int, int, int]] = ((32, 3, 64), (256, 12, 32))) -> list[Race]:
    """All comparisons, of each size (batch, number of groups, samples of each); others than these serve the tests."""
    made = []
    for n, groups, size in sizes:
        samples = cosines(n, groups, size)
        for peer, way in (("geomloss, group by group", group_by_group), ("geomloss, groups together", groups_together)):
            race = Race(
                f"batch {n}, {groups} groups of {size}",
                peer,
                ours=passes(in_one_call, samples),
                theirs=passes(way(SCALING), samples),
                exact=linear_programme(samples),
                converged=passes(way(CONVERGED), samples, torch.float64),
            )
            made.append(race)
    return made


def differences(one: Pass, other: Pass) -> tuple[float, float]:
    """How much one pass is off the other, in value and in the norm of the gradient, relative to the other."""
    (value, gradients), (expected, wanted) = one(), other()
    a, b = (torch.cat([part.double() for part in parts]) for parts in (gradients, wanted))
    return abs(value / expected - 1), ((a - b).norm() / b.norm()).item()


def run(race: Race, rounds: int) -> Result:
    """Let both work in turn; who begins alternates."""
    for side, work, within in (("ours", race.ours, OURS_WITHIN), ("the peer", race.converged, PEER_WITHIN)):
        value, gradient = differences(work, race.exact)
        if not (value <= within[0] and gradient <= within[1]):  # NaN is a difference, too
            off = f"value {value:.1e}, gradient {gradient:.1e}"
            raise RuntimeError(f"{race.name}: {side} and the linear programme differ ({off}).")
    ours, theirs = take_turns(lambda _: race.ours(), lambda _: race.theirs(), rounds=rounds, seconds=SECONDS)
    milliseconds = [1e3 * statistics.median(times) for times in (ours, theirs)]
    return Result(race, *milliseconds, speedups(ours, theirs), differences(race.theirs, race.exact))


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = ["| | ms | peer | its ms | ratio (lowest to highest) | its value is off by | its gradient |"]
    lines.append("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for result in results:
        race, ratio, (value, gradient) = result.race, spread(result.ratios, 0), result.off
        lines.append(
            f"| {race.name} | {result.ours:.3f} | {race.peer} | {result.theirs:,.1f} | {ratio} "
            f"| {value:.1%} | {gradient:.0%} |"
        )
    within = f"Ours is off by less than {OURS_WITHIN[0]:.0e} in both."
    return (
        "\n".join([*lines, "", f"{within} {machine('torch', 'geomloss', 'POT')} Rounds: {len(results[0].ratios)}."])
        + "\n"
    )


def measure(rounds: int) -> str:
    with one_thread():
        return table([run(race, rounds) for race in races()])


if __name__ == "__main__":
    command(__file__, __doc__, "Transport distances", measure)
