"""The model card: every section, numbers that are those of comparison.json, and nobody who is hidden there."""

from __future__ import annotations

import datetime
import json
import re

import pipeline_outputs
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fairvlm_core.cohort.adapters import ADAPTERS
from fairvlm_core.cohort.table import cohort_table, groups_of, read_cohort, task_of, write_cohort
from fairvlm_core.files import write_json
from fairvlm_core.registry import card, licences
from fairvlm_core.registry.failings import failings

SECTIONS = (
    "What it is",
    "What it is for",
    "Known failures",
    "Results on the test split",
    "Thresholds and calibration",
    "The gate",
    "Data and balancing",
    "How it was trained",
    "Limits of the papers' claims",
    "Licences",
    "How to make it again",
)
TAGS = {
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": "false",
    "dvc_data_hash": "fedcba9876543210fedcba9876543210.dir",
    "image": "registry.example.org/fairvlm@sha256:" + "ab" * 32,
    "seed": "7",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the pipeline leaves before `register` for a kind of task, made once."""
    found = {}

    def make(kind):
        if kind not in found:
            found[kind] = pipeline_outputs.write_outputs(tmp_path_factory.mktemp("outputs"), kind)
        return found[kind]

    return make


@pytest.fixture(params=["binary", "multiclass", "multilabel"])
def folders(request, made):
    return made(request.param)


@pytest.fixture
def binary(made):
    return made("binary")


def write(folders, out, name="stage2", gate=None, **tags):
    """The card of a model: its description, Markdown and HTML."""
    given = gate or json.loads((folders["comparison"] / "gate.json").read_text())
    short = card.write_card(
        out,
        inputs=folders,
        name=name,
        gate=given,
        tags={**TAGS, **tags},
        registered_name="fairvlm",
        today=datetime.date(2026, 3, 4),
    )
    return short, (out / "model_card.md").read_text(), (out / "model_card.html").read_text()


def rows_of(markdown, section):
    """Every row of a section's tables, as lists of cells."""
    part = markdown.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def told(value, ends):
    """As the card writes a number and its interval."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({ends[0]:.3f}–{ends[1]:.3f})" if ends else "")


@pytest.mark.parametrize("name", ["stage1", "stage2", "fair_moe"])
def test_has_every_section_in_both_forms(folders, tmp_path, name):
    short, markdown, html = write(folders, tmp_path, name)
    headings = re.findall(r"^## (.*)$", markdown, re.MULTILINE)
    assert tuple(headings) == SECTIONS
    assert tuple(re.findall(r"<h2>(.*?)</h2>", html)) == tuple(text.replace("'", "&#x27;") for text in SECTIONS)
    assert len(short) <= 4000
    assert "no medical device" in short
    for text in (markdown, html):
        assert "no medical device" in text
        assert "2026-03-04" in text
        assert TAGS["git_commit"] in text
        assert TAGS["image"] in text
        assert str(folders["base"]) not in text
        assert "/tmp/" not in text
    assert "<script" not in html
    assert "http://" not in html


def test_numbers_are_those_of_the_comparison(folders, tmp_path):
    _, markdown, _ = write(folders, tmp_path)
    comparison = json.loads((folders["comparison"] / "comparison.json").read_text())
    judged = comparison["models"]["stage2"]
    test, sure = judged["test"], judged["test"]["intervals"]
    rows = {tuple(row[:2]): row for row in rows_of(markdown, "Results on the test split")}
    firsts = {row[0]: row for row in rows.values()}
    for head, key in (("AUC", "auc"), ("Accuracy", "accuracy"), ("Balanced accuracy", "balanced_accuracy")):
        assert firsts[head][1] == told(test["overall"][key], sure["overall"][key])
    assert firsts["EOD, mean"][1] == told(test["across"]["eod"]["mean"], sure["across"]["eod"]["mean"])
    assert ("Exact match" in firsts) == (comparison["kind"] == "multilabel")
    for attribute in ("sex", "age_group"):
        found, ends = test["attributes"][attribute], sure["attributes"][attribute]
        shown = next(
            row for row in rows_of(markdown, "Results on the test split") if row[0] == attribute.replace("_", " ")
        )
        assert shown[1:] == [told(found[key], ends.get(key)) for key in ("es_auc", "dpd", "eod", "worst_group_auc")]
        for group, values in found["groups"].items():
            row = rows[attribute.replace("_", " "), group]
            assert row[2] == str(values["n"])
            inside = ends["groups"][group]
            assert row[3:6] == [told(values[key], inside.get(key)) for key in ("auc", "tpr", "fpr")]
    labels = {row[0]: row for row in rows_of(markdown, "Thresholds and calibration")}
    for label, values in test["per_label"].items():
        assert labels[label][1] == str(values["n"])
        assert told(values["auc"], sure["overall"]["auc_per_label"][label]) in labels[label]
        if comparison["kind"] == "multiclass":
            assert "Threshold" not in labels["Label"]
        else:
            assert labels[label][labels["Label"].index("Threshold")] == f"{judged['thresholds'][label]:.3f}"


def test_no_count_that_the_published_files_hide(binary, tmp_path):
    """A cohort in which some test cells are small: their numbers are in no cell of a table."""
    cells = [
        {"sex": "female", "age_group": "60+", "train_before": 37, "train_after": None, "validation": None, "test": 53}
    ]
    unknown = dict.fromkeys(("train_before", "train_after", "validation", "test"))
    strata = {"attributes": ["sex", "age_group"], "min_cell": 10, "cells": cells, "unknown": unknown}
    cohort = tmp_path / "cohort"
    write_cohort(read_cohort(binary["cohort"]), cohort)
    write_json(cohort / "strata.json", {**strata, "total": {**unknown, "train_before": 160}})
    write_json(cohort / "config.json", {"majority_cap": 1.0, "oversample_cap": 1.3, "seed": 0})
    _, markdown, html = write({**binary, "cohort": cohort}, tmp_path / "card")
    data = rows_of(markdown, "Data and balancing")
    assert data[1:] == [
        ["female 60+", "37", "–", "–", "53"],
        ["unknown", "–", "–", "–", "–"],
        ["all", "160", "–", "–", "–"],
    ]
    comparison = json.loads((binary["comparison"] / "comparison.json").read_text())
    test = comparison["models"]["stage2"]["test"]
    hidden = [name for found in test["attributes"].values() for name in found["suppressed"]]
    assert hidden  # sex x age group has cells of fewer than ten
    published = {str(value) for value in numbers_in(test) if isinstance(value, int)}
    for section in ("Results on the test split", "Thresholds and calibration"):
        for row in rows_of(markdown, section):
            assert {cell for cell in row if cell.isdigit()} <= published
            assert not any(cell in hidden for cell in row)
    # Nobody's row: neither a name of an image nor of a patient.
    for row in read_cohort(binary["cohort"]).to_pylist()[:50]:
        for text in (markdown, html):
            assert not re.search(rf"\b{row['patient_id']}\b", text)
            assert row["image"] not in text


def numbers_in(value):
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [value]


def test_the_gate_is_told_with_its_reasons(binary, tmp_path):
    finding = {
        "rule": "max_eod",
        "measure": "eod",
        "attribute": "sex",
        "verdict": "fail",
        "value": 0.41,
        "low": 0.33,
        "high": 0.5,
        "bound": 0.3,
        "reason": "EOD by sex is 0.410.",
    }
    gate = {"verdict": "fail", "model": "stage2", "findings": [finding], "reasons": ["EOD by sex is 0.410."]}
    gate |= {"champion": {"name": "fairvlm", "version": "3"}}
    short, markdown, _ = write(binary, tmp_path / "a", gate=gate)
    part = markdown.split("## The gate")[1].split("\n## ")[0]
    assert "Verdict: fail, against version 3 of fairvlm." in part
    assert "EOD by sex is 0.410." in part
    assert rows_of(markdown, "The gate")[1:] == [["EOD, at most", "0.300", "0", "1", "0"]]
    assert "verdict on this model: fail" in short
    _, unjudged, _ = write(binary, tmp_path / "b", name="stage1", gate=gate)
    assert "registered by name, unjudged" in unjudged
    _, passed, _ = write(binary, tmp_path / "c", gate={**gate, "verdict": "pass", "reasons": ["All hold."]})
    assert "Warning:** The gate" not in passed


def test_the_champion_stands_beside_the_model(binary, tmp_path):
    comparison = json.loads((binary["comparison"] / "comparison.json").read_text())
    name = comparison["selected"]
    theirs = comparison["models"]["stage1"]
    row = {"measure": "auc", "attribute": None, "difference": 0.0312, "low": -0.0101, "high": 0.0722, "p_holm": 0.2}
    comparison["champion"] = {"title": "Champion (version 3)", "test": theirs["test"], "contrasts": [row]}
    write_json(tmp_path / "comparison" / "comparison.json", comparison)
    _, markdown, _ = write(
        {**binary, "comparison": tmp_path / "comparison"},
        tmp_path / "card",
        name,
        gate=json.loads((binary["comparison"] / "gate.json").read_text()),
    )
    (auc,) = [row for row in rows_of(markdown, "Results on the test split") if row[0] == "AUC"]
    assert auc[2:] == [f"{theirs['test']['overall']['auc']:.3f}", "+0.031 (-0.010 to +0.072)"]


def judgement(**changes):
    """A judgement by hand: two groups, one of them badly served."""
    groups = {
        "female": {"n": 40, "positives": 20, "auc": 0.61, "ece": 0.21},
        "male": {"n": 60, "positives": 30, "auc": 0.93, "ece": 0.04},
    }
    sex = {"n": 100, "unknown": 0, "es_auc": 0.6, "dpd": 0.31, "eod": 0.02, "groups": groups}
    found = {
        "kind": "binary",
        "labels": ["glaucoma"],
        "n": 100,
        "min_cell": 10,
        "overall": {"auc": 0.8, "ece": 0.05, "auc_per_label": {"glaucoma": 0.8}},
        "attributes": {"sex": {**sex, "suppressed": [], "withheld": [], "unjudged": []}},
        "unjudged": [],
        "intervals": {
            "overall": {"auc": [0.7, 0.9], "auc_per_label": {"glaucoma": [0.7, 0.9]}},
            "attributes": {
                "sex": {
                    "dpd": [0.12, 0.5],
                    "eod": [0.0, 0.3],
                    "groups": {"female": {"auc": [0.45, 0.77], "ece": [0.1, 0.3]}, "male": {"auc": [0.8, 1.0]}},
                }
            },
        },
    }
    return {**found, **changes}


def test_failures_follow_from_the_numbers():
    lines = failings(judgement())
    assert lines == [
        "By sex it ranks worst in the group female (AUC 0.610, interval 0.450–0.770) and best in male (AUC 0.930).",
        "Chance does not explain these gaps, whose intervals exclude 0: DPD by sex 0.310 (0.120–0.500).",
        "Chance may be the reason for the other gap in decisions and errors below, which does not mean that there is "
        "none.",
        "Its ranking cannot be told from a coin within female (sex).",
        "Its scores can be believed least for female (sex): there they are off by 0.210 (0.100–0.300) on average "
        "(ECE), against 0.050 overall.",
        "Not known of anybody here, and so not judged: age group, race, ethnicity and language.",
    ]


def test_failures_name_whom_and_what_nothing_is_known_about():
    attribute = judgement()["attributes"]["sex"]
    left = {"label": "edema", "group": "male", "reason": "no positives", "n": 12, "positives": "<10"}
    many = [{**left, "group": f"group {k}"} for k in range(9)]
    lines = failings(judgement(attributes={"sex": {**attribute, "suppressed": ["other"], "unjudged": many}}))
    assert "Sex: suppressed, with fewer than 10 images: other." in lines
    assert lines[-1] == "5 more groups or labels could not be judged; the report lists them."
    coin = judgement(labels=["edema", "fracture"], kind="multilabel", attributes={})
    coin["overall"]["auc_per_label"] = {"edema": 0.52, "fracture": 0.9}
    coin["intervals"] = {"overall": {"auc": [0.4, 0.6], "auc_per_label": {"edema": [0.3, 0.7], "fracture": [0.8, 1.0]}}}
    assert failings(coin)[:2] == [
        "Overall it cannot be told from a coin: the interval of its AUC (0.400–0.600) holds 0.5.",
        "Edema is the label it ranks worst, with AUC 0.520 (0.300–0.700). It cannot be told from a coin on edema.",
    ]


def test_every_release_has_terms_and_others_say_so():
    assert set(licences.RELEASES) == set(ADAPTERS) - {"table"}
    for name in ("chexpert", "mimic_cxr", "ol3i"):
        assert "must not leave" in licences.terms_of(name).conditions
    assert "must not leave" not in licences.terms_of("ptbxl").conditions
    assert licences.terms_of("table").licence == licences.terms_of("a hospital's own").licence == licences.NOT_STATED


def test_licence_of_a_base_model(tmp_path):
    folder = tmp_path / "some-llava"
    folder.mkdir()
    assert licences.licence_of(str(folder)) == licences.NOT_STATED
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: [medical]\n---\n# A model\n")
    assert licences.licence_of(str(folder)) == "cc-by-nc-4.0, as its README says"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: hospital-1.0\n---\n")
    assert "hospital-1.0" in licences.licence_of(str(folder))
    for broken in ("# license: mit", "---\n[a\n---\n", "---\n- a\n---\n", ""):
        (folder / "README.md").write_text(broken)
        assert licences.licence_of(str(folder)) == licences.NOT_STATED
    assert "not for clinical care" in licences.licence_of("microsoft/llava-med-v1.5-mistral-7b")
    assert licences.base_terms("vlm", str(folder), {"preset": "published"}) == [("some-llava", licences.NOT_STATED)]
    small = {"preset": "small", "vision": "pretrained/dinov2-small", "text": "pretrained/minilm-l6"}
    assert [name for name, _ in licences.base_terms("dual", "x", small)] == list(small.values())[1:]
    (_, tower), (_, speaker) = licences.base_terms("vlm", "x", small)
    assert "Apache-2.0" in tower
    assert "notes of the training split" in speaker


def test_card_of_a_table_of_ones_own_says_that_nothing_is_stated(binary, tmp_path):
    table = read_cohort(binary["cohort"])
    for name, value in (("source", "table"), ("modality", None)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array([value] * len(table), pa.string()))
    assert pc.unique(table.column("source")).to_pylist() == ["table"]
    cohort = tmp_path / "cohort"
    write_cohort(cohort_table(table, task=task_of(table), groups=groups_of(table)), cohort)
    write_json(cohort / "strata.json", json.loads((binary["cohort"] / "strata.json").read_text()))
    _, markdown, _ = write({**binary, "cohort": cohort}, tmp_path / "card")
    assert "your own table" in markdown
    assert licences.NOT_STATED in markdown
    assert "modality not stated" in markdown


def test_changes_that_no_commit_has_are_told(binary, tmp_path):
    _, markdown, _ = write(binary, tmp_path, git_dirty="true")
    assert f"{TAGS['git_commit']} (with changes that no commit has)" in markdown
