"""The report: what it says, that it needs nothing but itself, and that a browser shows it without complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import generated_predictions as generated
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.metrics import auc
from fairvlm_core.evaluation.predictions import read_predictions, scores, write_predictions
from fairvlm_core.evaluation.report import write_report
from fairvlm_core.evaluation.report.belief import calibration_told
from fairvlm_core.evaluation.report.subjects import Subject, group_curves, group_reliability, subjects_in
from fairvlm_core.evaluation.report.svg import ticks
from fairvlm_core.evaluation.thresholds import add_decisions, tune

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def report(tmp_path: Path, table: pa.Table, kind: str, **options) -> str:
    path = write_predictions(table, tmp_path / "predictions.parquet", kind=kind)
    write_report(path, tmp_path / "report.html", **options)
    return (tmp_path / "report.html").read_text()


def two_models(kind: str) -> pa.Table:
    return pa.concat_tables([generated.table(kind, model="plain"), generated.table(kind, model="fair", bias=0.0)])


class Outline(HTMLParser):
    """Tags that are open, headings, tables with captions, images without a name, and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.headings, self.tables, self.captions, self.nameless, self.addresses = [], [], 0, 0, 0, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)
        if tag == "svg":
            self.nameless += not (given.get("aria-hidden") or (given.get("role") == "img" and given.get("aria-label")))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_page_is_well_formed_named_and_self_contained(tmp_path, kind):
    page = report(tmp_path, two_models(kind), kind)
    outline = Outline(page)
    assert outline.open == []
    assert outline.headings[0] == "h1"
    assert outline.headings.count("h1") == 1
    assert outline.tables == outline.captions > 0
    assert outline.nameless == 0
    assert all(address.startswith(("#", "data:text/csv;")) for address in outline.addresses)
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_figures_are_valid_svg_whose_texts_stay_inside(tmp_path, kind):
    page = report(tmp_path, two_models(kind), kind)
    drawings = re.findall(r"<svg.*?</svg>", page)
    assert len(drawings) > 10
    for text in drawings:
        svg = ElementTree.fromstring(text)
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for item in svg.iter("text"):
            x, y, size = float(item.attrib["x"]), float(item.attrib["y"]), 6.7 * len(item.text)
            if "transform" in item.attrib:
                continue
            start = {"end": x - size, "middle": x - size / 2}.get(item.attrib.get("text-anchor"), x)
            assert start >= -2, item.text
            assert start + size <= width + 12, item.text
            assert 0 < y <= height, item.text


def test_numbers_in_the_page_are_those_of_the_predictions(tmp_path):
    table = generated.table("binary", model="plain")
    page = report(tmp_path, table, "binary")
    given = scores(table, "test")
    women = given.groups["sex"] == "female"
    assert f"AUC {auc(given.y_true[:, 0], given.y_score[:, 0]):.3f} and accuracy" in page
    assert f"{auc(given.y_true[women, 0], given.y_score[women, 0]):.3f}</text>" in page
    assert f">{women.sum()} · {int(given.y_true[women, 0].sum())} positive</text>" in page


def test_names_from_the_data_are_escaped(tmp_path):
    table = generated.table("binary", model="<script>alert(1)</script>")
    sex = pc.replace_substring(table.column("sex"), "female", 'f" onload="x<b>')
    table = table.set_column(table.column_names.index("sex"), "sex", sex)
    page = report(tmp_path, table, "binary")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert 'onload="x' not in page
    assert "<b>" not in page


def test_small_groups_are_not_published(tmp_path):
    page = report(tmp_path, generated.table("binary"), "binary")
    assert "Race: suppressed, with fewer than 10 images: Pacific Islander." in page
    assert "Race: Asian cannot be judged on glaucoma: no positives." in page
    assert page.count("&lt;10") >= 2
    strict = report(tmp_path, generated.table("binary"), "binary", min_cell=60)
    assert "Age group: suppressed, with fewer than 60 images: 80+." in strict


def test_thresholds_are_tuned_on_validation_where_the_file_has_none(tmp_path):
    table = generated.table("multilabel")
    path = write_predictions(table, tmp_path / "predictions.parquet", kind="multilabel")
    (subject,), split, how = subjects_in(read_predictions(path), min_cell=10, where=path)
    validation = scores(read_predictions(path), "validation")
    assert split == "test"
    assert "largest F1 on the validation split" in how
    np.testing.assert_array_equal(list(subject.thresholds.values()), tune(validation.y_true, validation.y_score))


def test_without_validation_every_threshold_is_one_half_and_the_page_says_so(tmp_path):
    table = generated.table("binary")
    page = report(tmp_path, table.filter(pc.equal(table.column("split"), "test")), "binary")
    assert "There is no validation split to tune on: every threshold is 0.5." in page


def test_numbers_on_the_tuned_split_carry_a_warning(tmp_path):
    table = generated.table("binary")
    page = report(tmp_path, table.filter(pc.equal(table.column("split"), "validation")), "binary")
    assert "these very images were used to tune" in page


def test_decisions_in_the_file_are_kept(tmp_path):
    table = add_decisions(generated.table("binary"), {"glaucoma": 0.99})
    page = report(tmp_path, table, "binary")
    assert "The decisions are those in the predictions file" in page
    assert "(balanced accuracy 0.500)" in page


def test_file_without_attributes_or_splits_still_gives_a_report(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"sample_id": [f"i{i}" for i in range(40)], "label": ["x"] * 40}
    table = pa.table({**columns, "y_true": rng.integers(0, 2, 40), "y_score": rng.random(40)})
    pq.write_table(table, tmp_path / "theirs.parquet")
    write_report(tmp_path / "theirs.parquet", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "The predictions carry no demographic attribute" in page
    assert "How equally it serves groups cannot be said" in page


def test_seeds_of_one_model_are_told_apart(tmp_path):
    first = generated.table("binary", model="plain")
    second = first.set_column(first.column_names.index("seed"), "seed", pa.array([7] * len(first), pa.int32()))
    page = report(tmp_path, pa.concat_tables([first, second]), "binary")
    assert "plain, seed 0" in page
    assert "plain, seed 7" in page


def test_models_on_different_images_are_refused(tmp_path):
    other = generated.table("binary", model="other", n=600)
    table = pa.concat_tables([generated.table("binary", model="plain"), other])
    with pytest.raises(PredictionsError, match="not given the same images"):
        report(tmp_path, table, "binary")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_area_under_a_drawn_curve_is_the_auc_beside_it(tmp_path, kind):
    path = write_predictions(generated.table(kind), tmp_path / "predictions.parquet", kind=kind)
    (subject,), _, _ = subjects_in(read_predictions(path), min_cell=10, where=path)
    curves = group_curves(subject, "age_group")
    groups = subject.judgement["attributes"]["age_group"]["groups"]
    assert set(curves) == {name for name, group in groups.items() if group["auc"] is not None}
    for name, (fpr, tpr) in curves.items():
        assert np.trapezoid(tpr, fpr) == pytest.approx(groups[name]["auc"], abs=0.01)  # drawn at 101 points


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_a_reliability_curve_has_the_tenths_that_may_be_published_as_a_plain_loop_counts_them(tmp_path, kind):
    path = write_predictions(generated.table(kind), tmp_path / "predictions.parquet", kind=kind)
    (subject,), _, _ = subjects_in(read_predictions(path), min_cell=10, where=path)
    given = subject.scores
    left_out = 0
    for attribute in ("age_group", "race", None):
        curves = group_reliability(subject, attribute)
        assert "Pacific Islander" not in curves
        groups = ["all images"] * 600 if attribute is None else given.groups[attribute]
        for name in {name for name in groups if name not in (None, "Pacific Islander")}:
            expected = []
            for tenth in range(10):
                images, pairs = set(), []
                for i, j in np.ndindex(given.y_true.shape):
                    inside = tenth / 10 <= given.y_score[i, j] < (1.1 if tenth == 9 else (tenth + 1) / 10)
                    if inside and groups[i] == name and not np.isnan(given.y_true[i, j]):
                        images.add(i)
                        pairs.append((given.y_score[i, j], given.y_true[i, j]))
                left_out += 0 < len(images) < 10
                if len(images) >= 10:
                    expected.append(np.mean(pairs, axis=0))
            np.testing.assert_allclose(np.transpose(curves[name]), expected, atol=1e-12, err_msg=name)
    assert left_out > 3  # there was something to protect


def test_the_page_says_how_far_the_scores_can_be_believed(tmp_path):
    page = report(tmp_path, two_models("binary"), "binary")
    (section,) = re.findall(r"<h2>How far the scores can be believed</h2>(.*?)</section>", page)
    subjects, _, _ = subjects_in(read_predictions(tmp_path / "predictions.parquet"), min_cell=10, where=tmp_path)
    shown = len(re.findall(r"<circle", section))
    attributes = ("sex", "age_group", "race")
    curves = [group_reliability(subject, attribute) for subject in subjects for attribute in attributes]
    assert shown == sum(len(means) for found in curves for means, _ in found.values())
    for subject in subjects:
        truth, score = subject.scores.y_true[:, 0], subject.scores.y_score[:, 0]
        assert f">{np.mean((truth - score) ** 2):.3f}<" in section
        women = subject.judgement["attributes"]["sex x age_group"]["groups"]["female, 40-59"]
        assert f">{women['ece']:.3f}</td>" in section
    assert "tenths with fewer than 10 images of a group are not drawn" in section
    assert section.count('aria-label="Reliability of ') == 2 * 3
    assert (
        '<tr><th scope="row">Pacific Islander</th><td>plain</td><td class="n">&lt;10</td><td class="n">–</td>'
        in section
    )
    assert "<dt>ECE</dt>" in page
    assert "<dt>Brier score</dt>" in page
    assert "<dt>Reliability curve</dt>" in page
    assert "The scores are taken as they are, without calibration." in page


def test_a_file_without_attributes_has_a_reliability_curve_of_all_images(tmp_path):
    table = generated.table("binary").select(["sample_id", "label", "y_true", "y_score"])
    pq.write_table(table, tmp_path / "theirs.parquet")
    write_report(tmp_path / "theirs.parquet", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Reliability on all images" in page
    assert "all images (n = 900)" in page
    assert "tenths with fewer than 10 images are not drawn" in page
    assert "Worst group ECE" not in page
    assert 'aria-label="Reliability of model."' in page


def test_the_page_says_how_the_scores_were_calibrated_and_which_were_not(tmp_path):
    path = write_predictions(generated.table("multilabel"), tmp_path / "predictions.parquet", kind="multilabel")
    (plain,), _, _ = subjects_in(read_predictions(path), min_cell=10, where=path)
    fitted = {"slope": 1.5, "intercept": 0.2, "reason": None}
    alone = {"slope": 1.0, "intercept": 0.0, "reason": "fewer than 10 known positives on validation"}
    names = plain.scores.labels
    platt = {"method": "platt", "labels": {name: alone if name == "Edema" else fitted for name in names}}
    given = (plain.scores, plain.judgement, plain.thresholds)
    stage1, stage2 = Subject("Stage 1", *given, platt), Subject("Stage 2", *given)
    both = " ".join(calibration_told([stage1, stage2]))
    assert "the scores of Stage 1 were calibrated on the validation split" in both
    assert "The scores of Stage 2 are taken as they are, without calibration." in both
    assert "Stage 1 is not calibrated for Edema: fewer than 10 known positives on validation." in both
    cold = {"method": "temperature", "temperature": 1.239, "reason": None}
    few = {"method": "temperature", "temperature": 1.0, "reason": "fewer than 10 images of a known class on validation"}
    told = " ".join(calibration_told([Subject("Stage 1", *given, cold), Subject("Stage 2", *given, few)]))
    assert "Stage 1: 1.24" in told
    assert "The scores of Stage 2 are taken as they are, without calibration." in told
    assert "Stage 2 is not calibrated: fewer than 10 images of a known class on validation." in told
    assert "the scores were calibrated" in calibration_told([stage1])[0]


@pytest.mark.parametrize(("low", "high"), [(0, 0.003), (0.71, 0.93), (0, 1), (0, 12345), (0.5, 0.5)])
def test_ticks_are_few_and_cover_the_values(low, high):
    marks = ticks(low, high, 5)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 1 <= len(marks) - 1 <= 7 or low == high


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_shows_the_page_without_errors_or_requests(tmp_path):
    page = report(tmp_path, two_models("multiclass"), "multiclass")
    log = tmp_path / "net.json"
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
        "--window-size=1200,2400", f"--screenshot={tmp_path / 'shot.png'}",
    ]  # fmt: skip

    def show(name: str, text: str) -> tuple[set[str], str]:
        """Hosts asked for on the page's behalf, and what the browser logged."""
        (tmp_path / f"{name}.html").write_text(text)
        command = [CHROMIUM, *flags, (tmp_path / f"{name}.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        hosts = set(re.findall(r'"url":"https?://([^"/:]+)', log.read_text()))
        # The browser itself looks for updates, whatever it shows; the resolver rule above lets none of it out.
        return {host for host in hosts if not host.endswith(("google.com", "googleapis.com", "gvt1.com"))}, done.stderr

    hosts, logged = show("report", page)
    assert hosts == set()
    assert "CONSOLE" not in logged
    shown = np.asarray(Image.open(tmp_path / "shot.png").convert("L"))
    assert shown.shape == (2400, 1200)
    assert 0.01 < (shown < 128).mean() < 0.5  # text and bars on a light ground
    # What a faulty page would do is seen, or the assertions above could not fail.
    hosts, logged = show("faulty", '<img src="http://picture.invalid/x.png"><script>console.error("heard")</script>')
    assert hosts == {"picture.invalid"}
    assert "CONSOLE" in logged


def test_answers_of_one_of_several_models_are_reported_as_its_own(tmp_path):
    """In a file of several models, one that was never asked in words has no answers, not only undecided ones."""
    plain, fair = generated.table("binary", model="plain"), generated.table("binary", model="fair", bias=0.0)
    answer = pa.array([None if i % 4 == 0 else i % 2 for i in range(len(fair))], pa.int8())
    both = pa.concat_tables([plain, fair.append_column("y_answer", answer)], promote_options="permissive")
    path = write_predictions(both, tmp_path / "predictions.parquet", kind="binary")
    subjects, _, _ = subjects_in(read_predictions(path), min_cell=10, where=path)
    assert ["answers" in subject.judgement for subject in subjects] == [False, True]
    assert subjects[1].judgement["answers"]["undecided"] == 0.25
    page = report(tmp_path, both, "binary")
    assert "Answers in words" in page
    assert Outline(page).open == []
    assert ">0.250</td>" in page
    alone = fair.append_column("y_answer", pa.nulls(len(fair), pa.int8()))
    assert ">1.000</td>" in report(tmp_path, alone, "binary")  # asked, and never decided
