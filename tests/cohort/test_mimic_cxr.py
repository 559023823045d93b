"""The MIMIC-CXR-JPG adapter, on small releases in the published layout."""

import gzip
import shutil

import numpy as np
import pytest
from chest_releases import CHEXPERT_LABELS, column, level, write_picture, write_table

from fairvlm_core.cohort.adapters import mimic_cxr
from fairvlm_core.cohort.images import build_store, to_rgb
from fairvlm_core.cohort.table import group_codes, groups_of, task_of
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import build
from fairvlm_core.errors import CohortError, ConfigError

# As published: the labels in alphabetical order.
LABEL_COLUMNS = ["subject_id", "study_id", *sorted(CHEXPERT_LABELS)]
METADATA_COLUMNS = [
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
]
SPLIT_COLUMNS = ["dicom_id", "study_id", "subject_id", "split"]
PATIENT_COLUMNS = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
ADMISSION_COLUMNS = ["subject_id", "hadm_id", "admittime", "insurance", "language", "marital_status", "race"]
PREFIX = "mimic-cxr-2.0.0-"

A1, A1L, A2, B1, C1, D1 = (f"{k:08x}-bde0afdd-112c0b34-7bc16630-4e384014" for k in range(6))
A, B, C, D = "10000032", "10000764", "11000011", "12000012"


def image(dicom, subject, study, view, date, split):
    shared = {"dicom_id": dicom, "subject_id": subject, "study_id": study, "split": split}
    return shared | {"ViewPosition": view, "StudyDate": date, "Rows": "3056", "StudyTime": "213014.531"}


IMAGES = [
    image(A1, A, "50414267", "PA", "21800506", "train"),
    image(A1L, A, "50414267", "LATERAL", "21800506", "train"),
    image(A2, A, "53189527", "AP", "21830626", "train"),
    image(B1, B, "57375967", "AP", "21321015", "validate"),
    image(C1, C, "51029426", "PA", "21590728", "test"),
    image(D1, D, "56164612", "", "21700101", "train"),
]
STUDIES = [
    {"subject_id": A, "study_id": "50414267", "Edema": "1.0", "Pneumonia": "-1.0", "Pneumothorax": "0.0"},
    {"subject_id": A, "study_id": "53189527", "Atelectasis": "1.0"},
    {"subject_id": B, "study_id": "57375967", "No Finding": "1.0"},
    {"subject_id": D, "study_id": "56164612", "Fracture": "1.0"},
]  # C has none
PATIENTS = [
    {"subject_id": A, "gender": "F", "anchor_age": "52", "anchor_year": "2180"},
    {"subject_id": B, "gender": "M", "anchor_age": "91", "anchor_year": "2131"},
    {"subject_id": "19999999", "gender": "M", "anchor_age": "30", "anchor_year": "2131"},
]  # C and D are not there
ADMISSIONS = [
    {"subject_id": A, "race": "WHITE - OTHER EUROPEAN", "language": "English"},
    {"subject_id": A, "race": "UNKNOWN", "language": "?"},
    {"subject_id": A, "race": "WHITE", "language": "ENGLISH"},
    {"subject_id": B, "race": "ASIAN - CHINESE", "language": "Chinese"},
    {"subject_id": B, "race": "BLACK/AFRICAN AMERICAN", "language": "Chinese"},
    {"subject_id": B, "race": "ASIAN", "language": "?"},
    {"subject_id": "19999999", "race": "MARTIAN", "language": "English"},
]
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation, pleural effusion or
 pneumothorax: all clear.

 IMPRESSION:

 No acute cardiopulmonary process.

 NOTIFICATION:  Discussed with Dr. ___.
"""
NOTE = "There is no focal consolidation, pleural effusion or pneumothorax: all clear. No acute cardiopulmonary process."


def name(cells):
    subject = cells["subject_id"]
    return f"files/p{subject[:2]}/p{subject}/s{cells['study_id']}/{cells['dicom_id']}.jpg"


def release(root, images=IMAGES, studies=STUDIES, patients=PATIENTS, admissions=ADMISSIONS, end=".csv.gz"):
    write_table(root / f"{PREFIX}metadata{end}", METADATA_COLUMNS, images)
    write_table(root / f"{PREFIX}split{end}", SPLIT_COLUMNS, images)
    write_table(root / f"{PREFIX}chexpert{end}", LABEL_COLUMNS, studies)
    if patients is not None:
        write_table(root / f"hosp/patients{end}", PATIENT_COLUMNS, patients)
    if admissions is not None:
        write_table(root / f"hosp/admissions{end}", ADMISSION_COLUMNS, admissions)
    for cells in images:
        write_picture(root / name(cells))
    (root / f"files/p10/p{A}/s50414267.txt").write_text(REPORT)
    return root


def read(root, tolerance=None, edges=(40.0, 60.0), **options):
    chosen = build(mimic_cxr.Options, options, where="options")
    return mimic_cxr.read(root, chosen, age_edges=edges, seed=0, tolerance=tolerance)


def labels(found, dicom):
    return dict(zip(task_of(found.table).labels, column(found, "labels")[dicom], strict=True))


def changed(dicom, **cells):
    return [row | cells if row["dicom_id"] == dicom else row for row in IMAGES]


def test_the_published_layout(tmp_path):
    found = read(release(tmp_path))
    table, task = found.table, task_of(found.table)
    assert (task.kind, list(task.labels)) == ("multilabel", CHEXPERT_LABELS)
    assert column(found, "patient_id") == {A1: A, A2: A, B1: B, C1: C}
    assert column(found, "split") == {A1: "train", A2: "train", B1: "validation", C1: "test"}
    assert column(found, "image")[A1] == f"files/p10/p{A}/s50414267/{A1}.jpg"
    assert column(found, "sex") == {A1: "female", A2: "female", B1: "male", C1: None}
    # Three years after the anchor year; 91 is over 89; without a patient there is no age.
    assert column(found, "age") == {A1: 52, A2: 55, B1: 91, C1: None}
    assert column(found, "race") == {A1: "white", A2: "white", B1: None, C1: None}
    assert column(found, "language") == {A1: "english", A2: "english", B1: "other", C1: None}
    np.testing.assert_array_equal(group_codes(table, ["sex", "age_group"]), [[0, 1], [0, 1], [1, 2], [-1, -1]])
    assert {label for label, value in labels(found, A1).items() if value == 1} == {"Edema"}
    assert {label for label, value in labels(found, A1).items() if value is None} == {"Pneumonia"}
    assert {label for label, value in labels(found, A2).items() if value == 1} == {"Atelectasis"}
    assert set(labels(found, C1).values()) == {None}
    assert column(found, "note") == {A1: NOTE, A2: None, B1: None, C1: None}
    assert table.column("ethnicity").null_count == 4
    assert groups_of(table) == {
        "sex": ("female", "male"),
        "age_group": ("0-39", "40-59", "60+"),
        "race": ("white", "black", "asian", "native", "pacific", "hispanic", "other"),
        "language": ("english", "other"),
    }
    assert found.counted == {
        "excluded_view": 2,
        "without_labels": 1,
        "without_note": 3,
        "without_sex": 1,
        "without_age": 1,
        "without_sex_or_age": 1,
        "without_race": 2,
        "race_disagrees": 1,
        "without_language": 1,
        "language_disagrees": 0,
    }
    for key in table.column("image").to_pylist():
        assert abs(np.asarray(to_rgb(found.load(key))).astype(int) - level(key)).max() <= 3


def test_tables_may_be_plain_and_mimic_iv_may_lie_elsewhere(tmp_path):
    packed = read(release(tmp_path / "packed"))
    plain = release(tmp_path / "plain", end=".csv")
    assert read(plain).table.equals(packed.table)
    shutil.move(plain / "hosp", tmp_path / "mimiciv" / "hosp")
    for place in ("../mimiciv", str(tmp_path / "mimiciv"), "../mimiciv/hosp"):
        assert read(plain, mimic_iv=place).table.equals(packed.table)
    # Version 1.0: the folder core, and race is called ethnicity.
    core = [
        {**row, "ethnicity": row["race"]} if row["subject_id"] != A else {**row, "ethnicity": "WHITE"}
        for row in ADMISSIONS
    ]
    write_table(plain / "core/patients.csv.gz", PATIENT_COLUMNS, PATIENTS)
    write_table(plain / "core/admissions.csv.gz", [*ADMISSION_COLUMNS[:-1], "ethnicity"], core)
    assert read(plain).table.equals(packed.table)
    with pytest.raises(CohortError, match=r"lacks the table hosp/patients\.csv\.gz") as caught:
        read(plain, mimic_iv="../nowhere")
    assert "mimic_iv" in caught.value.mend


def test_without_mimic_iv_nobody_has_a_sex_or_an_age_and_that_is_told(tmp_path, capsys):
    found = read(release(tmp_path, patients=None, admissions=None))
    assert "mimic_iv" in capsys.readouterr().err
    for attribute in ("sex", "age", "age_group", "race", "language"):
        assert found.table.column(attribute).null_count == 4
    assert found.counted["without_sex"] == found.counted["without_age"] == 4
    assert set(groups_of(found.table)) == {"sex", "age_group"}
    # Without admissions there are sex and age, but no race and language.
    found = read(release(tmp_path / "patients", admissions=None))
    assert not capsys.readouterr().err
    assert column(found, "sex")[A1] == "female"
    assert set(groups_of(found.table)) == {"sex", "age_group"}


@pytest.mark.parametrize(
    ("anchor_age", "anchor_year", "date", "age"),
    [
        ("52", "2180", "21800101", 52),
        ("52", "2180", "21791231", 51),
        ("88", "2180", "21850101", 93),
        ("91", "2180", "21800101", 91),
        ("91", "2180", "21870101", 91),
        ("91", "2180", "21790101", None),  # somebody over 89 a year later: which age, is not published
        ("0", "2180", "21800101", None),
        ("", "2180", "21800101", None),
        ("52", "", "21800101", None),
        ("52", "2180", "", None),
    ],
)
def test_the_age_at_the_study(tmp_path, anchor_age, anchor_year, date, age):
    patients = [{"subject_id": A, "gender": "", "anchor_age": anchor_age, "anchor_year": anchor_year}]
    found = read(release(tmp_path, images=changed(A1, StudyDate=date), patients=patients))
    assert column(found, "age")[A1] == age
    assert column(found, "sex")[A1] is None


# Every value that MIMIC-IV 2.2 has, and those of version 1.0.
@pytest.mark.parametrize(
    ("race", "group"),
    [
        ("WHITE", "white"),
        ("WHITE - BRAZILIAN", "white"),
        ("WHITE - EASTERN EUROPEAN", "white"),
        ("WHITE - OTHER EUROPEAN", "white"),
        ("WHITE - RUSSIAN", "white"),
        ("BLACK/AFRICAN", "black"),
        ("BLACK/AFRICAN AMERICAN", "black"),
        ("BLACK/CAPE VERDEAN", "black"),
        ("BLACK/CARIBBEAN ISLAND", "black"),
        ("ASIAN", "asian"),
        ("ASIAN - ASIAN INDIAN", "asian"),
        ("ASIAN - CHINESE", "asian"),
        ("ASIAN - KOREAN", "asian"),
        ("ASIAN - SOUTH EAST ASIAN", "asian"),
        ("AMERICAN INDIAN/ALASKA NATIVE", "native"),
        ("NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER", "pacific"),
        ("HISPANIC OR LATINO", "hispanic"),
        ("HISPANIC/LATINO", "hispanic"),
        ("HISPANIC/LATINO - PUERTO RICAN", "hispanic"),
        ("OTHER", "other"),
        ("MULTIPLE RACE/ETHNICITY", "other"),
        ("PORTUGUESE", "other"),
        ("SOUTH AMERICAN", "other"),
        ("UNKNOWN", None),
        ("UNABLE TO OBTAIN", None),
        ("PATIENT DECLINED TO ANSWER", None),
        ("", None),
    ],
)
def test_every_published_race_has_its_group(tmp_path, race, group):
    found = read(release(tmp_path, admissions=[{"subject_id": A, "race": race}]))
    assert column(found, "race")[A1] == group
    assert "race_not_mapped" not in found.counted


def test_a_race_that_has_no_group_is_counted(tmp_path):
    admissions = [{"subject_id": A, "race": "MARTIAN"}, {"subject_id": "19999999", "race": "MARTIAN"}]
    found = read(release(tmp_path, admissions=admissions))
    assert column(found, "race")[A1] is None
    assert found.counted["race_not_mapped"] == 1


@pytest.mark.parametrize(
    ("language", "group"),
    [("ENGLISH", "english"), ("English", "english"), ("Kabuverdianu", "other"), ("?", None), ("", None)],
)
def test_languages(tmp_path, language, group):
    found = read(release(tmp_path, admissions=[{"subject_id": A, "language": language}]))
    assert column(found, "language")[A1] == group


def test_the_view_is_an_option(tmp_path):
    release(tmp_path)
    assert set(column(read(tmp_path, view="lateral"), "sex")) == {A1L}
    assert set(column(read(tmp_path, view="all"), "sex")) == {A1, A1L, A2, B1, C1, D1}
    assert "excluded_view" not in read(tmp_path, view="all").counted


def test_labels_are_options(tmp_path):
    release(tmp_path)
    write_table(tmp_path / f"{PREFIX}negbio.csv.gz", LABEL_COLUMNS, [STUDIES[0] | {"Edema": "0.0"}])
    found = read(tmp_path, labels=["Pneumonia", "Edema"], uncertain="ones")
    assert column(found, "labels") == {A1: [1, 1], A2: [0, 0], B1: [0, 0], C1: [None, None]}
    found = read(tmp_path, labels=["Pneumonia", "Edema"], blank="unknown")
    assert column(found, "labels") == {A1: [None, 1], A2: [None, None], B1: [None, None], C1: [None, None]}
    assert found.counted["without_labels"] == 3
    found = read(tmp_path, labels=["Edema"], labeler="negbio")
    assert column(found, "labels") == {A1: [0], A2: [None], B1: [None], C1: [None]}
    assert task_of(found.table).kind == "binary"
    with pytest.raises(ConfigError, match="negbio"):
        read(tmp_path, labeler="nebgio")


@pytest.mark.parametrize(
    ("report", "note"),
    [
        (REPORT, NOTE),
        (REPORT.replace("FINDINGS:", "FINDINGS AND IMPRESSION:"), NOTE),
        (" IMPRESSION: AP chest compared to ___:\n\n Lungs are clear.", "AP chest compared to ___: Lungs are clear."),
        (" INDICATION: cough\n\n The lungs are clear.", None),
        ("Lungs are clear.", None),
        (" FINDINGS:\n\n IMPRESSION:\n", None),
        ("", None),
    ],
)
def test_a_note_is_the_findings_and_the_impression(tmp_path, report, note):
    release(tmp_path)
    (tmp_path / f"files/p10/p{A}/s50414267.txt").write_text(report)
    found = read(tmp_path, view="all")
    assert column(found, "note")[A1] == column(found, "note")[A1L] == note
    found = read(tmp_path, notes=False)
    assert found.table.column("note").null_count == 4
    assert "without_note" not in found.counted


def test_a_report_that_cannot_be_read_names_its_row(tmp_path):
    report = release(tmp_path) / f"files/p10/p{A}/s50414267.txt"
    report.write_bytes(b"FINDINGS: \xff\xfe")
    with pytest.raises(CohortError, match=r"s50414267\.txt[^§]*row 2"):
        read(tmp_path)
    assert set(column(read(tmp_path, Tolerance(1)), "sex")) == {A2, B1, C1}
    (tmp_path / "outside.txt").write_text(REPORT)
    report.unlink()
    report.symlink_to(tmp_path / "outside.txt")
    with pytest.raises(CohortError, match="link"):
        read(tmp_path)


def test_a_patient_in_two_splits_is_refused(tmp_path):
    release(tmp_path, images=changed(A2, split="test"))
    with pytest.raises(CohortError, match=r"split\.csv\.gz, row 4, column split and row 2"):
        read(tmp_path, Tolerance(5))


def test_an_image_without_a_split_is_refused(tmp_path):
    release(tmp_path)
    write_table(tmp_path / f"{PREFIX}split.csv.gz", SPLIT_COLUMNS, IMAGES[1:])
    with pytest.raises(CohortError, match=r"metadata\.csv\.gz, row 2, column dicom_id"):
        read(tmp_path)
    assert set(column(read(tmp_path, Tolerance(1)), "sex")) == {A2, B1, C1}


def test_rows_listed_twice_count_once_unless_they_disagree(tmp_path):
    found = read(release(tmp_path, images=[*IMAGES, IMAGES[0]], studies=[*STUDIES, STUDIES[0]]))
    assert (len(found.table), found.counted["excluded_repeated_row"]) == (4, 1)
    assert read(release(tmp_path, patients=[*PATIENTS, PATIENTS[0]])).table.equals(found.table)
    release(tmp_path, images=[*IMAGES, IMAGES[0] | {"StudyDate": "21810506"}])
    with pytest.raises(CohortError, match="row 8 and row 2"):
        read(tmp_path)
    release(tmp_path, studies=[*STUDIES, STUDIES[0] | {"Edema": "0.0"}])
    with pytest.raises(CohortError, match=r"chexpert\.csv\.gz, row 6, column study_id"):
        read(tmp_path)
    release(tmp_path, patients=[*PATIENTS, PATIENTS[0] | {"gender": "M"}])
    with pytest.raises(CohortError, match=r"patients\.csv\.gz, row 5, column subject_id"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"dicom_id": ""}, "metadata.csv, row 2, column dicom_id"),
        ({"dicom_id": "../../Oddity"}, "metadata.csv, row 2, column dicom_id"),
        ({"dicom_id": "/etc/Oddity"}, "metadata.csv, row 2, column dicom_id"),
        ({"subject_id": "1/../Oddity"}, "metadata.csv, row 2, column subject_id"),
        ({"study_id": "Oddity"}, "metadata.csv, row 2, column study_id"),
        ({"StudyDate": "Oddity"}, "metadata.csv, row 2, column StudyDate"),
        ({"StudyDate": "19000101"}, "metadata.csv, row 2, column StudyDate"),
        ({"StudyDate": "29000101"}, "metadata.csv, row 2, column StudyDate"),
        ({"split": "Oddity"}, "split.csv, row 2, column split"),
        ({"split": ""}, "split.csv, row 2, column split"),
        ({"gender": "Oddity"}, "patients.csv, row 2, column gender"),
        ({"anchor_age": "Oddity"}, "patients.csv, row 2, column anchor_age"),
        ({"anchor_year": "Oddity"}, "patients.csv, row 2, column anchor_year"),
        ({"Edema": "Oddity"}, "chexpert.csv, row 2, column Edema"),
    ],
)
def test_a_cell_that_cannot_be_is_named_but_not_shown(tmp_path, change, place):
    release(tmp_path, end=".csv")
    for table, columns, rows in (
        (f"{PREFIX}metadata", METADATA_COLUMNS, IMAGES),
        (f"{PREFIX}split", SPLIT_COLUMNS, IMAGES),
        (f"{PREFIX}chexpert", LABEL_COLUMNS, STUDIES),
        ("hosp/patients", PATIENT_COLUMNS, PATIENTS),
    ):
        if place.startswith((table.removeprefix(PREFIX), table.removeprefix("hosp/"))):
            write_table(tmp_path / f"{table}.csv", columns, [rows[0] | change, *rows[1:]])
    with pytest.raises(CohortError) as caught:
        read(tmp_path)
    assert place in caught.value.where
    assert "Oddity" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "lacking"),
    [
        (f"{PREFIX}metadata", "ViewPosition"),
        (f"{PREFIX}metadata", "StudyDate"),
        (f"{PREFIX}split", "split"),
        (f"{PREFIX}chexpert", "Edema"),
        ("hosp/patients", "anchor_year"),
        ("hosp/admissions", "race"),
        ("hosp/admissions", "language"),
    ],
)
def test_a_missing_column_is_named(tmp_path, table, lacking):
    file = release(tmp_path) / f"{table}.csv.gz"
    with gzip.open(file, "rt") as handle:
        text = handle.read()
    with gzip.open(file, "wt") as handle:
        handle.write(text.replace(lacking, "renamed", 1))
    with pytest.raises(CohortError, match=rf"{table}\.csv\.gz, column {lacking}"):
        read(tmp_path)


def test_a_wrong_folder_is_found_at_once(tmp_path):
    with pytest.raises(ConfigError, match="--root"):
        read(None)
    with pytest.raises(CohortError, match="not a folder"):
        read(tmp_path / "nowhere")
    release(tmp_path)
    (tmp_path / "files").rename(tmp_path / "images")
    with pytest.raises(CohortError, match="Not one of the first 4 images"):
        read(tmp_path)
    for kind in ("chexpert", "split", "metadata"):
        (tmp_path / f"{PREFIX}{kind}.csv.gz").unlink()
        with pytest.raises(CohortError, match=rf"lacks the table {PREFIX}{kind}\.csv\.gz"):
            read(tmp_path)


def test_tables_that_are_empty_or_damaged_are_refused(tmp_path):
    file = release(tmp_path) / f"{PREFIX}metadata.csv.gz"
    write_table(file, METADATA_COLUMNS, [])
    with pytest.raises(CohortError, match="no row"):
        read(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(CohortError, match="empty"):
        read(tmp_path)
    write_table(file, METADATA_COLUMNS, IMAGES)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CohortError, match="cannot be unpacked"):
        read(tmp_path)


def test_an_image_that_cannot_be_read_names_its_row(tmp_path):
    release(tmp_path)
    paths = {row["dicom_id"]: tmp_path / name(row) for row in IMAGES}
    paths[A1].unlink()
    paths[A2].write_bytes(b"no picture")
    paths[B1].unlink()
    paths[B1].symlink_to(paths[C1])
    found = read(tmp_path)
    keys = column(found, "image")
    for dicom, said in ((A1, r"missing[^§]*row 2"), (A2, r"cannot be read[^§]*row 4"), (B1, r"link[^§]*row 5")):
        with pytest.raises(CohortError, match=said):
            found.load(keys[dicom])
    tolerance = Tolerance(3)
    store = build_store(list(keys.values()), found.load, tmp_path / "out", size=16, tolerance=tolerance)
    assert (store.keys, len(tolerance.errors)) == ([keys[C1]], 3)
