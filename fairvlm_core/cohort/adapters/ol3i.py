"""OL3I: one abdominal CT slice a patient and ischaemic heart disease later on (Zambrano Chaves et al. 2023).

    clinical_data.csv (or ol3i_metadata.csv)   anon_id, age (or age_at_scan), sex, label_1y, set_1y, label_5y, set_5y
    l3_slices.h5                               a data set of 512 x 512 CT numbers per anon_id

From Stanford AIMI (doi:10.1038/s41598-023-47895-y). The slices are at the third lumbar vertebra. Some 4 to 5 % of the
labels at one year are positive, so that plain accuracy says nothing: look at balanced accuracy, AUC and their
intervals.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.reading import (
    SEX_NAMES,
    age_of,
    coded,
    count_unknown,
    found,
    inside,
    needed,
    once,
    read_rows,
    release_root,
)
from fairvlm_core.cohort.table import SEXES, Task, age_group, age_group_names, cohort_table
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import check, option
from fairvlm_core.errors import CohortError, ConfigError

HORIZONS = {"1y": "one year", "5y": "five years"}
TABLES = ("clinical_data.csv", "ol3i_metadata.csv")
SLICES = "l3_slices.h5"
SHAPE = (512, 512)
DAMAGE = (OSError, KeyError, ValueError, RuntimeError, TypeError)  # what h5py raises for it
SAY_SEX = (
    "female, male, F or M, leave it blank, or say what it means in ingest.options.sex_codes ({1: male, 0: female})"
)
LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1, "": None}
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test", "": None}
UNPACK = "Unpack OL3I as Stanford AIMI publishes it, and pass the folder that holds clinical_data.csv."


@dataclass(frozen=True)
class Options:
    """Which event is predicted, and which CT numbers can be told apart in the pictures."""

    horizon: str = option("1y", "Heart disease within one year or five.", choices=tuple(HORIZONS))
    window_level: float = option(40.0, "CT number (HU) that becomes middle grey; 40 is usual for soft tissue.")
    window_width: float = option(400.0, "CT numbers from black to white; 400 is usual for soft tissue.", low=1)
    sex_codes: dict[str, Any] = option({}, "What codes of the column sex mean, like {1: male, 0: female}.")  # noqa: RUF009 - a factory copies it

    def __post_init__(self) -> None:
        check(self)
        codes = {str(code).lower(): sex for code, sex in self.sex_codes.items()}
        if any(sex not in (*SEXES, None) for sex in codes.values()):
            raise ConfigError(
                "A code of the column sex has no meaning.",
                where="ingest.options.sex_codes",
                mend=f"Give each the meaning {', '.join(SEXES)} or null (unknown), like {{1: male, 0: female}}.",
            )
        object.__setattr__(self, "sex_codes", codes)


def task(horizon: str) -> Task:
    """The question of a horizon: 1y or 5y."""
    disease = f"ischemic heart disease within {HORIZONS[horizon]}"
    return Task(
        kind="binary",
        labels=(f"ihd_{horizon}",),
        concepts=(disease,),
        negatives=(f"no {disease}",),
        question="Does this abdominal CT slice point to {concept}?",
        prompt="An abdominal CT slice of a patient with {concept}",
    )


def read(
    root: Path | None,
    options: Options,
    *,
    age_edges: tuple[float, ...],
    seed: int,
    tolerance: Tolerance | None = None,
) -> Release:
    """Read the release in `root`, with the official split of the horizon.

    Patients whose label is blank (their follow-up is shorter than the horizon) are left out and counted, as are those
    who have a label but no split. Age 0 means unknown. Nothing here is random, so `seed` has no effect.

    Raises:
        CohortError: naming the file, row and column that is missing or cannot be what it is.
    """
    place = release_root(root, "OL3I", "Pass the folder that holds clinical_data.csv.")
    counted: Counter[str] = Counter()
    bad = tolerance or Tolerance()
    table, file = found(place, TABLES, mend=UNPACK), found(place, [SLICES], mend=UNPACK)
    inside(place, file, str(file))
    slices = Slices(file)

    label, split = f"label_{options.horizon}", f"set_{options.horizon}"
    sexes = SEX_NAMES | options.sex_codes
    listed: set[str] = set()
    patients: list[dict[str, Any]] = []
    columns = ("anon_id", "age", "sex", label, split)
    for cells in read_rows(table, columns, mend=UNPACK, also={"age": ("age_at_scan",)}):
        with bad.skipping():
            listed.add(needed(cells, "anon_id"))
            age = age_of(cells)
            patients.append(
                {
                    "sample_id": cells["anon_id"],
                    "patient_id": cells["anon_id"],
                    "image": f"{file.name}/{cells['anon_id']}",
                    "modality": "CT",
                    "labels": [coded(cells, label, LABELS, say="0 or 1, or leave it blank")],
                    "sex": coded(cells, "sex", sexes, say=SAY_SEX),
                    "age": age,
                    "age_group": age_group(age, age_edges),
                    "split": coded(cells, split, SPLIT_NAMES, say="train, val or test"),
                    "source": "ol3i",
                    "where": cells.where(),
                }
            )
    if listed and listed.isdisjoint(slices.names):
        raise CohortError(
            "The file has no data set that is named like an anon_id, so its layout is not the published one.",
            where=str(file),
            mend=UNPACK,
        )
    counted["excluded_unlisted_image"] = len(slices.names - listed)
    rows = []
    for row in once(patients, counted):
        reason = "label" if row["labels"] == [None] else "split" if row["split"] is None else None
        if reason:
            counted[f"excluded_without_{reason}"] += 1
            continue
        with bad.skipping():
            slices.require(row["sample_id"], row["where"])
            rows.append(row)
    if not rows:
        raise CohortError(f"No row has a label in the column {label}.", where=str(table), mend=UNPACK)
    count_unknown(rows, counted)
    by_image = {row["image"]: row for row in rows}

    def load(key: str) -> np.ndarray:
        row = by_image[key]
        numbers = slices.read(row["sample_id"], row["where"])
        return windowed(numbers, options.window_level, options.window_width)

    groups = {"sex": SEXES, "age_group": age_group_names(age_edges)}
    return Release(cohort_table(rows, task=task(options.horizon), groups=groups), load, dict(counted))


def windowed(numbers: np.ndarray, level: float, width: float) -> np.ndarray:
    """CT numbers as grey, uint8: black at level - width / 2 and below, white at level + width / 2 and above.

    >>> windowed(np.array([-1000, -160, 40, 240, 3000]), 40, 400)
    array([  0,   0, 128, 255, 255], dtype=uint8)
    """
    share = (numbers.astype(np.float32) - (level - width / 2)) / width
    return (share.clip(0, 1) * 255).round().astype(np.uint8)


class Slices:
    """The slices in the HDF5 file, which stays open: opening it takes longer than reading a slice.

    HDF5 serves one thread at a time, and h5py's own lock has let threads crash (h5py issue 2920), so there is one here.

    Attributes:
        names: of everything in the root of the file.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.lock = file, threading.Lock()
        try:
            # A release is not written to while it is read, and not every file system can lock.
            self.content = h5py.File(file, "r", locking=False)
            self.names = set(self.content)
        except DAMAGE as error:
            raise CohortError(
                f"The file is not HDF5, or damaged ({type(error).__name__}).",
                where=str(file),
                mend="Download it again.",
            ) from None

    def require(self, name: str, where: str) -> None:
        """Refuse a name without a slice, and one that is a link: it can lead to another file."""
        if name not in self.names:
            raise CohortError(
                "A patient has no slice.",
                where=f"{where}, column anon_id ({self.file})",
                mend="Download the file again, or remove the row.",
            )
        place = f"{self.file} ({where})"
        with self._reading(place):
            link = self.content.id.links.get_info(name.encode()).type
        if link != h5py.h5l.TYPE_HARD:
            raise CohortError(
                "A slice is a link, which can lead out of the release.", where=place, mend="Put the slice itself there."
            )

    def read(self, name: str, where: str) -> np.ndarray:
        """The CT numbers of a slice, [512, 512].

        Raises:
            CohortError: it is damaged, has no CT numbers, or takes them from another file.
        """
        place = f"{self.file} ({where})"
        with self._reading(place):
            numbers = _values(self.content[name])
        if numbers is None:
            what = f"A slice is no {SHAPE[0]} x {SHAPE[1]} numbers that lie in this file."
        elif not np.isfinite(numbers).all():
            what = "A slice has values that are no numbers."
        elif numbers.min() >= 0:
            what = "A slice has no value below 0, as air and fat have in CT numbers."
        else:
            return numbers
        raise CohortError(what, where=place, mend="Download the file again: slices hold CT numbers (HU).")

    @contextmanager
    def _reading(self, place: str) -> Iterator[None]:
        """One thread at a time; what is damaged is one error."""
        try:
            with self.lock:
                yield
        except DAMAGE as error:
            raise CohortError(
                f"A slice cannot be read ({type(error).__name__}).", where=place, mend="Download the file again."
            ) from None


def _values(data: Any) -> np.ndarray | None:
    """The values of a data set; None where it is of another kind or keeps them in other files."""
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        return None
    return data[()] if data.shape == SHAPE and data.dtype.kind in "iuf" else None
