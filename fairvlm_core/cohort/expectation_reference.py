"""An earlier cohort, the reference, and who of its patients comes nearer to the test split than before.

That is an error, for what was learnt from them would be tested on them. Other moves are warnings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fairvlm_core.cohort.expectation_frames import codes, label_values, wrong_columns
from fairvlm_core.cohort.expectation_suites import expect
from fairvlm_core.cohort.table import COHORT_FILE, SPLITS, Task, read_cohort, task_of
from fairvlm_core.errors import CohortError, ConfigError

NONE = len(SPLITS)  # the split of whoever has none
STRATIFIED = "strata.json"  # what only stratify writes beside a cohort


@dataclass(frozen=True)
class Reference:
    """An earlier cohort.

    Attributes:
        table: the cohort, with its metadata.
        balanced: whether stratify wrote it: then its training rows do not say who came.
        where: its file.
    """

    table: pa.Table
    balanced: bool = False
    where: str = "reference"

    def require_task(self, task: Task) -> None:
        """Refuse a reference whose labels are not those of the cohort."""
        other = task_of(self.table)
        if (other.kind, other.labels) != (task.kind, task.labels):
            raise CohortError(
                "The reference serves another task: its labels are not those of the cohort.",
                where=self.where,
                mend="Pass an earlier cohort of the same release to validate.reference, or leave it empty.",
            )


def read_reference(path: Path) -> Reference:
    """Read an earlier cohort, as ingest or stratify wrote it: the folder, or the file itself.

    Raises:
        ConfigError: when there is nothing.
        CohortError: when it is no cohort.
    """
    if not path.exists():
        raise ConfigError(
            "The reference does not exist.",
            where=f"validate.reference, {path}",
            mend="Pass the folder that ingest wrote for an earlier cohort, or leave it empty.",
        )
    file = path / COHORT_FILE if path.is_dir() else path
    table = read_cohort(file)
    wrong = [field.name for field in wrong_columns(table.schema)]
    if wrong or label_values(table) is None:
        raise CohortError(
            "The reference is not a cohort as this version writes it.",
            where=f"{file}, column {wrong[0] if wrong else 'labels'}",
            mend="Run `fairvlm ingest` on that release again, or leave validate.reference empty.",
        )
    repeated = pc.any(pc.greater(table.column("copy"), 0)).as_py()
    return Reference(table, bool(repeated) or (file.parent / STRATIFIED).is_file(), str(file))


def add_reference(frame: pd.DataFrame, table: pa.Table, reference: Reference) -> None:
    """Add to the cohort's `row_frame` what the reference says about each row's patient and image.

    `patient_seen`, `image_seen`: it has them. `patient_moved`, `image_moved`: how many splits nearer to test than there
    (below zero: nearer to train); of an image only where its patient had no split. `patient_undecided`: a split there,
    none here. `image_elsewhere`: the image of somebody else there.
    """
    before = reference.table
    now, then = codes(table.column("split"), SPLITS), codes(before.column("split"), SPLITS)
    then = np.where(then < 0, NONE, then)
    patient, of_patient, patients = _matched(table.column("patient_id"), before.column("patient_id"))
    image, of_image, images = _matched(table.column("image"), before.column("image"))
    was = _least(of_patient, then, patients, NONE)[patient]
    image_was = np.where(was == NONE, _least(of_image, then, images, NONE)[image], NONE)

    def moved(earlier: np.ndarray) -> np.ndarray:
        return np.where((earlier < NONE) & (now >= 0) & (now < NONE), now - earlier, 0)

    frame["patient_seen"], frame["image_seen"] = patient >= 0, image >= 0
    frame["patient_moved"], frame["image_moved"] = moved(was), moved(image_was)
    frame["patient_undecided"] = (was < NONE) & (now < 0)
    frame["image_elsewhere"] = (image >= 0) & (_least(of_image, of_patient, images, patients)[image] != patient)


def _matched(keys: pa.ChunkedArray, known: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, int]:
    """Number the known keys: that of each key (-1 where it is not known), of each known row, and how many there are."""
    encoded = known.combine_chunks().dictionary_encode()
    place = pc.fill_null(pc.index_in(keys, value_set=encoded.dictionary), -1)
    of_known = pc.fill_null(encoded.indices, -1)
    return place.to_numpy().astype(np.int64), of_known.to_numpy().astype(np.int64), len(encoded.dictionary)


def _least(of: np.ndarray, value: np.ndarray, count: int, none: int) -> np.ndarray:
    """The least value of the rows of each key, int64 [count + 1]; the last, for the key -1, is `none`."""
    least = np.full(count + 1, none, dtype=np.int64)
    np.minimum.at(least, of, value)
    least[-1] = none
    return least


def reference_expectations() -> list[Any]:
    """What must hold for the columns that `add_reference` adds."""
    same = "Give them the split that they have in the reference"
    return [
        expect(
            "ExpectColumnValuesToBeBetween",
            "patient_moved",
            "no patient went from train to validation or test since the reference, or from validation to test",
            f"{same}: what was learnt from them would be tested on them.",
            of="split",
            max_value=0,
        ),
        expect(
            "ExpectColumnValuesToBeBetween",
            "image_moved",
            "no image went from train to validation or test under another patient's name, or from validation to test",
            "Give the patients the pseudonyms and the split that they have in the reference.",
            of="split",
            max_value=0,
        ),
        expect(
            "ExpectColumnValuesToBeBetween",
            "patient_moved",
            "no patient went from test to validation or train since the reference, or from validation to train",
            f"{same}: otherwise the results of both cannot be compared.",
            of="split",
            warn=True,
            min_value=0,
        ),
        expect(
            "ExpectColumnValuesToBeInSet",
            "patient_undecided",
            "every patient who has a split in the reference has one here",
            f"{same}: otherwise stratify draws a new one, and may test on some who were trained on.",
            of="split",
            warn=True,
            value_set=[False],
        ),
        expect(
            "ExpectColumnValuesToBeInSet",
            "image_elsewhere",
            "an image that the reference has belongs to the same patient there",
            "Use the same pseudonyms: otherwise nobody can tell who was trained on before.",
            of="patient_id",
            warn=True,
            value_set=[False],
        ),
    ]
