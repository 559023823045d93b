"""Anybody's predictions: Parquet and CSV, and what is wrong with them named by row and column."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fairvlm_core.cli import app
from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.predictions import read_predictions, scores
from fairvlm_core.evaluation.thresholds import decided

HEAD = "sample_id,patient_id,split,label,y_true,y_score,sex,age_group"


def lines(n=120, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        truth = int(rng.random() < 0.4)
        score = round(float(np.clip(0.3 * truth + 0.7 * rng.random(), 0, 1)), 4)
        sex, split = ("female", "male", "")[i % 3], "validation" if i % 4 < 2 else "test"
        known = "" if i % 10 == 9 else truth
        found.append(f"i{i},p{i // 2},{split},edema,{known},{score},{sex},{'0-39' if i % 5 else '40+'}")
    return found


def write(path, rows, head=HEAD):
    path.write_text("\n".join([head, *rows, ""]))
    return path


def test_csv_tsv_gzip_and_parquet_are_the_same(tmp_path):
    plain = write(tmp_path / "p.csv", lines())
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "p.tsv").write_text(plain.read_text().replace(",", "\t"))
    convert = pa.csv.ConvertOptions(strings_can_be_null=True, null_values=[""], column_types={"y_true": pa.int8()})
    pq.write_table(pa.csv.read_csv(plain, convert_options=convert), tmp_path / "p.parquet")
    judged = []
    for name in ("p.csv", "p.csv.gz", "p.tsv", "p.parquet"):
        given = scores(read_predictions(tmp_path / name), "test")
        assert given.groups.keys() == {"sex", "age_group"}
        assert sum(value is None for value in given.groups["sex"]) == 20
        judged.append(judge(decided(given, {"edema": 0.5})))
    assert judged[0] == judged[1] == judged[2] == judged[3]
    assert np.isnan(scores(read_predictions(plain), "test").y_true).any()


def test_the_command_reports_on_a_csv_file(tmp_path):
    file = write(tmp_path / "p.csv", lines())
    answer = CliRunner().invoke(app, ["report", str(file), "--out", str(tmp_path / "r.html")], catch_exceptions=False)
    assert answer.exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert "edema" in page
    assert "p5" not in page.replace("0.5", "")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("i0,p0,test,edema,1,1.2,female,0-39", ["not probabilities", "row 5, column y_score"]),
        ("i0,p0,test,edema,1,,female,0-39", ["not probabilities", "row 5, column y_score"]),
        ("i0,p0,test,edema,1,SECRET,female,0-39", ["no number", "row 5, column y_score"]),
        ("i0,p0,test,edema,2,0.2,female,0-39", ["neither 0, 1 nor empty", "row 5, column y_true"]),
        ("i0,p0,test,edema,0.5,0.2,female,0-39", ["no whole number", "row 5, column y_true"]),
        ("i2,p1,test,edema,1,0.2,female,0-39", ["repeat an image", "row 5, column sample_id"]),
        ("i9,p0,test,edema,1,0.2,female,0-39", ["1 of 2 patients are in two splits", "row 5, column patient_id"]),
        ("i2,,validation,edema,1,0.2,female,0-39", ["1 of 3 images are in two splits", "row 5, column sample_id"]),
        (",p8,test,edema,1,0.2,female,0-39", ["1 of 4 rows have no sample_id", "row 5, column sample_id"]),
        ("i8,p8,,edema,1,0.2,female,0-39", ["1 of 4 rows have no split", "row 5, column split"]),
        ("i8,p8,test,,1,0.2,female,0-39", ["1 of 4 rows have no label", "row 5, column label"]),
        ("i8,p8,test,edema,yes,0.2,female,0-39", ["no whole number", "row 5, column y_true", "1 for yes"]),
        ("i9,p9,test,edema,1", ["not a table"]),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(tmp_path, row, words):
    good = [
        "i0,p0,validation,edema,1,0.7,male,0-39",
        "i1,p0,validation,edema,0,0.2,male,0-39",
        "i2,p1,test,edema,1,0.9,,",
    ]
    if row.startswith("i0"):
        row = row.replace("i0,p0", "i7,p7")
    with pytest.raises(PredictionsError) as caught:
        read_predictions(write(tmp_path / "p.csv", [*good, row]))
    for word in words:
        assert word in str(caught.value)
    assert "SECRET" not in str(caught.value)


def columns(**changed):
    """Three sound rows in the types that Parquet has, but for what is changed."""
    sound = {
        "sample_id": ["i0", "i1", "i2"],
        "label": ["edema"] * 3,
        "y_true": pa.array([0, 1, None], pa.int8()),
        "y_score": [0.1, 0.7, 0.2],
        "sex": ["female", "male", None],
    }
    return pa.table({**sound, **changed})


def test_parquet_may_hold_other_types_of_the_same_values(tmp_path):
    pq.write_table(columns(), tmp_path / "sound.parquet")
    others = columns(
        sample_id=[0, 1, 2],
        label=pa.array(["edema"] * 3).dictionary_encode(),
        y_true=pa.array([False, True, None]),
        y_score=["0.1", "0.7", "0.2"],
        sex=[1, 2, None],
    )
    pq.write_table(others, tmp_path / "others.parquet")
    sound, same = (scores(read_predictions(tmp_path / f"{name}.parquet"), "test") for name in ("sound", "others"))
    assert same.sample_ids.tolist() == ["0", "1", "2"]
    assert same.groups["sex"].tolist() == ["1", "2", None]
    for name in ("y_true", "y_score"):
        np.testing.assert_array_equal(getattr(same, name), getattr(sound, name))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"y_true": ["0", "SECRET", None]}, ["no whole number", "row 1, column y_true"]),
        ({"y_score": ["0.1", "0.2", "SECRET"]}, ["no number", "row 2, column y_score"]),
        ({"y_score": [0.1, float("nan"), 0.2]}, ["1 of 3 scores", "row 1, column y_score"]),
        ({"y_score": pa.array([0.1, 0.2, None])}, ["1 of 3 scores", "row 2, column y_score"]),
        ({"y_true": [0.0, 0.5, 1.0]}, ["neither 0, 1 nor empty", "row 1, column y_true", "1 for yes"]),
        ({"sample_id": pa.array(["i0", None, "i2"])}, ["have no sample_id", "row 1, column sample_id"]),
        ({"sex": [["female"], ["male"], None]}, ["column sex holds values of the type list"]),
        ({"y_true": [[0], [1], None]}, ["column y_true holds values of the type list"]),
    ],
)
def test_what_is_wrong_in_parquet_is_named_and_not_shown(tmp_path, changed, words):
    pq.write_table(columns(**changed), tmp_path / "p.parquet")
    with pytest.raises(PredictionsError) as caught:
        read_predictions(tmp_path / "p.parquet")
    for word in words:
        assert word in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_label_that_lacks_images_is_named(tmp_path):
    rows = [f"i{i},p{i},test,{label},1,0.2,," for i in range(3) for label in ("edema", "effusion")]
    with pytest.raises(PredictionsError, match='of 3 images, "effusion" has 2 rows'):
        scores(read_predictions(write(tmp_path / "p.csv", rows[:-1])), "test")


def test_files_that_hold_nothing(tmp_path):
    with pytest.raises(PredictionsError, match="no predictions"):
        read_predictions(write(tmp_path / "p.csv", []))
    with pytest.raises(PredictionsError, match="column y_true"):
        read_predictions(write(tmp_path / "q.csv", ["i,p"], head="sample_id,label"))
    (tmp_path / "r.parquet").write_text("no Parquet")
    with pytest.raises(PredictionsError, match="not a Parquet file"):
        read_predictions(tmp_path / "r.parquet")


def test_one_class_and_one_group_are_told_in_the_report(tmp_path):
    rows = [f"i{i},p{i},test,edema,1,0.{i % 9 + 1},female,0-39" for i in range(40)]
    judged = judge(decided(scores(read_predictions(write(tmp_path / "p.csv", rows)), "test"), {"edema": 0.5}))
    assert judged["unjudged"] == [{"label": "edema", "reason": "no negatives", "n": 40, "positives": 40}]
    assert judged["attributes"]["sex"]["dpd"] is None
    answer = CliRunner().invoke(app, ["report", str(tmp_path / "p.csv"), "--out", str(tmp_path / "r.html")])
    assert answer.exit_code == 0
    assert "No AUC at all for edema: no negatives." in (tmp_path / "r.html").read_text()
