"""The generic adapter: a table of any make, whose columns the options name."""

import csv
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom import examples

from fairvlm_core.cohort.adapters import table as adapter
from fairvlm_core.cohort.dicom import open_dicom
from fairvlm_core.cohort.images import to_rgb
from fairvlm_core.cohort.prompts import caption, questions, zero_shot_prompts
from fairvlm_core.cohort.table import group_codes, groups_of, label_matrix, task_of
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.errors import CohortError, ConfigError

HEADER = ["Path", "Patient", "edema", "mass", "dx", "Sex", "Age", "Race", "Ethnic", "Tongue", "Report", "Fold", "junk"]
ROWS = [
    ["f/a.png", "p1", "1", "0", "mel", "F", "63", "White", "no", "English", "text, with\nlines", "train", "x"],
    ["f/b.png", "p1", "YES", "no", "NV", "female", "63.0", "white", "yes", "English", "", "Training", ""],
    ["g/c.jpg", "p2", "Negative", "TRUE", "nv", "M", "0", "Asian", "", "N/A", "", "val", ""],
    ["d.tif", "p3", "", "unknown", "0", "", "", "", "unknown", "German", "", "test", ""],
    ["f/e.bmp", "p4", "false", "positive", "", "Unknown", "na", "Black", "no", "English", "", "", ""],
]
BASIC = {"file": "t.csv", "image": "Path", "patient": "Patient", "labels": ("edema",)}
FULL = {
    **BASIC,
    "kind": "multilabel",
    "labels": ("edema", "mass"),
    "sex": "Sex",
    "age": "Age",
    "race": "Race",
    "ethnicity": "Ethnic",
    "language": "Tongue",
    "note": "Report",
    "split": "Fold",
    "modality": "X-ray",
}
CLASSES = {**BASIC, "kind": "multiclass", "labels": ("dx",), "classes": ("mel", "nv", 0)}


def write_table(root, rows=ROWS, header=HEADER, name="t.csv", delimiter=","):
    with (root / name).open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, delimiter=delimiter).writerows([header, *rows])
    return root


def release(root, rows=ROWS, **table):
    for k, row in enumerate(rows):
        (root / row[0]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (10 * k, 100, 200)).save(root / row[0])
    return write_table(root, rows, **table)


def changed(row, column, value):
    place = HEADER.index(column)
    return [*row[:place], value, *row[place + 1 :]]


def read(root, options, tolerance=None):
    return adapter.read(root, adapter.Options(**options), age_edges=(40.0, 60.0), seed=0, tolerance=tolerance)


def column(found, name):
    return found.table.column(name).to_pylist()


def test_every_column(tmp_path):
    found = read(release(tmp_path), FULL)
    assert column(found, "sample_id") == column(found, "image") == [row[0] for row in ROWS]
    assert column(found, "patient_id") == ["p1", "p1", "p2", "p3", "p4"]
    assert column(found, "labels") == [[1, 0], [1, 0], [0, 1], [None, None], [0, 1]]
    assert column(found, "sex") == ["female", "female", "male", None, None]
    assert column(found, "age") == [63, 63, 0, None, None]
    assert column(found, "age_group") == ["60+", "60+", "0-39", None, None]
    assert column(found, "race") == ["White", "White", "Asian", None, "Black"]
    assert column(found, "ethnicity") == ["no", "yes", None, None, "no"]
    assert column(found, "language") == ["English", "English", None, "German", "English"]
    assert column(found, "note") == ["text, with\nlines", None, None, None, None]
    assert column(found, "split") == ["train", "train", "validation", "test", None]
    assert set(column(found, "modality")) == {"X-ray"}
    assert groups_of(found.table) == {
        "sex": ("female", "male"),
        "age_group": ("0-39", "40-59", "60+"),
        "race": ("Asian", "Black", "White"),
        "ethnicity": ("no", "yes"),
        "language": ("English", "German"),
    }
    assert found.counted == {"without_sex": 2, "without_age": 2, "without_sex_or_age": 2}
    for k, key in enumerate(column(found, "image")):
        assert abs(np.asarray(to_rgb(found.load(key)))[0, 0].astype(int) - (10 * k, 100, 200)).max() <= 4


def test_what_no_option_names_is_null_and_no_group(tmp_path):
    found = read(release(tmp_path), BASIC)
    assert groups_of(found.table) == {}
    for name in ("sex", "age", "age_group", "race", "ethnicity", "language", "note", "split", "modality"):
        assert found.table.column(name).null_count == len(ROWS)
    task = task_of(found.table)
    assert (task.kind, task.labels, task.concepts, task.negatives) == ("binary", ("edema",), ("edema",), ("no edema",))
    assert questions(task) == ["Does this image show edema?"]
    assert found.counted == {"without_sex": 5, "without_age": 5, "without_sex_or_age": 5}


def test_classes(tmp_path):
    found = read(release(tmp_path), CLASSES)
    assert label_matrix(found.table).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert task_of(found.table).labels == ("mel", "nv", "0")
    assert found.counted["excluded_without_class"] == 1
    (tmp_path / "t.csv").unlink()
    # As pandas writes a column of numbers with blanks.
    write_table(
        tmp_path, [changed(row, "dx", dx) for row, dx in zip(ROWS, ["1.0", "0.0", "", "2.0", "1"], strict=True)]
    )
    found = read(tmp_path, {**CLASSES, "classes": (2, 1, 0)})
    assert label_matrix(found.table).argmax(1).tolist() == [1, 2, 0, 1]
    # A class wins over what means unknown.
    write_table(tmp_path, [changed(row, "dx", dx) for row, dx in zip(ROWS[:2], ["unknown", "n/a"], strict=True)])
    assert column(read(tmp_path, {**CLASSES, "classes": ("mel", "unknown")}), "labels") == [[0, 1]]


def test_the_words_of_the_task(tmp_path):
    words = {
        "concepts": ("pulmonary edema", "a mass"),
        "negatives": ("dry lungs", "no mass"),
        "question": "Is there {concept}?",
        "prompt": "A radiograph with {concept}",
    }
    task = task_of(read(release(tmp_path), {**FULL, **words}).table)
    assert questions(task) == ["Is there pulmonary edema?", "Is there a mass?"]
    assert zero_shot_prompts(task)[0] == ["A radiograph with dry lungs", "A radiograph with pulmonary edema"]
    assert caption(task, [1, 1]) == "A radiograph with pulmonary edema and a mass"
    task = task_of(read(tmp_path, {**CLASSES, "concepts": ("melanoma", "nevus", "else"), "question": "Which?"}).table)
    assert (questions(task), task.concepts, task.negatives) == (["Which?"], ("melanoma", "nevus", "else"), ())


@pytest.mark.parametrize("kind", ["tsv", "csv.gz", "tsv.gz", "bom", "parquet", "parquet dictionary"])
def test_every_kind_of_table(tmp_path, kind):
    plain = read(release(tmp_path), FULL)
    columns = {name: [row[k] or None for row in ROWS] for k, name in enumerate(HEADER)}
    name = f"other.{kind.split()[0]}"
    if kind.startswith("parquet"):
        arrays = {key: pa.array(values) for key, values in columns.items()}
        if "dictionary" in kind:
            arrays = {key: array.dictionary_encode() for key, array in arrays.items()}
        pq.write_table(pa.table(arrays), tmp_path / name, row_group_size=2)
    else:
        write_table(tmp_path, name="raw", delimiter="\t" if "tsv" in kind else ",")
        content = (tmp_path / "raw").read_bytes()
        content = b"\xef\xbb\xbf" + content if kind == "bom" else content
        (tmp_path / name).write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    found = read(tmp_path, {**FULL, "file": name})
    assert found.table.equals(plain.table)
    assert found.table.schema.metadata == plain.table.schema.metadata
    assert found.counted == plain.counted


def test_types_of_parquet(tmp_path):
    root = release(tmp_path)
    table = pa.table(
        {
            "Path": [row[0] for row in ROWS],
            "Patient": pa.array([7, 7, 8, 9, 10], pa.int64()),
            "edema": pa.array([True, True, False, None, False]),
            "mass": pa.array([0.0, 0.0, 1.0, float("nan"), None]),
            "Sex": pa.array([0, 0, 1, 9, None], pa.int8()),
            "Age": pa.array([63.5, float("nan"), 0.0, None, 80.0], pa.float32()),
            "nested": pa.array([[1]] * 5),
        }
    )
    pq.write_table(table, root / "t.parquet")
    options = {
        **BASIC,
        "file": "t.parquet",
        "kind": "multilabel",
        "labels": ("edema", "mass"),
        "age": "Age",
        "sex": "Sex",
    }
    found = read(root, {**options, "sex_codes": {0: "female", 1: "male", 9: None}})
    assert column(found, "labels") == [[1, 0], [1, 0], [0, 1], [None, None], [0, None]]
    assert column(found, "patient_id") == ["7", "7", "8", "9", "10"]
    assert column(found, "age") == [63.5, None, 0, None, 80]
    assert column(found, "sex") == ["female", "female", "male", None, None]
    assert column(read(root, {**options, "sex": "", "unknown": ()}), "age") == [63.5, None, 0, None, 80]
    with pytest.raises(CohortError, match=r"t\.parquet, row 2, column Sex"):
        read(root, options)
    with pytest.raises(CohortError, match="column nested"):
        read(root, {**options, "labels": ("edema", "nested"), "sex": ""})


def test_damaged_parquet(tmp_path):
    root = release(tmp_path)
    pq.write_table(pa.table({"Path": [row[0] for row in ROWS]}), root / "t.parquet")
    content = (root / "t.parquet").read_bytes()
    flipped = bytearray(content)
    flipped[8:40] = bytes(32)
    for damaged in (content[:-20], b"PAR1", bytes(flipped)):
        (root / "t.parquet").write_bytes(damaged)
        with pytest.raises(CohortError, match=r"t\.parquet"):
            read(root, {"file": "t.parquet", "image": "Path", "patient": "Path", "labels": ("Path",)})


def test_codes_of_ones_own(tmp_path):
    rows = [
        ["f/a.png", "p1", "-1", "999", "1", "A"],
        ["f/b.png", "p2", "1.0", "999.0", "2.0", "B"],
        ["g/c.jpg", "p3", "0.0", "64", "1", "c"],
        ["d.tif", "p4", "", "", "", ""],
    ]
    root = write_table(release(tmp_path), rows, ["Path", "Patient", "edema", "Age", "Sex", "Fold"])
    own = {
        "sex_codes": {1: "male", 2: "female"},
        "split_codes": {"a": "train", "b": "test", "C": None},
        "unknown": (-1, 999),
    }
    found = read(root, {**BASIC, "age": "age", "sex": "SEX", "split": "fold", **own})
    assert column(found, "labels") == [[None], [1], [0], [None]]
    assert column(found, "age") == [None, None, 64, None]
    assert column(found, "sex") == ["male", "female", "male", None]
    assert column(found, "split") == ["train", "test", None, None]
    # Codes that are given replace the usual ones.
    write_table(root, [["f/a.png", "p1", "1", "", "F", ""]], ["Path", "Patient", "edema", "Age", "Sex", "Fold"])
    with pytest.raises(CohortError, match="one of 1, 2,"):
        read(root, {**BASIC, "sex": "Sex", **own})


def test_groups_that_are_listed(tmp_path):
    root = release(tmp_path)
    groups = {"race": ["White", "Black", "Asian", "Other"], "ethnicity": ["yes", "no"]}
    found = read(root, {**FULL, "groups": groups})
    assert groups_of(found.table)["race"] == ("White", "Black", "Asian", "Other")
    assert groups_of(found.table)["ethnicity"] == ("yes", "no")
    assert groups_of(found.table)["language"] == ("English", "German")
    assert group_codes(found.table, ["race"])[:, 0].tolist() == [0, 0, 2, -1, 1]
    with pytest.raises(CohortError, match="row 5, column Race") as caught:
        read(root, {**FULL, "groups": {"race": ["White", "Black"]}})
    assert "one of White, Black" in caught.value.mend


def test_free_text_does_not_become_groups(tmp_path):
    rows = [[f"f/{k}.png", f"p{k}", "1", f"name {k}"] for k in range(51)]
    root = release(tmp_path, rows, header=["Path", "Patient", "edema", "Race"])
    with pytest.raises(CohortError, match="more than 50 different values") as caught:
        read(root, {**BASIC, "race": "Race"})
    assert "name 7" not in str(caught.value)
    write_table(root, rows[:50], ["Path", "Patient", "edema", "Race"])
    assert len(groups_of(read(root, {**BASIC, "race": "Race"}).table)["race"]) == 50


def test_a_folder_of_images_and_a_suffix(tmp_path):
    root = release(tmp_path)
    (root / "deep").mkdir()
    (root / "f").rename(root / "deep" / "F")
    write_table(root, [["a", "p1", "1"], ["b", "p2", "0"]], ["Path", "Patient", "edema"])
    found = read(root, {**BASIC, "images": "deep/f", "suffix": ".png"})
    assert column(found, "image") == ["deep/F/a.png", "deep/F/b.png"]
    assert found.load("deep/F/b.png").size == (20, 30)
    with pytest.raises(CohortError, match="lacks the folder elsewhere"):
        read(root, {**BASIC, "images": "elsewhere"})


def test_dicom(tmp_path):
    """By its name, and by how it begins; other pictures beside it."""
    names = ["a.dcm", "b.DICOM", "bare", "wrong.png"]
    root = release(tmp_path)
    for name in names:
        (root / name).write_bytes(examples.get_path("ct").read_bytes())
    write_table(root, [[name, "p", "1"] for name in [*names, "f/a.png"]], ["Path", "Patient", "edema"])
    found = read(root, BASIC)
    expected = open_dicom(examples.get_path("ct"), where="")
    for name in names:
        np.testing.assert_array_equal(found.load(name), expected)
    assert found.load("f/a.png").size == (20, 30)
    (root / "bare").write_bytes(examples.get_path("ct").read_bytes()[:5000])
    with pytest.raises(CohortError, match=r"bare \(.*t\.csv, row 4\)"):
        found.load("bare")


def test_rows_listed_twice_count_once_unless_they_disagree(tmp_path):
    root = release(tmp_path)
    write_table(root, [*ROWS, ROWS[0]])
    found = read(root, FULL)
    assert len(found.table) == 5
    assert found.counted["excluded_repeated_row"] == 1
    write_table(root, [*ROWS, changed(ROWS[0], "edema", "0")])
    with pytest.raises(CohortError, match="row 9 and row 3"):  # a note of two lines
        read(root, FULL)


def test_a_patient_in_two_splits(tmp_path):
    root = release(tmp_path)
    write_table(root, [*ROWS[:1], changed(ROWS[1], "Fold", "test"), *ROWS[2:]])
    with pytest.raises(CohortError, match="in two splits") as caught:
        read(root, FULL)
    assert caught.value.where.endswith("t.csv, row 3 and row 4")
    assert "p1" not in str(caught.value)
    write_table(root, [*ROWS[:1], changed(ROWS[1], "Fold", ""), *ROWS[2:]])
    assert column(read(root, FULL), "split")[:2] == ["train", None]


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("Path", "", "Fill"),
        ("Path", "../Secret.png", "relative"),
        ("Path", "/etc/Secret.png", "relative"),
        ("Path", "C:\\Secret.png", "relative"),
        ("Path", "Secret.png", "Put it there"),
        ("Path", "f", "Put it there"),
        ("Patient", "", "Fill"),
        ("edema", "Secret", "1, yes, true, positive, 0"),
        ("edema", "2", "leave it blank"),
        ("mass", "-1", "leave it blank"),
        ("Sex", "Secret", "female, f, male, m"),
        ("Age", "Secret", "years"),
        ("Age", "-1", "years"),
        ("Fold", "Secret", "train, validation, test"),
    ],
)
def test_a_cell_that_cannot_be_is_named_but_not_shown(tmp_path, name, value, mend):
    root = release(tmp_path)
    write_table(root, [changed(ROWS[1], name, value), *ROWS[2:]])
    with pytest.raises(CohortError) as caught:
        read(root, FULL)
    assert caught.value.where.endswith(f"t.csv, row 2, column {name}")
    assert mend in caught.value.mend
    assert "Secret" not in str(caught.value)
    tolerance = Tolerance(1)
    assert column(read(root, FULL, tolerance), "image") == [row[0] for row in ROWS[2:]]
    assert [str(error) for error in tolerance.errors] == [str(caught.value)]
    with pytest.raises(CohortError):
        read(root, FULL, Tolerance(0))


def test_a_class_that_is_not_listed(tmp_path):
    with pytest.raises(CohortError, match="row 4, column dx") as caught:
        read(release(tmp_path), {**CLASSES, "classes": ("mel", "bcc", 0)})
    assert "one of mel, bcc, 0" in caught.value.mend


def test_links_and_damage(tmp_path):
    root, outside = release(tmp_path / "r"), tmp_path / "outside"
    outside.mkdir()
    (root / "f" / "a.png").write_bytes(b"junk")
    with pytest.raises(CohortError, match=r"a\.png \(.*t\.csv, row 3\)"):
        read(root, BASIC).load("f/a.png")
    (root / "d.tif").rename(outside / "d.tif")
    (root / "d.tif").symlink_to(outside / "d.tif")
    with pytest.raises(CohortError, match="is a link"):
        read(root, BASIC)
    (root / "linked").symlink_to(outside)
    write_table(root, [["d.tif", "p1", "1"]], ["Path", "Patient", "edema"])
    with pytest.raises(CohortError, match="is a link, or lies behind one"):
        read(root, {**BASIC, "images": "linked"})


# Options


@pytest.mark.parametrize("lacking", ["image", "patient", "labels"])
def test_a_missing_option_says_which_columns_there_are(tmp_path, lacking):
    root = release(tmp_path)
    pq.write_table(pa.table({name: ["x"] for name in HEADER}), root / "t.parquet")
    for file in ("t.csv", "t.parquet"):
        options = {name: value for name, value in BASIC.items() if name != lacking}
        with pytest.raises(ConfigError) as caught:
            read(root, {**options, "file": file})
        assert caught.value.where == f"ingest.options.{lacking}"
        assert caught.value.mend == f"Columns of {file}: {', '.join(HEADER)}."


def test_a_column_that_does_not_exist(tmp_path):
    root = release(tmp_path)
    for role in ("image", "patient", "sex", "age", "race", "ethnicity", "language", "note", "split"):
        with pytest.raises(ConfigError, match=r't\.csv has no column "Pathh"') as caught:
            read(root, {**BASIC, role: "Pathh"})
        assert caught.value.where == f"ingest.options.{role}"
        assert caught.value.mend == 'Did you mean "Path"?'
    with pytest.raises(ConfigError, match='no column "oedema"'):
        read(root, {**FULL, "labels": ("edema", "oedema")})


def test_the_table_itself(tmp_path):
    root = release(tmp_path)
    (root / "u.parquet").touch()
    with pytest.raises(ConfigError, match=r"t\.csv, u\.parquet") as caught:
        read(root, {})
    assert caught.value.where == "ingest.options.file"
    with pytest.raises(CohortError, match=r"lacks the table v\.csv"):
        read(root, {**BASIC, "file": "v.csv"})
    with pytest.raises(CohortError, match="lacks the table"):
        read(root, {**BASIC, "file": "../t.csv"})
    with pytest.raises(ConfigError, match="--root"):
        read(None, BASIC)
    with pytest.raises(CohortError, match="not a folder"):
        read(tmp_path / "nowhere", BASIC)
    write_table(root, [])
    with pytest.raises(CohortError, match="no rows"):
        read(root, BASIC)
    (root / "t.csv").write_bytes(b"")
    with pytest.raises(CohortError, match="empty"):
        read(root, BASIC)
    write_table(root, [changed(row, "dx", "") for row in ROWS])
    with pytest.raises(CohortError, match="no rows that can be used"):
        read(root, CLASSES)
    write_table(root, [["a", "p", "1", "1"]], ["Path", "Patient", "edema", "EDEMA"])
    with pytest.raises(CohortError, match="twice"):
        read(root, BASIC)


@pytest.mark.parametrize(
    ("options", "place", "what"),
    [
        ({"kind": "regression"}, "kind", "regression"),
        ({"labels": ("a", "b")}, "labels", "one column"),
        ({"labels": ("a", "A"), "kind": "multilabel"}, "labels", "twice"),
        ({"labels": "a"}, "labels", "list of text"),
        ({"kind": "multiclass"}, "classes", "missing"),
        ({"kind": "multiclass", "classes": ("a",)}, "classes", "missing"),
        ({"kind": "multiclass", "classes": ("a", "A")}, "classes", "twice"),
        ({"kind": "multiclass", "classes": (1, "1")}, "classes", "twice"),
        ({"labels": ("a",), "concepts": ("b", "c")}, "concepts", "not 1 phrases"),
        ({"labels": ("a",), "negatives": ("b", "c")}, "negatives", "not 1 phrases"),
        ({"question": "Is there edema?"}, "question", "no place for the concept"),
        ({"question": "Is there {finding}?"}, "question", "no place"),
        ({"prompt": "A photo"}, "prompt", "no place"),
        ({"prompt": "A {concept} {"}, "prompt", "no place"),
        ({"sex_codes": {"1": "man"}}, "sex_codes", "no such meaning"),
        ({"split_codes": {"1": "dev"}}, "split_codes", "no such meaning"),
        ({"groups": {"race": ["a"]}}, "groups", 'no column of "race"'),
        ({"groups": {"sex": ["a"]}, "sex": "s"}, "groups", 'no column of "sex"'),
        ({"groups": {"race": "White"}, "race": "r"}, "groups", "no list"),
        ({"groups": {"race": []}, "race": "r"}, "groups", "no list"),
    ],
)
def test_options_that_cannot_be(options, place, what):
    with pytest.raises(ConfigError, match=what) as caught:
        adapter.Options(**options)
    assert place in caught.value.where
    assert caught.value.mend


def test_options_as_yaml_gives_them(tmp_path):
    root = release(tmp_path)
    options = {
        **FULL,
        "labels": ["edema", "mass"],
        "unknown": ["unknown", "n/a", "na"],
        "groups": {"ethnicity": ["no", "yes"]},
    }
    assert column(read(root, options), "labels")[3] == [None, None]
