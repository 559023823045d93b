"""The validate step: a sound cohort is documented, a broken one stops the run and leaves nothing."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResultSchema

from fairvlm_core.cohort.images import build_store
from fairvlm_core.cohort.table import Task, cohort_table, write_cohort
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.files import sha256
from fairvlm_core.steps import execute
from fairvlm_core.steps.stratify import Config as Stratify
from fairvlm_core.steps.validate import Config

TASK = Task("binary", ("glaucoma",), ("glaucoma",), ("a healthy eye",))
GROUPS = {"sex": ("female", "<male>")}


@pytest.fixture
def rows():
    return [
        {
            "sample_id": f"s{i}",
            "patient_id": f"p{i}",
            "image": f"{i}.png",
            "labels": [i % 2],
            "sex": GROUPS["sex"][i // 2 % 2] if i else None,
            "source": "made",
        }
        for i in range(60)
    ]


@pytest.fixture
def folder(tmp_path, rows):
    keys = [row["image"] for row in rows]
    build_store(keys, lambda key: np.zeros((8, 8, 3), np.uint8), tmp_path / "cohort", size=16)
    write_cohort(cohort_table(rows, task=TASK, groups=GROUPS), tmp_path / "cohort")
    return tmp_path


def validate(folder, **limits):
    config = Config(**{"min_group": 10, **limits})
    return execute("validate", config, {"cohort": folder / "cohort"}, {"out": folder / "out"})


class Page(HTMLParser):
    """A page's headings, the rows of its last table and of all tables, and every reference to another file."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.references, self.cell, self.headings, self.heading = [], [], False, [], False
        self.feed(text)
        self.lines = self.tables[-1]

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
            self.heading = True
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")
        self.heading = self.heading and tag not in ("h1", "h2", "h3")

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data
        if self.heading:
            self.headings[-1] += data


def page_of(folder):
    return Page((folder / "out" / "validation.html").read_text())


def test_a_sound_cohort(folder, capsys):
    metrics = validate(folder)
    found = json.loads((folder / "out" / "validation.json").read_text())
    assert found["success"] is True
    assert found["cohort_sha256"] == sha256(folder / "cohort" / "cohort.parquet")
    assert found["rows"] == metrics["rows"] == 60
    assert len(found["checks"]) == metrics["checks"] > 15
    assert all(check["success"] for check in found["checks"])
    assert metrics["warnings"] == 0
    assert "Warning" not in capsys.readouterr().err
    text = (folder / "out" / "validation.html").read_text()
    page = Page(text)
    assert len(page.lines) == 1 + metrics["checks"]
    assert {line[0] for line in page.lines[1:]} == {"✓ holds"}
    assert page.headings == ["The cohort passed its validation", "Every expectation"]
    assert page.references == []
    assert not re.search("https?:|url\\(|@import|<script", text)
    assert "default-src 'none'" in text
    assert "sex is one of female, &lt;male&gt;, or empty" in text
    for line, check in zip(page.lines[1:], found["checks"], strict=True):
        assert line[1] == check["rule"] + check["expectation"]
        assert line[2:] == [check["column"].replace("_", " "), check["observed"], check["severity"]]


def test_great_expectations_reads_its_results(folder):
    validate(folder)
    suites = json.loads((folder / "out" / "validation.json").read_text())["great_expectations"]
    assert set(suites) == {"rows", "groups"}
    for name, suite in suites.items():
        result = ExpectationSuiteValidationResultSchema().load(suite)
        assert result.suite_name == name
        assert result.success
    checks = json.loads((folder / "out" / "validation.json").read_text())["checks"]
    assert sum(len(suite["results"]) for suite in suites.values()) == len(checks) - 1  # but the schema


def test_the_same_cohort_gives_the_same_bytes(folder):
    files = ("validation.json", "validation.html", "metrics.json")
    validate(folder)
    once = [(folder / "out" / name).read_bytes() for name in files]
    validate(folder)
    assert [(folder / "out" / name).read_bytes() for name in files] == once


def test_warnings_are_shown_kept_and_stop_nothing(folder, capsys):
    metrics = validate(folder, min_group=30, max_unknown=0.01)
    assert metrics["warnings"] == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "fewer than 10 of 60 rows break it" in shown
    assert "sex female" in shown
    found = json.loads((folder / "out" / "validation.json").read_text())
    warnings = [check for check in found["checks"] if not check["success"]]
    assert {check["severity"] for check in warnings} == {"warning"}
    assert found["success"] is True
    assert [line[0] for line in page_of(folder).lines[1:4]] == ["! warning", "! warning", "✓ holds"]
    text = (folder / "out" / "validation.html").read_text()
    assert "Nothing stops the run, but 2 warnings need attention." in text
    for warning in warnings:
        assert f"It does not hold that {warning['rule']}.</b>{warning['observed']}.<span>{warning['mend']}" in text


def test_stratify_accepts_what_passed(folder):
    validate(folder)
    inputs = {"cohort": folder / "cohort", "validation": folder / "out"}
    assert execute("stratify", Stratify(attributes=("sex",)), inputs, {"out": folder / "balanced"})["rows"] > 0


def test_a_broken_cohort_stops_the_run_and_leaves_nothing(folder, rows):
    rows[17]["sex"] = "secret"
    rows[21]["image"] = "elsewhere.png"
    write_cohort(cohort_table(rows, task=TASK, groups=GROUPS), folder / "cohort")
    with pytest.raises(CohortError) as caught:
        validate(folder)
    text = str(caught.value)
    assert text.startswith("The cohort breaks 2 rules:")
    assert "row 17, column sex" in text
    assert f"Where: {folder / 'cohort' / 'cohort.parquet'}, row 21, column image" in text
    assert "secret" not in text
    assert "elsewhere" not in text
    assert sorted(path.name for path in folder.iterdir()) == ["cohort"]


def test_a_missing_image_store_is_refused(folder):
    (folder / "cohort" / "images" / "index.parquet").unlink()
    with pytest.raises(CohortError, match="image store is missing"):
        validate(folder)


def test_a_missing_cohort_is_refused(tmp_path):
    (tmp_path / "cohort").mkdir()
    with pytest.raises(CohortError, match="cohort is missing") as caught:
        validate(tmp_path)
    assert "fairvlm ingest" in caught.value.mend


# Beside a reference


@pytest.fixture
def may(folder, rows):
    """An earlier cohort: other patients, fewer of them women, and everybody has a split."""
    earlier = [
        row | {"sample_id": f"may{i}", "patient_id": f"m{i}", "image": f"may{i}.png", "split": "train"}
        for i, row in enumerate(rows)
    ]
    earlier = [row | {"sex": GROUPS["sex"][i % 10 > 2]} for i, row in enumerate(earlier)]
    write_cohort(cohort_table(earlier, task=TASK, groups=GROUPS), folder / "may")
    return folder / "may"


def test_drift_is_shown_and_kept(folder, rows, may, capsys):
    metrics = validate(folder, reference=str(may), max_divergence=0.01)
    assert metrics["images_seen"] == 0
    assert metrics["divergence_sex"] > 0.05
    found = json.loads((folder / "out" / "validation.json").read_text())
    assert found["drift"]["reference_sha256"] == sha256(may / "cohort.parquet")
    assert found["drift"]["rows"] == found["drift"]["reference_rows"] == 60
    assert set(found["great_expectations"]) == {"rows", "groups", "distributions", "comparisons"}
    for suite in found["great_expectations"].values():
        assert ExpectationSuiteValidationResultSchema().load(suite)
    page = page_of(folder)
    assert page.headings == [
        "The cohort passed its validation",
        "Drift against the reference",
        "Sex",
        "How often it is unknown",
        "How frequent each label is",
        "How a change is judged",
        "Every expectation",
    ]
    known = [row["sex"] for row in rows if row["sex"]]
    female = known.count("female") / len(known)
    assert page.tables[0][1][:1] + page.tables[0][1][2:5] == [
        "female",
        "30.0%",
        f"{female:.1%}",
        f"+{100 * female - 30:.1f}",
    ]
    assert len(page.lines) == 1 + metrics["checks"] > 30
    assert page.references == []
    assert str(may) in (folder / "out" / "validation.html").read_text()


def test_a_change_is_a_warning(folder, rows, may, capsys):
    """Sixty patients are too few to tell 30 % from 49 %; six hundred are not."""
    more = [
        row | {"sample_id": f"{k}-{row['sample_id']}", "patient_id": f"{k}-{row['patient_id']}"}
        for k in range(10)
        for row in rows
    ]
    write_cohort(cohort_table(more, task=TASK, groups=GROUPS), folder / "cohort")
    with pytest.raises(CohortError, match="no image belongs to two patients"):
        validate(folder)
    more = [row | {"image": f"{row['sample_id']}.png"} for row in more]
    build_store([row["image"] for row in more], lambda key: np.zeros((8, 8, 3), np.uint8), folder / "cohort", size=16)
    write_cohort(cohort_table(more, task=TASK, groups=GROUPS), folder / "cohort")
    assert validate(folder, reference=str(may))["warnings"] == 0
    earlier = [
        row | {"sample_id": f"m{i}", "patient_id": f"m{i}", "image": f"m{i}", "sex": GROUPS["sex"][i % 10 > 2]}
        for i, row in enumerate(more)
    ]
    write_cohort(cohort_table(earlier, task=TASK, groups=GROUPS), may)
    assert validate(folder, reference=str(may))["warnings"] == 1
    assert "the groups of sex are distributed as in the reference (divergence 0.0" in " ".join(
        capsys.readouterr().err.split()
    )
    assert validate(folder, reference=str(may), max_divergence=0.2)["warnings"] == 0


def test_a_patient_who_trained_cannot_be_tested_on(folder, rows, may):
    rows[17] |= {"patient_id": "m3", "split": "test"}
    rows[21] |= {"patient_id": "m3", "split": "test"}
    write_cohort(cohort_table(rows, task=TASK, groups=GROUPS), folder / "cohort")
    with pytest.raises(CohortError) as caught:
        validate(folder, reference=str(may))
    assert caught.value.where == f"{folder / 'cohort' / 'cohort.parquet'}, row 17, column split"
    assert "2 of 60 rows break it" in caught.value.what
    assert "m3" not in str(caught.value)
    assert not (folder / "out").exists()
    validate(folder)  # without the reference, nobody knows


def test_the_cohort_itself_is_no_reference(folder, capsys):
    metrics = validate(folder, reference=str(folder / "cohort"))
    assert metrics["images_seen"] == 1
    assert "some images are new since the reference" in " ".join(capsys.readouterr().err.split())


def test_what_stratify_wrote_is_a_reference(folder, rows, may):
    """Its training rows were balanced, so they are left aside; patients whom it placed keep their place."""
    validate(folder)
    config = Stratify(attributes=("sex",), validation_share=0.3, test_share=0.3)
    inputs = {"cohort": folder / "cohort", "validation": folder / "out"}
    execute("stratify", config, inputs, {"out": folder / "balanced"})
    metrics = validate(folder, reference=str(folder / "balanced"))
    found = json.loads((folder / "out" / "validation.json").read_text())
    assert found["drift"]["balanced"]
    assert found["drift"]["reference_rows"] == 36
    assert metrics["warnings"] == 2
    assert [check["rule"] for check in found["checks"] if not check["success"]] == [
        "every patient who has a split in the reference has one here",
        "some images are new since the reference",
    ]
    assert (
        "the training rows of the reference were balanced" in (folder / "out" / "validation.html").read_text().lower()
    )


def test_a_missing_reference_is_refused(folder):
    with pytest.raises(ConfigError) as caught:
        validate(folder, reference=str(folder / "april"))
    assert "validate.reference" in caught.value.where
    assert sorted(path.name for path in folder.iterdir()) == ["cohort"]
