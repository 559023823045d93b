"""The EyePACS adapter, on small releases in Kaggle's layout."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairvlm_core.cohort.adapters import eyepacs
from fairvlm_core.cohort.images import to_rgb
from fairvlm_core.cohort.strata import stratify
from fairvlm_core.cohort.table import group_codes, groups_of, label_matrix, task_of
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.steps.stratify import Config

TRAIN = [["10_left", "0"], ["10_right", "1"], ["13_left", "2"], ["13_right", "3"], ["15_left", "4"]]
TEST = [["1_left", "0", "Private"], ["1_right", "2", "Public"]]


def write_table(file, rows, columns):
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([columns, *rows])
    return file


def colour(name):
    return tuple(np.random.default_rng([*name.encode()]).integers(0, 256, 3).tolist())


def draw(folder, names, suffix=".jpeg"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30), colour(name)).save(folder / f"{name}{suffix}", format="JPEG")


def release(root, train=TRAIN, test=TEST):
    draw(root / "train", [row[0] for row in train])
    write_table(root / "trainLabels.csv", train, ["image", "level"])
    if test:
        draw(root / "test", [row[0] for row in test])
        write_table(root / "retinopathy_solution.csv", test, ["image", "level", "Usage"])
    return root


def read(root, tolerance=None, **options):
    return eyepacs.read(root, eyepacs.Options(**options), age_edges=(40.0, 60.0), seed=0, tolerance=tolerance)


def column(found, name):
    return dict(zip(found.table.column("sample_id").to_pylist(), found.table.column(name).to_pylist(), strict=True))


def test_the_published_layout(tmp_path):
    found = read(release(tmp_path))
    task = task_of(found.table)
    assert (task.kind, task.labels) == ("binary", ("referable_retinopathy",))
    assert column(found, "labels") == {
        "10_left": [0], "10_right": [0], "13_left": [1], "13_right": [1], "15_left": [1], "1_left": [0], "1_right": [1],
    }  # fmt: skip
    assert column(found, "patient_id") == {row[0]: row[0].split("_")[0] for row in TRAIN + TEST}
    assert column(found, "split") == {**{row[0]: None for row in TRAIN}, **{row[0]: "test" for row in TEST}}
    assert groups_of(found.table) == {}
    for name in ("sex", "age", "age_group", "race", "ethnicity", "language", "note"):
        assert found.table.column(name).null_count == 7
    assert found.counted == {
        "excluded_unlisted_image": 0,
        "excluded_patient_in_test": 0,
        "without_sex": 7,
        "without_age": 7,
        "without_sex_or_age": 7,
    }
    for key in found.table.column("image").to_pylist():
        assert abs(np.asarray(to_rgb(found.load(key))).astype(int) - colour(Path(key).stem)).max() <= 3


def test_the_grade(tmp_path):
    found = read(release(tmp_path), task="grade")
    assert task_of(found.table).kind == "multiclass"
    assert len(task_of(found.table).concepts) == 5
    grades = label_matrix(found.table).argmax(1)
    assert grades.tolist() == [int(row[1]) for row in TRAIN + TEST]
    assert (label_matrix(found.table).sum(1) == 1).all()


def test_names_and_formats_that_differ_between_copies(tmp_path):
    plain = read(release(tmp_path / "plain"))
    root = tmp_path / "drifted"
    draw(root / "Train" / "train", ["10_left", "10_right", "13_left"], ".jpg")
    draw(root / "Train" / "part2", ["13_right", "15_left"], ".JPEG")
    draw(root / "Train" / "part2", ["10_left"])  # there twice
    (root / "Train" / "__MACOSX").mkdir()
    (root / "Train" / "__MACOSX" / "._10_left.jpeg").write_bytes(b"junk")
    draw(root / "test" / "test", [row[0] for row in TEST])
    write_table(root / "trainlabels.csv", [[f"{a}.jpeg", b] for a, b in TRAIN], ["Image", "Level"])
    write_table(root / "retinopathy_solution.csv", TEST, ["image", "level", "Usage"])
    found = read(root)
    assert found.table.drop_columns(["image"]).equals(plain.table.drop_columns(["image"]))
    assert found.counted == plain.counted
    for key in found.table.column("image").to_pylist():
        assert found.load(key).size == (40, 30)


def test_a_test_set_without_labels_or_without_images(tmp_path):
    root = release(tmp_path)
    (root / "retinopathy_solution.csv").rename(tmp_path / "aside")
    found = read(root)
    assert found.table.column("split").null_count == len(found.table) == 5
    assert found.counted["excluded_test_image_without_label"] == 2
    (tmp_path / "aside").rename(root / "retinopathy_solution.csv")
    (root / "test").rename(root / "elsewhere")
    with pytest.raises(CohortError, match="lacks the folder test") as caught:
        read(root)
    assert "retinopathy_solution.csv" in caught.value.mend
    assert "excluded_test_image_without_label" not in read(release(tmp_path / "none", test=[])).counted


def test_a_patient_of_the_test_set_never_trains(tmp_path):
    found = read(release(tmp_path, test=[["10_left", "0", "Private"], *TEST]))
    assert found.counted["excluded_patient_in_test"] == 2
    assert set(column(found, "split")) == {"10_left", "13_left", "13_right", "15_left", "1_left", "1_right"}
    assert column(found, "split")["10_left"] == "test"


def test_rows_listed_twice_count_once_unless_they_disagree(tmp_path):
    root = release(tmp_path)
    write_table(root / "trainLabels.csv", [*TRAIN, TRAIN[0]], ["image", "level"])
    assert read(root).counted["excluded_repeated_row"] == 1
    write_table(root / "trainLabels.csv", [*TRAIN, ["10_left", "4"]], ["image", "level"])
    with pytest.raises(CohortError, match="row 7 and row 2"):
        read(root)


def test_images_that_no_row_lists_are_counted(tmp_path):
    root = release(tmp_path)
    draw(root / "train", ["99_left", "99_right"])
    assert read(root).counted["excluded_unlisted_image"] == 2


# Demographics


@pytest.mark.parametrize("absolute", [False, True])
def test_demographics_by_patient(tmp_path, absolute):
    root = release(tmp_path / "release")
    people = [["10", "F", "63"], ["13", "m", ""], ["1", "", "39.5"], ["777", "F", "50"]]
    file = write_table((tmp_path if absolute else root) / "who.csv", people, ["Patient", "Sex", "Age"])
    found = read(root, demographics=str(file) if absolute else "who.csv")
    assert column(found, "sex") == {
        **dict.fromkeys(("10_left", "10_right"), "female"),
        **dict.fromkeys(("13_left", "13_right"), "male"),
        **dict.fromkeys(("15_left", "1_left", "1_right")),
    }
    assert column(found, "age")["10_right"] == 63
    assert column(found, "age_group")["1_left"] == "0-39"
    assert column(found, "age")["15_left"] is None
    assert groups_of(found.table) == {"sex": ("female", "male"), "age_group": ("0-39", "40-59", "60+")}
    assert group_codes(found.table, ["sex", "age_group"]).tolist()[0] == [0, 2]
    assert found.counted["without_sex"] == 3
    assert found.counted["without_age"] == 3


def test_demographics_by_image_and_of_one_kind(tmp_path):
    root = release(tmp_path)
    ages = [["10_left.jpeg", "63"], ["10_left", "63"], ["10_right", "64"], ["1_left", "unknown"]]
    write_table(root / "who.csv", ages, ["image", "age"])
    with pytest.raises(CohortError, match=r"who\.csv, row 5, column age"):
        read(root, demographics="who.csv")
    write_table(root / "who.csv", ages[:3], ["image", "age"])
    found = read(root, demographics="who.csv")
    assert column(found, "age") == {**dict.fromkeys(row[0] for row in TRAIN + TEST), "10_left": 63, "10_right": 64}
    assert groups_of(found.table) == {"age_group": ("0-39", "40-59", "60+")}
    assert "excluded_repeated_row" not in found.counted
    write_table(root / "who.csv", [["10", "F"]], ["patient", "sex"])
    assert groups_of(read(root, demographics="who.csv").table) == {"sex": ("female", "male")}


@pytest.mark.parametrize(
    ("columns", "rows", "what"),
    [
        (["patient", "weight"], [["10", "70"]], "lacks a column"),
        (["person", "sex"], [["10", "F"]], "lacks a column"),
        (["patient", "sex"], [], "has no rows"),
        (["patient", "sex"], [["10", "Secret"]], "row 2, column sex"),
        (["patient", "sex"], [["", "F"]], "row 2, column patient"),
        (["image", "sex"], [["Secret", "F"]], "row 2, column image"),
        (["patient", "age"], [["10", "-3"]], "row 2, column age"),
        (["patient", "sex"], [["10", "F"], ["13", "F"], ["10", "M"]], "row 4 and row 2"),
    ],
)
def test_demographics_that_cannot_be(tmp_path, columns, rows, what):
    root = release(tmp_path)
    write_table(root / "who.csv", rows, columns)
    with pytest.raises(CohortError, match=what) as caught:
        read(root, demographics="who.csv")
    assert "who.csv" in caught.value.where
    assert "Secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.csv", "train"])
def test_demographics_that_are_no_file(tmp_path, name):
    with pytest.raises(ConfigError, match="demographics is missing") as caught:
        read(release(tmp_path), demographics=name)
    assert "column patient or image" in caught.value.mend


def test_without_demographics_groups_are_refused(tmp_path):
    """Whoever asks for groups is told that there are none; the others are served."""
    many = [[f"{k}_{side}", str(k % 5)] for k in range(40) for side in ("left", "right")]
    table = read(release(tmp_path, many, [])).table
    with pytest.raises(CohortError, match='no groups for the attribute "sex"'):
        group_codes(table, ["sex"])
    with pytest.raises(ConfigError, match='no groups for the attribute "sex"'):
        stratify(table, Config())
    assert set(stratify(table, Config(attributes=())).column("split").to_pylist()) == {"train", "validation", "test"}


# What cannot be


@pytest.mark.parametrize(
    ("row", "place", "mend"),
    [
        (["10_left", "5"], "row 2, column level", "0 to 4"),
        (["10_left", "Secret"], "row 2, column level", "0 to 4"),
        (["10_left", ""], "row 2, column level", "0 to 4"),
        (["10_left", "-1"], "row 2, column level", "0 to 4"),
        (["", "0"], "row 2, column image", "Fill"),
        (["Secret", "0"], "row 2, column image", "10_left"),
        (["../10_left", "0"], "row 2, column image", "10_left"),
        (["/etc/10_left", "0"], "row 2, column image", "10_left"),
        (["10_middle", "0"], "row 2, column image", "10_left"),
        (["77_left", "0"], "row 2, column image", "Unpack"),
    ],
)
def test_a_cell_that_cannot_be_is_named_but_not_shown(tmp_path, row, place, mend):
    root = release(tmp_path)
    write_table(root / "trainLabels.csv", [row, TRAIN[0]], ["image", "level"])
    with pytest.raises(CohortError) as caught:
        read(root)
    assert f"trainLabels.csv, {place}" in caught.value.where
    assert mend in caught.value.mend
    assert "Secret" not in str(caught.value)
    tolerance = Tolerance(1)
    assert list(column(read(root, tolerance), "split").values()) == [None, "test", "test"]
    assert [str(error) for error in tolerance.errors] == [str(caught.value)]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="--root"):
        read(None)
    with pytest.raises(CohortError, match="not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(CohortError, match="lacks the folder train"):
        read(tmp_path)
    root = release(tmp_path / "r")
    for lacking, kept in (("level", "image"), ("image", "level")):
        write_table(root / "trainLabels.csv", [], [kept])
        with pytest.raises(CohortError, match=rf"trainLabels\.csv, column {lacking}"):
            read(root)
    write_table(root / "trainLabels.csv", [], ["image", "level"])
    with pytest.raises(CohortError, match="no rows"):
        read(root)
    (root / "trainLabels.csv").write_bytes(b"")
    with pytest.raises(CohortError, match="empty"):
        read(root)
    (root / "trainLabels.csv").unlink()
    with pytest.raises(CohortError, match=r"lacks the table trainLabels\.csv"):
        read(root)
    with pytest.raises(ConfigError, match="task cannot be 'level'"):
        read(root, task="level")


def test_links_and_damage(tmp_path):
    root = release(tmp_path / "r")
    file = root / "train" / "13_left.jpeg"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CohortError, match=r"13_left\.jpeg \(.*trainLabels\.csv, row 4\)"):
        read(root).load("train/13_left.jpeg")
    file.unlink()
    draw(tmp_path / "outside", ["13_left"])
    file.symlink_to(tmp_path / "outside" / "13_left.jpeg")
    with pytest.raises(CohortError, match="is a link") as caught:
        read(root)
    assert "row 4, column image" in caught.value.where
