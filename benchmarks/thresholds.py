"""The F1-optimal threshold of each of 14 labels, beside scikit-learn's precision-recall curve.

python benchmarks/thresholds.py            # prints the table; about a minute, one thread
python benchmarks/thresholds.py --write    # also writes it to benchmarks/thresholds.md

Before anything is timed, both must decide alike at their thresholds, label by label and image by image. What the rows
mean is in benchmarks/README.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from side_by_side import command, machine, one_thread, speedups, spread, take_turns
from sklearn.metrics import precision_recall_curve

from fairvlm_core.evaluation.thresholds import tune

LABELS = 14
SECONDS = 0.5  # how long each side works, at least, before it is the other's turn

Tune = Callable[[np.ndarray, np.ndarray], np.ndarray]  # y_true [n, L] and y_score [n, L] to thresholds [L]


@dataclass(frozen=True)
class Race:
    """The same truth [n, L] and scores [n, L] for both sides."""

    name: str
    peer: str
    truth: np.ndarray
    score: np.ndarray
    theirs: Tune
    tunes: bool = True  # the peer finds thresholds, too


@dataclass(frozen=True)
class Result:
    """Milliseconds for all labels (medians over the rounds), and theirs / ours of each round."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]


def curves(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """A curve for each label, and of its thresholds the one of the largest F1; of several the nearest to 0.5."""
    found = []
    for j in range(truth.shape[1]):
        precision, recall, threshold = precision_recall_curve(truth[:, j], score[:, j])
        f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-300)
        best = threshold[f1 >= f1.max() - 1e-12]  # rounding tells equal ones apart
        found.append(best[np.argmin(np.abs(best - 0.5))])
    return np.array(found)


def sorts(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Not a threshold, but what a curve begins with: the scores of each label in order."""
    return np.array([np.sort(score[:, j])[0] for j in range(score.shape[1])])


def predictions(n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Truth and scores, both float64 [n, 14], as models of several kinds give them."""
    rng = np.random.default_rng(n)
    prevalence = np.full(LABELS, 0.02) if kind == "rare" else np.linspace(0.02, 0.5, LABELS)
    truth = (rng.random((n, LABELS)) < prevalence).astype(float)
    noise = rng.normal(size=truth.shape)
    if kind == "rare":
        return truth, 1 / (1 + np.exp(5 - 2 * truth - 1.5 * noise))
    score = 1 / (1 + np.exp(1 - (0 if kind == "chance" else 1.5) * truth - noise))
    return truth, score.astype(np.float16).astype(float) if kind == "half" else score


def races(*, n: int = 30_000, few: int = 1_000) -> list[Race]:
    """All comparisons; other sizes than the defaults serve the tests."""
    kinds = {
        "": "scores in double precision",
        "half": "scores in half precision, many of them equal",
        "rare": "rare findings, most scores below 0.02",
        "chance": "scores that know nothing, where the best threshold is the lowest",
    }
    curve = "precision_recall_curve, then the largest F1"
    made = [Race(f"{n:,} images: {name}", curve, *predictions(n, kind), curves) for kind, name in kinds.items()]
    made.append(Race(f"{few:,} images: {kinds['']}", curve, *predictions(few, ""), curves))
    made.append(Race(made[0].name, "np.sort of the scores", *predictions(n, ""), sorts, tunes=False))
    return made


def check(race: Race) -> None:
    """Both thresholds decide alike.

    Raises:
        RuntimeError: where they do not.
    """
    ours, theirs = (race.score >= side(race.truth, race.score) for side in (tune, race.theirs))
    if race.tunes and (ours != theirs).any():
        raise RuntimeError(f"{race.name}: {int((ours != theirs).any(0).sum())} labels are decided differently.")


def run(race: Race, rounds: int) -> Result:
    """Let both work in turn; who begins alternates."""
    check(race)
    ours, theirs = take_turns(
        lambda _: tune(race.truth, race.score),
        lambda _: race.theirs(race.truth, race.score),
        rounds=rounds,
        seconds=SECONDS,
    )
    return Result(race, *(1e3 * statistics.median(side) for side in (ours, theirs)), speedups(ours, theirs))


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = ["| 14 labels | ms | peer | its ms | ratio (lowest to highest) |", "| --- | ---: | --- | ---: | ---: |"]
    for result in results:
        race = result.race
        lines.append(
            f"| {race.name} | {result.ours:.2f} | {race.peer} | {result.theirs:.2f} | {spread(result.ratios, 1)} |"
        )
    about = machine("numpy", "scikit-learn")
    return "\n".join([*lines, "", f"{about} Rounds: {len(results[0].ratios)}."]) + "\n"


def measure(rounds: int) -> str:
    with one_thread():
        return table([run(race, rounds) for race in races()])


if __name__ == "__main__":
    command(__file__, __doc__, "Thresholds", measure)
