"""MIMIC-CXR-JPG, as published on PhysioNet (2.0.0 and 2.1.0), with the demographics of MIMIC-IV.

    files/p10/p10000032/s50414267/<dicom_id>.jpg
    files/p10/p10000032/s50414267.txt                          (optional: the reports of MIMIC-CXR)
    mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv[.gz]  (one of the last two)
    hosp/{patients,admissions}.csv[.gz]                        (optional: MIMIC-IV, here or elsewhere)

The images themselves have no demographics. Sex and age are joined from MIMIC-IV's patients, race and language from its
admissions; a patient who is not there has none.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.chest import (
    ChestOptions,
    Labels,
    agree,
    chest_release,
    count_groups,
    group_of,
    label_reader,
)
from fairvlm_core.cohort.adapters.reading import (
    OLDEST,
    WIDEST,
    Row,
    age_of,
    coded,
    find,
    found,
    inside,
    needed,
    number_of,
    once,
    read_rows,
    release_root,
    sex_of,
)
from fairvlm_core.cohort.table import age_group
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import option
from fairvlm_core.errors import CohortError

PASS = "Pass the folder that holds files/ and mimic-cxr-2.0.0-metadata.csv.gz."
TAKE = "Take the table from the same version of MIMIC-CXR-JPG."
TAKE_PEOPLE = "Pass the folder of MIMIC-IV, which holds hosp/patients.csv.gz, to the option mimic_iv."
SPLITS = {"train": "train", "validate": "validation", "test": "test"}
FRONTAL = ("PA", "AP")
LATERAL = ("LATERAL", "LL", "RL", "XTABLE LATERAL")
DICOM_ID, NUMBER = re.compile(r"[\w-]+", re.ASCII), re.compile(r"[0-9]+")
# Until version 1.0, MIMIC-IV had these tables in core/ and called race ethnicity.
PEOPLE_FOLDERS = ("hosp/", "core/", "")
# MIMIC-IV writes 91 for every patient who is over 89 in the anchor year.
OVER_89 = 91

# MIMIC-IV asks one question for race and ethnicity, so Hispanic is one of the races here, as in most studies of it.
RACES = ("white", "black", "asian", "native", "pacific", "hispanic", "other")
RACE_NAMES: dict[str, str | None] = {
    "white": "white",
    "black": "black",
    "asian": "asian",
    "american indian": "native",
    "native hawaiian": "pacific",
    "hispanic": "hispanic",
    "other": "other",
    "multiple race": "other",
    "portuguese": "other",
    "south american": "other",
    "unknown": None,
    "unable to obtain": None,
    "patient declined": None,
}
LANGUAGES = ("english", "other")
LANGUAGE_UNKNOWN = ("", "?", "unknown")
SECTION = re.compile(r"^[ \t]*([A-Z][A-Z /&,()-]*):", re.MULTILINE)
READ_SECTIONS = ("FINDINGS", "IMPRESSION")


@dataclass(frozen=True)
class Options(ChestOptions):
    """As `ChestOptions`, and where labels, demographics and notes come from."""

    labeler: str = option("chexpert", "Whose labels are read.", choices=("chexpert", "negbio"))
    mimic_iv: str = option("", "Folder of MIMIC-IV, from the release or absolute; empty: looked for in the release.")
    notes: bool = option(True, "Whether the reports that are there become notes.")


class Person(NamedTuple):
    """A row of MIMIC-IV's patients; None where unknown."""

    sex: str | None
    anchor_age: float | None  # years, in the anchor year
    anchor_year: float | None


class Joined(NamedTuple):
    """What is looked up for an image.

    Attributes:
        splits: dicom_id -> split.
        labels: study_id -> labels.
        persons: subject_id -> sex and age.
        races, languages: subject_id -> group; None where admissions disagree.
    """

    splits: Mapping[str, str]
    labels: Mapping[str, Labels]
    persons: Mapping[str, Person]
    races: Mapping[str, str | None]
    languages: Mapping[str, str | None]


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Read the release in `root`, with the official split.

    An image whose study the labeler's table lacks has no known label. Nothing here is random, so `seed` has no effect.

    Raises:
        CohortError: naming the file, row and column that is missing or cannot be what it is; a patient in two splits.
    """
    place = release_root(root, "MIMIC-CXR-JPG", PASS)
    counted: Counter[str] = Counter()
    bad = tolerance or Tolerance()
    metadata = _table(place, "metadata")
    splits, subjects = _splits(_table(place, "split"), bad)
    labels = _labels(_table(place, options.labeler), options, bad)
    patients, admissions = _people_tables(place, options.mimic_iv)
    persons = _persons(patients, subjects, bad) if patients else {}
    races, languages = _admissions(admissions, subjects, counted) if admissions else ({}, {})
    joined = Joined(splits, labels, persons, races, languages)

    rows = _rows(place, metadata, joined, options, age_edges, counted, bad)
    if admissions:
        count_groups(rows, {"race": races, "language": languages}, counted)
    if options.notes:
        counted["without_note"] = sum(row["note"] is None for row in rows)
    return chest_release(
        place,
        rows,
        options,
        age_edges=age_edges,
        vocabularies={"race": RACES, "language": LANGUAGES} if admissions else {},
        counted=counted,
        mend=PASS,
    )


def _table(place: Path, kind: str) -> Path:
    """A table of the release, plain or gzipped."""
    name = f"mimic-cxr-2.0.0-{kind}.csv"
    return found(place, [f"{name}.gz", name], mend=PASS)


def _people_tables(place: Path, mimic_iv: str) -> tuple[Path | None, Path | None]:
    """MIMIC-IV's patients and admissions, None where they are not there."""
    folder = place / mimic_iv

    def names(kind: str) -> list[str]:
        return [f"{inner}{kind}.csv{end}" for inner in PEOPLE_FOLDERS for end in (".gz", "")]

    if mimic_iv:
        return found(folder, names("patients"), mend=TAKE_PEOPLE), find(folder, names("admissions"))
    patients = find(folder, names("patients"))
    if patients is None:
        told = "Warning: there is no table of MIMIC-IV in the release, so no image has a sex, age, race or language."
        print(f"{told} {TAKE_PEOPLE}", file=sys.stderr, flush=True)
        return None, None
    return patients, find(folder, names("admissions"))


def _splits(table: Path, bad: Tolerance) -> tuple[dict[str, str], set[str]]:
    """dicom_id -> split, and the subjects there are. A subject in two splits is an error that cannot be skipped."""
    splits: dict[str, str] = {}
    first: dict[str, tuple[str, int]] = {}
    leaks: list[str] = []
    for row in read_rows(table, ("dicom_id", "subject_id", "split"), mend=TAKE):
        with bad.skipping():
            split = coded(row, "split", SPLITS, say=f"one of {', '.join(SPLITS)}")
            splits[needed(row, "dicom_id")] = split
            other, number = first.setdefault(needed(row, "subject_id"), (split, row.number))
            if other != split:
                leaks.append(f"{row.where('split')} and row {number}")
    if leaks:
        raise CohortError(
            "A patient is in two splits, so training leaks into evaluation.",
            where=leaks[0],
            mend="Download the table again: the official split is by patient.",
        )
    return splits, set(first)


def _labels(table: Path, options: Options, bad: Tolerance) -> dict[str, Labels]:
    """study_id -> labels."""
    labels_of = label_reader(options)
    labels: dict[str, Labels] = {}
    for row in read_rows(table, ("study_id", *options.labels), mend=TAKE):
        with bad.skipping():
            values = labels_of(row)
            if labels.setdefault(needed(row, "study_id"), values) != values:
                raise CohortError(
                    "An earlier row labels the same study differently.", where=row.where("study_id"), mend=TAKE
                )
    return labels


def _persons(table: Path, subjects: set[str], bad: Tolerance) -> dict[str, Person]:
    """subject_id -> sex and anchors of the subjects with images."""
    persons: dict[str, Person] = {}
    for row in read_rows(table, ("subject_id", "gender", "anchor_age", "anchor_year"), mend=TAKE_PEOPLE):
        if row["subject_id"] not in subjects:
            continue
        with bad.skipping():
            person = Person(sex_of(row, "gender"), age_of(row, "anchor_age"), number_of(row, "anchor_year"))
            if persons.setdefault(row["subject_id"], person) != person:
                raise CohortError(
                    "An earlier row describes the same patient differently.",
                    where=row.where("subject_id"),
                    mend=TAKE_PEOPLE,
                )
    return persons


def _admissions(
    table: Path, subjects: set[str], counted: Counter[str]
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """subject_id -> race and subject_id -> language; None where admissions disagree, absent where unknown."""
    races: dict[str, str | None] = {}
    languages: dict[str, str | None] = {}
    for row in read_rows(table, ("subject_id", "race", "language"), mend=TAKE_PEOPLE, also={"race": ["ethnicity"]}):
        if row["subject_id"] in subjects:
            agree(races, row["subject_id"], group_of(row["race"], RACE_NAMES, counted, "race"))
            agree(languages, row["subject_id"], _language(row["language"]))
    return races, languages


def _language(cell: str) -> str | None:
    language = cell.lower()
    if language in LANGUAGE_UNKNOWN:
        return None
    return language if language == "english" else "other"


def _rows(
    place: Path,
    metadata: Path,
    joined: Joined,
    options: Options,
    age_edges: tuple[float, ...],
    counted: Counter[str],
    bad: Tolerance,
) -> list[dict[str, Any]]:
    """The images as cohort rows, `where` telling the metadata's row."""
    read: list[dict[str, Any]] = []
    unlabelled: Labels = (None,) * len(options.labels)
    nobody = Person(None, None, None)
    notes: dict[str, str | None] = {}
    for cells in read_rows(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate"), mend=TAKE):
        with bad.skipping():
            if options.view not in (_view(cells["ViewPosition"]), "all"):
                counted["excluded_view"] += 1
                continue
            dicom, subject = _identifier(cells, "dicom_id", DICOM_ID), _identifier(cells, "subject_id", NUMBER)
            study = _identifier(cells, "study_id", NUMBER)
            if dicom not in joined.splits:
                raise CohortError("The image has no split.", where=cells.where("dicom_id"), mend=TAKE)
            person = joined.persons.get(subject, nobody)
            age = _age(cells, person)
            folder = f"files/p{subject[:2]}/p{subject}/s{study}"
            if options.notes and study not in notes:
                notes[study] = _note(place, f"{folder}.txt", cells.where("study_id"))
            read.append(
                {
                    "sample_id": dicom,
                    "patient_id": subject,
                    "image": f"{folder}/{dicom}.jpg",
                    "modality": "chest radiograph",
                    "note": notes.get(study),
                    "labels": joined.labels.get(study, unlabelled),
                    "sex": person.sex,
                    "age": age,
                    "age_group": age_group(age, age_edges),
                    "race": joined.races.get(subject),
                    "language": joined.languages.get(subject),
                    "split": joined.splits[dicom],
                    "source": "mimic_cxr",
                    "where": cells.where(),
                }
            )
    return once(read, counted)


def _view(position: str) -> str | None:
    """Frontal or lateral; None for oblique, lordotic and other special views, and where it is not told."""
    position = position.upper()
    return "frontal" if position in FRONTAL else "lateral" if position in LATERAL else None


def _identifier(row: Row, column: str, form: re.Pattern[str]) -> str:
    """An identifier, which becomes a part of a path."""
    if not form.fullmatch(needed(row, column)):
        raise CohortError("An identifier is not one of the release.", where=row.where(column), mend=TAKE)
    return row[column]


def _age(row: Row, person: Person) -> float | None:
    """Years at the study. A patient over 89 keeps 91 from the anchor year on; before it, the age is not known."""
    date = number_of(row, "StudyDate")
    if date is None or person.anchor_age is None or person.anchor_year is None:
        return None
    years = date // 10_000 - person.anchor_year
    if person.anchor_age == OVER_89:
        return person.anchor_age if years >= 0 else None
    age = person.anchor_age + years
    if not 0 <= age <= OLDEST:
        raise CohortError(
            f"The age at the study would not lie between 0 and {OLDEST} years.",
            where=row.where("StudyDate"),
            mend="Take the metadata and MIMIC-IV's patients as published: their shifted years belong together.",
        )
    return age


def _note(place: Path, name: str, where: str) -> str | None:
    """The findings and the impression of a report in one line; None where there is no report, or it has neither."""
    path = place / inside(place, name, where)
    try:
        with path.open("rb") as handle:
            text = handle.read(WIDEST).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, OSError):
        raise CohortError(
            "A report cannot be read.", where=f"{path} ({where})", mend="Unpack the reports again."
        ) from None
    # Headers and texts in turn, after what comes before the first header.
    parts = SECTION.split(text)[1:]
    told = [
        section
        for header, section in zip(parts[::2], parts[1::2], strict=True)
        if any(name in header for name in READ_SECTIONS)
    ]
    return " ".join(" ".join(told).split()) or None
