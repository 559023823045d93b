"""The CheXpert adapter, on small releases in the published layout."""

import zipfile

import numpy as np
import openpyxl
import pytest
from chest_releases import CHEXPERT_LABELS, column, level, write_picture, write_table

from fairvlm_core.cohort.adapters import chexpert
from fairvlm_core.cohort.images import build_store, to_rgb
from fairvlm_core.cohort.table import group_codes, groups_of, label_matrix, task_of
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.config import build
from fairvlm_core.errors import CohortError, ConfigError

COLUMNS = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS]
P1, P1L, P2, P3, P4 = (
    "train/patient00001/study1/view1_frontal",
    "train/patient00001/study1/view2_lateral",
    "train/patient00002/study2/view1_frontal",
    "train/patient00003/study1/view1_frontal",
    "train/patient00004/study1/view1_frontal",
)
V1 = "valid/patient64541/study1/view1_frontal"


def row(sample, sex="Female", age="68", prefix="CheXpert-v1.0-small/", **labels):
    view = "Lateral" if sample.endswith("lateral") else "Frontal"
    cells = {"Path": f"{prefix}{sample}.jpg", "Sex": sex, "Age": age, "Frontal/Lateral": view}
    return cells | {"AP/PA": "AP" if view == "Frontal" else ""} | labels


TRAIN = [
    row(P1, Pneumothorax="0.0", Edema="1.0", Pneumonia="-1.0"),
    row(P1L, Edema="1.0"),
    row(P2, "Male", "90", **{"No Finding": "1.0", "Support Devices": "1.0"}),
    row(P3, "Unknown", "0", Fracture="-1.0"),
    row(P4, "Male", "39", Edema="0.0"),
]
VALID = [row(V1, "Male", "73", **dict.fromkeys(CHEXPERT_LABELS, "0.0") | {"Edema": "1.0"})]
DEMO = [
    ["patient00001", "Female", 68, "White, non-Hispanic", "Non-Hispanic/Non-Latino"],
    ["patient00002", "Male", 89, "Native Hawaiian or Other Pacific Islander", "Hispanic/Latino"],
    ["patient00003", "Female", 50, "Race and Ethnicity Unknown", "Unknown"],
    ["patient00004", "Male", 39, "Martian", None],
    ["patient99999", "Male", 39, "Venusian", "Not Hispanic"],
]
DEMO_COLUMNS = ["PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"]


def release(root, train=TRAIN, valid=VALID):
    for name, rows in (("train.csv", train), ("valid.csv", valid)):
        write_table(root / name, COLUMNS, rows)
        for cells in rows:
            start = cells["Path"].rfind(f"{name[:5]}/")
            if start >= 0:
                write_picture(root / cells["Path"][start:])
    return root


def workbook(path, rows=DEMO, columns=DEMO_COLUMNS):
    book = openpyxl.Workbook()
    for cells in [columns, *rows]:
        book.active.append(cells)
    book.save(path)


def read(root, tolerance=None, **options):
    chosen = build(chexpert.Options, options, where="options")
    return chexpert.read(root, chosen, age_edges=(40.0, 60.0), seed=0, tolerance=tolerance)


def labels(found, sample):
    return dict(zip(task_of(found.table).labels, column(found, "labels")[sample], strict=True))


def test_the_published_layout(tmp_path):
    found = read(release(tmp_path))
    table, task = found.table, task_of(found.table)
    assert task.kind == "multilabel"
    assert list(task.labels) == CHEXPERT_LABELS
    assert task.concepts[5] == "pulmonary edema"
    assert task.negatives[5] == "no pulmonary edema"
    assert column(found, "patient_id") == {
        P1: "patient00001", P2: "patient00002", P3: "patient00003", P4: "patient00004",
    }  # fmt: skip
    assert column(found, "image") == {sample: f"{sample}.jpg" for sample in (P1, P2, P3, P4)}
    assert column(found, "sex") == {P1: "female", P2: "male", P3: None, P4: "male"}
    assert column(found, "age") == {P1: 68, P2: 90, P3: None, P4: 39}
    np.testing.assert_array_equal(group_codes(table, ["sex", "age_group"]), [[0, 2], [1, 2], [-1, -1], [1, 0]])
    present = {name for name, value in labels(found, P1).items() if value == 1}
    unknown = {name for name, value in labels(found, P1).items() if value is None}
    assert (present, unknown) == ({"Edema"}, {"Pneumonia"})
    assert labels(found, P2)["No Finding"] == labels(found, P2)["Support Devices"] == 1
    for name in ("note", "race", "ethnicity", "language", "split"):
        assert table.column(name).null_count == len(table)
    assert set(groups_of(table)) == {"sex", "age_group"}
    assert found.counted == {
        "excluded_view": 1,
        "excluded_valid": 1,
        "without_labels": 0,
        "without_sex": 1,
        "without_age": 1,
        "without_sex_or_age": 1,
    }
    for key in table.column("image").to_pylist():
        assert abs(np.asarray(to_rgb(found.load(key))).astype(int) - level(key)).max() <= 3


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "", "/data/CheXpert-v1.0-small/", "data\\CheXpert\\", "../x/"])
def test_the_folder_may_have_any_name_and_the_prefix_is_not_looked_at(tmp_path, prefix):
    plain = read(release(tmp_path / "plain"))
    renamed = [cells | {"Path": cells["Path"].replace("CheXpert-v1.0-small/", prefix)} for cells in TRAIN]
    release(tmp_path / "above" / "my_xrays", train=renamed)
    for root in (tmp_path / "above" / "my_xrays", tmp_path / "above"):
        found = read(root)
        assert found.table.equals(plain.table)
        assert found.load(f"{P1}.jpg").size == (40, 30)


@pytest.mark.parametrize(
    ("uncertain", "blank", "expected"),
    [
        # Edema positive, Pneumothorax negative, Pneumonia uncertain, Fracture not mentioned.
        ("ignore", "negative", [1, 0, None, 0]),
        ("zeros", "negative", [1, 0, 0, 0]),
        ("ones", "negative", [1, 0, 1, 0]),
        ("ignore", "unknown", [1, 0, None, None]),
        ("ones", "unknown", [1, 0, 1, None]),
    ],
)
def test_what_is_uncertain_or_not_mentioned_follows_the_options(tmp_path, uncertain, blank, expected):
    chosen = ["Edema", "Pneumothorax", "Pneumonia", "Fracture"]
    found = read(release(tmp_path), labels=chosen, uncertain=uncertain, blank=blank)
    assert list(task_of(found.table).labels) == chosen
    assert column(found, "labels")[P1] == expected
    np.testing.assert_array_equal(label_matrix(found.table)[0], np.array(expected, dtype=float))


def test_no_finding_has_negatives_also_where_blanks_are_unknown(tmp_path):
    # The labeler never writes 0 for it; a positive finding rules it out, an uncertain one or a device does not.
    rows = [*TRAIN, row("train/patient00005/study1/view1_frontal", **{"Support Devices": "1.0"})]
    found = read(release(tmp_path / "unknown", train=rows), labels=["No Finding", "Fracture"], blank="unknown")
    assert [value[0] for value in column(found, "labels").values()] == [0, 1, None, None, None]
    assert found.counted["without_labels"] == 3
    found = read(release(tmp_path / "negative", train=rows), labels=["No Finding"])
    assert [value[0] for value in column(found, "labels").values()] == [0, 1, 0, 0, 0]


def test_one_label_is_a_binary_task(tmp_path):
    task = task_of(read(release(tmp_path), labels=["Pleural Effusion"]).table)
    assert (task.kind, task.labels, task.negatives) == ("binary", ("Pleural Effusion",), ("no pleural effusion",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": ["Edeema"]}, 'Did you mean "Edema"'),
        ({"labels": []}, "empty"),
        ({"labels": ["Edema", "Edema"]}, "twice"),
        ({"uncertain": "one"}, "ones"),
        ({"blank": "zero"}, "negative"),
        ({"view": "PA"}, "frontal"),
        ({"valid": "validation"}, "test"),
        ({"vieww": "all"}, "view"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(ConfigError, match=said):
        build(chexpert.Options, options, where="options")


def test_the_view_is_an_option(tmp_path):
    release(tmp_path)
    found = read(tmp_path, view="lateral")
    assert (column(found, "age"), found.counted["excluded_view"]) == ({P1L: 68}, 4)
    assert len(read(tmp_path, view="all").table) == 5
    assert "excluded_view" not in read(tmp_path, view="all").counted
    write_table(tmp_path / "train.csv", COLUMNS, TRAIN[:1])
    with pytest.raises(CohortError, match="no row of the views"):
        read(tmp_path, view="lateral")


def test_valid_is_the_test_split_where_that_is_asked_for(tmp_path):
    found = read(release(tmp_path), valid="test")
    assert column(found, "split") == {P1: None, P2: None, P3: None, P4: None, V1: "test"}
    assert labels(found, V1) == dict.fromkeys(CHEXPERT_LABELS, 0) | {"Edema": 1}
    assert "excluded_valid" not in found.counted
    assert found.load(f"{V1}.jpg").size == (40, 30)
    (tmp_path / "valid.csv").unlink()
    assert "excluded_valid" not in read(tmp_path).counted
    with pytest.raises(CohortError, match=r"lacks the table valid\.csv"):
        read(tmp_path, valid="test")


def test_a_patient_in_both_tables_is_refused(tmp_path):
    release(tmp_path, valid=[row("valid/patient00002/study1/view1_frontal")])
    assert len(read(tmp_path).table) == 4  # valid.csv takes no part
    with pytest.raises(CohortError, match=r"valid\.csv, row 2 and .*train\.csv, row 4"):
        read(tmp_path, valid="test")


def test_race_and_ethnicity_come_from_the_workbook(tmp_path):
    release(tmp_path / "CheXpert-v1.0")
    workbook(tmp_path / "CheXpert-v1.0" / "CHEXPERT DEMO.xlsx")
    found = read(tmp_path)
    assert column(found, "race") == {P1: "white", P2: "pacific", P3: None, P4: None}
    assert column(found, "ethnicity") == {P1: "non-hispanic", P2: "hispanic", P3: None, P4: None}
    assert groups_of(found.table)["race"] == ("white", "black", "asian", "native", "pacific", "other")
    assert groups_of(found.table)["ethnicity"] == ("non-hispanic", "hispanic")
    # Sex and age are those of train.csv.
    assert column(found, "sex")[P3] is column(found, "age")[P3] is None
    assert column(found, "age")[P2] == 90
    counted = {name: n for name, n in found.counted.items() if "race" in name or "ethnicity" in name}
    assert counted == {
        "race_not_mapped": 1,  # the patient without an image takes no part
        "without_race": 2,
        "race_disagrees": 0,
        "without_ethnicity": 2,
        "ethnicity_disagrees": 0,
    }
    (tmp_path / "CheXpert-v1.0" / "CHEXPERT DEMO.xlsx").rename(tmp_path / "chexpert demo.xlsx")
    assert read(tmp_path).table.equals(found.table)


# Every value that the published workbook has.
@pytest.mark.parametrize(
    ("race", "group"),
    [
        ("Other", "other"),
        ("White, non-Hispanic", "white"),
        ("Black or African American", "black"),
        ("White", "white"),
        ("Native Hawaiian or Other Pacific Islander", "pacific"),
        ("Asian", "asian"),
        ("Asian, non-Hispanic", "asian"),
        ("Unknown", None),
        ("Native American, non-Hispanic", "native"),
        ("Race and Ethnicity Unknown", None),
        ("White, Hispanic", "white"),
        (None, None),
        ("Other, Hispanic", "other"),
        ("Black, non-Hispanic", "black"),
        ("American Indian or Alaska Native", "native"),
        ("Patient Refused", None),
        ("Other, non-Hispanic", "other"),
        ("Pacific Islander, Hispanic", "pacific"),
        ("Black, Hispanic", "black"),
        ("Pacific Islander, non-Hispanic", "pacific"),
        ("White or Caucasian", "white"),
        ("Asian, Hispanic", "asian"),
        ("Native American, Hispanic", "native"),
        ("Asian - Historical Conv", "asian"),
    ],
)
def test_every_published_race_has_its_group(tmp_path, race, group):
    release(tmp_path)
    workbook(tmp_path / "CHEXPERT DEMO.xlsx", [["patient00001", "Female", 68, race, "Unknown"]])
    found = read(tmp_path)
    assert column(found, "race")[P1] == group
    assert "race_not_mapped" not in found.counted


def test_a_patient_whose_rows_disagree_has_no_race(tmp_path):
    release(tmp_path)
    rows = [["patient00001", "", "", race, "Hispanic/Latino"] for race in ("White", "Unknown", "Asian", "White")]
    workbook(tmp_path / "CHEXPERT DEMO.xlsx", [*rows, [None] * 5, ["patient00002", "", "", "Asian", None]])
    found = read(tmp_path)
    assert (column(found, "race")[P1], column(found, "race")[P2]) == (None, "asian")
    assert column(found, "ethnicity")[P1] == "hispanic"
    assert (found.counted["race_disagrees"], found.counted["ethnicity_disagrees"]) == (1, 0)


def test_a_workbook_that_tells_a_wrong_size_is_read_whole(tmp_path):
    file = release(tmp_path) / "CHEXPERT DEMO.xlsx"
    workbook(tmp_path / "right.xlsx")
    with zipfile.ZipFile(tmp_path / "right.xlsx") as right, zipfile.ZipFile(file, "w") as wrong:
        for entry in right.namelist():
            wrong.writestr(entry, right.read(entry).replace(b'dimension ref="A1:E6"', b'dimension ref="A1:C2"'))
    assert column(read(tmp_path), "ethnicity") == {P1: "non-hispanic", P2: "hispanic", P3: None, P4: None}


def test_a_workbook_that_is_not_the_published_one_is_refused(tmp_path):
    file = release(tmp_path) / "CHEXPERT DEMO.xlsx"
    workbook(file, columns=["PATIENT", "GENDER", "AGE_AT_CXR", "RACE", "ETHNICITY"])
    with pytest.raises(CohortError, match=r"CHEXPERT DEMO\.xlsx, column PRIMARY_RACE"):
        read(tmp_path)
    workbook(file, [[None, "Female", 68, "White", None], *DEMO])
    with pytest.raises(CohortError, match=r"CHEXPERT DEMO\.xlsx, row 2, column PATIENT"):
        read(tmp_path)
    assert column(read(tmp_path, Tolerance(1)), "race")[P1] == "white"
    file.write_bytes(b"PK\x03\x04 no workbook")
    with pytest.raises(CohortError, match="workbook cannot be read"):
        read(tmp_path)
    workbook(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CohortError, match="workbook cannot be read"):
        read(tmp_path)


def test_the_public_test_set_is_refused_by_name(tmp_path):
    columns = [name for name in COLUMNS if name not in ("Sex", "Age", "Frontal/Lateral", "AP/PA")]
    write_table(tmp_path / "test_labels.csv", columns, VALID)
    with pytest.raises(CohortError, match="public test set") as caught:
        read(tmp_path)
    assert "test_labels.csv" in caught.value.where
    (tmp_path / "test_labels.csv").rename(tmp_path / "train.csv")
    with pytest.raises(CohortError, match="column Sex") as caught:
        read(tmp_path)
    assert "public test table" in caught.value.mend


def test_rows_listed_twice_count_once_unless_they_disagree(tmp_path):
    again = TRAIN[0] | {"Path": f"CheXpert-v1.0/{P1}.jpg"}
    found = read(release(tmp_path, train=[*TRAIN, again]))
    assert (len(found.table), found.counted["excluded_repeated_row"]) == (4, 1)
    write_table(tmp_path / "train.csv", COLUMNS, [*TRAIN, again | {"Edema": ""}])
    with pytest.raises(CohortError, match="row 7 and row 2"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "place", "mend"),
    [
        ({"Path": ""}, "row 2, column Path", "Fill"),
        ({"Path": "/etc/passwd"}, "row 2, column Path", "view1_frontal"),
        ({"Path": "CheXpert/train/patient00001/study1/../../../x.jpg"}, "row 2, column Path", "view1_frontal"),
        ({"Path": "CheXpert/train/../patient00001/study1/view1_frontal.jpg"}, "row 2, column Path", "view1_frontal"),
        ({"Path": "pretrain/patient00001/study1/view1_frontal.jpg"}, "row 2, column Path", "view1_frontal"),
        ({"Path": "test/patient00001/study1/view1_frontal.jpg"}, "row 2, column Path", "view1_frontal"),
        ({"Path": "train/patient00001/study1/view1_frontal.npz"}, "row 2, column Path", "view1_frontal"),
        ({"Sex": "Oddity"}, "row 2, column Sex", "female"),
        ({"Age": "eighty"}, "row 2, column Age", "years"),
        ({"Age": "-1"}, "row 2, column Age", "years"),
        ({"Frontal/Lateral": "Oddity"}, "row 2, column Frontal/Lateral", "Lateral"),
        ({"Edema": "0.5"}, "row 2, column Edema", "-1"),
        ({"No Finding": "Oddity"}, "row 2, column No Finding", "-1"),
    ],
)
def test_a_cell_that_cannot_be_is_named_but_not_shown(tmp_path, change, place, mend):
    release(tmp_path)
    write_table(tmp_path / "train.csv", COLUMNS, [TRAIN[0] | change, *TRAIN[1:]])
    with pytest.raises(CohortError) as caught:
        read(tmp_path)
    assert f"train.csv, {place}" in caught.value.where
    assert mend in caught.value.mend
    assert not any(value in str(caught.value) for value in ("Oddity", "passwd", "eighty", "0.5", "npz"))
    tolerance = Tolerance(1)
    assert set(column(read(tmp_path, tolerance), "sex")) == {P2, P3, P4}
    assert len(tolerance.errors) == 1


@pytest.mark.parametrize("lacking", ["Path", "Sex", "Age", "Frontal/Lateral", "Edema"])
def test_a_missing_column_is_named(tmp_path, lacking):
    release(tmp_path)
    write_table(tmp_path / "train.csv", [name for name in COLUMNS if name != lacking], TRAIN)
    with pytest.raises(CohortError, match=rf"train\.csv, column {lacking}"):
        read(tmp_path)
    if lacking == "Edema":
        assert len(read(tmp_path, labels=["Fracture"]).table) == 4


def test_a_wrong_folder_is_found_at_once(tmp_path):
    with pytest.raises(ConfigError, match="--root"):
        read(None)
    with pytest.raises(CohortError, match="not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(CohortError, match=r"lacks the table train\.csv"):
        read(tmp_path)
    release(tmp_path / "CheXpert-v1.0")
    (tmp_path / "CheXpert-v1.0" / "train").rename(tmp_path / "CheXpert-v1.0" / "elsewhere")
    with pytest.raises(CohortError, match="Not one of the first 4 images") as caught:
        read(tmp_path)
    assert caught.value.where.endswith("train.csv, row 2)")
    release(tmp_path / "CheXpert-v1.0-small")
    with pytest.raises(CohortError, match="2 releases"):
        read(tmp_path)


def test_an_empty_table_is_refused(tmp_path):
    release(tmp_path)
    write_table(tmp_path / "train.csv", COLUMNS, [])
    with pytest.raises(CohortError, match="no row"):
        read(tmp_path)
    (tmp_path / "train.csv").write_bytes(b"")
    with pytest.raises(CohortError, match="empty"):
        read(tmp_path)


def test_an_image_that_cannot_be_read_names_its_row(tmp_path):
    release(tmp_path)
    (tmp_path / f"{P1}.jpg").unlink()
    (tmp_path / f"{P2}.jpg").write_bytes(b"no picture")
    (tmp_path / "outside.jpg").write_bytes((tmp_path / f"{P4}.jpg").read_bytes())
    (tmp_path / f"{P3}.jpg").unlink()
    (tmp_path / f"{P3}.jpg").symlink_to(tmp_path / "outside.jpg")
    found = read(tmp_path)
    for sample, said in ((P1, r"missing[^§]*row 2"), (P2, r"cannot be read[^§]*row 4"), (P3, r"link[^§]*row 5")):
        with pytest.raises(CohortError, match=said):
            found.load(f"{sample}.jpg")
    tolerance = Tolerance(3)
    keys = found.table.column("image").to_pylist()
    store = build_store(keys, found.load, tmp_path / "out", size=16, tolerance=tolerance)
    assert store.keys == [f"{P4}.jpg"]
    assert len(tolerance.errors) == 3
