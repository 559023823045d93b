"""EyePACS: the fundus photographs of Kaggle's Diabetic Retinopathy Detection (2015).

    train/10_left.jpeg   trainLabels.csv (image, level)
    [test/1_left.jpeg    retinopathy_solution.csv (image, level, Usage)]

No demographics are published. `demographics` names a table of your own with a column `patient` (the number before the
underscore) or `image` and a column `sex`, `age` or both; without it, sex and age are null and the cohort has no groups.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.reading import (
    Row,
    age_of,
    coded,
    count_unknown,
    find,
    found,
    inside,
    needed,
    once,
    read_rows,
    release_root,
    sex_of,
)
from fairvlm_core.cohort.images import open_image
from fairvlm_core.cohort.table import SEXES, Task, age_group, age_group_names, cohort_table
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import check, option
from fairvlm_core.errors import CohortError, ConfigError

# The International Clinical Diabetic Retinopathy scale, as the competition numbers it.
GRADES = {
    "none": "no diabetic retinopathy",
    "mild": "mild non-proliferative diabetic retinopathy",
    "moderate": "moderate non-proliferative diabetic retinopathy",
    "severe": "severe non-proliferative diabetic retinopathy",
    "proliferative": "proliferative diabetic retinopathy",
}
LEVELS = {str(level): level for level in range(len(GRADES))}
REFERABLE = 2  # moderate or worse, as in Gulshan et al. 2016
TASKS = {
    "referable": Task(
        kind="binary",
        labels=("referable_retinopathy",),
        concepts=("referable diabetic retinopathy",),
        negatives=("no referable diabetic retinopathy",),
        question="Does this fundus photograph show {concept}?",
        prompt="A fundus photograph with {concept}",
    ),
    "grade": Task(
        kind="multiclass",
        labels=tuple(GRADES),
        concepts=tuple(GRADES.values()),
        question="Which grade of diabetic retinopathy does this fundus photograph show?",
        prompt="A fundus photograph with {concept}",
    ),
}
NAME = re.compile(r"(\d+)_(left|right)")
SUFFIXES = (".jpeg", ".jpg")
UNPACK = "Unpack train.zip and trainLabels.csv.zip of Kaggle's diabetic-retinopathy-detection there."
UNPACK_TEST = "Unpack the test images, and take retinopathy_solution.csv from the competition's forum."
OWN = "Pass ingest.options.demographics: a table with a column patient or image, and a column sex, age or both."


@dataclass(frozen=True)
class Options:
    """What is asked, and who the patients are."""

    task: str = option("referable", "Retinopathy to be referred, or its grade.", choices=tuple(TASKS))
    demographics: str = option("", "Your table of sex and age: its path, absolute or from the release's folder.")

    def __post_init__(self) -> None:
        check(self)


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Read the release in `root`; official test images get the split `test`, the others none.

    Both eyes of a patient share `patient_id`. Training images of a patient of the test set are left out and counted, as
    are rows that repeat another one, and images that no row lists. Test images without their table are counted, but
    cannot be used; the table without its images is an error. Nothing here is random, so `seed` has no effect.

    Raises:
        CohortError: naming the file, row and column that is missing or cannot be what it is.
        ConfigError: `demographics` is no table.
    """
    place = release_root(root, "EyePACS", "Pass the folder that holds trainLabels.csv.")
    counted: Counter[str] = Counter()
    bad = tolerance or Tolerance()
    by, given, people = _people(place, options.demographics, bad) if options.demographics else ("", [], {})
    grade = options.task == "grade"

    def rows_of(table: Path, folder: Path, split: str | None) -> list[dict[str, Any]]:
        pictures, read = _pictures(folder), []
        for cells in read_rows(table, ("image", "level"), mend=UNPACK):
            with bad.skipping():
                name, patient = _name(cells)
                level = coded(cells, "level", LEVELS, say="a level from 0 to 4")
                if name not in pictures:
                    raise CohortError("A listed image is missing.", where=cells.where("image"), mend=UNPACK)
                person = people.get(name if by == "image" else patient, {})
                age = person.get("age")
                row = {
                    "sample_id": name,
                    "patient_id": patient,
                    "image": inside(place, pictures[name], cells.where("image")),
                    "modality": "fundus",
                    "labels": [int(level == k) for k in LEVELS.values()] if grade else [int(level >= REFERABLE)],
                    "sex": person.get("sex"),
                    "age": age,
                    "age_group": age_group(age, age_edges),
                    "split": split,
                    "source": "eyepacs",
                    "where": cells.where(),
                }
                read.append(row)
        rows = once(read, counted)
        if not rows:
            raise CohortError("The table has no rows.", where=str(table), mend="Download it again.")
        counted["excluded_unlisted_image"] += len(pictures.keys() - {row["sample_id"] for row in rows})
        return rows

    train = found(place, ["train"], mend=UNPACK, folder=True)
    rows = rows_of(found(place, ["trainLabels.csv"], mend=UNPACK), train, None)
    solution, test = find(place, ["retinopathy_solution.csv"]), find(place, ["test"], folder=True)
    if solution:
        held_out = rows_of(solution, found(place, ["test"], mend=UNPACK_TEST, folder=True), "test")
        patients = {row["patient_id"] for row in held_out}
        kept = [row for row in rows if row["patient_id"] not in patients]
        counted["excluded_patient_in_test"] = len(rows) - len(kept)
        rows = kept + held_out
    elif test:
        counted["excluded_test_image_without_label"] = len(_pictures(test))

    count_unknown(rows, counted)
    listed = {row["image"]: row.pop("where") for row in rows}

    def load(key: str) -> Image.Image:
        return open_image(place / key, where=listed[key])

    vocabularies = {"sex": ("sex", SEXES), "age": ("age_group", age_group_names(age_edges))}
    groups = dict(vocabularies[column] for column in given)
    return Release(cohort_table(rows, task=TASKS[options.task], groups=groups), load, dict(counted))


def _name(cells: Row) -> tuple[str, str]:
    """An image as the tables name it, and its patient."""
    name = needed(cells, "image").lower().removesuffix(".jpeg").removesuffix(".jpg")
    match = NAME.fullmatch(name)
    if match is None:
        raise CohortError(
            "The name of an image has no patient and eye in it.", where=cells.where("image"), mend="Write 10_left."
        )
    return name, match[1]


def _pictures(folder: Path) -> dict[str, Path]:
    """Image's name -> file, also in folders that archives bring along; where it is twice, the first one."""
    by_name: dict[str, Path] = {}
    for path, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            stem, suffix = os.path.splitext(file.lower())
            if suffix in SUFFIXES and not file.startswith("."):
                by_name.setdefault(stem, Path(path, file))
    return by_name


def _people(root: Path, name: str, bad: Tolerance) -> tuple[str, list[str], dict[str, dict[str, Any]]]:
    """The user's table: its column that names people, which of sex and age it has, and these by that name."""
    file = root / name
    if not file.is_file():
        raise ConfigError("The table of demographics is missing.", where=str(file), mend=OWN)
    first = next(read_rows(file, (), mend=OWN), None)
    columns = {column.lower() for column in first.cells} if first else set()
    by = "image" if "image" in columns else "patient"
    given: list[str] = [column for column in ("sex", "age") if column in columns]
    if by not in columns or not given:
        raise CohortError("The table of demographics has no rows, or lacks a column.", where=str(file), mend=OWN)
    people: list[dict[str, Any]] = []
    for cells in read_rows(file, (by, *given), mend=OWN):
        with bad.skipping():
            person = {
                "name": _name(cells)[0] if by == "image" else needed(cells, "patient"),
                "sex": sex_of(cells) if "sex" in given else None,
                "age": age_of(cells, unknown=()) if "age" in given else None,
                "where": cells.where(),
            }
            people.append(person)
    return by, given, {person["name"]: person for person in once(people, Counter(), key="name")}
