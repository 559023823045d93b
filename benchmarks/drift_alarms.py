"""How often `fairvlm monitor` raises an alarm, in simulated months whose truth is known.

python benchmarks/drift_alarms.py            # prints the table; an hour, one thread
python benchmarks/drift_alarms.py --write    # also writes it into docs/monitoring.md

A patient has two images, whose scores share half of their variance. Sex (45 % women), three age groups and four races
(60, 25, 10 and 5 %) are independent of each other and of all else, so that groups differ in nothing until one of them
shifts. 30 % are ill. The test set has 2,000 images, and true labels are known on both sides.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from side_by_side import one_thread

from fairvlm_core.evaluation.monitoring.drift import drift
from fairvlm_core.evaluation.monitoring.evidence import DRIFTED, STABLE, UNSURE, Asked
from fairvlm_core.evaluation.predictions import Scores

DOCUMENT = Path(__file__).parent.parent / "docs" / "monitoring.md"
RESAMPLES = 200
ILL, APART = 0.3, 1.6
# Who shifts, the Kolmogorov-Smirnov distance between that group's scores now and then, images of a month, and months.
STUDIES = (
    (None, 0.0, 300, 200),
    (None, 0.0, 1000, 200),
    (None, 0.0, 3000, 100),
    ("everybody", 0.1, 1000, 100),
    ("women", 0.1, 1000, 100),
    ("women", 0.25, 300, 40),
    ("women", 0.25, 1000, 40),
    ("women", 0.25, 3000, 40),
    ("women", 0.4, 300, 40),
    ("women", 0.4, 1000, 40),
    ("the race of 10 %", 0.4, 300, 40),
    ("the race of 10 %", 0.4, 1000, 40),
    ("the race of 10 %", 0.4, 3000, 40),
)
WHO = {"women": ("sex", "female"), "the race of 10 %": ("race", "c")}


def below(at: float) -> float:
    """Share of the latent scores below a value."""
    return float((1 - ILL) * ndtr(at) + ILL * ndtr(at - APART))


def widest(by: float) -> float:
    """Where the scores shifted by so much are furthest from those that are not."""
    grid = np.linspace(-4, 6, 4001)
    return float(grid[np.argmax([below(at) - below(at - by) for at in grid])])


def shift_of(distance: float) -> float:
    """The shift that sets the distributions this far apart."""
    if not distance:
        return 0.0

    def off(by: float) -> float:
        at = widest(by)
        return below(at) - below(at - by) - distance

    return float(brentq(off, 0.01, 4.0, xtol=1e-4))


def sample(images: int, rng: np.random.Generator, threshold: float, who: str | None = None, by: float = 0.0) -> Scores:
    """One sample; the latent scores of some are shifted. Decisions are made where the shift matters most."""
    people = images // 2
    person = np.repeat(np.arange(people), 2)
    ill = (rng.random(people) < ILL)[person]
    groups = {
        "sex": rng.choice(["female", "male"], people, p=[0.45, 0.55]).astype(object)[person],
        "age_group": rng.choice(["0-39", "40-64", "65+"], people, p=[0.3, 0.45, 0.25]).astype(object)[person],
        "race": rng.choice(["a", "b", "c", "d"], people, p=[0.6, 0.25, 0.1, 0.05]).astype(object)[person],
    }
    latent = np.sqrt(0.5) * (rng.normal(size=people)[person] + rng.normal(size=2 * people)) + APART * ill
    if who is not None:
        latent += by * (np.ones(len(person), bool) if who == "everybody" else groups[WHO[who][0]] == WHO[who][1])
    score, ids = ndtr((latent - 1) / 2)[:, None], np.arange(2 * people).astype(str).astype(object)
    names = np.array([f"patient {i}" for i in person], dtype=object)
    decision = (latent >= threshold).astype(float)[:, None]
    return Scores(ids, names, ("ill",), ill.astype(float)[:, None], score, decision, groups, "binary", "model")


def alarms(images: int, who: str | None, distance: float, months: int) -> dict[str, float]:
    """Share of the months with each verdict."""
    by = shift_of(distance)
    threshold = widest(by) if by else 1.0
    verdicts = []
    for month in range(months):
        rng = np.random.default_rng([month, images])
        then, now = sample(2000, rng, threshold), sample(images, rng, threshold, who, by)
        verdicts.append(drift(then, now, Asked(resamples=RESAMPLES))["verdict"])
    return {name: verdicts.count(name) / months for name in (DRIFTED, UNSURE, STABLE)}


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| who shifts | distance | images of a month | months | drifted | cannot tell | stable |",
        "| --- |" + " ---: |" * 6,
    ]
    for who, distance, images, months in STUDIES:
        shares = " | ".join(f"{100 * share:.1f}" for share in alarms(images, who, distance, months).values())
        lines.append(f"| {who or 'nobody'} | {distance:g} | {images:,} | {months} | {shares} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    with one_thread():
        made = table()
    print(made)
    if "--write" in sys.argv:
        text = DOCUMENT.read_text()
        DOCUMENT.write_text(re.sub(r"\| who shifts .*\n(\|.*\n)+", lambda _: made + "\n", text))


if __name__ == "__main__":
    main()
