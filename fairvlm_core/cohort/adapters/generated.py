"""The generated cohort: fundus-like photographs and notes from a generative model whose ground truth is known.

The model, with its groups, its biases and the score that no classifier can beat, is described in
docs/generated-cohort.md. All random draws are made whatever the options are, so that changing one bias changes only
what that bias governs.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
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
# Whose labels may be noisy: a group of one attribute. The names of two attributes never meet.
GROUPS = {"sex": SEXES, "race": RACES, "ethnicity": ETHNICITIES, "language": LANGUAGES}
NOISE_GROUPS = tuple(name for names in GROUPS.values() for name in names)


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
    noise_group: str = option(
        "",
        "The only group whose recorded labels may be wrong, such as female; empty: everybody.",
        choices=("", *NOISE_GROUPS),
    )

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
        noise: P(recorded differs from glaucoma | groups), float [n].
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
    noise: np.ndarray
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

    prevalence = _prevalence(options, sex, band, race)
    glaucoma = rng.random(n) < prevalence
    noise = _noise(options, {"sex": sex, "race": race, "ethnicity": ethnicity, "language": language})
    recorded = glaucoma ^ (rng.random(n) < noise)

    separation, marker_log_odds = _signals(options, sex, band)

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
        noise=noise[patient],
        separation=separation[patient],
        severity=severity[patient, eye],
        cup_to_disc=_logistic(SEVERITY_SLOPE * severity[patient, eye]),
        marker=marker[patient, eye],
        marker_log_odds=marker_log_odds[patient],
    )


def sample_ids(latents: Latents) -> list[str]:
    """The cohort's `sample_id` of each image."""
    eyes = zip(latents.patient, latents.right_eye, strict=True)
    return [f"{patient:05d}_{'right' if right else 'left'}" for patient, right in eyes]


def bayes_scores(latents: Latents, options: Options, *, shortcut: bool = True, groups: bool = True) -> np.ndarray:
    """P(recorded label = glaucoma | severity, marker, groups) of each image: no score of one image ranks better.

    Args:
        latents: what `draw_latents` drew.
        options: the options it was drawn with.
        shortcut: whether the marker may be used; without it, the score is the best that anatomy and groups allow.
        groups: whether the patient's groups may be used. A model that is shown the photograph alone cannot know them:
            without them, the score is the best that such a model can give, a mean over all groups that it might be.

    Returns:
        float64 [n], probabilities.
    """
    marker = latents.marker if shortcut else None
    if groups:
        own = (latents.prevalence, latents.noise, latents.separation, latents.marker_log_odds)
        return _posterior(latents.severity, marker, *own)
    # Everything that prevalence, noise and signals depend on; language and ethnicity change the noise alone.
    shape = (len(SEXES), len(AGE_BANDS), len(RACES), len(ETHNICITIES), len(LANGUAGES))
    sex, band, race, ethnicity, language = (code.ravel() for code in np.indices(shape))
    share = np.ones(len(sex))
    for weights, code in (
        (CELL_WEIGHTS.ravel(), sex * len(AGE_BANDS) + band),
        (RACE_WEIGHTS, race),
        (ETHNICITY_WEIGHTS, ethnicity),
        (LANGUAGE_WEIGHTS, language),
    ):
        share *= _shares(weights, options.representation)[code]
    prevalence = _prevalence(options, sex, band, race)
    noise = _noise(options, {"sex": sex, "race": race, "ethnicity": ethnicity, "language": language})
    separation, marker_log_odds = _signals(options, sex, band)
    joint, total = np.zeros(len(latents.severity)), np.zeros(len(latents.severity))
    for k in range(len(share)):
        cell = (prevalence[k], noise[k], separation[k], marker_log_odds[k])
        seen = share[k] * _density(latents.severity, marker, cell[0], cell[2], cell[3])
        joint += seen * _posterior(latents.severity, marker, *cell)
        total += seen
    return joint / total


def _posterior(
    severity: np.ndarray,
    marker: np.ndarray | None,
    prevalence: np.ndarray | float,
    noise: np.ndarray | float,
    separation: np.ndarray | float,
    marker_log_odds: np.ndarray | float,
) -> np.ndarray:
    """P(recorded label = glaucoma) of images whose groups are known; None for a marker that is not looked at."""
    # The log-likelihood ratio of two unit normals at +-separation / 2 is separation * severity, that of the marker is
    # +-marker_log_odds, and both are independent given the patient's state.
    log_odds = _log_odds(prevalence) + separation * severity
    if marker is not None:
        log_odds = log_odds + np.where(marker, 1, -1) * marker_log_odds
    return noise + (1 - 2 * np.asarray(noise)) * _logistic(log_odds)


def _density(
    severity: np.ndarray, marker: np.ndarray | None, prevalence: float, separation: float, marker_log_odds: float
) -> np.ndarray:
    """How probable it is that an image of a cell shows this, up to a factor that is the same for all cells."""
    found = np.zeros(len(severity))
    for share, sign in ((prevalence, 1), (1 - prevalence, -1)):
        seen = np.exp(-0.5 * (severity - sign * separation / 2) ** 2)
        if marker is not None:
            seen *= _logistic(np.where(marker, 1, -1) * sign * marker_log_odds)
        found += share * seen
    return found


def _prevalence(options: Options, sex: np.ndarray, band: np.ndarray, race: np.ndarray) -> np.ndarray:
    """P(glaucoma | groups)."""
    group_log_odds = SEX_LOG_ODDS[sex] + AGE_LOG_ODDS[band] + RACE_LOG_ODDS[race]
    return _logistic(_log_odds(BASE_PREVALENCE) + options.prevalence * group_log_odds)


def _signals(options: Options, sex: np.ndarray, band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Separation of the severities, and what the marker adds to the log-odds, of each sex and age band."""
    woman, oldest = sex == SEXES.index("female"), band == len(AGE_BANDS) - 1
    separation = SEPARATION / (1 + WEAKENING * options.weak_signal * (woman & oldest))
    return separation, np.where(woman, 0.0, MARKER_LOG_ODDS * options.shortcut)


def _noise(options: Options, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """P(the recorded label is wrong | groups)."""
    concerned = np.ones(len(codes["sex"]), bool)
    for attribute, names in GROUPS.items():
        if options.noise_group in names:
            concerned = codes[attribute] == names.index(options.noise_group)
    return np.where(concerned, options.label_noise, 0.0)


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
    keys = sample_ids(latents)
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
    ends = np.cumsum(_shares(weights, inequality))
    return np.minimum(np.searchsorted(ends, rng.random(n), side="right"), len(weights) - 1)


def _shares(weights: np.ndarray, inequality: float) -> np.ndarray:
    """Sizes of the groups, of sum 1."""
    share = weights**inequality
    return share / share.sum()


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
