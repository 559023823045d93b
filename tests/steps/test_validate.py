"""The validate step: a sound cohort is documented, a broken one stops the run and leaves nothing."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fairvlm_core.cohort.images import build_store
from fairvlm_core.cohort.table import Task, cohort_table, write_cohort
from fairvlm_core.errors import CohortError
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
    """The rows of a page's table, and every reference to another file."""

    def __init__(self, text):
        super().__init__()
        self.lines, self.references, self.cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.lines[-1][-1] += data


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
    assert {line[0] for line in page.lines[1:]} == {"ok"}
    assert page.references == []
    assert not re.search("https?:|url\\(|@import", text)
    assert "sex is one of female, &lt;male&gt;, or empty" in text


def test_warnings_are_shown_kept_and_stop_nothing(folder, capsys):
    metrics = validate(folder, min_group=30, max_unknown=0.01)
    assert metrics["warnings"] == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "1 of 60 rows break it" in shown
    assert "sex female" in shown
    found = json.loads((folder / "out" / "validation.json").read_text())
    warnings = [check for check in found["checks"] if not check["success"]]
    assert {check["severity"] for check in warnings} == {"warning"}
    assert found["success"] is True
    lines = Page((folder / "out" / "validation.html").read_text()).lines
    assert [line[0] for line in lines[1:4]] == ["warning", "warning", "ok"]  # what needs attention comes first


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
