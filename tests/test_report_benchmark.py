"""The benchmark of the report measures a whole report. Nothing here is timed."""

import runpy
from pathlib import Path

import pytest

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "report.py"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="report")


def test_the_table_has_a_row_for_each_file(benchmark):
    found = benchmark["results"](1, sizes=((200, 2),))
    rows = [line.split(" | ") for line in benchmark["table"](found).splitlines()[2:4]]
    assert [row[0] for row in rows] == ["| 200 images, 2 labels, csv", "| 200 images, 2 labels, parquet"]
    for result in found:
        assert result.seconds[0] > result.reading > 0
        assert result.megabytes > 50


def test_a_failed_report_is_noticed(benchmark, tmp_path):
    with pytest.raises(RuntimeError, match="The process failed"):
        benchmark["process"](benchmark["OURS"], tmp_path / "none.csv", tmp_path / "page.html")


def test_predictions_are_what_the_table_says(benchmark):
    frame = benchmark["predictions"](200, 3)
    assert len(frame) == 600
    assert frame["sample_id"].nunique() == 200
    assert frame.groupby("patient_id")["split"].nunique().max() == 1
