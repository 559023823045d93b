"""HAM10000 and the ISIC 2018 Task 3 test set, as published on Harvard Dataverse (doi:10.7910/DVN/DBW86T) and Kaggle.

    HAM10000_images_part_1/ISIC_*.jpg  HAM10000_images_part_2/ISIC_*.jpg  HAM10000_metadata[.csv|.tab]
    ISIC2018_Task3_Test_Images/ISIC_*.jpg  ISIC2018_Task3_Test_GroundTruth[.csv|.tab]

The test set is optional, but whole or absent. Names may be in any case, and folders may be nested as some archives
unpack them. Several images show the same lesion, so the lesion is what must not leak: it stands in `patient_id`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fairvlm_core.cohort.adapters import Release
from fairvlm_core.cohort.images import open_image
from fairvlm_core.cohort.table import SEXES, Task, age_group, age_group_names, cohort_table
from fairvlm_core.config import check
from fairvlm_core.errors import CohortError, ConfigError

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
OLDEST = 120


@dataclass(frozen=True)
class Options:
    """The release has no options."""

    def __post_init__(self) -> None:
        check(self)


def read(root: Path | None, options: Options, *, age_edges: tuple[float, ...], seed: int) -> Release:
    """Read the release in `root`; official test images get the split `test`, the others none.

    Training images of a lesion (or with an identifier) that the test set shows too are left out and counted, as are
    rows that repeat another one. Age 0 means unknown. Nothing here is random, so `seed` has no effect.

    Raises:
        CohortError: naming the file, row and column that is missing or cannot be what it is.
    """
    if root is None:
        raise ConfigError(
            "HAM10000 has to be read from somewhere.", where="--root", mend="Pass the folder of the release."
        )
    if not root.is_dir():
        raise CohortError(
            "The release is not a folder.", where=str(root), mend="Pass the folder that holds HAM10000_metadata."
        )
    counted: Counter[str] = Counter()
    present = {_stem(path): path for path in sorted(root.iterdir(), reverse=True)}  # of two twins, the first one counts
    table = _required(present, METADATA, root)
    folders = [_required(present, name, root, folder=True) for name in IMAGE_FOLDERS]
    rows = _rows(table, _pictures(folders), root, age_edges, counted, split=None)

    if TEST_TRUTH.lower() in present or TEST_IMAGES.lower() in present:
        truth, pictures = _required(present, TEST_TRUTH, root), _required(present, TEST_IMAGES, root, folder=True)
        test = _rows(truth, _pictures([pictures]), root, age_edges, counted, split="test")
        held_out = {row["patient_id"] for row in test} | {row["sample_id"] for row in test}
        kept = [row for row in rows if row["patient_id"] not in held_out and row["sample_id"] not in held_out]
        counted["excluded_lesion_in_test"] = len(rows) - len(kept)
        rows = kept + test

    counted["without_sex"] = sum(row["sex"] is None for row in rows)
    counted["without_age"] = sum(row["age"] is None for row in rows)
    counted["without_sex_or_age"] = sum(row["sex"] is None or row["age"] is None for row in rows)
    listed = {row["image"]: row.pop("where") for row in rows}

    def load(key: str) -> Image.Image:
        return open_image(root / key, where=listed[key])

    groups = {"sex": SEXES, "age_group": age_group_names(age_edges)}
    return Release(cohort_table(rows, task=TASK, groups=groups), load, dict(counted))


def _stem(path: Path) -> str:
    """The name as it is looked up: any case, with or without the extension of a table."""
    return (path.stem if path.suffix.lower() in (".csv", ".tab") else path.name).lower()


def _required(present: dict[str, Path], name: str, root: Path, *, folder: bool = False) -> Path:
    found = present.get(name.lower())
    if found is None or found.is_dir() != folder:
        raise CohortError(
            f"The release lacks the {'folder' if folder else 'table'} {name}.",
            where=str(root / name),
            mend="Unpack the files of doi:10.7910/DVN/DBW86T there, and pass the folder that holds them.",
        )
    return found


def _pictures(folders: Sequence[Path]) -> dict[str, Path]:
    """Image id -> file; where an archive holds a file twice, the first one."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            # Names that start with a dot are what macOS leaves in archives.
            if path.suffix.lower() in (".jpg", ".jpeg") and not path.name.startswith("."):
                found.setdefault(path.stem.lower(), path)
    return found


def _rows(
    table: Path,
    pictures: dict[str, Path],
    root: Path,
    age_edges: tuple[float, ...],
    counted: Counter[str],
    *,
    split: str | None,
) -> list[dict[str, Any]]:
    """The rows of one table as cohort rows, `where` telling the table's row (the header being row 1)."""
    rows: dict[str, dict[str, Any]] = {}
    for number, cells in _records(table):
        where = f"{table.name}, row {number}"
        image_id, lesion, dx = (cells[name].strip() for name in ("image_id", "lesion_id", "dx"))
        for name, value in (("image_id", image_id), ("lesion_id", lesion)):
            if not value:
                raise CohortError(
                    "An identifier is blank.", where=f"{table}, row {number}, column {name}", mend="Fill it in."
                )
        if dx.lower() not in TASK.labels:
            raise CohortError(
                "A diagnosis is not one of the seven.",
                where=f"{table}, row {number}, column dx",
                mend=f"Use one of {', '.join(TASK.labels)}.",
            )
        file = pictures.get(image_id.lower())
        if file is None:
            raise CohortError(
                "A listed image is missing.",
                where=f"{image_id}.jpg ({table}, row {number}, column image_id)",
                mend="Unpack all parts of the release, or remove the row.",
            )
        age = _age(cells["age"], f"{table}, row {number}, column age")
        row = {
            "sample_id": image_id,
            "patient_id": lesion,
            "image": file.relative_to(root).as_posix(),
            "modality": "dermoscopy",
            "labels": [int(label == dx.lower()) for label in TASK.labels],
            "sex": _sex(cells["sex"], f"{table}, row {number}, column sex"),
            "age": age,
            "age_group": age_group(age, age_edges),
            "split": split,
            "source": "ham10000",
        }
        if image_id in rows:
            first = {key: value for key, value in rows[image_id].items() if key != "where"}
            if first != row:
                raise CohortError(
                    "Two rows describe the same image differently.",
                    where=f"{table}, row {number} and {rows[image_id]['where'].split(', ')[1]}",
                    mend="Keep the right one.",
                )
            counted["excluded_repeated_row"] += 1
            continue
        rows[image_id] = {**row, "where": where}
    if not rows:
        raise CohortError("The table has no rows.", where=str(table), mend="Download it again.")
    listed = {image_id.lower() for image_id in rows}
    counted["excluded_unlisted_image"] += sum(image_id not in listed for image_id in pictures)
    return list(rows.values())


def _records(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Row number (the header being row 1) and cells by column name, comma or tab separated."""
    try:
        # Excel and Dataverse put a byte order mark in front of the first column's name.
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CohortError(
            "The table is not text.",
            where=f"{table}, byte {error.start}",
            mend="Save it as UTF-8, comma or tab separated.",
        ) from None
    reader = csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    header = [name.strip().lower() for name in next(reader, [])]
    for name in COLUMNS:
        if name not in header:
            raise CohortError(
                f'The table lacks the column "{name}".',
                where=f"{table}, column {name}",
                mend="Take the table from doi:10.7910/DVN/DBW86T; the challenge's own copy has no lesion, age or sex.",
            )
    records = []
    for number, cells in enumerate(reader, start=2):
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise CohortError(
                f"A row has {len(cells)} cells, the header {len(header)}.",
                where=f"{table}, row {number}",
                mend="Mend the row.",
            )
        records.append((number, dict(zip(header, cells, strict=True))))
    return records


def _sex(cell: str, where: str) -> str | None:
    value = cell.strip().lower()
    if value in ("", "unknown"):
        return None
    if value not in SEXES:
        raise CohortError(
            "A sex cannot be read.", where=where, mend="Write female, male or unknown, or leave it blank."
        )
    return value


def _age(cell: str, where: str) -> float | None:
    """Years; blank and 0 mean unknown."""
    try:
        age = float(cell) if cell.strip() else 0.0
    except ValueError:
        age = -1.0
    if not 0 <= age <= OLDEST:
        raise CohortError(
            "An age cannot be read.", where=where, mend=f"Write years from 0 to {OLDEST}, or leave it blank."
        )
    return age or None
