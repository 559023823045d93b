"""The generated cohort: fundus-like photographs and notes from a generative model whose ground truth is known.

The model, with its groups, its biases and the score that no classifier can beat, is described in
docs/generated-cohort.md. All random draws are made whatever the options are, so that changing one bias changes only
what that bias governs.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.fundus import draw_fundus
from fairvlm_core.cohort.table import SEXES, Task, age_group, age_group_names, cohort_table
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import check, option

TASK = Task(
    kind="binary",
    labels=("glaucoma",),
    concepts=("glaucoma",),
    negatives=("non-glaucoma",),
    question="Does this fundus photograph show {concept}?",
    prompt="A photo of {concept}",
)
# The values of Harvard-FairVLMed, so that the generated cohort has the same vocabularies as a real one.
RACES = ("asian", "black", "white")
ETHNICITIES = ("non-hispanic", "hispanic")
LANGUAGES = ("english", "spanish", "other")

# Years, both ends included: the bands the model draws ages from, whatever age groups the cohort is cut into later.
AGE_BANDS = ((20, 39), (40, 59), (60, 89))
# Relative sizes at representation 1; sex x age band, in the order of SEXES and AGE_BANDS.
CELL_WEIGHTS = np.array([[0.09, 0.14, 0.12], [0.12, 0.28, 0.25]])
RACE_WEIGHTS = np.array([0.14, 0.24, 0.62])
ETHNICITY_WEIGHTS = np.array([0.86, 0.14])
LANGUAGE_WEIGHTS = np.array([0.82, 0.11, 0.07])
# Log-odds of glaucoma: the base rate, and what each group adds at prevalence 1.
BASE_PREVALENCE = 0.4
SEX_LOG_ODDS = np.array([-0.15, 0.15])
AGE_LOG_ODDS = np.array([-0.8, 0.0, 0.5])
RACE_LOG_ODDS = np.array([0.0, 0.5, -0.15])
# Separation of the two severity distributions, in standard deviations: AUC = Phi(2.09 / sqrt(2)) = 0.93.
SEPARATION = 2.09
# At weak_signal 1 the separation of older women is SEPARATION / 1.75: AUC = Phi(1.19 / sqrt(2)) = 0.80.
WEAKENING = 0.75
# Log-odds that the marker adds at shortcut 1: it stands in 80 % of the men with and 20 % of those without glaucoma.
MARKER_LOG_ODDS = math.log(4)
# Severity to cup-to-disc ratio: logistic, so that it stays within 0..1; one standard deviation is about 0.11.
SEVERITY_SLOPE = 0.45
CHUNK = 64


@dataclass(frozen=True)
class Options:
    """What is generated. Each bias is a strength: 0 switches it off, 1 is the documented model, more is stronger."""

    patients: int = option(1500, "Number of patients.", low=1)
    images_per_patient: int = option(2, "A patient has one eye photographed, or (with 2) as often both.", low=1, high=2)
    pixels: int = option(64, "Side of the drawn photographs in pixels.", low=16, high=1024)
    representation: float = option(1.0, "Inequality of the group sizes.", low=0)
    prevalence: float = option(1.0, "Difference of the glaucoma prevalence between groups.", low=0)
    weak_signal: float = option(1.0, "How much fainter glaucoma shows in women of 60 and over.", low=0)
    shortcut: float = option(1.0, "How strongly a corner marker goes with glaucoma, in men only.", low=0)
    label_noise: float = option(0.0, "Probability that a patient's recorded label is wrong.", low=0, high=0.5)

    def __post_init__(self) -> None:
        check(self)


class Latents(NamedTuple):
    """What the model drew, one entry per image, in the order of the cohort's rows.

    Attributes:
        patient: number of the patient, int [n].
        right_eye: bool [n].
        sex, race, ethnicity, language: places in the vocabularies, int [n].
        age: whole years, int [n].
        prevalence: P(glaucoma | groups), float [n].
        glaucoma: the true state of the patient, bool [n].
        recorded: the state that the cohort's label records, bool [n]; differs only with label noise.
        separation: distance of the two severity distributions in this image's group, float [n].
        severity: the latent that the cup shows, float [n]; normal around +-separation / 2, standard deviation 1.
        cup_to_disc: vertical cup-to-disc ratio, float [n]; a rising function of severity.
        marker: whether the photograph carries the corner marker, bool [n].
        marker_log_odds: what the marker's presence (and, negated, its absence) adds to the log-odds, float [n].
    """

    patient: np.ndarray
    right_eye: np.ndarray
    sex: np.ndarray
    race: np.ndarray
    ethnicity: np.ndarray
    language: np.ndarray
    age: np.ndarray
    prevalence: np.ndarray
    glaucoma: np.ndarray
    recorded: np.ndarray
    separation: np.ndarray
    severity: np.ndarray
    cup_to_disc: np.ndarray
    marker: np.ndarray
    marker_log_odds: np.ndarray


def draw_latents(options: Options, seed: int) -> Latents:
    """Draw the patients and what their photographs will show."""
    rng = np.random.default_rng([seed, 0])
    n = options.patients
    cell = _pick(rng, n, CELL_WEIGHTS.ravel(), options.representation)
    sex, band = np.divmod(cell, len(AGE_BANDS))
    low, high = np.array(AGE_BANDS).T
    age = low[band] + (rng.random(n) * (high - low + 1)[band]).astype(int)
    race = _pick(rng, n, RACE_WEIGHTS, options.representation)
    ethnicity = _pick(rng, n, ETHNICITY_WEIGHTS, options.representation)
    language = _pick(rng, n, LANGUAGE_WEIGHTS, options.representation)

    group_log_odds = SEX_LOG_ODDS[sex] + AGE_LOG_ODDS[band] + RACE_LOG_ODDS[race]
    prevalence = _logistic(_log_odds(BASE_PREVALENCE) + options.prevalence * group_log_odds)
    glaucoma = rng.random(n) < prevalence
    recorded = glaucoma ^ (rng.random(n) < options.label_noise)

    woman = sex == SEXES.index("female")
    separation = SEPARATION / (1 + WEAKENING * options.weak_signal * (woman & (age >= 60)))
    marker_log_odds = np.where(woman, 0.0, MARKER_LOG_ODDS * options.shortcut)

    # Per eye from here on: both eyes of a patient share the state, each shows it with its own severity.
    both = (rng.random(n) < 0.5) & (options.images_per_patient == 2)
    first_right = rng.random(n) < 0.5
    severity = rng.standard_normal((n, 2)) + (np.where(glaucoma, 0.5, -0.5) * separation)[:, None]
    marker = rng.random((n, 2)) < _logistic(np.where(glaucoma, 1, -1) * marker_log_odds)[:, None]
    patient, eye = np.nonzero(np.stack([np.ones(n, bool), both], axis=1))
    return Latents(
        patient=patient,
        right_eye=first_right[patient] ^ (eye == 1),
        sex=sex[patient],
        race=race[patient],
        ethnicity=ethnicity[patient],
        language=language[patient],
        age=age[patient],
        prevalence=prevalence[patient],
        glaucoma=glaucoma[patient],
        recorded=recorded[patient],
        separation=separation[patient],
        severity=severity[patient, eye],
        cup_to_disc=_logistic(SEVERITY_SLOPE * severity[patient, eye]),
        marker=marker[patient, eye],
        marker_log_odds=marker_log_odds[patient],
    )


def bayes_scores(latents: Latents, options: Options, *, shortcut: bool = True) -> np.ndarray:
    """P(recorded label = glaucoma | severity, marker, groups) of each image: no score of one image ranks better.

    Args:
        latents: what `draw_latents` drew.
        options: the options it was drawn with.
        shortcut: whether the marker may be used; without it, the score is the best that anatomy and groups allow.

    Returns:
        float64 [n], probabilities.
    """
    # The log-likelihood ratio of two unit normals at +-separation / 2 is separation * severity, that of the marker is
    # +-marker_log_odds, and both are independent given the patient's state.
    log_odds = _log_odds(latents.prevalence) + latents.separation * latents.severity
    if shortcut:
        log_odds = log_odds + np.where(latents.marker, 1, -1) * latents.marker_log_odds
    noise = options.label_noise
    return noise + (1 - 2 * noise) * _logistic(log_odds)


def anatomy_auc(separation: float) -> float:
    """AUC of the severity alone within a group that has this separation and one prevalence: Phi(separation / sqrt(2)).

    >>> round(anatomy_auc(SEPARATION), 2), round(anatomy_auc(SEPARATION / (1 + WEAKENING)), 2)
    (0.93, 0.8)
    """
    return 0.5 * (1 + math.erf(separation / 2))


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Generate the cohort; `root` is not read. No image has an official split.

    Photographs are drawn when they are asked for, in chunks, and the same seed gives the same bytes in any order.
    """
    latents = draw_latents(options, seed)
    notes = _notes(latents, np.random.default_rng([seed, 1]))
    keys = [
        f"{p:05d}_{'right' if right else 'left'}" for p, right in zip(latents.patient, latents.right_eye, strict=True)
    ]
    rows = [
        {
            "sample_id": key,
            "patient_id": key.split("_")[0],
            "image": f"fundus/{key}",
            "modality": "fundus",
            "note": notes[i],
            "labels": [int(latents.recorded[i])],
            "sex": SEXES[latents.sex[i]],
            "age": float(latents.age[i]),
            "age_group": age_group(float(latents.age[i]), age_edges),
            "race": RACES[latents.race[i]],
            "ethnicity": ETHNICITIES[latents.ethnicity[i]],
            "language": LANGUAGES[latents.language[i]],
            "source": "generated",
        }
        for i, key in enumerate(keys)
    ]
    groups = {
        "sex": SEXES,
        "age_group": age_group_names(age_edges),
        "race": RACES,
        "ethnicity": ETHNICITIES,
        "language": LANGUAGES,
    }
    place = {f"fundus/{key}": i for i, key in enumerate(keys)}
    chunks: OrderedDict[int, np.ndarray] = OrderedDict()
    lock = threading.Lock()

    def load(key: str) -> np.ndarray:
        number, within = divmod(place[key], CHUNK)
        with lock:
            if number not in chunks:
                chunks[number] = _draw_chunk(latents, number, options.pixels, seed)
                if len(chunks) > 2:
                    chunks.popitem(last=False)
            return chunks[number][within]

    return Release(cohort_table(rows, task=TASK, groups=groups), load)


def _draw_chunk(latents: Latents, number: int, pixels: int, seed: int) -> np.ndarray:
    rows = slice(number * CHUNK, (number + 1) * CHUNK)
    return draw_fundus(
        np.random.default_rng([seed, 2, number]),
        cup_to_disc=latents.cup_to_disc[rows],
        right_eye=latents.right_eye[rows],
        marker=latents.marker[rows],
        size=pixels,
    )


def _pick(rng: np.random.Generator, n: int, weights: np.ndarray, inequality: float) -> np.ndarray:
    """Draw n groups with sizes proportional to weights ** inequality: equal sizes at 0."""
    share = weights**inequality
    return np.minimum(np.searchsorted(np.cumsum(share / share.sum()), rng.random(n), side="right"), len(weights) - 1)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _log_odds(p: np.ndarray | float) -> np.ndarray:
    return np.log(p) - np.log1p(-np.asarray(p))


REASONS = ("a routine eye examination", "follow-up of the optic nerve", "blurred vision", "a second opinion")


def _notes(latents: Latents, rng: np.random.Generator) -> list[str]:
    """A note per image. Like real ones, most notes tell age and sex, and many tell the diagnosis."""
    n = len(latents.patient)
    reason = rng.integers(len(REASONS), size=n)
    tells_patient, tells_diagnosis, history = rng.random((3, n))
    measured = np.clip(np.round(latents.cup_to_disc + rng.normal(0, 0.03, n), 1), 0.1, 0.9)
    pressure = np.round(rng.normal(15 + 5 * latents.glaucoma, 2.5)).astype(int)
    loss = rng.random(n) < np.where(latents.glaucoma, 0.8, 0.1)
    notes = []
    for i in range(n):
        person = f"{latents.age[i]}-year-old {'woman' if latents.sex[i] == SEXES.index('female') else 'man'}"
        told = "glaucoma" if latents.recorded[i] else "no evidence of glaucoma"
        rim = "thin" if measured[i] >= 0.6 else "healthy" if measured[i] <= 0.4 else "of moderate width"
        sentences = [
            f"{person.capitalize() if tells_patient[i] < 0.8 else 'The patient'} was seen for {REASONS[reason[i]]}.",
            f"The {'right' if latents.right_eye[i] else 'left'} eye has a cup-to-disc ratio of {measured[i]:.1f} "
            f"and a neuroretinal rim that is {rim}.",
            f"Intraocular pressure is {pressure[i]} mmHg.",
            f"The visual field {'shows an arcuate defect' if loss[i] else 'is full'}.",
        ]
        if history[i] < 0.3:
            sentences.append("There is no family history of eye disease.")
        if tells_diagnosis[i] < 0.6:
            sentences.append(f"Assessment: {told}.")
        notes.append(" ".join(sentences))
    return notes
