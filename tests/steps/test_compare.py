"""The step compare: validation selects, test is reported."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
import shutil

import generated_predictions as generated
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from fairvlm_core.cohort.table import write_cohort
from fairvlm_core.errors import ConfigError, PredictionsError
from fairvlm_core.evaluation.predictions import read_predictions, write_predictions
from fairvlm_core.evaluation.report import print_summary
from fairvlm_core.registry import lineage
from fairvlm_core.registry.gate import NO_CHAMPION, Rules
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
    write_cohort(generated.cohort(request.param), root / "strata")
    (root / "strata" / "strata.json").write_text(json.dumps(STRATA))
    return {"strata": root / "strata", **folders}


def compare(inputs, out, **options):
    metrics = execute("compare", Config(**options), inputs, {"out": out})
    return metrics, json.loads((out / "comparison.json").read_text())


def test_comparison_report_table_and_picture_are_written(inputs, tmp_path):
    metrics, found = compare(inputs, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.json", "gate.json", "report.html", "report.md", "tradeoff.png", "config.json", "metrics.json"
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
    assert len(found["table"]) == 3 * 4  # sex, age group, race, and sex x age group
    assert "champion" not in found
    assert NO_CHAMPION in page
    assert page.lower().count("champion") == 1


def words_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def tables_in(text):
    """Heading -> rows of the Markdown table below it, as cells."""
    parts = re.split(r"^##? (.*)$", text, flags=re.M)[1:]
    cells = {}
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        rows = [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("| ")]
        assert len({len(row) for row in rows}) <= 1, name
        cells[name] = rows[:1] + rows[2:]
    return cells


def test_the_short_report_says_what_the_page_says(inputs, tmp_path):
    _, found = compare(inputs, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    page = words_of((tmp_path / "out" / "report.html").read_text())
    lead, rest = re.search(r"^\*\*(.*)\*\* (.*)$", text, re.M).groups()
    assert lead in page
    assert rest in page
    assert "`report.html`" in text.splitlines()[-1]
    tables = tables_in(text)
    heads, *rows = tables["Fairness of the compared models"]
    assert [row[0].removesuffix(" (selected)") for row in rows] == list(TITLES.values())
    for row, name in zip(rows, TITLES, strict=True):
        area = found["models"][name]["test"]["overall"]["auc"]
        low, high = json.loads((inputs[name] / "evaluation.json").read_text())["test"]["intervals"]["overall"]["auc"]
        assert row[heads.index("AUC")] == f"{area:.3f} ({low:.3f}–{high:.3f})"
    groups = {(row[0], row[1]): row[2:] for row in tables["AUC of each group"][1:]}
    assert groups["race", "Pacific Islander"] == ["<10", "–", "–", "–"]
    women = found["models"]["stage2"]["test"]["attributes"]["sex"]["groups"]["female"]
    assert groups["sex", "female"][0] == str(women["n"])
    assert groups["sex", "female"][2].startswith(f"{women['auc']:.3f} (")
    assert "- Race: suppressed, with fewer than 10 images: Pacific Islander." in text
    gap = found["models"]["fair_moe"]["test"]["attributes"]["age_group"]["eod"]
    (row,) = [row for row in tables["Gaps by attribute"] if row[:2] == ["age group", "Fair-MoE"]]
    assert row[-1].startswith(f"{gap:.3f} (")
    assert "p = " in row[-1]
    assert len(text) < 10_000
    assert "<" not in re.sub(r"<10\b", "", text).replace("p < 0", "")


def test_report_shows_every_model_and_the_cohort(inputs, tmp_path):
    _, found = compare(inputs, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    title = TITLES[found["selected"]]
    assert f"{title} (selected)" in words_of(page)
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
    told, reasons = re.split(r"(?=^- )", printed_by_step, maxsplit=1, flags=re.M)
    assert printed.startswith(told)
    gate = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert told.splitlines()[-1].startswith(f"Gate: {gate['verdict']}. Of {len(gate['findings'])} findings ")
    assert " ".join(reasons.split()) == " ".join(f"- {reason}" for reason in gate["reasons"])
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
    rows = {row[0]: row for row in tables_in((tmp_path / "out" / "report.md").read_text())["Answers in words"]}
    for name, title in (("stage1", "Stage 1"), ("stage2", "Stage 2")):
        judged = found["models"][name]["test"]["answers"]
        assert metrics[f"{name}_test_answer_undecided"] == judged["undecided"]
        assert rows[title][2:] == [f"{judged[key]:.3f}" for key in ("accuracy", "undecided", "agreement")]
        assert f">{judged['undecided']:.3f}<" in page
    assert len(rows) == 3
    assert "answers" not in found["models"]["fair_moe"]["test"]
    assert "fair_moe_test_answer_accuracy" not in metrics


@pytest.mark.parametrize("inputs", ["binary"], indirect=True)
def test_without_answers_and_pictures_nothing_is_said_of_them(inputs, tmp_path):
    compare(inputs, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Answers in words" not in page
    assert "<img" not in page
    assert "img-src" not in page
    assert "Agreement" not in (tmp_path / "out" / "report.md").read_text()


def champion_of(inputs, folder, evaluation="stage1", **known):
    """What the step champion writes: the evaluation of a model in use, and who it is."""
    told = {"version": "3", "name": "fairvlm", "alias": "champion", "model": "stage2", "same_cohort": True}
    told |= {"run_id": "r" * 32, "tags": {"fingerprint": "f" * 64}, **known}
    if told["version"] is None:
        folder.mkdir()
    else:
        shutil.copytree(inputs[evaluation], folder)
    (folder / "champion.json").write_text(json.dumps(told))
    return {**inputs, "champion": folder}


def test_the_champion_is_shown_and_never_selected(inputs, tmp_path):
    """Whatever is in use, the same candidate is selected, with the same tests against the other candidates."""
    alone = compare(inputs, tmp_path / "alone")[1]
    folders = champion_of(inputs, tmp_path / "champion", alone["selected"])
    metrics, found = compare(folders, tmp_path / "out")
    for part in ("selected", "criterion", "models", "contrasts", "thresholds"):
        assert found[part] == alone[part]
    told = found["champion"]
    assert (told["version"], told["title"]) == ("3", "Champion (version 3)")
    assert told["test"] == found["models"][found["selected"]]["test"]  # it is the same model here
    assert metrics["champion_test_auc"] == told["test"]["overall"]["auc"]
    assert [row["model"] for row in found["table"]][-4:] == ["champion"] * 4
    assert all(row["difference"] in (0, None) for row in told["contrasts"])
    title = TITLES[found["selected"]]
    same = f"Against the champion (version 3), {title} is not distinguishable for accuracy, and not distinguishable"
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert page.count(f"{same} for fairness.") == 2  # in the verdict and in its section
    assert f"{same} for fairness." in text
    assert "<h2>Against the champion</h2>" in page
    assert "was trained on another cohort" not in page + text
    assert words_of(page).count(f"{title} (selected)") == words_of(page).count("(selected)") == 1
    assert "The champion decides at the thresholds" in page or found["kind"] == "multiclass"


def test_better_and_worse_than_the_champion_are_said_in_words(inputs, tmp_path):
    folders = champion_of(inputs, tmp_path / "champion", "stage1", same_cohort=False)
    _, found = compare(folders, tmp_path / "better", criterion="auc")
    assert found["selected"] == "stage2"
    rows = {(row["measure"], row["attribute"]): row for row in found["champion"]["contrasts"]}
    area = rows["auc", None]
    areas = [found["models"][name]["test"]["overall"]["auc"] for name in ("stage2", "stage1")]
    assert area["difference"] == pytest.approx(areas[0] - areas[1], abs=1e-5)
    page, text = ((tmp_path / "better" / name).read_text() for name in ("report.html", "report.md"))
    better = f"Against the champion (version 3), Stage 2 is better for accuracy (AUC {area['difference']:+.3f}"
    for shown in (page, text):
        assert better in shown
        assert "some of today" in shown
    table = {row[0]: row for row in tables_in(text)["Against the champion"]}
    assert table["AUC"][1:4] == ["higher", f"{areas[0]:.3f}", f"{areas[1]:.3f}"]
    assert table["AUC"][4].startswith(f"{area['difference']:+.3f} ({area['low']:+.3f} to {area['high']:+.3f}, p ")
    assert [row[1] for name, row in table.items() if name in ("DPD", "DPG", "EOD")] == ["lower", "lower"]
    weak = dict.fromkeys(TITLES, inputs["stage1"])
    strong = champion_of(inputs, tmp_path / "strong", "stage2")["champion"]
    compare({"strata": inputs["strata"], **weak, "champion": strong}, tmp_path / "worse")
    worse = f"Stage 1 is worse for accuracy (AUC {-area['difference']:+.3f}"
    assert worse in (tmp_path / "worse" / "report.md").read_text()


FINDING = {"rule", "measure", "attribute", "verdict", "value", "low", "high", "bound", "reason"}


def test_the_gate_is_written_and_told_everywhere(inputs, tmp_path, capsys):
    """gate.json is what register tags a version with; who reads the page or the terminal sees the same."""
    folders = champion_of(inputs, tmp_path / "champion", "stage1")
    metrics, found = compare(folders, tmp_path / "out", criterion="auc", gate={"max_eod": 0.05, "fairer": "eod"})
    gate = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert set(gate) == {
        "verdict", "model", "rules", "findings", "reasons", "champion", "test_sha256", "min_cell"
    }  # fmt: skip
    assert gate["model"] == found["selected"]
    assert metrics["gate"] == gate["verdict"] != "pass"
    assert gate["rules"] == dataclasses.asdict(Rules(max_eod=0.05, fairer="eod"))
    assert gate["champion"] == {
        "name": "fairvlm", "version": "3", "run_id": "r" * 32, "fingerprint": "f" * 64
    }  # fmt: skip
    assert gate["test_sha256"] == lineage.hash_test_rows(inputs["strata"])
    assert gate["min_cell"] == 10
    assert all(set(finding) == FINDING for finding in gate["findings"])
    # What it was judged by is what comparison.json holds.
    told = {(row["measure"], row["attribute"]): row for row in found["champion"]["contrasts"]}
    model = found["models"][found["selected"]]["test"]
    attributes = [name for name in model["attributes"] if " x " not in name]
    seen = set()
    for finding in gate["findings"]:
        measure, attribute, rule = finding["measure"], finding["attribute"], finding["rule"]
        numbers = [finding[key] for key in ("value", "low", "high")]
        seen.add((rule, attribute))
        if rule in ("auc_margin", "accuracy_margin", "worst_group_margin", "fairer"):
            row = told[measure, attribute]
            assert numbers == [row[key] for key in ("difference", "low", "high")]
        elif rule != "min_group":
            ends = model["intervals"]["attributes"][attribute][measure]
            assert numbers == [model["attributes"][attribute][measure], *(ends or (None, None))]
    of_each = {"worst_group_margin", "max_dpd", "max_eod", "min_es_auc", "min_group"}
    assert seen == {(rule, name) for rule in of_each for name in attributes} | {
        (rule, None) for rule in ("auc_margin", "accuracy_margin", "fairer")
    }
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    printed = " ".join(capsys.readouterr().out.split())
    for reason in gate["reasons"]:
        assert reason in words_of(page)
        assert f"- {reason}" in printed
        assert reason.split("(")[0] in text
    rows = tables_in(text)["The gate"][1:]
    assert [row[-1] for row in rows] == [finding["verdict"] for finding in gate["findings"]]


@pytest.mark.parametrize("inputs", ["binary"], indirect=True)
def test_the_gate_of_the_first_model_has_absolute_rules_only(inputs, tmp_path):
    compare(inputs, tmp_path / "out")
    gate = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert gate["champion"] is None
    assert {finding["rule"] for finding in gate["findings"]} == {"max_dpd", "max_eod", "min_es_auc", "min_group"}
    assert gate["reasons"][-1] == NO_CHAMPION
    # Asians are without a positive in these predictions, and the one group of six people is suppressed.
    (race,) = [f for f in gate["findings"] if (f["rule"], f["attribute"]) == ("min_group", "race")]
    assert race["verdict"] == "insufficient evidence"
    assert "Pacific Islander (<10)" in race["reason"]


@pytest.mark.parametrize("inputs", ["binary"], indirect=True)
def test_a_cohort_with_other_test_images_is_refused(inputs, tmp_path):
    write_cohort(generated.cohort("binary").slice(0, 890), tmp_path / "strata")
    (tmp_path / "strata" / "strata.json").write_text(json.dumps(STRATA))
    with pytest.raises(PredictionsError, match="not judged on the test images of this cohort"):
        compare({**inputs, "strata": tmp_path / "strata"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inputs", ["binary"], indirect=True)
def test_without_a_champion_in_use_the_input_is_as_if_absent(inputs, tmp_path):
    compare(inputs, tmp_path / "absent")
    compare(champion_of(inputs, tmp_path / "champion", version=None), tmp_path / "nobody")
    for name in ("comparison.json", "gate.json", "report.html", "report.md", "metrics.json"):
        assert (tmp_path / "absent" / name).read_bytes() == (tmp_path / "nobody" / name).read_bytes()


@pytest.mark.parametrize("inputs", ["binary"], indirect=True)
def test_a_champion_on_other_images_is_refused(inputs, tmp_path):
    fewer = write_evaluation(tmp_path / "fewer", generated.table("binary", model="stage1", n=600), "binary")
    with_fewer = {"champion": champion_of({"other": fewer}, tmp_path / "champion", "other")["champion"]}
    with pytest.raises(PredictionsError, match=r"Champion \(version 3\).*not given the same images"):
        compare({**inputs, **with_fewer}, tmp_path / "out")
