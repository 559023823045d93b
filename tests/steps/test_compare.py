"""The step compare: validation selects, test is reported."""

from __future__ import annotations

import base64
import json
import re

import generated_predictions as generated
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from fairvlm_core.errors import ConfigError, PredictionsError
from fairvlm_core.evaluation.predictions import read_predictions, write_predictions
from fairvlm_core.evaluation.report import print_summary
from fairvlm_core.steps import evaluate, execute, tune_thresholds
from fairvlm_core.steps.compare import TITLES, Config

# Stage 2 ranks best; Fair-MoE is the most even.
MODELS = {"stage1": {"skill": 1.2}, "stage2": {"skill": 3.6, "bias": 0.8}, "fair_moe": {"skill": 1.7, "bias": 0.0}}
STRATA = {
    "attributes": ["sex", "age_group"],
    "min_cell": 10,
    "cells": [
        {"sex": "female", "age_group": "0-39", "train_before": 60, "train_after": 78, "validation": 20, "test": 20},
        dict.fromkeys(("train_before", "train_after", "validation", "test")) | {"sex": "female", "age_group": "80+"},
        {"sex": "male", "age_group": "40-59", "train_before": 1390, "train_after": 150, "validation": 90, "test": 99},
    ],
    "unknown": {"train_before": 0, "train_after": 0, "validation": 0, "test": 0},
    "total": {"train_before": 1456, "train_after": 234, "validation": 113, "test": 124},
}  # fmt: skip


def write_evaluation(folder, table, kind):
    write_predictions(table, folder / "predictions" / "predictions.parquet", kind=kind)
    inputs = {"predictions": folder / "predictions"}
    execute("tune_thresholds", tune_thresholds.Config(), inputs, {"out": folder / "thresholds"})
    inputs["thresholds"] = folder / "thresholds"
    execute("evaluate", evaluate.Config(), inputs, {"out": folder / "evaluation"})
    return folder / "evaluation"


@pytest.fixture(scope="module", params=["binary", "multiclass", "multilabel"])
def inputs(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    folders = {
        name: write_evaluation(root / name, generated.table(request.param, model=name, **options), request.param)
        for name, options in MODELS.items()
    }
    (root / "strata").mkdir()
    (root / "strata" / "strata.json").write_text(json.dumps(STRATA))
    return {"strata": root / "strata", **folders}


def compare(inputs, out, **options):
    metrics = execute("compare", Config(**options), inputs, {"out": out})
    return metrics, json.loads((out / "comparison.json").read_text())


def test_comparison_report_table_and_picture_are_written(inputs, tmp_path):
    metrics, found = compare(inputs, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.json", "report.html", "table.md", "tradeoff.png", "config.json", "metrics.json"
    }  # fmt: skip
    assert list(found["models"]) == sorted(TITLES)
    judged = json.loads((inputs["stage2"] / "evaluation.json").read_text())
    assert found["models"]["stage2"]["test"].items() <= judged["test"].items()
    assert found["models"]["stage2"]["validation"] == judged["validation"]
    assert found["thresholds"] == found["models"][found["selected"]]["thresholds"]
    assert found["models"]["stage2"]["calibration"] == judged["thresholds"]["calibration"] is not None
    assert metrics["stage1_test_auc"] == found["models"]["stage1"]["test"]["overall"]["auc"]
    assert metrics["selected"] == found["selected"]
    others = {title for name, title in TITLES.items() if name != found["selected"]}
    assert {row["model"] for row in found["contrasts"]} == others
    areas = {model["title"]: model["test"]["overall"]["auc"] for model in found["models"].values()}
    page = (tmp_path / "out" / "report.html").read_text()
    for row in (row for row in found["contrasts"] if row["measure"] == "auc"):
        difference = areas[TITLES[found["selected"]]] - areas[row["model"]]
        assert row["difference"] == pytest.approx(difference, abs=1e-5)
        assert row["low"] < row["difference"] < row["high"]
        assert f"{row['difference']:+.3f}" in page
    assert Image.open(tmp_path / "out" / "tradeoff.png").size[0] > 900
    rows = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert len([row for row in rows if row.startswith("| ")]) == 2 + 3 * 4  # sex, age group, race, and sex x age group
    row = found["table"][0]
    assert f"| {row['accuracy']:.3f} | {row['auc']:.3f} | sex | {row['es_auc']:.3f} | {row['dpd']:.3f} |" in rows[2]


def test_report_shows_every_model_and_the_cohort(inputs, tmp_path):
    _, found = compare(inputs, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    title = TITLES[found["selected"]]
    assert f"{title} (selected)" in page
    assert "was selected on validation by" in page
    assert "Before that, the scores were calibrated on the validation split" in page
    assert "without calibration" not in page
    for model in found["models"].values():
        assert f"{model['test']['overall']['auc']:.3f}</text>" in page
    assert "The training cohort before and after balancing" in page
    assert "1,390</text>" in page
    assert "suppressed: too few people</text>" in page


@pytest.mark.parametrize("inputs", ["binary"], indirect=True)
def test_criteria_select_different_models_on_validation_only(inputs, tmp_path):
    by_auc = compare(inputs, tmp_path / "a", criterion="auc")[1]
    by_equity = compare(inputs, tmp_path / "b", criterion="es_auc", attributes=("sex",))[1]
    assert by_auc["selected"] == "stage2"
    assert by_equity["selected"] == "fair_moe"
    values = {name: model["validation"]["attributes"]["sex"]["es_auc"] for name, model in by_equity["models"].items()}
    assert by_equity["criterion"]["values"] == values

    # A model that is the best on test, but not on validation, is not selected.
    table = read_predictions(inputs["stage1"])
    test = pc.equal(table.column("split"), "test")
    perfect = pc.if_else(test, table.column("y_true").cast(pa.float32()), table.column("y_score"))
    cheat = table.set_column(table.column_names.index("y_score"), "y_score", perfect)
    folder = write_evaluation(tmp_path / "cheat", cheat.drop_columns(["y_pred"]), "binary")
    _, found = compare({**inputs, "stage1": folder}, tmp_path / "c", criterion="auc")
    assert found["models"]["stage1"]["test"]["overall"]["auc"] == 1.0
    assert found["selected"] == "stage2"


@pytest.mark.parametrize("inputs", ["binary"], indirect=True)
def test_mistakes_are_told(inputs, tmp_path):
    with pytest.raises(ConfigError, match='Did you mean "sex"'):
        compare(inputs, tmp_path / "out", attributes=("sexx",))
    with pytest.raises(ConfigError, match=r"compare\.criterion"):
        Config(criterion="accuracy")
    fewer = write_evaluation(tmp_path / "fewer", generated.table("binary", model="fair_moe", n=600), "binary")
    with pytest.raises(PredictionsError, match="not given the same images"):
        compare({**inputs, "fair_moe": fewer}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inputs", ["multilabel"], indirect=True)
def test_summary_fits_a_terminal_and_names_the_report(inputs, tmp_path, capsys):
    compare(inputs, tmp_path / "out")
    printed_by_step = capsys.readouterr().out
    print_summary(tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.startswith(printed_by_step)
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in printed
    assert max(map(len, printed_by_step.splitlines())) <= 80
    for word in ("Model", "Accuracy", "AUC", "ES-AUC", "DPG", "EOD", "Stage 1", "Fair-MoE", "sex × age group"):
        assert word in printed


@pytest.mark.parametrize("inputs", ["multilabel"], indirect=True)
def test_answers_and_pictures_are_shown_where_there_are_any(inputs, tmp_path):
    """Stage 1 and Stage 2 answered in words and drew their attention; Fair-MoE has no words."""
    folders = {"strata": inputs["strata"], "fair_moe": inputs["fair_moe"]}
    pictures = {}
    for place, name in enumerate(("stage1", "stage2")):
        table = read_predictions(inputs[name]).drop_columns(["y_pred"])
        answer = [None if i % (3 + place) == 0 else i % 2 for i in range(len(table))]
        table = table.append_column("y_answer", pa.array(answer, pa.int8()))
        folders[name] = write_evaluation(tmp_path / name, table, "multilabel")
        Image.new("RGB", (4, 4), (place, 0, 0)).save(folders[name] / "attention.png")
        pictures[name] = (folders[name] / "attention.png").read_bytes()
    metrics, found = compare(folders, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Answers in words" in page
    assert "img-src data:" in page
    shown = re.findall(r'<img class="looks" alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(picture) for _, picture in shown] == list(pictures.values())
    assert "Stage 1" in shown[0][0]
    assert not re.search(r"https?://|<script|<link", page)
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    for name, title in (("stage1", "Stage 1"), ("stage2", "Stage 2")):
        judged = found["models"][name]["test"]["answers"]
        assert metrics[f"{name}_test_answer_undecided"] == judged["undecided"]
        shares = " | ".join(f"{judged[key]:.3f}" for key in ("accuracy", "undecided", "agreement"))
        assert any(line.startswith(f"| {title} | ") and line.endswith(f"| {shares} |") for line in lines)
        assert f">{judged['undecided']:.3f}<" in page
    assert "answers" not in found["models"]["fair_moe"]["test"]
    assert "fair_moe_test_answer_accuracy" not in metrics


@pytest.mark.parametrize("inputs", ["binary"], indirect=True)
def test_without_answers_and_pictures_nothing_is_said_of_them(inputs, tmp_path):
    compare(inputs, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Answers in words" not in page
    assert "<img" not in page
    assert "img-src" not in page
    assert "Agreement" not in (tmp_path / "out" / "table.md").read_text()
