"""Small chest radiograph releases in the published layouts."""

import csv
import gzip
import zlib

from PIL import Image

CHEXPERT_LABELS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]


def write_table(path, columns, rows):
    """A CSV file of dicts, gzipped where its name says so; what a row lacks is blank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_picture(path):
    """A grey image whose level follows from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 30), level(path.as_posix())).save(path)


def level(key):
    return zlib.crc32("/".join(key.split("/")[-3:]).encode()) % 256


def column(found, name):
    """sample_id -> value."""
    return dict(zip(found.table.column("sample_id").to_pylist(), found.table.column(name).to_pylist(), strict=True))
