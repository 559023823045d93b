"""What adapters share: tables and paths of any kind of damage end as one error that names the place, never the cell."""

import gzip
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fairvlm_core.cohort.adapters import reading
from fairvlm_core.cohort.adapters.reading import (
    Row,
    age_of,
    coded,
    count_unknown,
    find,
    found,
    inside,
    needed,
    number_of,
    once,
    read_rows,
    release_root,
    sex_of,
)
from fairvlm_core.errors import CohortError, ConfigError

SECRET = "Mrs-Secret"
slow = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cells(tmp_path, content, columns=(), **options):
    """(number, cells) of each row."""
    table = tmp_path / "t.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.number, dict(row.cells)) for row in read_rows(table, columns, mend="Mend it.", **options)]


def refused(tmp_path, content, columns=(), **options):
    with pytest.raises(CohortError) as caught:
        cells(tmp_path, content, columns, **options)
    assert str(tmp_path / "t.csv") in caught.value.where
    assert caught.value.mend
    assert SECRET not in str(caught.value)
    return caught.value


# Tables


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,x\n2,\xc3\xa4\n",
        b"\xef\xbb\xbfa,b\n1,x\n2,\xc3\xa4\n",  # as Excel writes it
        b"a,b\r\n1,x\r\n2,\xc3\xa4\r\n",
        b"a,b\r1,x\r2,\xc3\xa4\r",  # an old Macintosh
        b"a\tb\n1\tx\n2\t\xc3\xa4\n",
        b'"a"\t"b"\r\n"1"\t"x"\r\n"2"\t"\xc3\xa4"\r\n',  # as Dataverse writes it
        b" a , b \n 1 , x \n 2 ,\xc3\xa4",  # no line end after the last row
        gzip.compress(b"a,b\n1,x\n2,\xc3\xa4\n"),
        gzip.compress(b"\xef\xbb\xbfa,b\n1,x\n") + gzip.compress(b"2,\xc3\xa4\n"),
    ],
    ids=["plain", "bom", "crlf", "cr", "tabs", "quotes", "spaces", "gzip", "two gzip members"],
)
def test_every_way_to_write_the_same_table(tmp_path, content):
    assert cells(tmp_path, content, ("a", "b")) == [(2, {"a": "1", "b": "x"}), (3, {"a": "2", "b": "ä"})]


def test_rows_have_the_numbers_that_an_editor_shows(tmp_path):
    content = 'a,b\n1,x\n\n2,"two\nlines\n\nof text"\n,\n3,z\n'
    found_rows = cells(tmp_path, content, ("a",))
    assert [number for number, _ in found_rows] == [2, 7, 9]  # of a row of several lines, the last
    assert found_rows[1][1] == {"a": "2", "b": "two\nlines\n\nof text"}
    # The number in an error is the same.
    assert refused(tmp_path, content + "\n4\n").where.endswith("row 11")
    assert cells(tmp_path, content.replace("\n", "\r\n"), ("a",))[1][0] == 7


def test_names_of_columns_drift(tmp_path):
    renamed = cells(tmp_path, "Patient ID,SEX,Other,\n1,M,x,y\n", ("patient", "sex"), also={"patient": ["patient id"]})
    assert renamed == [(2, {"patient": "1", "sex": "M", "Other": "x", "": "y"})]
    # Columns that nobody asked for may be there twice.
    assert cells(tmp_path, "a,x,x,,\n1,2,3,4,5\n", ("a",))[0][1]["a"] == "1"


@pytest.mark.parametrize(
    ("header", "also"),
    [("a,b,b", {}), ("a,b,B", {}), ("a,b,old name", {"b": ["old name"]})],
)
def test_a_column_that_is_there_twice(tmp_path, header, also):
    error = refused(tmp_path, f"{header}\n1,2,3\n", ("a", "b"), also=also)
    assert error.what == 'The table has the column "b" twice.'
    assert error.where.endswith("t.csv, column b")


def test_a_column_that_is_missing(tmp_path):
    error = refused(tmp_path, f"a,c\n{SECRET},2\n", ("a", "b"))
    assert error.what == 'The table lacks the column "b".'
    assert error.mend == "Mend it."


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", gzip.compress(b"")], ids=["nothing", "bom", "gzip"])
def test_an_empty_table(tmp_path, content):
    assert refused(tmp_path, content).what == "The table is empty."


def test_a_table_without_rows_has_none(tmp_path):
    assert cells(tmp_path, "a,b\n", ("a",)) == []
    assert cells(tmp_path, "a,b\n\n,\n", ("a",)) == []


@pytest.mark.parametrize("row", [f"{SECRET}", f"{SECRET},2,3"])
def test_a_row_of_another_length(tmp_path, row):
    error = refused(tmp_path, f"a,b\n1,2\n{row}\n")
    assert error.where.endswith("t.csv, row 3")
    assert f"{row.count(',') + 1} cells, the header 2" in error.what


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,ä\n".encode("latin-1"),
        "a,b\n1,2\n".encode("utf-16"),
        b"\xff\xd8\xff\xe0 a picture",
        b"a,b\n" + b"x,y\n" * 9999 + b"\xff,1\n",
    ],
    ids=["latin-1", "utf-16", "picture", "late"],
)
def test_what_is_no_text(tmp_path, content):
    assert refused(tmp_path, content).what == "The table is not text."


def test_a_gzip_file_that_is_cut_off_or_damaged(tmp_path):
    packed = gzip.compress(b"a,b\n" + b"".join(f"{k},{k * k % 9973}\n".encode() for k in range(5000)))
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    refused(tmp_path, bytes(flipped))  # by what it unpacks to, or by its sum
    for content in (packed[:-9], packed[: len(packed) // 2], packed[:12], packed[:-6] + bytes(6)):
        assert refused(tmp_path, content).what == "The table cannot be unpacked."


def test_a_cell_of_over_a_million_characters(tmp_path):
    most = "x" * reading.WIDEST
    assert cells(tmp_path, f"a,b\n1,{most}\n")[0][1]["b"] == most
    error = refused(tmp_path, f"a,b\n1,2\n1,{most}x\n")
    assert "field larger than field limit" in error.what
    assert error.where.endswith("after row 2")
    # Also where a quote that nobody closed takes in line after line.
    assert "field limit" in refused(tmp_path, 'a,b\n1,"' + "word\n" * (reading.WIDEST // 5 + 1)).what
    # And in the header.
    assert "field limit" in refused(tmp_path, f"{most}x,b\n1,2\n").what


def test_a_line_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST", 100)
    assert len(cells(tmp_path, "a,b\n" + f"{'x' * 40},{'y' * 40}\n" * 50)) == 50
    for content in ("x," * 60, "a,b\n" + "x," * 60, gzip.compress(b"a,b\n1,2\n" + b"x," * 60)):
        assert refused(tmp_path, content).what == "A line has more than 100 characters."


def test_a_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    content = gzip.compress(b"a,b\n" + b"1,2\n" * 100_000)
    assert len(content) < 2000
    assert len(cells(tmp_path, content)) == 100_000
    monkeypatch.setattr(reading, "LARGEST", 100_000)
    assert refused(tmp_path, content).what.startswith("The table unpacks to more than")
    monkeypatch.setattr(reading, "LARGEST", 400_004)
    assert len(cells(tmp_path, content)) == 100_000


def test_a_table_that_is_missing(tmp_path):
    with pytest.raises(CohortError, match="table is missing"):
        list(read_rows(tmp_path / "nothing.csv", (), mend=""))


@slow
@given(st.binary(max_size=300) | st.text(alphabet='ab,"\n\r\t ', max_size=60).map(str.encode))
@example(b"\x1f\x8b")
@example(b"\x1f\x8b\x08\0\0\0\0\0")
def test_any_bytes_are_read_or_refused(tmp_path, content):
    (tmp_path / "any.csv").write_bytes(content)
    numbers = []
    with suppress(CohortError):
        numbers.extend(row.number for row in read_rows(tmp_path / "any.csv", (), mend="Mend it."))
    assert numbers == sorted(set(numbers))


@slow
@given(
    st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)] * 2), max_size=8),
    st.sampled_from([",", "\t"]),
)
def test_what_csv_writes_is_what_is_read(tmp_path, rows, delimiter):
    import csv

    table = tmp_path / "round.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    read = [tuple(row.cells.values()) for row in read_rows(table, ("a", "b"), mend="")]
    assert read == [(a.strip(), b.strip()) for a, b in rows if a or b]


# Paths


@pytest.mark.parametrize(
    ("name", "key"),
    [("a.png", "a.png"), ("f/a.png", "f/a.png"), ("f\\a.png", "f/a.png"), ("./f//a.png", "f/a.png"), ("~/a", "~/a")],
)
def test_a_name_becomes_a_key(tmp_path, name, key):
    assert inside(tmp_path, name, "row 2") == key
    assert inside(tmp_path, tmp_path / "f" / "a.png", "row 2") == "f/a.png"


@pytest.mark.parametrize("way", ["/etc/", "../", "f/../../", "f/../", "..\\", "C:\\", "c:", "\\\\host\\"])
def test_a_name_that_leads_out(tmp_path, way):
    with pytest.raises(CohortError, match="leads out of the release") as caught:
        inside(tmp_path, f"{way}{SECRET}", "t.csv, row 7")
    assert caught.value.where == "t.csv, row 7"
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_the_release_itself_is_no_image(tmp_path, name):
    with pytest.raises(CohortError):
        inside(tmp_path, name, "row 2")


@pytest.mark.parametrize("name", [f"{SECRET}{'x' * 300}", f"{SECRET}\0/a.png", f"{SECRET}/{'a/' * 3000}"])
def test_what_no_file_can_be_called(tmp_path, name):
    with pytest.raises(CohortError, match="cannot be that of a file") as caught:
        inside(tmp_path, name, "t.csv, row 7")
    assert SECRET not in str(caught.value)


def test_links(tmp_path):
    root, outside = tmp_path / "release", tmp_path / "outside"
    for folder in (root / "real", outside):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"x")
    (root / "file.png").symlink_to(root / "real" / "a.png")
    (root / "out.png").symlink_to(outside / "a.png")
    (root / "gone.png").symlink_to(outside / "nothing")
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to(root / "real")
    for name in ("file.png", "out.png", "gone.png", "out/a.png"):
        with pytest.raises(CohortError, match="is a link, or lies behind one"):
            inside(root, name, "row 2")
    assert inside(root, "in/a.png", "row 2") == "in/a.png"
    # The release's own folder may be a link, as `make` sets one.
    (tmp_path / "linked").symlink_to(root)
    assert inside(tmp_path / "linked", "real/a.png", "row 2") == "real/a.png"


parts = st.sampled_from(
    ["..", ".", "", "a", "out", "in", "real", "~", "C:", "\0", " ", "a" * 300, "/", "\\"]
) | st.text(max_size=5)


@slow
@given(st.lists(parts, max_size=6), st.sampled_from(["/", "\\", "//"]))
@example(["out", "a.png"], "/")
@example(["in", "..", "..", "outside", "a.png"], "/")
def test_a_key_never_leaves_the_release(tmp_path, names, separator):
    root = tmp_path / "release"
    if not root.exists():
        (root / "real").mkdir(parents=True)
        (tmp_path / "outside").mkdir()
        (root / "out").symlink_to(tmp_path / "outside")
        (root / "in").symlink_to(root / "real")
    try:
        key = inside(root, separator.join(names), "row 2")
    except CohortError:
        return
    assert not key.startswith("/")
    if "\0" not in key:
        lands = (root / key).resolve()
        assert lands.is_relative_to(root.resolve())
        assert lands != root.resolve()


def test_files_and_folders_are_found_in_any_case(tmp_path):
    (tmp_path / "Data" / "IMAGES").mkdir(parents=True)
    (tmp_path / "Data" / "Table.CSV").write_text("a\n")
    assert found(tmp_path, ["other.csv", "data/table.csv"], mend="") == tmp_path / "Data" / "Table.CSV"
    assert found(tmp_path, ["data/images"], mend="", folder=True) == tmp_path / "Data" / "IMAGES"
    assert find(tmp_path, ["data/images"]) is None
    assert find(tmp_path, ["data/table.csv"], folder=True) is None
    assert find(tmp_path, ["data/table.csv/x", "../release", "/etc/passwd"]) is None
    with pytest.raises(CohortError, match=r"lacks the table a\.csv \(or b\.csv, c\.csv\)") as caught:
        found(tmp_path, ["a.csv", "b.csv", "c.csv"], mend="Unpack it.")
    assert caught.value.mend == "Unpack it."
    with pytest.raises(CohortError, match="lacks the folder images"):
        found(tmp_path, ["images"], mend="", folder=True)


def test_the_root(tmp_path):
    assert release_root(tmp_path, "X", "") == tmp_path
    with pytest.raises(ConfigError, match="--root"):
        release_root(None, "X", "Pass it.")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(CohortError, match="not a folder"):
            release_root(path, "X", "Pass it.")


# Cells


def row(**cells_of_row):
    return Row(Path("t.csv"), 5, cells_of_row)


@pytest.mark.parametrize(
    ("cell", "age"), [("", None), ("0", None), ("0.0", None), ("80", 80), ("80.0", 80), ("0.5", 0.5), ("120", 120)]
)
def test_ages(cell, age):
    assert age_of(row(age=cell)) == age


@pytest.mark.parametrize("cell", ["eighty", "-1", "121", "nan", "inf", "-inf", "80 years", "1e9", "0x10"])
def test_what_is_no_age(cell):
    with pytest.raises(CohortError) as caught:
        age_of(row(age=cell))
    assert caught.value.where == "t.csv, row 5, column age"
    assert cell not in caught.value.what


def test_numbers_that_mean_an_unknown_age():
    assert age_of(row(years="300"), "years", unknown=(300,)) is None
    assert age_of(row(age="0"), unknown=()) == 0


@pytest.mark.parametrize(
    ("cell", "sex"),
    [("F", "female"), ("female", "female"), ("M", "male"), ("MALE", "male"), ("", None), ("Unknown", None)],
)
def test_sexes(cell, sex):
    assert sex_of(row(sex=cell)) == sex


def test_what_is_no_sex():
    with pytest.raises(CohortError, match="column sex") as caught:
        sex_of(row(sex=SECRET))
    assert SECRET not in str(caught.value)
    assert sex_of(row(gender="1"), "gender", {"1": "male"}) == "male"
    with pytest.raises(CohortError, match="one of 0, 1,"):
        sex_of(row(sex="F"), codes={"0": "female", "1": "male", "": None})


def test_codes_numbers_and_identifiers():
    assert coded(row(x="YES"), "x", {"yes": 1}, say="yes") == 1
    with pytest.raises(CohortError, match="Write yes or no"):
        coded(row(x=SECRET), "x", {"yes": 1}, say="yes or no")
    assert number_of(row(x=""), "x") is None
    assert number_of(row(x="-2.5"), "x") == -2.5
    for cell in ("two", "nan", "inf"):
        with pytest.raises(CohortError, match="is no number"):
            number_of(row(x=cell), "x")
    assert needed(row(x="7"), "x") == "7"
    with pytest.raises(CohortError, match="row 5, column x"):
        needed(row(x=""), "x")


def test_rows_that_repeat_another(tmp_path):
    def image(name, age, number):
        return {"sample_id": name, "age": age, "where": f"t.csv, row {number}"}

    counted = Counter()
    kept = once([image("a", 1, 2), image("b", 1, 3), image("a", 1, 4), image("a", 1, 5)], counted)
    assert [row["where"] for row in kept] == ["t.csv, row 2", "t.csv, row 3"]
    assert counted == {"excluded_repeated_row": 2}
    with pytest.raises(CohortError, match="row 4 and row 2") as caught:
        once([image(SECRET, 1, 2), image("b", 1, 3), image(SECRET, 2, 4)], counted)
    assert SECRET not in str(caught.value)
    assert once([{**image("a", 1, 2), "key": "x"}, {**image("a", 2, 3), "key": "y"}], counted, key="key")


def test_what_is_unknown_is_counted():
    counted = Counter()
    rows = [{"sex": s, "age": a} for s, a in (("male", 1.0), (None, 1.0), ("female", None), (None, None))]
    count_unknown(rows, counted)
    assert counted == {"without_sex": 2, "without_age": 2, "without_sex_or_age": 3}
