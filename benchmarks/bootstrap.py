"""Intervals for every number of a judgement, beside a loop over scikit-learn and fairlearn's own bootstrap.

python benchmarks/bootstrap.py            # prints the table; about five minutes, one thread
python benchmarks/bootstrap.py --write    # also writes it to benchmarks/bootstrap.md

Ours makes 1,000 resamples, the peers a few, and their time is per resample. Before anything is timed, the loop must
come to our numbers in the same resamples. What the rows mean is in benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equalized_odds_difference,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)
from side_by_side import command, machine, one_thread, spread
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, roc_auc_score

from fairvlm_core.evaluation.bootstrap import Values, intervals, replicates
from fairvlm_core.evaluation.predictions import Scores
from fairvlm_core.evaluation.resampling import bootstrap_weights, patient_codes

RESAMPLES = 1000
GROUPS = {"sex": 2, "age_group": 3, "race": 3, "language": 2}


@dataclass(frozen=True)
class Race:
    """Two ways to the replicates; `theirs` makes `count` resamples."""

    name: str
    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    count: int


@dataclass(frozen=True)
class Result:
    """Milliseconds per resample (medians over the rounds), and theirs / ours of each round."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]


def predictions(n: int) -> Scores:
    """Two images of each patient, four attributes, one label, scores in single precision."""
    rng = np.random.default_rng(n)
    truth = (rng.random((n, 1)) < 0.4).astype(float)
    score = np.clip(0.3 * truth + 0.7 * rng.random((n, 1)), 0, 1).astype(np.float32).astype(float)
    groups = {name: rng.choice(np.array(list("abc")[:k], dtype=object), n) for name, k in GROUPS.items()}
    ids = np.array([f"i{i}" for i in range(n)], dtype=object)
    patients = np.array([f"p{i // 2}" for i in range(n)], dtype=object)
    return Scores(ids, patients, ("a",), truth, score, (score > 0.5).astype(float), groups, "binary", "model")


def loop(scores: Scores, count: int) -> Values:
    """What people write: the rows of each resample, then one call per metric and group."""
    patient = patient_codes(scores.patient_ids)
    (weights,) = list(bootstrap_weights(patient, count, 0)(np.arange(len(patient))))
    found: dict[tuple[str, ...], list[float]] = {}
    for r in range(count):
        rows = np.repeat(np.arange(len(patient)), weights[:, r])
        truth, score, decision = (values[rows, 0] for values in (scores.y_true, scores.y_score, scores.y_pred))
        area = roc_auc_score(truth, score)
        told: dict[tuple[str, ...], float] = {
            ("overall", "auc"): area,
            ("overall", "accuracy"): accuracy_score(truth, decision),
            ("overall", "balanced_accuracy"): balanced_accuracy_score(truth, decision),
            ("overall", "brier"): brier_score_loss(truth, score),
        }
        for name, values in scores.groups.items():
            group = values[rows]
            each = {}
            for one in np.unique(group):
                inside = group == one
                each[one] = roc_auc_score(truth[inside], score[inside])
                told["attributes", name, "groups", one, "auc"] = each[one]
                told["attributes", name, "groups", one, "accuracy"] = accuracy_score(truth[inside], decision[inside])
                told["attributes", name, "groups", one, "brier"] = brier_score_loss(truth[inside], score[inside])
            told["attributes", name, "es_auc"] = area / (1 + sum(abs(area - value) for value in each.values()))
            told["attributes", name, "worst_group_auc"] = min(each.values())
            told["attributes", name, "dpd"] = demographic_parity_difference(truth, decision, sensitive_features=group)
            told["attributes", name, "eod"] = equalized_odds_difference(truth, decision, sensitive_features=group)
        for path, value in told.items():
            found.setdefault(path, []).append(value)
    return {path: np.array(values) for path, values in found.items()}


def metric_frames(scores: Scores, count: int) -> list[MetricFrame]:
    """fairlearn's bootstrap, of images, for the metrics that need decisions; an AUC takes no decision."""
    metrics = {
        "accuracy": accuracy_score,
        "selection_rate": selection_rate,
        "tpr": true_positive_rate,
        "fpr": false_positive_rate,
    }
    return [
        MetricFrame(
            metrics=metrics,
            y_true=scores.y_true[:, 0],
            y_pred=scores.y_pred[:, 0],
            sensitive_features=pd.Series(values, name=name),
            n_boot=count,
            ci_quantiles=[0.025, 0.975],
            random_state=0,
        )
        for name, values in scores.groups.items()
    ]


def races(*, sizes: Sequence[int] = (2_000, 100_000), resamples: int = RESAMPLES) -> list[Race]:
    """All comparisons; other sizes than the defaults serve the tests."""
    made = []
    for n in sizes:
        scores = predictions(n)
        count = max(2, min(10, 20_000 // n))
        ours = lambda scores=scores: intervals(scores, resamples=resamples)  # noqa: E731
        made += [
            Race(
                f"{n:,} images",
                "scikit-learn and fairlearn in a loop",
                ours,
                lambda s=scores, c=count: loop(s, c),
                count,
            ),
            Race(
                f"{n:,} images",
                "fairlearn's MetricFrame, 4 metrics, no AUC",
                ours,
                lambda s=scores, c=count: metric_frames(s, c),
                count,
            ),
        ]
    return made


def difference(scores: Scores, count: int = 3) -> float:
    """The largest difference of any of the loop's numbers from ours, in the same resamples."""
    theirs = loop(scores, count)
    patient = patient_codes(scores.patient_ids)
    ours = replicates(scores, bootstrap_weights(patient, count, 0), count, min_cell=1)
    return max(float(np.abs(ours[path] - values).max()) for path, values in theirs.items())


def run(race: Race, rounds: int, resamples: int = RESAMPLES) -> Result:
    """Let both work in turn; who begins alternates."""
    race.ours()  # the first call compiles
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        for side in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            started = time.perf_counter()
            (race.ours if side == "ours" else race.theirs)()
            seconds = time.perf_counter() - started
            times[side].append(seconds / (resamples if side == "ours" else race.count))
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return Result(race, *(1e3 * statistics.median(times[side]) for side in ("ours", "theirs")), ratios)


def table(results: Sequence[Result], off: float) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = ["| | ms per resample | peer | its ms | ratio (lowest to highest) |", "| --- | ---: | --- | ---: | ---: |"]
    for result in results:
        race = result.race
        lines.append(
            f"| {race.name} | {result.ours:.3f} | {race.peer} | {result.theirs:,.1f} | {spread(result.ratios, 0)} |"
        )
    versions = machine("numpy", "numba", "scikit-learn", "fairlearn")
    said = f"In the same resamples the loop's numbers differ from ours by at most {off:.0e}."
    return "\n".join([*lines, "", f"{said} {versions} Rounds: {len(results[0].ratios)}."]) + "\n"


def measure(rounds: int) -> str:
    with one_thread():
        off = difference(predictions(2_000))
        if not off < 1e-9:
            raise RuntimeError(f"The loop and ours differ by {off:.1e}.")
        return table([run(race, rounds) for race in races()], off)


if __name__ == "__main__":
    command(__file__, __doc__, "Bootstrap", measure)
