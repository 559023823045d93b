"""CheXpert, as published by Stanford (full size, or 320 pixels wide as CheXpert-v1.0-small).

    CheXpert-v1.0[-small]/train.csv  train/patient00001/study1/view1_frontal.jpg
    CheXpert-v1.0[-small]/valid.csv  valid/patient64541/study1/view1_frontal.jpg
    CHEXPERT DEMO.xlsx                                         (optional: race and ethnicity)

The folder may have any name; `Path` in the tables begins with the publisher's, which is not looked at. Only two tables
are read: the public test table has no sex, age or view.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.chest import (
    ChestOptions,
    agree,
    chest_release,
    count_groups,
    group_of,
    label_reader,
)
from fairvlm_core.cohort.adapters.reading import (
    Row,
    age_of,
    coded,
    find,
    found,
    needed,
    once,
    read_rows,
    release_root,
    sex_of,
)
from fairvlm_core.cohort.table import age_group
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import option
from fairvlm_core.errors import CohortError

TRAIN, VALID, DEMOGRAPHICS = "train.csv", "valid.csv", "CHEXPERT DEMO.xlsx"
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral")
DEMOGRAPHIC_COLUMNS = ("PATIENT", "PRIMARY_RACE", "ETHNICITY")
# Names under which the public test table goes around.
PUBLIC_TEST = ("test.csv", "test_labels.csv", "groundtruth.csv")
IMAGE = re.compile(r"(?:^|/)((?:train|valid)/(patient\d+)/study\d+/[\w-]+\.(?:jpe?g|png))$", re.IGNORECASE)
PASS = "Pass the folder that holds train.csv, train/ and valid/, or the one above it."
TAKE = "Take train.csv and valid.csv of the release; the public test table has no sex, age or view of its patients."

RACES = ("white", "black", "asian", "native", "pacific", "other")
RACE_NAMES: dict[str, str | None] = {
    "white": "white",
    "black": "black",
    "asian": "asian",
    "native american": "native",
    "american indian": "native",
    "native hawaiian": "pacific",
    "pacific islander": "pacific",
    "other": "other",
    "unknown": None,
    "race and ethnicity unknown": None,
    "patient refused": None,
}
ETHNICITIES = ("non-hispanic", "hispanic")
ETHNICITY_NAMES: dict[str, str | None] = {
    "non-hispanic": "non-hispanic",
    "not hispanic": "non-hispanic",
    "hispanic": "hispanic",
    "unknown": None,
    "patient refused": None,
}


@dataclass(frozen=True)
class Options(ChestOptions):
    """As `ChestOptions`, and what becomes of valid.csv: 234 images that three radiologists labelled."""

    valid: str = option(
        "leave_out",
        "What becomes of valid.csv: left out (it is too small to judge groups on), or the test split.",
        choices=("leave_out", "test"),
    )


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Read the release in `root`; with `valid: test` its images have the split `test`, all others have none.

    Age 0 means unknown, 90 means 90 or over. Race and ethnicity are known only with CHEXPERT DEMO.xlsx, beside
    train.csv or above. Nothing here is random, so `seed` has no effect.

    Raises:
        CohortError: naming the file, row and column that is missing or cannot be what it is.
    """
    top = release_root(root, "CheXpert", PASS)
    place = _place(top)
    counted: Counter[str] = Counter()
    bad = tolerance or Tolerance()
    rows = _rows(found(place, [TRAIN], mend=TAKE), options, age_edges, counted, bad, split=None)
    if options.valid == "test":
        test = _rows(found(place, [VALID], mend=TAKE), options, age_edges, counted, bad, split="test")
        _refuse_shared_patients(rows, test)
        rows += test
    elif table := find(place, [VALID]):
        counted["excluded_valid"] = sum(1 for _ in read_rows(table, ["Path"], mend=TAKE))

    vocabularies = {}
    workbook = find(place, [DEMOGRAPHICS]) or find(top, [DEMOGRAPHICS])
    if workbook:
        races, ethnicities = _demographics(workbook, {row["patient_id"] for row in rows}, counted, bad)
        for row in rows:
            row["race"], row["ethnicity"] = races.get(row["patient_id"]), ethnicities.get(row["patient_id"])
        count_groups(rows, {"race": races, "ethnicity": ethnicities}, counted)
        vocabularies = {"race": RACES, "ethnicity": ETHNICITIES}
    return chest_release(
        place, rows, options, age_edges=age_edges, vocabularies=vocabularies, counted=counted, mend=PASS
    )


def _place(root: Path) -> Path:
    """The folder that holds train.csv: the root, or one in it."""
    if find(root, [TRAIN]):
        return root
    places = sorted(table.parent for table in root.glob(f"*/{TRAIN}"))
    if len(places) > 1:
        raise CohortError(
            f"There are {len(places)} releases here.",
            where=", ".join(str(place) for place in places),
            mend="Pass the folder of one of them.",
        )
    if not places and (test := find(root, PUBLIC_TEST)):
        raise CohortError(
            "This is the public test set: its table has no sex, age or view, so no group can be judged on it.",
            where=str(test),
            mend="Pass the folder that holds train.csv; a test split is taken from its patients.",
        )
    return places[0] if places else found(root, [TRAIN], mend=PASS).parent


def _rows(
    table: Path,
    options: Options,
    age_edges: tuple[float, ...],
    counted: Counter[str],
    bad: Tolerance,
    *,
    split: str | None,
) -> list[dict[str, Any]]:
    """The rows of one table as cohort rows, `where` telling the table's row."""
    labels_of = label_reader(options)
    read: list[dict[str, Any]] = []
    for cells in read_rows(table, (*COLUMNS, *options.labels), mend=TAKE):
        with bad.skipping():
            view = coded(
                cells, "Frontal/Lateral", {"frontal": "frontal", "lateral": "lateral"}, say="Frontal or Lateral"
            )
            if options.view not in (view, "all"):
                counted["excluded_view"] += 1
                continue
            image = IMAGE.search(needed(cells, "Path").replace("\\", "/"))
            if image is None:
                raise CohortError(
                    "The path of an image is not one of the release.",
                    where=cells.where("Path"),
                    mend="It ends like train/patient00001/study1/view1_frontal.jpg.",
                )
            age = age_of(cells, "Age")
            read.append(
                {
                    "sample_id": image[1].rsplit(".", 1)[0],
                    "patient_id": image[2].lower(),
                    "image": image[1],
                    "modality": "chest radiograph",
                    "labels": labels_of(cells),
                    "sex": sex_of(cells, "Sex"),
                    "age": age,
                    "age_group": age_group(age, age_edges),
                    "split": split,
                    "source": "chexpert",
                    "where": cells.where(),
                }
            )
    return once(read, counted)


def _refuse_shared_patients(rows: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    trained = {row["patient_id"]: row["where"] for row in rows}
    for row in test:
        if row["patient_id"] in trained:
            raise CohortError(
                "A patient is in both tables, so training would leak into the test.",
                where=f"{row['where']} and {trained[row['patient_id']]}",
                mend="Take both tables from the same release, or leave valid.csv out.",
            )


def _demographics(
    workbook: Path, patients: set[str], counted: Counter[str], bad: Tolerance
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Patient -> race and patient -> ethnicity; None where rows disagree, absent where unknown."""
    races: dict[str, str | None] = {}
    ethnicities: dict[str, str | None] = {}
    for row in _workbook_rows(workbook):
        with bad.skipping():
            patient = needed(row, "PATIENT").lower()
            if patient in patients:
                agree(races, patient, group_of(row["PRIMARY_RACE"], RACE_NAMES, counted, "race"))
                agree(ethnicities, patient, group_of(row["ETHNICITY"], ETHNICITY_NAMES, counted, "ethnicity"))
    return races, ethnicities


def _workbook_rows(workbook: Path) -> Iterator[Row]:
    """The rows of the first sheet, as text; without those that are blank."""
    import openpyxl

    unreadable = CohortError(
        "The workbook cannot be read.", where=str(workbook), mend="Download it again, or take it away."
    )
    try:
        sheets = openpyxl.load_workbook(workbook, read_only=True, data_only=True)
        sheet = sheets.worksheets[0]
        sheet.reset_dimensions()  # some programs write a wrong one, which would cut the sheet
        lines = sheet.iter_rows(values_only=True)
        header = ["" if cell is None else str(cell).strip() for cell in next(lines, ())]
    # openpyxl reports damage by all of these.
    except (BadZipFile, KeyError, ValueError, IndexError, SyntaxError, EOFError, OSError):
        raise unreadable from None
    for column in DEMOGRAPHIC_COLUMNS:
        if column not in header:
            raise CohortError(
                f'The table lacks the column "{column}".',
                where=f"{workbook}, column {column}",
                mend="Take CHEXPERT DEMO.xlsx as published, or take it away.",
            )
    try:
        for number, cells in enumerate(lines, start=2):
            texts = ["" if cell is None else str(cell).strip() for cell in cells]
            if any(texts):
                yield Row(workbook, number, dict(zip(header, texts + [""] * len(header), strict=False)))
    except (BadZipFile, KeyError, ValueError, SyntaxError, EOFError, OSError):
        raise unreadable from None
    finally:
        sheets.close()
