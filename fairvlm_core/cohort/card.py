"""The numbers of a cohort's data card: how many are in which group, how common each label is, what is missing.

No number tells of fewer than `min_cell` patients of a group, and none lets one be computed (`suppression`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.cohort.duplicates import Duplicates, Track, untracked
from fairvlm_core.cohort.groups import (
    UNKNOWN,
    Groups,
    attribute_groups,
    count_groups,
    few,
    known_attributes,
    numbered,
    share,
    splits_of,
)
from fairvlm_core.cohort.notes import NoteShares, read_notes
from fairvlm_core.cohort.suppression import hidden_counts
from fairvlm_core.cohort.table import ATTRIBUTES, Task, group_codes, label_matrix, task_of

CONFIDENCE = 0.95
LARGE_LOSS = 0.3  # of a picture's pixels outside its central square


@dataclass(frozen=True)
class Prevalence:
    """How common a label is among the patients of a group; one image that shows it is enough.

    Attributes:
        patients: those of whom the label is known; None where hidden.
        positive: those who have it; None where hidden, or where nothing is known.
        interval: their share between the ends of Wilson's interval at 95 %; None where `positive` is.
    """

    patients: int | None
    positive: int | None
    interval: tuple[float, float, float] | None


@dataclass(frozen=True)
class Sizes:
    """Width and height of the pictures as the release has them, in pixels.

    Attributes:
        width, height: smallest, median, largest.
        common: the most frequent (width, height) and the shares of the pictures that have them.
        different: how many sizes there are.
        lost_median, lost_most: share of the pixels outside the central square.
        large_loss: share of the pictures that lose more than `LARGE_LOSS` of their pixels.
        enlarged: share of the pictures whose shorter side is smaller than the stored one.
    """

    width: tuple[float, float, float]
    height: tuple[float, float, float]
    common: list[tuple[int, int, float]]
    different: int
    lost_median: float
    lost_most: float
    large_loss: float
    enlarged: float


@dataclass(frozen=True)
class DuplicateCounts:
    """Numbers of `duplicates.Duplicates`.

    Attributes:
        counts: where the rows of a pair are -> numbers of pairs, of identical ones, and of those whose labels differ.
        blank, complete: as there.
    """

    counts: dict[str, dict[str, int]]
    blank: int
    complete: bool


@dataclass(frozen=True)
class Card:
    """What a data card says.

    Attributes:
        dataset, source, options: the adapter, what it says of itself, and the options it was given.
        image_size: side of the stored pictures.
        min_cell: the least number of patients of a group that may be shown.
        images, patients: how many there are.
        modalities: what the images are, with how many.
        counted: what was left out or is incomplete -> number of rows.
        splits, groups, together: counts per split, per group of each attribute, and of sex and age together.
        prevalence_of_all: one entry per label.
        prevalence: "split", then each attribute; with (split or group, one entry per label) for each.
        missing, unpublished, sizes, duplicates, notes: what the functions of these names return.
    """

    dataset: str
    source: str
    options: Mapping[str, Any]
    image_size: int
    min_cell: int
    task: Task
    images: int
    patients: int
    modalities: list[str]
    counted: Mapping[str, int | str]
    splits: Groups
    groups: list[Groups]
    together: Groups
    prevalence_of_all: list[Prevalence]
    prevalence: list[tuple[str, list[tuple[str, list[Prevalence]]]]]
    missing: list[tuple[str, list[str | None]]]
    unpublished: list[str]
    sizes: Sizes
    duplicates: DuplicateCounts
    notes: NoteShares | None


def wilson(positive: np.ndarray, n: np.ndarray, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a share, NaN where n is 0 (Wilson 1927; without continuity correction)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    n = np.where(n > 0, n, np.nan).astype(float)
    p = positive / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    # Exactly 0 and 1 at the ends, whatever is rounded.
    return np.where(p == 0, 0.0, low), np.where(p == 1, 1.0, high)


def prevalence(table: pa.Table, groups: Groups, min_cell: int) -> list[tuple[str, list[Prevalence]]]:
    """How common each label is in each group of one attribute, over all splits; or in each split.

    Args:
        table: the cohort.
        groups: what `count_groups` counted of one attribute, or of none.
        min_cell: where fewer patients than this have a label, or do not have it, its prevalence is hidden.

    Returns:
        (name, one entry per label) for each group or split that has patients, and for all.
    """
    labels, patient = label_matrix(table), numbered(table, "patient_id")
    hidden = np.zeros(len(groups.names[0]), dtype=bool)
    if groups.attributes:
        hidden = groups.hidden[:, -1]
        place = group_codes(table, groups.attributes)[:, 0]
        place = np.where(place < 0, len(hidden) - 2, place)
    else:
        _, place = splits_of(table)
    each = _tally(labels, patient, place, len(hidden) - 1)
    everybody = _tally(labels, patient, np.zeros_like(place), 1)
    known, positive = (np.concatenate(pair) for pair in zip(each, everybody, strict=True))
    unknown = np.array([name == UNKNOWN for name in groups.names[0]])
    hides = _hidden_labels(known, positive, hidden, unknown, min_cell, one_of=task_of(table).kind == "multiclass")
    low, high = wilson(positive, known)
    found = []
    for g, name in enumerate(groups.names[0]):
        if not known[g].any() or unknown[g]:
            continue
        entries = []
        for k, n, hide, *ends in zip(positive[g], known[g], hides[g], low[g], high[g], strict=True):
            told = n > 0 and not hide
            interval = (float(ends[0]), k / n, float(ends[1])) if told else None
            entries.append(Prevalence(None if hidden[g] else int(n), int(k) if told else None, interval))
        found.append((name, entries))
    return found


def _tally(labels: np.ndarray, patient: np.ndarray, place: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Patients per place and label: those of whom it is known, and those who have it; int64 [places, L] each."""
    who = patient + (patient.max(initial=0) + 1) * place
    order = np.argsort(who, kind="stable")
    first = np.flatnonzero(np.diff(who[order], prepend=-1))
    # The highest of a patient's labels; NaN only where all are.
    of_patient = np.fmax.reduceat(labels[order], first, axis=0)
    at = place[order][first]
    counts = [np.zeros((places, labels.shape[1]), dtype=np.int64) for _ in range(2)]
    for count, which in zip(counts, (~np.isnan(of_patient), of_patient > 0), strict=True):
        np.add.at(count, at, which)
    return counts[0], counts[1]


def _hidden_labels(
    known: np.ndarray, positive: np.ndarray, hidden: np.ndarray, unknown: np.ndarray, min_cell: int, *, one_of: bool
) -> np.ndarray:
    """Which prevalences are not to be published, bool [G, L]; the last group is all of them together."""
    found = np.zeros(known.shape, dtype=bool)
    columns = [range(known.shape[1])] if one_of else [[j] for j in range(known.shape[1])]
    for chosen in columns:
        n = known[:, chosen[0]]
        # Of several diagnoses each patient has one; otherwise a label is there or it is not.
        outcomes = positive if one_of else np.stack([positive[:, chosen[0]], n - positive[:, chosen[0]]], axis=1)
        patients = np.column_stack([outcomes, n])
        sizes = np.zeros(patients.shape, dtype=bool)
        sizes[:, -1] = ~hidden
        result = hidden_counts(
            patients,
            min_cell,
            unknown=np.broadcast_to(unknown[:, None], patients.shape),
            public=sizes,
            given=hidden[:, None],
        )
        found[:, list(chosen)] = result[:, :-1] if one_of else result[:, :-1].any(axis=1, keepdims=True)
    return found


def missing(table: pa.Table, min_cell: int) -> list[tuple[str, list[str | None]]]:
    """The share of the rows of each split, and of all, that lack a column; for each column that somebody has."""
    splits, split = splits_of(table)
    absent = {name: _lacking(table, name) for name in ("note", "modality", "age", *ATTRIBUTES)}
    labels = np.isnan(label_matrix(table))
    absent |= {f"label {name}": labels[:, j] for j, name in enumerate(task_of(table).labels) if labels[:, j].any()}
    if np.array_equal(absent["age"], absent["age_group"]):
        del absent["age_group"]
    rows = [split == k for k in range(len(splits))] + [np.ones(len(table), dtype=bool)]
    return [
        (name, [share(int(lacks[which].sum()), int(which.sum()), min_cell) for which in rows])
        for name, lacks in absent.items()
        if not lacks.all()
    ]


def unpublished(table: pa.Table) -> list[str]:
    """The columns that are empty in all rows."""
    return [name for name in ("note", "modality", "age", *ATTRIBUTES) if _lacking(table, name).all()]


def _lacking(table: pa.Table, column: str) -> np.ndarray:
    values = table.column(column)
    empty = pc.equal(values, "") if pa.types.is_string(values.type) else pc.is_nan(values)
    return pc.fill_null(empty, True).to_numpy()


def measure_sizes(sizes: Sequence[tuple[int, int]], side: int) -> Sizes:
    """Describe the sizes of pictures that are stored as squares of `side` pixels."""
    width, height = np.array(sizes, dtype=float).reshape(-1, 2).T
    shorter = np.minimum(width, height)
    lost = 1 - shorter**2 / (width * height)
    frequent = Counter(map(tuple, sizes))
    return Sizes(
        width=(float(width.min()), float(np.median(width)), float(width.max())),
        height=(float(height.min()), float(np.median(height)), float(height.max())),
        common=[
            (w, h, n / len(sizes)) for (w, h), n in sorted(frequent.items(), key=lambda item: (-item[1], item[0]))[:5]
        ],
        different=len(frequent),
        lost_median=float(np.median(lost)),
        lost_most=float(lost.max()),
        large_loss=float((lost > LARGE_LOSS).mean()),
        enlarged=float((shorter < side).mean()),
    )


def count_duplicates(found: Duplicates) -> dict[str, dict[str, int]]:
    """Pairs by where their two rows are: all, those with identical pixels, and those whose labels differ."""
    where = {
        "within a patient": found.same_patient & ~found.across,
        "between patients": ~found.same_patient & ~found.across,
        "across splits": found.across,
    }
    return {
        name: {
            "pairs": int(rows.sum()),
            "identical": int((rows & found.identical).sum()),
            "labels differ": int((rows & found.labels_differ).sum()),
        }
        for name, rows in where.items()
    }


def make_card(
    table: pa.Table,
    *,
    dataset: str,
    source: str,
    options: Mapping[str, Any],
    counted: Mapping[str, int],
    sizes: Sequence[tuple[int, int]],
    duplicates: Duplicates,
    image_size: int,
    min_cell: int,
    track: Track = untracked,
) -> Card:
    """Count everything.

    Args:
        table: the cohort.
        dataset, source, options: as in `Card`.
        counted: the release's counts; those of rows that lack something are told as `few` does.
        sizes: width and height of each stored picture before it was cut.
        duplicates: what `find_duplicates` found.
        image_size: side of the stored pictures.
        min_cell: the least number of patients of a group that may be shown.
        track: shows progress.
    """
    progress = track("Counting groups and labels", len(known_attributes(table)) + 2)
    together, groups = attribute_groups(table, min_cell)
    splits, labels = count_groups(table, (), min_cell), {}
    progress(1)
    for kind, counted_groups in [("split", splits), *((found.attributes[0], found) for found in groups)]:
        *labels[kind], (_, of_all) = prevalence(table, counted_groups, min_cell)
        progress(1)
    modalities = table.column("modality").drop_null().value_counts().to_pylist()
    several = sorted((-entry["counts"], entry["values"]) for entry in modalities)
    return Card(
        dataset=dataset,
        source=source,
        options=options,
        image_size=image_size,
        min_cell=min_cell,
        task=task_of(table),
        images=len(table),
        patients=int(splits.patients[-1]),
        modalities=[name if len(several) == 1 else f"{name} ({few(-n, min_cell)})" for n, name in several],
        counted={name: few(n, min_cell) if name.startswith("without_") else n for name, n in counted.items() if n},
        splits=splits,
        groups=groups,
        together=together,
        prevalence_of_all=of_all,
        prevalence=list(labels.items()),
        missing=missing(table, min_cell),
        unpublished=unpublished(table),
        sizes=measure_sizes(sizes, image_size),
        duplicates=DuplicateCounts(count_duplicates(duplicates), duplicates.blank, duplicates.complete),
        notes=read_notes(table, groups, min_cell, track=track),
    )
