"""HAM10000 and the ISIC 2018 Task 3 test set, as published on Harvard Dataverse (doi:10.7910/DVN/DBW86T) and Kaggle.

    HAM10000_images_part_1/ISIC_*.jpg  HAM10000_images_part_2/ISIC_*.jpg  HAM10000_metadata[.csv|.tab]
    ISIC2018_Task3_Test_Images/ISIC_*.jpg  ISIC2018_Task3_Test_GroundTruth[.csv|.tab]

The test set is optional, but whole or absent. Names may be in any case, and folders may be nested as some archives
unpack them. Several images show the same lesion, so the lesion is what must not leak: it stands in `patient_id`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.adapters.reading import (
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
from fairvlm_core.config import check
from fairvlm_core.errors import CohortError

# Tschandl et al. 2018, table 1; akiec takes in actinic keratoses and intraepithelial carcinoma (Bowen's disease).
CONCEPTS = {
    "akiec": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}
TASK = Task(
    kind="multiclass",
    labels=tuple(CONCEPTS),
    concepts=tuple(CONCEPTS.values()),
    question="Which diagnosis does this dermoscopy image show?",
    prompt="A photo of {concept}",
)
COLUMNS = ("lesion_id", "image_id", "dx", "age", "sex")
IMAGE_FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
METADATA = "HAM10000_metadata"
TEST_IMAGES = "ISIC2018_Task3_Test_Images"
TEST_TRUTH = "ISIC2018_Task3_Test_GroundTruth"
SEX_CODES = {name: name for name in SEXES} | {"": None, "unknown": None}
UNPACK = "Unpack the files of doi:10.7910/DVN/DBW86T there, and pass the folder that holds them."
TAKE = "Take the table from doi:10.7910/DVN/DBW86T; the challenge's own copy has no lesion, age or sex."


@dataclass(frozen=True)
class Options:
    """The release has no options."""

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

    Training images of a lesion (or with an identifier) that the test set shows too are left out and counted, as are
    rows that repeat another one. Age 0 means unknown. Nothing here is random, so `seed` has no effect.

    Raises:
        CohortError: naming the file, row and column that is missing or cannot be what it is.
    """
    place = release_root(root, "HAM10000", "Pass the folder that holds HAM10000_metadata.")
    counted: Counter[str] = Counter()
    bad = tolerance or Tolerance()
    table = found(place, _names(METADATA), mend=UNPACK)
    folders = [found(place, [name], mend=UNPACK, folder=True) for name in IMAGE_FOLDERS]
    rows = _rows(table, _pictures(folders), place, age_edges, counted, bad, split=None)

    test_table = find(place, _names(TEST_TRUTH))
    if test_table or find(place, [TEST_IMAGES], folder=True):
        truth = found(place, _names(TEST_TRUTH), mend=UNPACK)
        pictures = found(place, [TEST_IMAGES], mend=UNPACK, folder=True)
        test = _rows(truth, _pictures([pictures]), place, age_edges, counted, bad, split="test")
        held_out = {row["patient_id"] for row in test} | {row["sample_id"] for row in test}
        kept = [row for row in rows if row["patient_id"] not in held_out and row["sample_id"] not in held_out]
        counted["excluded_lesion_in_test"] = len(rows) - len(kept)
        rows = kept + test

    count_unknown(rows, counted)
    listed = {row["image"]: row.pop("where") for row in rows}

    def load(key: str) -> Image.Image:
        return open_image(place / key, where=listed[key])

    groups = {"sex": SEXES, "age_group": age_group_names(age_edges)}
    return Release(cohort_table(rows, task=TASK, groups=groups), load, dict(counted))


def _names(table: str) -> list[str]:
    """A table as Dataverse and Kaggle name it."""
    return [table, f"{table}.csv", f"{table}.tab"]


def _pictures(folders: Sequence[Path]) -> dict[str, Path]:
    """Image id -> file; where an archive holds a file twice, the first one."""
    by_id: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            # Names that start with a dot are what macOS leaves in archives.
            if path.suffix.lower() in (".jpg", ".jpeg") and not path.name.startswith("."):
                by_id.setdefault(path.stem.lower(), path)
    return by_id


def _rows(
    table: Path,
    pictures: dict[str, Path],
    root: Path,
    age_edges: tuple[float, ...],
    counted: Counter[str],
    bad: Tolerance,
    *,
    split: str | None,
) -> list[dict[str, Any]]:
    """The rows of one table as cohort rows, `where` telling the table's row."""
    read: list[dict[str, Any]] = []
    for cells in read_rows(table, COLUMNS, mend=TAKE):
        with bad.skipping():
            dx = coded(cells, "dx", {label: label for label in TASK.labels}, say=f"one of {', '.join(TASK.labels)}")
            image_id, age = needed(cells, "image_id"), age_of(cells)
            file = pictures.get(image_id.lower())
            if file is None:
                raise CohortError(
                    "A listed image is missing.",
                    where=cells.where("image_id"),
                    mend="Unpack all parts of the release, or remove the row.",
                )
            row = {
                "sample_id": image_id,
                "patient_id": needed(cells, "lesion_id"),
                "image": inside(root, file, cells.where("image_id")),
                "modality": "dermoscopy",
                "labels": [int(label == dx) for label in TASK.labels],
                "sex": sex_of(cells, codes=SEX_CODES),
                "age": age,
                "age_group": age_group(age, age_edges),
                "split": split,
                "source": "ham10000",
                "where": cells.where(),
            }
            read.append(row)
    rows = once(read, counted)
    if not rows:
        raise CohortError("The table has no rows.", where=str(table), mend="Download it again.")
    listed = {row["sample_id"].lower() for row in rows}
    counted["excluded_unlisted_image"] += sum(image_id not in listed for image_id in pictures)
    return rows
