"""The Harvard-FairVLMed adapter, on small releases in the published layout: tables with words, npz files with codes."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairvlm_core.cohort.adapters import harvard_fairvlmed
from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import group_codes, groups_of, read_cohort, task_of
from fairvlm_core.cohort.tolerance import Tolerance
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.steps import ingest

COLUMNS = (
    "filename", "age", "gender", "race", "ethnicity", "language", "maritalstatus", "note", "gpt4_summary", "glaucoma",
    "use",
)  # fmt: skip
# A row as data_summary.csv has it, with what the npz file says beside it: gender, race, ethnicity, language, glaucoma.
PATIENTS = {
    "00001": (["52", "female", "black", "non-hispanic", "english", "", "", "", "yes", "training"], (0, 1, 0, 0, 1)),
    "00002": (["71.0", "male", "white", "hispanic", "spanish", "", "", "", "no", "training"], (1, 2, 1, 1, 0)),
    "00003": (["30", "male", "asian", "unknown", "other", "", "", "", "no", "training"], (1, 0, -1, 2, 0)),
    "07001": (["88", "female", "white", "", "unknown", "", "", "", "yes", "validation"], (0, 2, -1, -1, 1)),
    "08001": (["61", "female", "asian", "non-hispanic", "english", "", "", "", "no", "test"], (0, 0, 0, 0, 0)),
    "08002": (["40", "male", "black", "hispanic", "unknown", "", "", "", "yes", "test"], (1, 1, 1, -1, 1)),
}  # fmt: skip
FOLDERS = {"training": "Training", "validation": "Validation", "test": "Test"}
LONG = "The patient has suspected glaucoma with a large cup and is followed; " * 5
EDGES = (40.0, 60.0)


def picture(number):
    return np.random.default_rng(int(number)).integers(0, 256, (66, 51), dtype=np.uint8)


def members(number, **changed):
    words, (gender, race, ethnicity, language, glaucoma) = PATIENTS[number]
    content = {
        "slo_fundus": picture(number), "md": -2.5, "tds": np.zeros(52), "age": int(float(words[0])), "gender": gender,
        "race": race, "ethnicity": ethnicity, "language": language, "maritalstatus": -1, "glaucoma": glaucoma,
        "note": f"Note of {number}.", "note_extra": f"A woman. Note of {number}.",
    }  # fmt: skip
    return {name: value for name, value in (content | changed).items() if value is not None}


def write_table(path, rows, columns=None, **style):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, **style)
        writer.writerows([columns, *rows] if columns else rows)


def rows_of_table(**changed):
    """The rows of data_summary.csv; `p00001={"race": "..."}` changes cells."""
    rows = {
        number: dict(zip(COLUMNS, [f"data_{number}.npz", *words], strict=True))
        for number, (words, _) in PATIENTS.items()
    }
    for number, cells in changed.items():
        rows[number[1:]].update(cells)
    return [list(row.values()) for row in rows.values()]


def release(root, *, table=True, notes=True, pictures=False):
    for number, (words, _) in PATIENTS.items():
        folder = root / FOLDERS[words[-1]]
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"data_{number}.npz", **members(number))
        if pictures:
            Image.fromarray(255 - picture(number)).save(folder / f"slo_fundus_{number}.jpg", quality=95)
    if table:
        write_table(root / "data_summary.csv", rows_of_table(), COLUMNS)
    if notes:
        rows = [[f"data_{number}.npz", "long note", f"Summary of {number}."] for number in PATIENTS]
        write_table(root / "gpt-4_summarized_notes.csv", rows, ["File Name", "Original Note", "Summarized Note"])
    return root


def read(root, *, tolerance=None, **options):
    given = harvard_fairvlmed.Options(**options)
    return harvard_fairvlmed.read(root, given, age_edges=EDGES, seed=0, tolerance=tolerance)


def column(found, name):
    return dict(zip(found.table.column("patient_id").to_pylist(), found.table.column(name).to_pylist(), strict=True))


def load(root, number="00001", folder="Training", **options):
    return read(root, **options).load(f"{folder}/data_{number}.npz")


EXPECTED = {
    "sex": ["female", "male", "male", "female", "female", "male"],
    "age": [52, 71, 30, 88, 61, 40],
    "age_group": ["40-59", "60+", "0-39", "60+", "60+", "40-59"],
    "race": ["black", "white", "asian", "white", "asian", "black"],
    "ethnicity": ["non-hispanic", "hispanic", None, None, "non-hispanic", "hispanic"],
    "language": ["english", "spanish", "other", None, "english", None],
    "labels": [[1], [0], [0], [1], [0], [1]],
    "split": ["train", "train", "train", "validation", "test", "test"],
}
COUNTED = {
    "excluded_unlisted_image": 0,
    "without_sex": 0,
    "without_age": 0,
    "without_sex_or_age": 0,
    "without_race": 0,
    "without_ethnicity": 2,
    "without_language": 2,
    "without_note": 0,
    "without_attribute_in_validation_or_test": 2,
}


@pytest.mark.parametrize("table", [True, False])
def test_words_in_the_table_and_codes_in_the_files_say_the_same(tmp_path, table):
    found = read(release(tmp_path, table=table))
    for name, values in EXPECTED.items():
        assert list(column(found, name).values()) == values, name
    assert found.table.column("patient_id").to_pylist() == list(PATIENTS)
    assert found.table.column("sample_id").to_pylist() == [f"data_{number}" for number in PATIENTS]
    assert column(found, "note") == {number: f"Summary of {number}." for number in PATIENTS}
    assert set(column(found, "modality").values()) == {"fundus"}
    assert found.counted == COUNTED
    for number, key in column(found, "image").items():
        assert key == f"{FOLDERS[PATIENTS[number][0][-1]]}/data_{number}.npz"
        np.testing.assert_array_equal(found.load(key), picture(number))


def test_the_task_and_the_groups_are_the_papers(tmp_path):
    table = read(release(tmp_path)).table
    task = task_of(table)
    assert task.kind == "binary"
    captions = [task.prompt.format(concept=phrase) for phrase in (*task.negatives, *task.concepts)]
    assert captions == ["A photo of non-glaucoma", "A photo of glaucoma"]
    groups = groups_of(table)
    assert [len(groups[name]) for name in ("race", "sex", "ethnicity", "language")] == [3, 2, 2, 3]
    # The codes of the cohort are those of the published code.
    codes = group_codes(table, ["sex", "race", "ethnicity", "language"])
    np.testing.assert_array_equal(codes, [code[:4] for _, code in PATIENTS.values()])


def test_names_that_differ_between_downloads(tmp_path):
    plain, drifted = release(tmp_path / "plain"), release(tmp_path / "drifted")
    for root, other in ((plain, "other"), (drifted, "Others")):
        # The age is not the one in the file: the table was read.
        rows = rows_of_table(p00001={"age": "52.5"}, p00003={"language": other})
        write_table(root / "data_summary.csv", rows, COLUMNS)
    plain = read(plain)
    (drifted / "Test").rename(drifted / "TESTING")
    (drifted / "val").mkdir()
    (drifted / "Training").rename(drifted / "val" / "training")  # the innermost folder decides
    (drifted / "ReadMe").mkdir()
    (drifted / "data_summary.csv").rename(drifted / "ReadMe" / "Data_Summary.csv")
    (drifted / "gpt-4_summarized_notes.csv").rename(drifted / "ReadMe" / "gpt4_summarized_notes.csv")
    (drifted / "__MACOSX" / "Training").mkdir(parents=True)
    (drifted / "__MACOSX" / "Training" / "._data_00001.npz").write_bytes(b"junk")
    (drifted / "TESTING" / "data_00009").write_bytes(b"junk")
    found = read(drifted)
    assert found.table.drop_columns(["image"]).equals(plain.table.drop_columns(["image"]))
    assert found.counted == plain.counted
    np.testing.assert_array_equal(found.load("val/training/data_00001.npz"), picture("00001"))


def test_of_a_file_that_lies_there_twice_the_first_is_read(tmp_path):
    root = release(tmp_path)
    for folder in "cab":
        (root / "Training" / folder).mkdir()
        shutil.copy(root / "Training" / "data_00001.npz", root / "Training" / folder)
    assert column(read(root), "image")["00001"] == "Training/data_00001.npz"
    (root / "Training" / "data_00001.npz").unlink()
    assert column(read(root), "image")["00001"] == "Training/a/data_00001.npz"


def test_the_older_layout(tmp_path):
    """One folder, a table of splits, `hispanic` and `fundus_slo` in the files, and no language."""
    (tmp_path / "data").mkdir()
    for number in PATIENTS:
        content = members(number, slo_fundus=None, fundus_slo=picture(number), language=None, ethnicity=None)
        np.savez_compressed(tmp_path / "data" / f"data_{number}.npz", hispanic=PATIENTS[number][1][2], **content)
    short = {"training": "train", "validation": "val", "test": "test"}
    splits = [[f"data_{number}.npz", short[words[-1]]] for number, (words, _) in PATIENTS.items()]
    write_table(tmp_path / "split_files.csv", splits, ["filename", "file_type"])
    found = read(tmp_path, notes="note")
    for name in EXPECTED.keys() - {"language"}:
        assert list(column(found, name).values()) == EXPECTED[name], name
    assert set(column(found, "language").values()) == {None}
    assert found.counted == {**COUNTED, "without_language": 6, "without_attribute_in_validation_or_test": 3}
    assert column(found, "note") == {number: f"Note of {number}." for number in PATIENTS}
    np.testing.assert_array_equal(found.load("data/data_08002.npz"), picture("08002"))


def test_where_the_image_comes_from(tmp_path):
    root = release(tmp_path, pictures=True)
    (root / "Test" / "data_08002.npz").unlink()
    assert read(root, images="jpg").table.column("image")[0].as_py() == "Training/slo_fundus_00001.jpg"
    shown = np.asarray(read(root, images="jpg").load("Training/slo_fundus_00001.jpg")).astype(int)
    assert abs(shown - (255 - picture("00001"))).mean() < 12
    keys = column(read(root), "image")
    assert keys["08001"] == "Test/data_08001.npz"
    assert keys["08002"] == "Test/slo_fundus_08002.jpg"
    with pytest.raises(CohortError, match=r"listed image is missing(.|\n)*data_summary\.csv, row 7"):
        read(root, images="npz")
    with pytest.raises(ConfigError, match="images"):
        read(root, images="png")


def test_pictures_and_a_table_suffice(tmp_path):
    root = release(tmp_path, pictures=True)
    for file in root.rglob("*.npz"):
        file.unlink()
    assert len(read(root).table) == len(PATIENTS)
    (root / "data_summary.csv").unlink()
    with pytest.raises(CohortError, match=r"no files data_<number>\.npz"):
        read(root)


def notes_of(root, **options):
    found = read(root, **options)
    return list(column(found, "note").values()), found.counted["without_note"]


def test_a_summary_is_cut_as_in_the_published_code(tmp_path):
    root = release(tmp_path)
    table = root / "gpt-4_summarized_notes.csv"
    texts = [LONG, "x" * 300, "short", "", f"{'y' * 180} z", "  kept, and\nkept  "]
    rows = [[f"data_{number}.npz", "note", text] for number, text in zip(PATIENTS, texts, strict=True)]
    write_table(table, rows[:-1], ["a", "b", "c"])

    def published(note, length=180):
        note = note.strip()
        return note[:length][: note[:length].rfind(" ")] if len(note) > length else note

    notes, without = notes_of(root)
    assert notes[0] == published(LONG)
    assert 150 < len(notes[0]) < 180
    # A word longer than the limit is cut itself; the published code would also drop its last letter.
    assert notes[1:] == ["x" * 180, "short", None, "y" * 180, None]
    assert without == 2  # a blank one, and one that is not listed
    write_table(table, rows, ["a", "b", "c"])
    assert notes_of(root, note_length=0)[0] == [LONG.strip(), *texts[1:3], None, texts[4], texts[5].strip()]
    assert notes_of(root, note_length=20)[0][0] == published(LONG, 20)


def test_a_table_of_summaries_without_header(tmp_path):
    root = release(tmp_path)
    table = root / "gpt-4_summarized_notes.csv"
    write_table(table, [[f"data_{number}", "note", f"Summary of {number}.", "more"] for number in PATIENTS])
    assert notes_of(root) == ([f"Summary of {number}." for number in PATIENTS], 0)
    write_table(table, [["File Name", "Summary"], ["data_00001.npz", "text"]])
    with pytest.raises(CohortError, match=r"lacks a column(.|\n)*summarized_notes\.csv, row 1"):
        read(root)
    write_table(table, [["0", "data_00001.npz", "note", "text"]], ["", "File Name", "Original", "Summary"])
    with pytest.raises(CohortError, match=r"not named data_<number>\.npz(.|\n)*row 2, column file"):
        read(root)
    row = ["data_00001.npz", "note", "text"]
    write_table(table, [row, row, ["data_00001.npz", "note", "secret"]], ["a", "b", "c"])
    with pytest.raises(CohortError, match="summarise the same note differently") as caught:
        read(root)
    assert "row 4" in caught.value.where
    assert "secret" not in str(caught.value)
    bad = Tolerance(1)
    assert column(read(root, tolerance=bad), "note")["00001"] == "text"
    assert len(bad.errors) == 1


def test_other_texts(tmp_path):
    root = release(tmp_path, notes=False)
    with pytest.raises(CohortError, match=r"No image has a text(.|\n)*gpt-4_summarized_notes\.csv"):
        read(root)
    assert notes_of(root, notes="none") == ([None] * 6, 6)
    cells = {"note": "From the table. " * 20, "gpt4_summary": "Also summarised."}
    write_table(root / "data_summary.csv", rows_of_table(p00001=cells), COLUMNS)
    assert notes_of(root) == (["Also summarised.", *[None] * 5], 5)
    notes, without = notes_of(root, notes="note")
    assert (notes[0], without) == (("From the table. " * 20)[:176].rstrip(), 5)
    # Without the column, the files tell; `note_extra`, which begins with demographics, is never taken.
    bare = [row[:7] + row[8:] for row in rows_of_table()]
    write_table(root / "data_summary.csv", bare, COLUMNS[:7] + COLUMNS[8:])
    np.savez(root / "Test" / "data_08002.npz", **members("08002", note=None))
    assert notes_of(root, notes="note") == ([*(f"Note of {number}." for number in list(PATIENTS)[:5]), None], 1)


def test_whoever_lacks_an_attribute_stays_and_is_counted(tmp_path):
    root = release(tmp_path, table=False)
    unknown = {"gender": -1, "race": -1, "ethnicity": -1, "language": -1, "age": 0}
    for number, folder in (("00001", "Training"), ("08001", "Test")):
        np.savez(root / folder / f"data_{number}.npz", **members(number, **unknown))
    found = read(root)
    assert len(found.table) == 6
    for name in ("sex", "age", "age_group", "race", "ethnicity", "language"):
        assert column(found, name)["00001"] is column(found, name)["08001"] is None
    assert {name: found.counted[name] for name in COUNTED if "race" in name or "sex" in name or "age" in name} == {
        "without_sex": 2, "without_age": 2, "without_sex_or_age": 2, "without_race": 2, "without_language": 4,
        "excluded_unlisted_image": 0,
    }  # fmt: skip
    assert found.counted["without_attribute_in_validation_or_test"] == 3


@pytest.mark.parametrize(
    ("cells", "member"),
    [
        ({"gender": "male"}, "sex"), ({"race": "white"}, "race"), ({"ethnicity": "hispanic"}, "ethnicity"),
        ({"language": "spanish"}, "language"), ({"language": ""}, "language"), ({"glaucoma": "no"}, "label"),
        ({"age": "53.5"}, "age"), ({"age": ""}, "age"),
    ],
)  # fmt: skip
def test_table_and_file_must_agree(tmp_path, cells, member):
    root = release(tmp_path)
    write_table(root / "data_summary.csv", rows_of_table(p00001=cells), COLUMNS)
    with pytest.raises(CohortError, match=f"disagree about the {member}") as caught:
        load(root)
    assert "data_00001.npz" in caught.value.where
    assert "data_summary.csv, row 2" in caught.value.where
    assert load(root, "00002").shape == (66, 51)


def test_an_age_may_be_rounded_in_one_of_the_two(tmp_path):
    root = release(tmp_path)
    write_table(root / "data_summary.csv", rows_of_table(p00001={"age": "52.97"}), COLUMNS)
    assert load(root).shape == (66, 51)


@pytest.mark.parametrize(
    ("cells", "place", "mend"),
    [
        ({"filename": "../data_00001.npz"}, "column filename", "Unpack"),
        ({"filename": "/data/data_00001.npz"}, "column filename", "Unpack"),
        ({"filename": ""}, "column filename", "Unpack"),
        ({"filename": "data_09999.npz"}, "row 2", "Unpack"),
        ({"age": "fifty"}, "column age", "years"),
        ({"age": "-1"}, "column age", "years"),
        ({"gender": "0"}, "column gender", "female"),
        ({"race": "purple"}, "column race", "asian, black, white"),
        ({"ethnicity": "1"}, "column ethnicity", "non-hispanic, hispanic"),
        ({"language": "klingon"}, "column language", "english, spanish, other"),
        ({"glaucoma": ""}, "column glaucoma", "yes or no"),
        ({"use": "holdout"}, "column use", "training, validation or test"),
    ],
)
def test_a_cell_that_cannot_be_is_named_but_not_shown(tmp_path, cells, place, mend):
    root = release(tmp_path)
    write_table(root / "data_summary.csv", rows_of_table(p00001=cells), COLUMNS)
    with pytest.raises(CohortError) as caught:
        read(root)
    assert "data_summary.csv, row 2" in caught.value.where
    assert place in caught.value.where
    assert mend in caught.value.mend
    assert not any(value in str(caught.value) for value in ("fifty", "purple", "klingon", "holdout"))
    bad = Tolerance(1)
    assert len(read(root, tolerance=bad).table) == 5
    assert len(bad.errors) == 1


@pytest.mark.parametrize(
    ("changed", "member"),
    [
        ({"gender": 2}, "gender"), ({"race": 0.5}, "race"), ({"race": np.array([1, 2])}, "race"),
        ({"ethnicity": "hispanic"}, "ethnicity"), ({"language": np.nan}, "language"), ({"glaucoma": -1}, "glaucoma"),
        ({"age": -1}, "age"), ({"age": 200}, "age"), ({"age": np.nan}, "age"), ({"age": np.zeros(0)}, "age"),
        ({"gender": None}, "gender"), ({"race": None}, "race"), ({"ethnicity": None}, "ethnicity"),
        ({"glaucoma": None}, "glaucoma"), ({"age": None}, "age"),
    ],
)  # fmt: skip
def test_a_member_that_cannot_be_is_named(tmp_path, changed, member):
    root = release(tmp_path, table=False)
    np.savez(root / "Training" / "data_00001.npz", **members("00001", **changed))
    with pytest.raises(CohortError) as caught:
        read(root)
    assert caught.value.where.endswith(f"Training/data_00001.npz, member {member}")


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("member", ["gender", "note", "slo_fundus", "md"])
def test_a_pickle_is_refused_and_never_opened(tmp_path, member):
    root, sign = release(tmp_path / "release", table=False), tmp_path / "opened"
    pickled = np.array([Bomb(sign)], dtype=object)
    np.savez(root / "Training" / "data_00001.npz", allow_pickle=True, **members("00001", **{member: pickled}))
    if member == "md":  # which nothing reads
        assert load(root, notes="note").shape == (66, 51)
    else:
        with pytest.raises(CohortError, match=rf"pickle(.|\n)*data_00001\.npz, member {member}"):
            load(root, notes="note")
    assert not sign.exists()


def test_damaged_files_are_named(tmp_path, monkeypatch):
    root = release(tmp_path)
    file = root / "Training" / "data_00001.npz"
    whole = file.read_bytes()
    np.save(tmp_path / "single.npy", np.array([Bomb(tmp_path / "opened")], dtype=object), allow_pickle=True)
    for content in (b"", b"no zip", whole[: len(whole) // 2], (tmp_path / "single.npy").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(CohortError, match=r"cannot be read(.|\n)*data_00001\.npz \(.*data_summary\.csv, row 2\)"):
            load(root)
    assert not (tmp_path / "opened").exists()
    file.write_bytes(whole.replace(picture("00001").tobytes()[:50], bytes(50)))  # its checksum is wrong now
    with pytest.raises(CohortError, match="member slo_fundus"):
        load(root)
    # A header that promises more than there is, and a member that unpacks to more than any image.
    file.write_bytes(whole.replace(b"(66, 51)", b"(99, 51)"))
    with pytest.raises(CohortError, match="member slo_fundus"):
        load(root)
    file.write_bytes(whole)
    monkeypatch.setattr(harvard_fairvlmed, "LARGEST_MEMBER", 1000)
    with pytest.raises(CohortError, match="member slo_fundus"):
        load(root)


def test_whatever_is_damaged_is_one_error(tmp_path):
    """Bytes of a compressed file changed at random: it is read, or refused, and never anything else."""
    root = release(tmp_path, table=False)
    file, rng = root / "Training" / "data_00001.npz", np.random.default_rng(0)
    np.savez_compressed(file, **members("00001"))
    whole, refused = np.frombuffer(file.read_bytes(), np.uint8), []
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=2)] = rng.integers(256, size=2)
        file.write_bytes(damaged[: len(whole) - rng.integers(2) * rng.integers(len(whole))].tobytes())
        try:
            load(root, notes="none")
        except CohortError as error:
            refused.append(error.where)
    assert 150 < len(refused) < 300
    assert all("data_00001.npz" in where for where in refused)


@pytest.mark.parametrize(
    "pixels",
    [None, np.zeros((4, 5)), np.zeros((4, 5), np.int16), np.zeros((4, 5, 3), np.uint8), np.zeros((0, 5), np.uint8)],
)
def test_an_image_must_be_grey_and_8_bit(tmp_path, pixels):
    root = release(tmp_path)
    np.savez(root / "Training" / "data_00001.npz", **members("00001", slo_fundus=pixels))
    with pytest.raises(CohortError, match=r"no grey 8-bit image(.|\n)*data_summary\.csv, row 2"):
        load(root)


def test_a_damaged_jpg_names_its_row(tmp_path):
    root = release(tmp_path, pictures=True)
    file = root / "Training" / "slo_fundus_00002.jpg"
    file.write_bytes(file.read_bytes()[:150])
    with pytest.raises(CohortError, match=r"slo_fundus_00002\.jpg \(.*data_summary\.csv, row 3\)"):
        read(root, images="jpg").load("Training/slo_fundus_00002.jpg")


def test_a_patient_is_in_one_split(tmp_path):
    root = release(tmp_path)
    shutil.copy(root / "Training" / "data_00001.npz", root / "Test")
    with pytest.raises(CohortError, match=r"in two splits(.|\n)*row 2"):
        read(root)
    bad = Tolerance(1)
    assert "00001" not in column(read(root, tolerance=bad), "split")
    (root / "Test" / "data_00001.npz").unlink()
    write_table(root / "data_summary.csv", rows_of_table(p08001={"use": "training"}), COLUMNS)
    with pytest.raises(CohortError, match=r"in two splits(.|\n)*row 6"):
        read(root)
    write_table(root / "data_summary.csv", rows_of_table(), COLUMNS)
    write_table(root / "split_files.csv", [["data_00002.npz", "test"]], ["filename", "file_type"])
    with pytest.raises(CohortError, match=r"in two splits(.|\n)*row 3"):
        read(root)
    write_table(root / "split_files.csv", [["data_00002.npz", "fold 3"]], ["filename", "file_type"])
    with pytest.raises(CohortError, match=r"split_files\.csv, row 2, column file_type"):
        read(root)


def test_folder_or_table_tell_the_split(tmp_path):
    root = release(tmp_path)
    write_table(root / "data_summary.csv", [row[:-1] for row in rows_of_table()], COLUMNS[:-1])
    assert list(column(read(root), "split").values()) == EXPECTED["split"]
    flat = release(tmp_path / "flat")
    (flat / "data").mkdir()
    for file in list(flat.rglob("*.npz")):
        file.rename(flat / "data" / file.name)
    assert list(column(read(flat), "split").values()) == EXPECTED["split"]
    (flat / "data_summary.csv").unlink()
    with pytest.raises(CohortError, match=r"split of a file is not known(.|\n)*data_00001\.npz"):
        read(flat)


def test_rows_listed_twice_count_once_unless_they_disagree(tmp_path):
    root = release(tmp_path)
    rows = rows_of_table()
    write_table(root / "data_summary.csv", [*rows, rows[0]], COLUMNS)
    found = read(root)
    assert (len(found.table), found.counted["excluded_repeated_row"]) == (6, 1)
    write_table(root / "data_summary.csv", [*rows, [rows[0][0], "53", *rows[0][2:]]], COLUMNS)
    with pytest.raises(CohortError, match="row 8 and row 2"):
        read(root)
    write_table(root / "data_summary.csv", rows[1:], COLUMNS)
    assert read(root).counted["excluded_unlisted_image"] == 1


def test_links_are_refused(tmp_path):
    root, outside = release(tmp_path / "release"), tmp_path / "outside"
    outside.mkdir()
    file = root / "Training" / "data_00001.npz"
    file.rename(outside / file.name)
    file.symlink_to(outside / file.name)
    with pytest.raises(CohortError, match=r"is a link(.|\n)*row 2"):
        read(root)
    # Nor is it opened for what it tells of the patient, or for the note.
    (root / "data_summary.csv").rename(outside / "data_summary.csv")
    with pytest.raises(CohortError, match=r"is a link(.|\n)*data_00001\.npz"):
        read(root)
    write_table(root / "data_summary.csv", [row[:7] + row[8:] for row in rows_of_table()], COLUMNS[:7] + COLUMNS[8:])
    Image.fromarray(picture("00001")).save(root / "Training" / "slo_fundus_00001.jpg")
    with pytest.raises(CohortError, match=r"is a link(.|\n)*data_00001\.npz"):
        read(root, images="jpg", notes="note")
    file.unlink()
    (outside / file.name).rename(file)
    (root / "Test").rename(outside / "Test")
    (root / "Test").symlink_to(outside / "Test")
    with pytest.raises(CohortError, match=r"is a link(.|\n)*Test"):
        read(root)


@pytest.mark.parametrize("lacking", ["filename", "age", "gender", "race", "ethnicity", "language", "glaucoma"])
def test_a_missing_column_is_named(tmp_path, lacking):
    root = release(tmp_path)
    kept = [i for i, name in enumerate(COLUMNS) if name != lacking]
    write_table(
        root / "data_summary.csv", [[row[i] for i in kept] for row in rows_of_table()], [COLUMNS[i] for i in kept]
    )
    with pytest.raises(CohortError, match=rf"data_summary\.csv, column {lacking}"):
        read(root)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="--root"):
        read(None)
    with pytest.raises(CohortError, match="not a folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match=r"no files data_<number>\.npz"):
        read(tmp_path / "empty")
    root = release(tmp_path / "r")
    for content, what in (
        (b"", "empty"),
        (",".join(COLUMNS).encode(), "no patients"),
        (b"\xff\xfe\x00\x81", "not text"),
    ):
        (root / "data_summary.csv").write_bytes(content)
        with pytest.raises(CohortError, match=what):
            read(root)


def test_through_ingest_a_few_bad_files_are_left_out(tmp_path):
    root, out = release(tmp_path / "release"), tmp_path / "out"
    write_table(
        root / "data_summary.csv", rows_of_table(p00002={"race": "purple"}, p00003={"glaucoma": "yes"}), COLUMNS
    )
    (root / "Test" / "data_08001.npz").write_bytes(b"")
    config = ingest.Config(dataset="harvard_fairvlmed", image_size=16, skip_bad=3)
    metrics = ingest.run(config, {"root": root}, {"out": out})
    assert (metrics["images"], metrics["patients"], metrics["skipped"]) == (3, 3, 3)
    assert read_cohort(out).column("patient_id").to_pylist() == ["00001", "07001", "08002"]
    assert len(ImageStore.open(out).pixels) == 3
    assert "purple" not in (out / "skipped.csv").read_text()
    with pytest.raises(CohortError, match="More than 2"):
        ingest.run(ingest.Config(dataset="harvard_fairvlmed", image_size=16, skip_bad=2), {"root": root}, {"out": out})
