"""What the chest radiograph releases share: the 14 CheXpert labels as a task, and how tables of them are read.

Irvin et al. 2019 (CheXpert), table 1: a labeler reads the report and writes 1 (positive), 0 (negative), -1 (uncertain)
or nothing (not mentioned).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.reading import Row, coded, count_unknown, inside
from fairvlm_core.cohort.images import open_image
from fairvlm_core.cohort.table import SEXES, Task, age_group_names, cohort_table
from fairvlm_core.config import check, option
from fairvlm_core.errors import CohortError, ConfigError

# label -> the phrase for its presence, the phrase for its absence.
PHRASES = {
    "No Finding": ("normal findings only", "abnormal findings"),
    "Enlarged Cardiomediastinum": ("an enlarged cardiomediastinal silhouette", "a normal cardiomediastinal silhouette"),
    "Cardiomegaly": ("cardiomegaly", "no cardiomegaly"),
    "Lung Opacity": ("lung opacity", "no lung opacity"),
    "Lung Lesion": ("a lung lesion", "no lung lesion"),
    "Edema": ("pulmonary edema", "no pulmonary edema"),
    "Consolidation": ("consolidation", "no consolidation"),
    "Pneumonia": ("pneumonia", "no pneumonia"),
    "Atelectasis": ("atelectasis", "no atelectasis"),
    "Pneumothorax": ("pneumothorax", "no pneumothorax"),
    "Pleural Effusion": ("pleural effusion", "no pleural effusion"),
    "Pleural Other": (
        "a pleural abnormality other than effusion",
        "no pleural abnormality other than effusion",
    ),
    "Fracture": ("a fracture", "no fracture"),
    "Support Devices": ("support devices", "no support devices"),
}
LABELS = tuple(PHRASES)
# What rules out that there is no finding; support devices do not.
FINDINGS = LABELS[1:-1]
POSITIVE, NEGATIVE, UNCERTAIN = ("1.0", "1"), ("0.0", "0"), ("-1.0", "-1")
# Of these first images one must be there; all to be looked for is the work of `load`, which opens them anyway.
FIRST = 20

Labels = tuple[int | None, ...]  # each 0, 1 or None where unknown, in the order of the task


@dataclass(frozen=True)
class ChestOptions:
    """Which labels are read, and what becomes of those that the labeler did not decide."""

    labels: tuple[str, ...] = option(LABELS, "The labels, in the order of the task.", choices=LABELS)
    uncertain: str = option(
        "ignore", "What an uncertain label becomes: unknown, 0 or 1.", choices=("ignore", "zeros", "ones")
    )
    blank: str = option(
        "negative",
        "What a finding becomes that the report does not mention: 0 (as in the published baselines), or unknown.",
        choices=("negative", "unknown"),
    )
    view: str = option("frontal", "Which views are read.", choices=("frontal", "lateral", "all"))

    def __post_init__(self) -> None:
        check(self)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ConfigError(
                "The labels are empty, or one is named twice.",
                where=f"{type(self).__name__}.labels",
                mend=f"Name some of {', '.join(LABELS)}.",
            )


def chest_task(labels: Sequence[str]) -> Task:
    """The task of these labels: any of several, or one that is there or not.

    >>> chest_task(["Edema"]).kind, chest_task(["Edema", "Fracture"]).negatives
    ('binary', ('no pulmonary edema', 'no fracture'))
    """
    return Task(
        kind="binary" if len(labels) == 1 else "multilabel",
        labels=tuple(labels),
        concepts=tuple(PHRASES[label][0] for label in labels),
        negatives=tuple(PHRASES[label][1] for label in labels),
        question="Does this chest radiograph show {concept}?",
        prompt="A chest radiograph with {concept}",
    )


def label_reader(options: ChestOptions) -> Callable[[Row], Labels]:
    """What gives a row's labels, each 0, 1 or None, in the order of `options.labels`.

    The labeler writes No Finding as positive or not at all. So that it has negatives also where blanks are unknown, its
    blank is 0 beside a finding that is positive.
    """
    codes: dict[str, int | None] = {"": 0 if options.blank == "negative" else None}
    decided = {"ignore": None, "zeros": 0, "ones": 1}[options.uncertain]
    for written, value in ((POSITIVE, 1), (NEGATIVE, 0), (UNCERTAIN, decided)):
        codes.update(dict.fromkeys(written, value))
    columns = (*options.labels, *FINDINGS)
    # Hundreds of thousands of rows have some thousand combinations of cells.
    seen: dict[tuple[str | None, ...], Labels] = {}

    def one(row: Row, label: str) -> int | None:
        value = coded(row, label, codes, say="1, 0 or -1, or leave it blank")
        if value is None and label == LABELS[0] and not row[label]:
            found = any(row.cells.get(finding) in POSITIVE for finding in FINDINGS)
            return 0 if found else None
        return value

    def labels_of(row: Row) -> Labels:
        cells = tuple(map(row.cells.get, columns))
        if cells not in seen:
            seen[cells] = tuple(one(row, label) for label in options.labels)
        return seen[cells]

    return labels_of


def group_of(cell: str, groups: Mapping[str, str | None], counted: Counter[str], attribute: str) -> str | None:
    """The group that a cell of free text names.

    Args:
        cell: the text, in any case; blank is unknown.
        groups: what the text begins with, in lower case -> its group, or None where that means unknown.
        counted: where a text is counted that begins with none of them (`<attribute>_not_mapped`); it is unknown.
        attribute: race or ethnicity.
    """
    text = cell.lower()
    for beginning, group in groups.items():
        if text.startswith(beginning):
            return group
    if text:
        counted[f"{attribute}_not_mapped"] += 1
    return None


def agree(known: dict[str, str | None], patient: str, group: str | None) -> None:
    """Note a patient's group, so that `known` has None for patients whose rows name different ones."""
    if group is not None and known.setdefault(patient, group) != group:
        known[patient] = None


def count_groups(
    rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Mapping[str, str | None]], counted: Counter[str]
) -> None:
    """Count the rows without a group, and those of patients whose rows disagree; `groups` is attribute -> `known`."""
    for attribute, known in groups.items():
        counted[f"without_{attribute}"] = sum(row[attribute] is None for row in rows)
        differ = {patient for patient, group in known.items() if group is None}
        counted[f"{attribute}_disagrees"] = sum(row["patient_id"] in differ for row in rows)


def chest_release(
    place: Path,
    rows: Sequence[dict[str, Any]],
    options: ChestOptions,
    *,
    age_edges: tuple[float, ...],
    vocabularies: Mapping[str, Sequence[str]],
    counted: Counter[str],
    mend: str,
) -> Release:
    """The release of these rows.

    Args:
        place: the folder that the image keys are relative to.
        rows: cohort rows; `where` tells each one's place in its table.
        vocabularies: groups beside sex and age.
        mend: what to do when the images are not there.

    Raises:
        CohortError: there is no row, or none of the first images is there.
    """
    if not rows:
        raise CohortError(
            "The release has no row of the views that are read.",
            where=str(place),
            mend="Choose another view, or download the tables again.",
        )
    first = rows[:FIRST]
    if not any((place / row["image"]).is_file() for row in first):
        raise CohortError(
            f"Not one of the first {len(first)} images is where the table says.",
            where=f"{place / first[0]['image']} ({first[0]['where']})",
            mend=mend,
        )
    counted["without_labels"] = sum(not any(value is not None for value in row["labels"]) for row in rows)
    count_unknown(rows, counted)
    listed = {row["image"]: row.pop("where") for row in rows}

    def load(key: str) -> Image.Image:
        # Here and not for each row at once: that takes as long as reading the whole table.
        return open_image(place / inside(place, key, listed[key]), where=listed[key])

    groups = {"sex": SEXES, "age_group": age_group_names(age_edges), **vocabularies}
    return Release(cohort_table(rows, task=chest_task(options.labels), groups=groups), load, dict(counted))
