"""The report: what it says, that it needs nothing but itself, and that a browser shows it without complaint."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
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
from fairvlm_core.evaluation.contrasts import against_champion, contrasts
from fairvlm_core.evaluation.metrics import auc
from fairvlm_core.evaluation.predictions import read_predictions, scores, write_predictions
from fairvlm_core.evaluation.report import write_report
from fairvlm_core.evaluation.report.against import champion_told
from fairvlm_core.evaluation.report.belief import calibration_told
from fairvlm_core.evaluation.report.content import Champion, Content, Selection
from fairvlm_core.evaluation.report.page import page as page_of
from fairvlm_core.evaluation.report.subjects import Subject, group_curves, group_reliability, subjects_in
from fairvlm_core.evaluation.report.svg import ticks
from fairvlm_core.evaluation.thresholds import add_decisions, tune
from fairvlm_core.registry.gate import Rules, judge_gate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def report(tmp_path: Path, table: pa.Table, kind: str, **options) -> str:
    path = write_predictions(table, tmp_path / "predictions.parquet", kind=kind)
    write_report(path, tmp_path / "report.html", **options)
    return (tmp_path / "report.html").read_text()


def two_models(kind: str) -> pa.Table:
    return pa.concat_tables([generated.table(kind, model="plain"), generated.table(kind, model="fair", bias=0.0)])


def everything(kind: str, tmp_path: Path) -> Content:
    """What compare would report at most: a selection, a champion, answers in words, pictures and the cohort."""
    names = {"Stage 2": {"bias": 0.0}, "Fair-MoE": {}, "Champion (version 3)": {"skill": 1.0}}
    tables = [generated.table(kind, model=name, **options) for name, options in names.items()]
    answer = pa.array([None if i % 4 == 0 else i % 2 for i in range(len(tables[0]))], pa.int8())
    tables[0] = tables[0].append_column("y_answer", answer)
    table = pa.concat_tables(tables, promote_options="permissive")
    path = write_predictions(table, tmp_path / "everything.parquet", kind=kind)
    subjects, split, how = subjects_in(read_predictions(path), min_cell=10, where=path)
    picture = io.BytesIO()
    Image.new("RGB", (900, 300), (90, 20, 20)).save(picture, "png")
    new, other, champion = subjects
    counts = {"train_before": 1390, "train_after": 150}
    cells = [{"sex": "male", "age_group": "40-59", **counts}, {"sex": "female", "age_group": "80+", **counts}]
    against = against_champion(new.scores, champion.scores)
    judged = {**new.judgement, "intervals": new.sure}
    return Content(
        "Fairness of the compared models",
        subjects,
        split,
        how,
        selection=Selection(new.title, "es_auc", ["sex"], {new.title: 0.8, other.title: 0.7}),
        against=contrasts(new.scores, {other.title: other.scores}),
        champion=Champion(champion.title, False, against),
        gate=judge_gate(judged, against, Rules(max_eod=0.1, min_es_auc=0.97)),
        strata={"attributes": ["sex", "age_group"], "cells": cells},
        pictures={new.title: picture.getvalue()},
    )


SECTIONS = (
    "Summary", "The gate", "Against the champion", "Stage 2 against the others", "By attribute",
    "How well each group is ranked", "ROC curves per group", "Groups within groups",
    "Accuracy against the gap between groups", "Gaps at other thresholds", "How far the scores can be believed",
    "Answers in words", "Where the models look",
    "The training cohort before and after balancing", "How decisions are made", "What is left out",
    "What the words mean",
)  # fmt: skip


class Outline(HTMLParser):
    """Tags that are open, headings, landmarks, tables, what lacks a name, and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.headings, self.landmarks, self.addresses = [], [], [], []
        self.tables, self.captions, self.nameless, self.scopeless, self.figures, self.figcaptions = 0, 0, 0, 0, 0, 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        self.tables += tag == "table"
        self.captions += tag == "caption"
        self.figures += tag == "figure"
        self.figcaptions += tag == "figcaption"
        self.scopeless += tag == "th" and given.get("scope") not in ("col", "row")
        self.nameless += tag == "img" and not given.get("alt")
        # What the keyboard reaches must say what it is.
        self.nameless += "tabindex" in given and not (given.get("role") and given.get("aria-label"))
        if tag in ("header", "main", "nav"):
            self.landmarks.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)
        if tag == "svg":
            self.nameless += not (given.get("aria-hidden") or (given.get("role") == "img" and given.get("aria-label")))
        if tag not in ("meta", "link", "br", "img"):
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
    assert set(outline.headings[1:]) == {"h2"}
    assert outline.landmarks == ["header", "main", "nav"]
    assert outline.tables == outline.captions > 0
    assert outline.figures == outline.figcaptions > 0
    assert outline.nameless == outline.scopeless == 0
    assert all(address.startswith(("#", "data:text/csv;")) for address in outline.addresses)
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_a_whole_comparison_has_every_section_and_names_everything(tmp_path, kind):
    page = page_of(everything(kind, tmp_path))
    outline = Outline(page)
    assert outline.open == []
    # Where the class with the largest score is taken there is no threshold that could move.
    expected = [name for name in SECTIONS if kind == "binary" or name != "Gaps at other thresholds"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == expected
    assert re.findall(r'<li><a href="#s\d+">(.*?)</a>', page) == expected
    assert outline.tables == outline.captions
    assert outline.figures == outline.figcaptions
    assert outline.nameless == outline.scopeless == 0
    assert page.count('Stage 2 <span class="nb">(selected)</span>') == page.count("(selected)") == 1
    linked = base64.b64decode(re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]+)"', page).group(1)).decode()
    assert "Stage 2 minus Champion (version 3),," in linked


def test_words_against_the_champion_follow_the_corrected_tests(tmp_path):
    content = everything("binary", tmp_path)
    names = ("measure", "attribute", "difference", "p_holm")

    def told(*rows, same_cohort=True):
        rows = [{"low": None, "high": None, "p_value": None, **dict(zip(names, row, strict=True))} for row in rows]
        champion = Champion("Champion (version 3)", same_cohort, rows)
        return champion_told(dataclasses.replace(content, champion=champion))

    start = "Against the champion (version 3), Stage 2 is"
    assert told(("auc", None, 0.1, 0.04), ("eod", None, 0.1, 0.04)) == [
        f"{start} better for accuracy (AUC +0.100), and worse for fairness (EOD +0.100)."
    ]
    assert told(("auc", None, 0.1, 0.06), ("dpd", None, -0.1, 0.01), ("es_auc", None, -0.2, 0.01)) == [
        f"{start} not distinguishable for accuracy, and better for fairness (DPD -0.100), "
        "but worse for fairness (ES-AUC -0.200)."
    ]
    worst = [("worst_group_auc", name, 0.1, 0.01) for name in ("sex", "age_group")]
    assert "(worst group AUC by sex +0.100 and by age group +0.100)" in told(("auc", None, 0.1, 0.5), *worst)[0]
    assert "not comparable for fairness" in told(("auc", None, 0.1, 0.5), ("eod", None, None, None))[0]
    assert "flatter" in told(("auc", None, 0.1, 0.5), same_cohort=False)[1]
    assert champion_told(dataclasses.replace(content, champion=None)) == []


def test_colours_can_be_told_from_the_ground_in_light_and_dark():
    """WCAG 2.2: text 4.5 to 1, what is drawn 3 to 1, and the numbers on the map wherever its colour is strongest."""
    style = resources.files("fairvlm_core.evaluation.report").joinpath("style.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): #(\w{6});", part)) for part in style.split("}")[:2]]

    def ratio(one, other):
        levels = []
        for colour in (one, other):
            linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
            levels.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
        return max(levels) / min(levels)

    for scheme in schemes:
        colours = {name: np.array(list(bytes.fromhex(value))) / 255 for name, value in scheme.items()}
        for ground in ("ground", "panel"):
            for name in ("ink", "soft", "accent"):
                assert ratio(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("c0", "c1", "c2", "c3", "c4", "c5", "c6"):
            assert ratio(colours[name], colours["ground"]) >= 3, name
        strongest = 0.58 * colours["c1"] + 0.42 * colours["ground"]
        assert ratio(colours["ink"], strongest) >= 4.5


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


def test_a_name_ending_with_md_gives_the_short_report_and_nothing_else(tmp_path):
    """What is named is written; a page beside it could replace somebody's file."""
    table = two_models("binary")
    page = report(tmp_path, table, "binary")
    write_report(tmp_path / "predictions.parquet", tmp_path / "short.md")
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.parquet", "report.html", "short.md"}
    text = (tmp_path / "short.md").read_text()
    given = scores(table.filter(pc.equal(table.column("model"), "fair")), "test")
    area = auc(given.y_true[:, 0], given.y_score[:, 0])
    (row,) = re.findall(r"^\| fair \| 0.*$", text, re.M)
    assert f" | {area:.3f} (" in row
    assert "| race | Pacific Islander | <10 | – | – |" in text
    assert "- Race: Asian cannot be judged on glaucoma: no positives." in text
    lead = re.search(r"^\*\*(.*?)\*\*", text, re.M).group(1)
    assert f">{lead}<" in page
    assert "ends with .html" in text
    assert "champion" not in text


def test_names_from_the_data_are_no_markdown(tmp_path):
    table = generated.table("binary", model="![x](http://a.invalid/x.png) | <b>*it*\n# y")
    path = write_predictions(table, tmp_path / "predictions.parquet", kind="binary")
    write_report(path, tmp_path / "short.md")
    text = (tmp_path / "short.md").read_text()
    assert r"!\[x\](http://a.invalid/x.png) \| \<b>\*it\* # y" in text
    assert not re.search(r"(?<!\\)\[|(?<!\\)<[a-z]|^# y", text, re.M)


def test_small_groups_are_not_published(tmp_path):
    page = report(tmp_path, generated.table("binary"), "binary")
    assert "Race: suppressed, with fewer than 10 images: Pacific Islander." in page
    assert "Race: Asian cannot be judged on glaucoma: no positives." in page
    assert "Known are 10 or more images, &lt;10 positive." in page
    assert "not judged: no positives (10 or more images, &lt;10 positive)" in page
    assert "Race: not counted here, lest those follow: Asian." in page
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
    assert 'aria-label="Reliability of model; ECE: ' in page


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


@pytest.fixture
def browser(tmp_path):
    """Open a page in Chromium with more flags: the finished process."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip

    def show(text: str, *more: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "shown.html").write_text(text)
        command = [CHROMIUM, *flags, *more, (tmp_path / "shown.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done

    return show


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_the_gate_is_told_in_words_numbers_and_a_picture(tmp_path, kind):
    content = everything(kind, tmp_path)
    gate, page = content.gate, page_of(content)
    told = {finding["verdict"] for finding in gate["findings"]}
    assert told == {"pass", "fail", "insufficient evidence"}
    section = re.search(r"<h2>The gate</h2>(.*?)</section>", page, re.S).group(1)
    assert page.count(f"<strong>Gate: {gate['verdict']}.</strong>") == 2  # in the verdict above all, and in its section
    for reason in gate["reasons"]:
        assert html.escape(reason) in section
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', section)
    assert len(rows) == len(gate["findings"])
    for row, finding in zip(rows, gate["findings"], strict=True):
        assert row.endswith(f"{finding['verdict']}</td>")
        if finding["low"] is not None:
            signs = "+" if finding["rule"] in ("auc_margin", "accuracy_margin", "worst_group_margin", "fairer") else ""
            low, high = (re.sub(r"^[+-](?=0\.000$)", "", f"{finding[end]:{signs}.3f}") for end in ("low", "high"))
            assert f"{low} to {high}" in row
    # In the picture a finding that passes has its whole interval on the shaded side, one that fails none of it.
    shown = [finding for finding in gate["findings"] if finding["low"] is not None]
    pictures = [ElementTree.fromstring(found) for found in re.findall(r"<svg [^>]*role=.img.*?</svg>", section, re.S)]
    bands, bars = [], []
    for picture in pictures:
        bands += [
            (float(rect.get("x")), float(rect.get("x")) + float(rect.get("width")))
            for rect in picture.iter("rect")
            if rect.get("class") == "good"
        ]
        lines = [line for line in picture.iter("line") if (line.get("class") or "").startswith("curve")]
        bars += [(float(line.get("x1")), float(line.get("x2"))) for line in lines if line.get("y1") == line.get("y2")]
    assert len(shown) == len(bands) == len(bars) > 5
    for finding, (start, end), (low, high) in zip(shown, bands, bars, strict=True):
        inside, outside = start - 0.02 <= low and high <= end + 0.02, high < start + 0.02 or low > end - 0.02
        assert finding["verdict"] != "pass" or inside
        assert finding["verdict"] != "fail" or outside
        assert finding["verdict"] != "insufficient evidence" or not (inside or outside) or finding["rule"] == "fairer"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chromium_shows_the_page_without_errors_or_requests(tmp_path, browser, scheme):
    page = page_of(everything("multilabel", tmp_path))
    log, shot = tmp_path / "net.json", tmp_path / "shot.png"
    preferred = {"dark": 0, "light": 1}[scheme]

    def show(text: str) -> tuple[set[str], str]:
        """Hosts asked for on the page's behalf, and what the browser logged."""
        done = browser(
            text,
            f"--log-net-log={log}",
            "--window-size=1200,2400",
            f"--screenshot={shot}",
            f"--blink-settings=preferredColorScheme={preferred}",
        )
        hosts = set(re.findall(r'"url":"https?://([^"/:]+)', log.read_text()))
        # The browser itself looks for updates, whatever it shows; the resolver rule above lets none of it out.
        return {host for host in hosts if not host.endswith(("google.com", "googleapis.com", "gvt1.com"))}, done.stderr

    hosts, logged = show(page)
    assert hosts == set()
    assert "CONSOLE" not in logged
    shown = np.asarray(Image.open(shot).convert("L"))
    assert shown.shape == (2400, 1200)
    ground = 255 - shown if scheme == "dark" else shown
    assert np.median(ground) > 230
    assert 0.01 < (ground < 128).mean() < 0.5  # text and marks on the ground
    # What a faulty page would do is seen, or the assertions above could not fail.
    if scheme == "light":
        hosts, logged = show('<img src="http://picture.invalid/x.png"><script>console.error("heard")</script>')
        assert hosts == {"picture.invalid"}
        assert "CONSOLE" in logged


MEASURE = """<!doctype html><body><script>
const wide = (name, element) => element.scrollWidth > element.clientWidth + 1 ? [name] : [];
addEventListener("load", () => {
  const told = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, found = wide("page", page.documentElement);
    if (frame.className === "paper")
      for (const part of page.querySelectorAll(".scroll, figure")) found.push(...wide(part.ariaLabel, part));
    const hidden = [...page.querySelectorAll("details table")].filter(table => !table.checkVisibility());
    told.push([frame.className, frame.width, found.join(), hidden.length, page.querySelectorAll("section").length]);
  }
  document.body.innerHTML = "<pre>" + told.map(line => line.join("|")).join("\\n") + "</pre>";
});
</script>FRAMES</body>"""


def test_nothing_is_wider_than_a_telephone_a_window_or_paper(tmp_path, browser):
    """At 400 and 1200 px wide tables scroll by themselves; on A4 (718 px) nothing can scroll, so everything must fit.

    The page runs no scripts, so another one measures it in frames.
    """
    page = page_of(everything("multilabel", tmp_path))
    paper = page.replace("@media print", "@media all")
    too_wide = page.replace("<h2>", '<h2 style="width:1300px">', 1)
    shown = [("screen", 400, page), ("screen", 1200, page), ("paper", 718, paper), ("faulty", 1200, too_wide)]
    frames = "".join(
        f'<iframe class="{name}" width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>'
        for name, width, text in shown
    )
    done = browser(MEASURE.replace("FRAMES", frames), "--dump-dom", "--virtual-time-budget=20000")
    lines = [line.split("|") for line in re.search(r"<pre>(.*?)</pre>", done.stdout, re.S).group(1).splitlines()]
    found = {(name, width): (wide, int(hidden), int(sections)) for name, width, wide, hidden, sections in lines}
    assert found["screen", "400"][0] == found["screen", "1200"][0] == ""
    assert found["screen", "1200"][1] > 5  # tables that are closed until they are asked for
    assert found["paper", "718"] == ("", 0, len(SECTIONS))
    assert found["faulty", "1200"][0] == "page"


def test_chromium_prints_the_page(tmp_path, browser):
    browser(page_of(everything("binary", tmp_path)), f"--print-to-pdf={tmp_path / 'page.pdf'}")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 8 <= pages <= 30


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
