"""The simulation behind the gate's intervals: percentiles of differences miss, ours hold. Nothing is timed."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import fairvlm_core

BENCHMARK = Path(fairvlm_core.__file__).parent.parent / "benchmarks" / "difference_coverage.py"
NOISIER = "0.05, no gap but noisier"


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(BENCHMARK), run_name="difference_coverage")


def test_percentiles_of_paired_differences_miss_the_truth_and_ours_do_not(benchmark):
    found = benchmark["coverage"](3, 100, 5, NOISIER, 20, 200)
    assert found["eod", "percentile"][0] < 0.3
    for metric in benchmark["METRICS"]:
        assert found[metric, "ours"][0] >= 0.9


def test_studies_are_what_they_say(benchmark):
    models = benchmark["CASES"]["no gap, 0.2"]
    first, other = benchmark["study"](3, 20_000, 1, models, np.random.default_rng(0))
    assert (first.y_true == other.y_true).all()
    women = first.groups["group"] == "a"
    for scores, model in ((first, models[0]), (other, models[1])):
        ill = scores.y_true[:, 0] == 1
        gap = scores.y_pred[ill & ~women].mean() - scores.y_pred[ill & women].mean()
        assert gap == pytest.approx(model.gap, abs=0.02)
    assert benchmark["true_values"](3, models[1])["worst_group_auc"] == pytest.approx(0.65)


def test_the_table_has_a_row_for_each_number_case_and_kind_of_task(benchmark):
    told = {
        key: np.array([0.95, 0.1, 0.2])
        for key in [(m, k) for m in benchmark["METRICS"] for k in ("percentile", "ours")]
    }
    found = {
        (design, many, case): told for design in benchmark["DESIGNS"] for many in (1, 5) for case in benchmark["CASES"]
    }
    rows = benchmark["table"](found).splitlines()
    assert len(rows) == 2 + len(benchmark["METRICS"]) * len(benchmark["CASES"]) * 2
    assert rows[2].endswith("| 95 to 95 (0.20) | 10 to 10 | 95 to 95 (0.20) | 10 to 10 |")
