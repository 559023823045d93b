"""The HAM10000 adapter, on small releases in the published layout and on the real files where they are at hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairvlm_core.cohort.adapters import ham10000
from fairvlm_core.cohort.images import to_rgb
from fairvlm_core.cohort.table import group_codes, label_matrix, task_of
from fairvlm_core.errors import CohortError, ConfigError

COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ham10000"

TRAIN = [
    ["HAM_1", "ISIC_1", "mel", "histo", "80", "male", "scalp", "vidir_modern"],
    ["HAM_1", "ISIC_2", "mel", "histo", "80.0", "male", "scalp", "vidir_modern"],
    ["HAM_2", "ISIC_3", "nv", "follow_up", "0", "female", "back", "rosendahl"],
    ["HAM_3", "ISIC_4", "akiec", "histo", "", "unknown", "unknown", "rosendahl"],
    ["HAM_4", "ISIC_5", "vasc", "consensus", "35", "", "back", "rosendahl"],
]
TEST = [
    ["HAMTEST_1", "ISIC_8", "bcc", "histo", "70.0", "female", "back", "rosendahl"],
    ["HAMTEST_2", "ISIC_9", "df", "histo", "", "unknown", "unknown", "external"],
]


def write_table(path, rows, columns=COLUMNS, delimiter=","):
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(row[: len(columns)] for row in rows)


def release(root, train=TRAIN, test=TEST):
    """The layout of Harvard Dataverse; part 1 holds the first two images."""
    for k, folder in enumerate(("HAM10000_images_part_1", "HAM10000_images_part_2", "ISIC2018_Task3_Test_Images")):
        (root / folder).mkdir(parents=True)
        rows = (train[:2], train[2:], test)[k]
        for row in rows:
            colour = tuple(np.random.default_rng(int(row[1][5:])).integers(0, 256, 3).tolist())
            Image.new("RGB", (60, 45), colour).save(root / folder / f"{row[1]}.jpg")
    write_table(root / "HAM10000_metadata", train)
    write_table(root / "ISIC2018_Task3_Test_GroundTruth.csv", test)
    return root


def read(root, edges=(40.0, 60.0)):
    return ham10000.read(root, ham10000.Options(), age_edges=edges, seed=0)


def column(found, name):
    return dict(zip(found.table.column("sample_id").to_pylist(), found.table.column(name).to_pylist(), strict=True))


def test_the_published_layout(tmp_path):
    found = read(release(tmp_path))
    table, task = found.table, task_of(found.table)
    assert task.kind == "multiclass"
    assert task.labels == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert dict(zip(task.labels, task.concepts, strict=True))["mel"] == "melanoma"
    chosen = {k: task.labels[int(np.argmax(v))] for k, v in column(found, "labels").items()}
    assert chosen == {row[1]: row[2] for row in TRAIN + TEST}
    np.testing.assert_array_equal(label_matrix(table).sum(1), 1)
    assert column(found, "patient_id") == {row[1]: row[0] for row in TRAIN + TEST}
    assert column(found, "split") == {**{row[1]: None for row in TRAIN}, **{row[1]: "test" for row in TEST}}
    assert column(found, "age") == {
        "ISIC_1": 80, "ISIC_2": 80, "ISIC_3": None, "ISIC_4": None, "ISIC_5": 35, "ISIC_8": 70, "ISIC_9": None,
    }  # fmt: skip
    assert column(found, "sex")["ISIC_4"] is column(found, "sex")["ISIC_5"] is None
    assert column(found, "age_group")["ISIC_1"] == "60+"
    np.testing.assert_array_equal(group_codes(table, ["sex", "age_group"])[:3], [[1, 2], [1, 2], [0, -1]])
    for name in ("note", "race", "ethnicity", "language"):
        assert table.column(name).null_count == len(table)
    assert found.counted == {
        "excluded_unlisted_image": 0,
        "excluded_lesion_in_test": 0,
        "without_sex": 3,
        "without_age": 3,
        "without_sex_or_age": 4,
    }
    for key in table.column("image").to_pylist():
        expected = np.random.default_rng(int(Path(key).stem[5:])).integers(0, 256, 3)
        assert abs(np.asarray(to_rgb(found.load(key))).astype(int) - expected).max() <= 3


def test_names_and_formats_that_differ_between_sources(tmp_path):
    plain = read(release(tmp_path / "plain"))
    # Kaggle: .csv without the last column; lower-case folders, one of them twice; nested; junk of an archive.
    drifted = release(tmp_path / "drifted")
    (drifted / "HAM10000_metadata").unlink()
    write_table(drifted / "HAM10000_metadata.csv", TRAIN, COLUMNS[:-1])
    (drifted / "HAM10000_images_part_1").rename(drifted / "ham10000_images_part_1")
    nested = drifted / "ISIC2018_Task3_Test_Images"
    nested.rename(drifted / "inner")
    nested.mkdir()
    (drifted / "inner").rename(nested / "ISIC2018_Task3_Test_Images")
    (nested / "__MACOSX").mkdir()
    (nested / "__MACOSX" / "._ISIC_8.jpg").write_bytes(b"junk")
    # Dataverse: tab separated with quotes; a byte order mark and Windows line ends.
    truth = drifted / "ISIC2018_Task3_Test_GroundTruth.csv"
    lines = ["\t".join(f'"{cell}"' for cell in row) for row in [COLUMNS, *TEST]]
    truth.with_suffix(".tab").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    truth.unlink()
    found = read(drifted)
    assert found.table.drop_columns(["image"]).equals(plain.table.drop_columns(["image"]))
    assert found.counted == plain.counted
    assert all(found.load(key).size == (60, 45) for key in found.table.column("image").to_pylist())


def test_without_the_official_test_set_no_row_has_a_split(tmp_path):
    root = release(tmp_path)
    (root / "ISIC2018_Task3_Test_GroundTruth.csv").unlink()
    with pytest.raises(CohortError, match="lacks the table ISIC2018_Task3_Test_GroundTruth"):
        read(root)
    for file in (root / "ISIC2018_Task3_Test_Images").iterdir():
        file.unlink()
    (root / "ISIC2018_Task3_Test_Images").rmdir()
    found = read(root)
    assert len(found.table) == len(TRAIN)
    assert found.table.column("split").null_count == len(TRAIN)


def test_a_lesion_of_the_test_set_never_trains(tmp_path):
    shared_lesion = ["HAM_1", "ISIC_8", "mel", "histo", "80", "male", "scalp", "x"]
    found = read(release(tmp_path / "lesion", test=[shared_lesion, TEST[1]]))
    assert found.counted["excluded_lesion_in_test"] == 2
    assert set(column(found, "split")) == {"ISIC_3", "ISIC_4", "ISIC_5", "ISIC_8", "ISIC_9"}
    shared_image = ["HAMTEST_1", "ISIC_3", "nv", "histo", "5", "female", "back", "x"]
    found = read(release(tmp_path / "image", test=[shared_image]))
    assert found.counted["excluded_lesion_in_test"] == 1
    assert column(found, "split")["ISIC_3"] == "test"


def test_rows_listed_twice_count_once_unless_they_disagree(tmp_path):
    root = release(tmp_path)
    write_table(root / "HAM10000_metadata", [*TRAIN, TRAIN[0]])
    found = read(root)
    assert len(found.table) == len(TRAIN) + len(TEST)
    assert found.counted["excluded_repeated_row"] == 1
    write_table(root / "HAM10000_metadata", [*TRAIN, [*TRAIN[0][:2], "nv", *TRAIN[0][3:]]])
    with pytest.raises(CohortError, match="row 7 and row 2"):
        read(root)


def test_images_that_no_row_lists_are_counted(tmp_path):
    root = release(tmp_path)
    Image.new("RGB", (8, 8)).save(root / "HAM10000_images_part_2" / "ISIC_99.jpg")
    assert read(root).counted["excluded_unlisted_image"] == 1


@pytest.mark.parametrize(
    ("row", "place", "mend"),
    [
        (["HAM_9", "ISIC_1", "foo", "histo", "80", "male", "x", "x"], "row 2, column dx", "akiec, bcc"),
        (["HAM_9", "ISIC_1", "", "histo", "80", "male", "x", "x"], "row 2, column dx", "akiec, bcc"),
        (["HAM_9", "ISIC_1", "nv", "histo", "eighty", "male", "x", "x"], "row 2, column age", "years"),
        (["HAM_9", "ISIC_1", "nv", "histo", "-5", "male", "x", "x"], "row 2, column age", "years"),
        (["HAM_9", "ISIC_1", "nv", "histo", "nan", "male", "x", "x"], "row 2, column age", "years"),
        (["HAM_9", "ISIC_1", "nv", "histo", "80", "M", "x", "x"], "row 2, column sex", "female, male"),
        (["", "ISIC_1", "nv", "histo", "80", "male", "x", "x"], "row 2, column lesion_id", "Fill"),
        (["HAM_9", "ISIC_77", "nv", "histo", "80", "male", "x", "x"], "row 2, column image_id", "Unpack"),
        (["HAM_9", "ISIC_1", "nv"], "row 2", "Mend"),
    ],
)
def test_a_cell_that_cannot_be_is_named_but_not_shown(tmp_path, row, place, mend):
    root = release(tmp_path)
    write_table(root / "HAM10000_metadata", [row])
    with pytest.raises(CohortError) as caught:
        read(root)
    assert "HAM10000_metadata" in caught.value.where
    assert place in caught.value.where
    assert mend in caught.value.mend
    assert not any(value in str(caught.value) for value in ("foo", "eighty", "HAM_9"))


@pytest.mark.parametrize("lacking", ["lesion_id", "dx", "age", "sex"])
def test_a_missing_column_is_named(tmp_path, lacking):
    root = release(tmp_path)
    kept = [i for i, name in enumerate(COLUMNS) if name != lacking]
    write_table(root / "HAM10000_metadata", [[row[i] for i in kept] for row in TRAIN], [COLUMNS[i] for i in kept])
    with pytest.raises(CohortError, match=f"HAM10000_metadata, column {lacking}"):
        read(root)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="--root"):
        read(None)
    with pytest.raises(CohortError, match="not a folder"):
        read(tmp_path / "nowhere")
    root = release(tmp_path / "r")
    (root / "HAM10000_metadata").unlink()
    with pytest.raises(CohortError, match="lacks the table HAM10000_metadata"):
        read(root)
    write_table(root / "HAM10000_metadata", [])
    with pytest.raises(CohortError, match="no rows"):
        read(root)
    (root / "HAM10000_metadata").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(CohortError, match="not text"):
        read(root)
    (root / "HAM10000_images_part_2").rename(root / "images")
    with pytest.raises(CohortError, match="lacks the folder HAM10000_images_part_2"):
        read(root)


def test_an_unreadable_image_names_its_row(tmp_path):
    root = release(tmp_path)
    file = root / "HAM10000_images_part_2" / "ISIC_4.jpg"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CohortError, match=r"ISIC_4\.jpg \(.*HAM10000_metadata, row 5\)"):
        read(root).load("HAM10000_images_part_2/ISIC_4.jpg")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not at hand")
def test_the_real_files():
    found = read(REAL)
    split = np.array(found.table.column("split").to_pylist())
    known = (group_codes(found.table, ["sex", "age_group"]) >= 0).all(1)
    assert [(split == None).sum(), (split == "test").sum()] == [2400, 800]  # noqa: E711 - elementwise
    # Without age 0, which means unknown: 2,375 of the 2,391 and 625 of the 631 rows with a sex and any age.
    assert [known[split == None].sum(), known[split == "test"].sum()] == [2375, 625]  # noqa: E711
    labels = task_of(found.table).labels
    assert dict(zip(labels, label_matrix(found.table)[split == "test"].sum(0), strict=True)) == {
        "akiec": 42, "bcc": 83, "bkl": 210, "df": 41, "mel": 150, "nv": 242, "vasc": 32,
    }  # fmt: skip
    assert len(set(np.array(found.table.column("patient_id").to_pylist())[split == "test"])) == 601
    assert found.load(found.table.column("image")[0].as_py()).size == (224, 224)
