"""The OL3I adapter, on small releases in the published layout."""

import csv
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from fairvlm_core.cohort.adapters import ol3i
from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import groups_of, label_matrix, read_cohort, task_of
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.steps import ingest

COLUMNS = ("anon_id", "age", "sex", "bmi", "label_1y", "set_1y", "label_5y", "set_5y")
PATIENTS = [
    ["a1", "52", "female", "25.1", "0", "train", "1", "test"],
    ["b2", "71.5", "M", "", "1", "train", "1.0", "train"],
    ["c3", "0", "Female", "31", "0.0", "val", "", ""],
    ["d4", "", "f", "31", "1.0", "Test", "0", "VALIDATION"],
    ["e5", "88", "", "31", "0", "TEST", "", "train"],
]


def numbers(name):
    """CT numbers from air to bone."""
    return np.random.default_rng(ord(name[0])).integers(-1024, 1500, (512, 512), dtype=np.int16)


def write_table(path, rows=PATIENTS, columns=COLUMNS):
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([columns, *rows])


def release(root, patients=PATIENTS, **slices):
    """`slices` replaces slices: name -> array, None for none."""
    root.mkdir(exist_ok=True)
    write_table(root / "clinical_data.csv", patients)
    with h5py.File(root / "l3_slices.h5", "w") as file:
        for name in sorted({row[0] for row in PATIENTS} | slices.keys()):
            if (data := slices.get(name, numbers(name))) is not None:
                file.create_dataset(name, data=data, compression="gzip" if name == "b2" else None)
    return root


def read(root, *, tolerance=None, **options):
    return ol3i.read(root, ol3i.Options(**options), age_edges=(40.0, 60.0), seed=0, tolerance=tolerance)


def load(root, name="a1", **options):
    return read(root, **options).load(f"l3_slices.h5/{name}")


def column(found, name):
    return dict(zip(found.table.column("sample_id").to_pylist(), found.table.column(name).to_pylist(), strict=True))


def windowed(name, level=40, width=400):
    """One number at a time, in double precision."""
    low = level - width / 2
    return np.array([round(min(max((float(v) - low) / width, 0), 1) * 255) for v in numbers(name).ravel()])


def test_the_published_layout(tmp_path):
    found = read(release(tmp_path))
    assert column(found, "labels") == {"a1": [0], "b2": [1], "c3": [0], "d4": [1], "e5": [0]}
    assert column(found, "split") == {"a1": "train", "b2": "train", "c3": "validation", "d4": "test", "e5": "test"}
    assert column(found, "sex") == {"a1": "female", "b2": "male", "c3": "female", "d4": "female", "e5": None}
    assert column(found, "age") == {"a1": 52, "b2": 71.5, "c3": None, "d4": None, "e5": 88}
    assert column(found, "age_group") == {"a1": "40-59", "b2": "60+", "c3": None, "d4": None, "e5": "60+"}
    assert column(found, "patient_id") == {row[0]: row[0] for row in PATIENTS}
    assert set(column(found, "modality").values()) == {"CT"}
    for name in ("note", "race", "ethnicity", "language"):
        assert found.table.column(name).null_count == len(PATIENTS)
    assert groups_of(found.table) == {"sex": ("female", "male"), "age_group": ("0-39", "40-59", "60+")}
    assert found.counted == {
        "excluded_unlisted_image": 0,
        "without_sex": 1,
        "without_age": 2,
        "without_sex_or_age": 3,
    }
    for name, key in column(found, "image").items():
        picture = found.load(key)
        assert picture.dtype == np.uint8
        assert abs(picture.ravel().astype(int) - windowed(name)).max() <= 1  # a half is rounded either way


def test_five_years_have_labels_and_splits_of_their_own(tmp_path):
    found = read(release(tmp_path), horizon="5y")
    assert column(found, "labels") == {"a1": [1], "b2": [1], "d4": [0]}
    assert column(found, "split") == {"a1": "test", "b2": "train", "d4": "validation"}
    assert found.counted["excluded_without_label"] == 2
    task = task_of(found.table)
    assert (task.kind, task.labels) == ("binary", ("ihd_5y",))
    assert "five years" in task.concepts[0]
    assert "one year" in task_of(read(tmp_path).table).concepts[0]
    assert label_matrix(found.table).sum() == 2
    with pytest.raises(ConfigError, match="horizon"):
        read(tmp_path, horizon="2y")


def test_a_label_without_a_split_is_left_out(tmp_path):
    found = read(release(tmp_path, [[*PATIENTS[0][:5], "", "", ""], *PATIENTS[1:]]))
    assert "a1" not in column(found, "split")
    assert found.counted["excluded_without_split"] == 1


def test_names_that_differ_between_readers(tmp_path):
    plain, drifted = release(tmp_path / "plain"), release(tmp_path / "drifted")
    (drifted / "clinical_data.csv").unlink()
    write_table(drifted / "OL3I_metadata.csv", columns=("anon_id", "age_at_scan", "Sex", *COLUMNS[3:]))
    (drifted / "l3_slices.h5").rename(drifted / "L3_slices.h5")
    found = read(drifted)
    assert found.table.drop_columns(["image"]).equals(read(plain).table.drop_columns(["image"]))
    np.testing.assert_array_equal(found.load("L3_slices.h5/a1"), load(plain))
    write_table(drifted / "OL3I_metadata.csv", columns=("anon_id", "age_at_scan", "sex", "age", *COLUMNS[4:]))
    with pytest.raises(CohortError, match="column age"):
        read(drifted)


@pytest.mark.parametrize(("level", "width"), [(40, 400), (0, 2000), (-500, 900), (40, 1)])
def test_the_window_decides_what_can_be_told_apart(tmp_path, level, width):
    picture = load(release(tmp_path), window_level=level, window_width=width)
    assert abs(picture.ravel().astype(int) - windowed("a1", level, width)).max() <= 1
    assert picture[numbers("a1") <= level - width / 2].max() == 0
    assert picture[numbers("a1") >= level + width / 2].min() == 255


@pytest.mark.parametrize("width", [0, -400, float("nan")])
def test_a_window_has_a_width(width):
    with pytest.raises(ConfigError, match="window_width"):
        ol3i.Options(window_width=width)


@pytest.mark.parametrize(
    ("male", "female", "sex_codes"),  # with the types that YAML and JSON give to keys
    [
        ("1", "0", {1: "male", 0: "female"}),
        ("1", "0", {"1": "male", "0": "female"}),
        ("0", "1", {0: "male", 1: "female"}),
        ("True", "False", {True: "male", False: "female"}),
        ("TRUE", "FALSE", {"True": "male", "False": "female"}),
        ("M", "0", {0: "female"}),
    ],
)
def test_sexes_are_never_guessed(tmp_path, male, female, sex_codes):
    rows = [[*row[:2], male if row[0] == "b2" else female, *row[3:]] for row in PATIENTS]
    root = release(tmp_path, rows)
    with pytest.raises(CohortError, match="column sex") as caught:
        read(root)
    assert "sex_codes" in caught.value.mend
    expected = {row[0]: "male" if row[0] == "b2" else "female" for row in PATIENTS}
    assert column(read(root, sex_codes=sex_codes), "sex") == expected


def test_codes_mean_a_sex_or_that_it_is_unknown(tmp_path):
    rows = [[*PATIENTS[0][:2], "9", *PATIENTS[0][3:]], *PATIENTS[1:]]
    assert column(read(release(tmp_path, rows), sex_codes={9: None}), "sex")["a1"] is None
    with pytest.raises(ConfigError, match="sex_codes"):
        read(tmp_path, sex_codes={9: "man"})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("anon_id", ""), ("age", "old"), ("age", "-1"), ("age", "nan"), ("sex", "woman"), ("label_1y", "2"),
        ("label_1y", "yes"), ("set_1y", "fold7"),
    ],
)  # fmt: skip
def test_a_cell_that_cannot_be_is_named_but_not_shown(tmp_path, place, value):
    row = dict(zip(COLUMNS, PATIENTS[1], strict=True)) | {place: value}
    root = release(tmp_path, [PATIENTS[0], list(row.values()), *PATIENTS[2:]])
    with pytest.raises(CohortError, match=f"clinical_data.csv, row 3, column {place}") as caught:
        read(root)
    assert value in ("", "-1", "2", "nan", "yes") or value not in str(caught.value)
    bad = Tolerance(1)
    assert len(read(root, tolerance=bad).table) == 4
    assert len(bad.errors) == 1


def test_rows_listed_twice_count_once_unless_they_disagree(tmp_path):
    found = read(release(tmp_path / "same", [*PATIENTS, PATIENTS[0]]))
    assert (len(found.table), found.counted["excluded_repeated_row"]) == (5, 1)
    with pytest.raises(CohortError, match="row 7 and row 2"):  # a patient in two splits
        read(release(tmp_path / "other", [*PATIENTS, [*PATIENTS[0][:5], "test", *PATIENTS[0][6:]]]))


def test_every_patient_has_a_slice(tmp_path):
    root = release(tmp_path, b2=None, z9=numbers("a1"))
    with pytest.raises(CohortError, match=r"no slice(.|\n)*clinical_data\.csv, row 3, column anon_id"):
        read(root)
    bad = Tolerance(1)
    found = read(root, tolerance=bad)
    assert set(column(found, "sex")) == {"a1", "c3", "d4", "e5"}
    assert found.counted["excluded_unlisted_image"] == 1
    for name in ("/a1", "a1/", ".", "../a1", "group/a1"):  # names that HDF5 would resolve
        write_table(root / "clinical_data.csv", [PATIENTS[0], [name, *PATIENTS[3][1:]]])
        with pytest.raises(CohortError, match="no slice"):
            read(root)


def test_another_layout_is_refused(tmp_path):
    root = release(tmp_path)
    with h5py.File(root / "l3_slices.h5", "w") as file:
        file["images"] = np.zeros((5, 512, 512), np.int16)
        file["ids"] = [row[0].encode() for row in PATIENTS]
    with pytest.raises(CohortError, match=r"layout is not the published one(.|\n)*l3_slices\.h5"):
        read(root)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (np.zeros((256, 256), np.int16) - 5, "512 x 512"),
        (np.zeros((1, 512, 512), np.int16) - 5, "512 x 512"),
        (np.zeros((512, 512), complex) - 5, "512 x 512"),
        (np.full((512, 512), b"x"), "512 x 512"),
        (np.where(np.eye(512) > 0, np.nan, -5.0), "no numbers"),
        (np.where(np.eye(512) > 0, -np.inf, 5.0), "no numbers"),
        (np.full((512, 512), 200, np.uint8), "below 0"),
        (np.full((512, 512), 1024, np.int16), "below 0"),
    ],
)
def test_a_slice_holds_ct_numbers(tmp_path, data, what):
    with pytest.raises(CohortError, match=rf"{what}(.|\n)*l3_slices\.h5 \(.*clinical_data\.csv, row 2\)"):
        load(release(tmp_path, a1=data))


def test_floating_point_ct_numbers_are_fine(tmp_path):
    root = release(tmp_path, a1=numbers("a1").astype(np.float32))
    np.testing.assert_array_equal(load(root), load(release(tmp_path)))


@pytest.mark.parametrize("kind", ["soft", "external", "storage", "virtual", "group"])
def test_nothing_outside_the_file_is_read(tmp_path, kind):
    root = release(tmp_path / "release", a1=None)
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["secret"] = numbers("a1")
    (tmp_path / "outside.bin").write_bytes(numbers("a1").tobytes())
    with h5py.File(root / "l3_slices.h5", "a") as file:
        if kind == "soft":
            file["a1"] = h5py.SoftLink("/b2")
        elif kind == "external":
            file["a1"] = h5py.ExternalLink(str(tmp_path / "outside.h5"), "/secret")
        elif kind == "storage":
            file.create_dataset("a1", (512, 512), "i2", external=[(str(tmp_path / "outside.bin"), 0, 2**19)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((512, 512), "i2")
            layout[:] = h5py.VirtualSource(str(tmp_path / "outside.h5"), "secret", (512, 512))
            file.create_virtual_dataset("a1", layout)
        else:
            file.create_group("a1")
        if kind != "group":  # h5py alone would read it
            np.testing.assert_array_equal(file["a1"][()], numbers("b2" if kind == "soft" else "a1"))
    what = "is a link" if kind in ("soft", "external") else "lie in this file"
    with pytest.raises(CohortError, match=rf"{what}(.|\n)*row 2"):
        load(root)


def test_damaged_files_are_named(tmp_path):
    root = release(tmp_path)
    file = root / "l3_slices.h5"
    whole = file.read_bytes()
    for content in (b"", b"no HDF5", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(CohortError, match=r"not HDF5, or damaged(.|\n)*l3_slices\.h5"):
            read(root)
    start = whole.index(b"\x78\x5e")  # the compressed slice
    file.write_bytes(whole[:start] + b"\xff" * 2000 + whole[start + 2000 :])
    with pytest.raises(CohortError, match=r"slice cannot be read(.|\n)*row 3"):
        load(root, "b2")


def test_links_to_the_file_are_refused(tmp_path):
    root = release(tmp_path / "release")
    (root / "l3_slices.h5").rename(tmp_path / "elsewhere.h5")
    (root / "l3_slices.h5").symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(CohortError, match="is a link"):
        read(root)


def test_several_threads_get_the_slices_of_one_thread(tmp_path):
    found = read(release(tmp_path))
    keys = column(found, "image").values()
    alone = {key: found.load(key) for key in keys}
    with ThreadPoolExecutor(4) as threads:
        for key, picture in zip(list(keys) * 20, threads.map(found.load, list(keys) * 20), strict=True):
            np.testing.assert_array_equal(picture, alone[key])


@pytest.mark.parametrize("lacking", ["anon_id", "age", "sex", "label_1y", "set_1y"])
def test_a_missing_column_is_named(tmp_path, lacking):
    root = release(tmp_path)
    kept = [i for i, name in enumerate(COLUMNS) if name != lacking]
    write_table(root / "clinical_data.csv", [[row[i] for i in kept] for row in PATIENTS], [COLUMNS[i] for i in kept])
    with pytest.raises(CohortError, match=rf"clinical_data\.csv, column {lacking}"):
        read(root)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="--root"):
        read(None)
    with pytest.raises(CohortError, match="not a folder"):
        read(tmp_path / "nowhere")
    root = release(tmp_path / "r", [[*PATIENTS[0][:4], "", "train", "", ""]])
    for content in (None, b",".join(name.encode() for name in COLUMNS)):
        if content:
            (root / "clinical_data.csv").write_bytes(content)
        with pytest.raises(CohortError, match="No row has a label in the column label_1y"):
            read(root)
    for content, what in ((b"", "empty"), (b"\xff\xfe\x00\x81", "not text")):
        (root / "clinical_data.csv").write_bytes(content)
        with pytest.raises(CohortError, match=what):
            read(root)
    (root / "l3_slices.h5").unlink()
    with pytest.raises(CohortError, match=r"lacks the table l3_slices\.h5"):
        read(root)
    (root / "clinical_data.csv").unlink()
    with pytest.raises(CohortError, match=r"lacks the table clinical_data\.csv"):
        read(root)


def test_through_ingest_a_few_bad_slices_are_left_out(tmp_path):
    root, out = release(tmp_path / "release", b2=np.zeros((512, 512))), tmp_path / "out"
    config = ingest.Config(dataset="ol3i", image_size=32, skip_bad=1, options={"window_width": 2000})
    metrics = ingest.run(config, {"root": root}, {"out": out})
    assert (metrics["images"], metrics["skipped"]) == (4, 1)
    assert read_cohort(out).column("patient_id").to_pylist() == ["a1", "c3", "d4", "e5"]
    assert ImageStore.open(out).pixels.shape == (4, 32, 32, 3)
    with pytest.raises(CohortError, match="below 0"):
        ingest.run(ingest.Config(dataset="ol3i", image_size=32), {"root": root}, {"out": out})
