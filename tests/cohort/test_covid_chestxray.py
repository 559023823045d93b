"""The COVID-19 image data collection, on small releases in the published layout and on the real files where at hand."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairvlm_core.cohort.adapters import covid_chestxray
from fairvlm_core.cohort.images import to_rgb
from fairvlm_core.cohort.table import group_codes, groups_of, label_matrix, task_of
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.errors import CohortError, ConfigError

COLUMNS = [
    *("patientid", "offset", "sex", "age", "finding", "survival", "view", "modality", "date", "location", "folder"),
    *("filename", "doi", "url", "license", "clinical_notes", "other_notes", ""),
]
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "covid_chestxray"


def entry(patient, file, finding, sex="", age="", *, modality="X-ray", folder="images", notes=""):
    cells = {
        "patientid": patient,
        "filename": file,
        "finding": finding,
        "sex": sex,
        "age": age,
        "modality": modality,
        "folder": folder,
        "clinical_notes": notes,
        "license": "CC BY",
    }
    return [cells.get(column, "") for column in COLUMNS]


# As the table of June 2020 writes findings.
ROWS = [
    entry("2", "a.jpg", "COVID-19", "M", "65", notes="COVID-19 pneumonia,\nboth lungs"),
    entry("2", "b.jpg", "COVID-19, ARDS", "M", "65.0"),
    entry("3", "c.png", "Streptococcus", "F", "0"),
    entry("4", "d.jpeg", "Pneumonia", "F", "40"),
    entry("5", "e.jpg", "No Finding"),
    entry("6", "f.jpg", "todo", "F", "50"),
    entry("6", "g.jpg", "Unknown", "F", "50"),
    entry("6", "h.jpg", "", "F", "50"),
    entry("7", "i.jpg", "COVID-19", "F", "39", modality="CT"),
    entry("8", "coronacases_org_001.nii.gz", "COVID-19", folder="volumes", modality="CT"),
    entry("9", "j.nii", "COVID-19", modality="CT"),
    entry("9", "k.jpg", "COVID-19", modality="ultrasound"),
]


def write_table(root, rows, columns=COLUMNS):
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([columns, *rows])


def release(root, rows=ROWS):
    (root / "images").mkdir(parents=True)
    for row in rows:
        name = row[COLUMNS.index("filename")]
        if row[COLUMNS.index("folder")] == "images" and name.endswith(("jpg", "jpeg", "png")):
            Image.new("L", (30, 20), ord(name[0])).save(root / "images" / name)
    write_table(root, rows)
    return root


def read(root, tolerance=None, **options):
    chosen = covid_chestxray.Options(**options)
    return covid_chestxray.read(root, chosen, age_edges=(40.0, 60.0), seed=0, tolerance=tolerance)


def column(found, name):
    return dict(zip(found.table.column("sample_id").to_pylist(), found.table.column(name).to_pylist(), strict=True))


def labels(found):
    return {name: value for name, (value,) in column(found, "labels").items()}


def test_the_published_layout(tmp_path):
    found = read(release(tmp_path))
    task = task_of(found.table)
    assert (task.kind, task.labels, task.concepts) == ("binary", ("COVID-19",), ("COVID-19 pneumonia",))
    assert task.negatives == ("no COVID-19 pneumonia",)
    assert labels(found) == {"a.jpg": 1, "b.jpg": 1, "c.png": 0, "d.jpeg": None, "e.jpg": 0}
    assert column(found, "patient_id") == {"a.jpg": "2", "b.jpg": "2", "c.png": "3", "d.jpeg": "4", "e.jpg": "5"}
    assert column(found, "sex") == {
        "a.jpg": "male",
        "b.jpg": "male",
        "c.png": "female",
        "d.jpeg": "female",
        "e.jpg": None,
    }
    assert column(found, "age") == {"a.jpg": 65, "b.jpg": 65, "c.png": 0, "d.jpeg": 40, "e.jpg": None}
    assert column(found, "age_group")["d.jpeg"] == "40-59"
    assert column(found, "note")["a.jpg"] == "COVID-19 pneumonia,\nboth lungs"
    assert set(column(found, "modality").values()) == {"X-ray"}
    assert groups_of(found.table) == {"sex": ("female", "male"), "age_group": ("0-39", "40-59", "60+")}
    for name in ("race", "ethnicity", "language", "split"):
        assert found.table.column(name).null_count == len(found.table)
    assert found.counted == {
        "excluded_without_finding": 3,
        "excluded_other_modality": 2,
        "excluded_volume": 2,
        "excluded_unlisted_image": 0,
        "without_label": 1,
        "without_note": 4,
        "without_sex": 1,
        "without_age": 1,
        "without_sex_or_age": 1,
    }
    for key in found.table.column("image").to_pylist():
        assert abs(np.asarray(found.load(key)).astype(int) - ord(Path(key).name[0])).max() <= 1


def test_both_ways_to_write_findings_mean_the_same(tmp_path):
    """The latest table has paths; what stood in June 2020 is what the publisher made of it."""
    place = COLUMNS.index("finding")
    paths = {
        "COVID-19": "Pneumonia/Viral/COVID-19",
        "COVID-19, ARDS": "Pneumonia/Viral/COVID-19",
        "Streptococcus": "Pneumonia/Bacterial/Streptococcus ",
    }
    latest = [[*row[:place], paths.get(row[place], row[place]), *row[place + 1 :]] for row in ROWS]
    old, new = release(tmp_path / "old"), release(tmp_path / "new", latest)
    for finding in ("COVID-19", "Streptococcus", "Bacterial", "Viral", "Pneumonia", "No Finding"):
        assert labels(read(old, finding=finding)) == labels(read(new, finding=finding)), finding
        assert read(old, finding=finding).table.equals(read(new, finding=finding).table)


@pytest.mark.parametrize(
    ("finding", "concept", "expected"),
    [
        ("covid-19", "COVID-19 pneumonia", [1, 1, 0, None, 0]),
        ("Pneumonia/Viral/COVID-19", "COVID-19 pneumonia", [1, 1, 0, None, 0]),
        ("Bacterial", "bacterial pneumonia", [0, 0, 1, None, 0]),
        ("Streptococcus", "Streptococcus pneumonia", [0, 0, 1, None, 0]),
        ("Viral", "viral pneumonia", [1, 1, 0, None, 0]),
        ("Pneumonia", "pneumonia", [1, 1, 1, 1, 0]),
        ("No Finding", "no abnormality", [0, 0, 0, 0, 1]),
    ],
)
def test_other_findings(tmp_path, finding, concept, expected):
    found = read(release(tmp_path), finding=finding)
    assert list(labels(found).values()) == expected
    assert task_of(found.table).concepts == (concept,)
    certain = read(tmp_path, finding=finding, unspecified="absent")
    assert list(labels(certain).values()) == [value or 0 for value in expected]
    assert certain.counted["without_label"] == 0


def test_a_finding_on_the_way_to_the_asked_one_leaves_it_open(tmp_path):
    findings = ("Pneumonia/Viral/Influenza/H1N1", "Influenza", "Pneumonia/Viral", "ARDS", "Bacterial", "COVID-19, ARDS")
    rows = [entry(str(k), f"{k}.jpg", finding) for k, finding in enumerate(findings)]
    root = release(tmp_path, rows)
    assert list(labels(read(root, finding="H1N1")).values()) == [1, None, None, None, 0, 0]
    # A path that only the table knows.
    write_table(root, [entry("1", "1.jpg", "Pneumonia/Viral/RSV"), entry("2", "2.jpg", "Pneumonia/Viral, Pneumonia")])
    assert labels(read(root, finding="Pneumonia/Viral/RSV")) == {"1.jpg": 1, "2.jpg": None}


def test_modalities(tmp_path):
    root = release(tmp_path)
    ct = read(root, modality="CT")
    assert labels(ct) == {"i.jpg": 1}
    assert "CT slice" in task_of(ct.table).question
    assert ct.counted["excluded_other_modality"] == 9
    both = read(root, modality="all")
    assert column(both, "modality") == {k: "CT" if k == "i.jpg" else "X-ray" for k in labels(both)}
    assert both.counted["excluded_other_modality"] == 1
    assert both.counted["excluded_volume"] == 2
    with pytest.raises(ConfigError, match="modality cannot be 'MR'"):
        read(root, modality="MR")


def test_a_file_under_two_patients_is_one_patient(tmp_path):
    """Cases were taken in from two sources: such patients must not be in two splits, with any of their images."""
    rows = [
        entry("285", "x.jpg", "Legionella", "F", "64"),
        entry("339", "x.jpg", "Legionella", "F", "64"),
        entry("339", "y.jpg", "todo", "F", "64"),
        entry("400", "y.jpg", "Legionella", "F", "64"),  # through a row that is left out
        entry("400", "z.jpg", "COVID-19", "F", "64"),
        entry("500", "w.jpg", "COVID-19", "F", "64"),
    ]
    found = read(release(tmp_path, rows))
    assert column(found, "patient_id") == {"x.jpg": "285", "y.jpg": "285", "z.jpg": "285", "w.jpg": "500"}
    assert found.counted["excluded_repeated_row"] == 1
    write_table(tmp_path, [*rows, entry("285", "x.jpg", "COVID-19", "F", "64")])
    with pytest.raises(CohortError, match="row 8 and row 2"):
        read(tmp_path)


def test_images_that_no_row_lists_are_counted(tmp_path):
    root = release(tmp_path)
    Image.new("L", (8, 8)).save(root / "images" / "extra.png")
    (root / "images" / "README.md").write_text("x")
    assert read(root).counted["excluded_unlisted_image"] == 1


@pytest.mark.parametrize(
    ("row", "place", "mend"),
    [
        (entry("", "a.jpg", "COVID-19"), "row 2, column patientid", "Fill"),
        (entry("1", "", "COVID-19"), "row 2, column filename", "Fill"),
        (entry("1", "a.jpg", "Secretitis"), "row 2, column finding", "latest table"),
        (entry("1", "a.jpg", "COVID-19, Secretitis"), "row 2, column finding", "latest table"),
        (entry("1", "a.jpg", "COVID-19,"), "row 2, column finding", "latest table"),
        (entry("1", "a.jpg", "COVID-19", "Secret"), "row 2, column sex", "female"),
        (entry("1", "a.jpg", "COVID-19", "F", "Secret"), "row 2, column age", "years"),
        (entry("1", "a.jpg", "COVID-19", folder="Secret"), "row 2, column folder", "images or volumes"),
        (entry("1", "Secret.jpg", "COVID-19"), "row 2, column filename", "Clone"),
        (entry("1", "../Secret.jpg", "COVID-19"), "row 2, column filename", "relative"),
        (entry("1", "../images/a.jpg", "COVID-19"), "row 2, column filename", "relative"),
        (entry("1", "images/a.jpg", "COVID-19"), "row 2, column filename", "Clone"),
    ],
)
def test_a_cell_that_cannot_be_is_named_but_not_shown(tmp_path, row, place, mend):
    root = release(tmp_path)
    write_table(root, [row, ROWS[0]])
    with pytest.raises(CohortError) as caught:
        read(root)
    assert f"metadata.csv, {place}" in caught.value.where
    assert mend in caught.value.mend
    assert "Secret" not in str(caught.value)
    # One bad row may be left out.
    tolerance = Tolerance(1)
    assert labels(read(root, tolerance)) == {"a.jpg": 1}
    assert tolerance.errors == [caught.value] or str(tolerance.errors[0]) == str(caught.value)


def test_an_absolute_path_and_a_link(tmp_path):
    root = release(tmp_path / "r")
    outside = tmp_path / "outside.jpg"
    (root / "images" / "c.png").rename(outside)
    (root / "images" / "c.png").symlink_to(outside)
    with pytest.raises(CohortError, match="is a link") as caught:
        read(root)
    assert "row 5, column filename" in caught.value.where
    write_table(root, [entry("1", str(outside), "COVID-19")])
    with pytest.raises(CohortError):
        read(root)


@pytest.mark.parametrize(
    "lacking", ["patientid", "sex", "age", "finding", "modality", "folder", "filename", "clinical_notes"]
)
def test_a_missing_column_is_named(tmp_path, lacking):
    root = release(tmp_path)
    kept = [i for i, name in enumerate(COLUMNS) if name != lacking]
    write_table(root, [[row[i] for i in kept] for row in ROWS], [COLUMNS[i] for i in kept])
    with pytest.raises(CohortError, match=f"column {lacking}"):
        read(root)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="--root"):
        read(None)
    with pytest.raises(CohortError, match="not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(CohortError, match=r"lacks the table metadata\.csv"):
        read(tmp_path)
    root = release(tmp_path / "r")
    write_table(root, [])
    with pytest.raises(CohortError, match="no rows"):
        read(root)
    (root / "metadata.csv").write_bytes(b"")
    with pytest.raises(CohortError, match="empty"):
        read(root)
    (root / "images").rename(root / "pictures")
    with pytest.raises(CohortError, match="lacks the folder images"):
        read(root)


def test_a_finding_that_no_image_shows(tmp_path):
    root = release(tmp_path)
    with pytest.raises(ConfigError, match='shows the finding "COVID19"') as caught:
        read(root, finding="COVID19")
    assert caught.value.mend == 'Did you mean "COVID-19"?'
    with pytest.raises(ConfigError, match="modality: CT"):
        read(root, finding="Streptococcus", modality="CT")
    with pytest.raises(ConfigError, match="has no name"):
        read(root, finding=" / ")


def test_odd_pictures(tmp_path):
    """PNG of 16 bits, with a palette, with transparency; and one that is damaged."""
    root = release(tmp_path)
    deep = (np.arange(600).reshape(20, 30) * 100).astype(np.uint16)
    Image.fromarray(deep).save(root / "images" / "c.png")
    seen = np.asarray(to_rgb(read(root).load("images/c.png")))
    assert abs(seen[..., 0].astype(float) - deep / 257).max() <= 1
    Image.new("RGBA", (30, 20), (200, 0, 0, 128)).quantize(8).save(root / "images" / "c.png")
    assert to_rgb(read(root).load("images/c.png")).mode == "RGB"
    (root / "images" / "c.png").write_bytes(b"<html>")
    with pytest.raises(CohortError, match=r"c\.png \(.*metadata\.csv, row 5\)"):
        read(root).load("images/c.png")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not at hand")
def test_the_real_files():
    with (REAL / "metadata.csv").open(encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert len(table) == 438
    files = {}
    for line in table:
        if line["modality"] == "X-ray" and line["finding"] != "todo":
            files[line["filename"]] = line
    found = read(REAL)
    assert set(labels(found)) == set(files)
    assert len(found.table) == 306
    expected = Counter(
        None if line["finding"] in ("Pneumonia", "ARDS") else int("COVID-19" in line["finding"])
        for line in files.values()
    )
    assert Counter(labels(found).values()) == expected == {1: 210, 0: 81, None: 15}
    assert found.counted["excluded_without_finding"] == 78
    assert found.counted["excluded_other_modality"] == 49
    assert found.counted["excluded_repeated_row"] == 5
    assert len(set(column(found, "patient_id").values())) == 154 == len({v["patientid"] for v in files.values()})
    known = (group_codes(found.table, ["sex", "age_group"]) >= 0).all(1)
    assert known.sum() == sum(bool(line["sex"] and line["age"]) for line in files.values()) == 194
    assert np.isnan(label_matrix(found.table)).sum() == 15
    everything = read(REAL, modality="all")
    assert len(everything.table) == 355
    for key in everything.table.column("image").to_pylist():
        assert to_rgb(everything.load(key)).mode == "RGB"
