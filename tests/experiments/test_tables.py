"""The table of an experiment against numpy and scipy, from judgements written by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from fairvlm_core.errors import ConfigError
from fairvlm_core.experiments.grid import ACROSS, ATTRIBUTES, WIDE, WORST, Experiment, Layout, Recipe
from fairvlm_core.experiments.heads import POSTPROCESS
from fairvlm_core.experiments.picture import draw, draw_front
from fairvlm_core.experiments.summary import front, in_one, measure, summarise
from fairvlm_core.experiments.tables import caption, heads, markdown, rows, spread, terminal

FULL = Recipe("full", "Full", {"stage1.attributes": ("sex",)})
GRID = Experiment(
    "made_up",
    "Made up",
    (FULL, FULL.derive("a", "A | B", {"stage2.epochs": 1}), FULL.derive("after", "After", head=POSTPROCESS)),
    reference="full",
)
RNG = np.random.default_rng(0)
VALUES = {name: RNG.normal(0.8, 0.05, (5, 2, 4)).round(6) for name in ("full", "a", "after")}
VALUES["a"][:, 0, 0] = VALUES["full"][:, 0, 0] - [0.2, 0.21, 0.19, 0.2, 0.22]  # AUC, surely lower


def evaluation(values):
    """What evaluate writes, as far as a table reads it; values [attributes, (auc, es_auc, dpd, eod)]."""
    names = ("es_auc", "dpd", "eod")
    attributes = {
        attribute: dict(zip(names, (None if np.isnan(v) else float(v) for v in line[1:]), strict=True))
        for attribute, line in zip(("sex", "age_group"), values, strict=True)
    }
    known = {name: [a[name] or 0 for a in attributes.values()] for name in names}
    worst = {"es_auc": min, "dpd": max, "eod": max}
    across = {name: {"mean": float(np.mean(v)), "worst": worst[name](v)} for name, v in known.items()}
    overall = {"accuracy": float(values[1, 0]), "auc": float(values[0, 0])}
    test = {"n": 1234, "overall": overall, "attributes": attributes, "across": across}
    return {"kind": "binary", "labels": ["glaucoma"], "test": test}


def found(values=VALUES):
    return {name: {None: [evaluation(seed) for seed in seeds]} for name, seeds in values.items()}


@pytest.fixture(scope="module")
def summary():
    made = summarise(GRID, found(), min_cell=10)
    json.dumps(made, allow_nan=False)
    return made


def test_means_and_deviations(summary):
    assert summary["attributes"] == ["sex", "age_group", ACROSS]
    for name in ("full", "a"):
        assert measure(summary, name, "auc")["mean"] == pytest.approx(VALUES[name][:, 0, 0].mean())
        eod = measure(summary, name, "eod", "age_group")
        assert eod["mean"] == pytest.approx(VALUES[name][:, 1, 3].mean())
        assert eod["sd"] == pytest.approx(VALUES[name][:, 1, 3].std(ddof=1))
        assert eod["values"] == VALUES[name][:, 1, 3].tolist()
        mean = measure(summary, name, "dpd", ACROSS)
        assert mean["mean"] == pytest.approx(VALUES[name][:, :, 2].mean())


def test_every_method_is_tested_against_the_reference_and_holm_corrects_over_the_methods(summary):
    assert len(summary["tests"]) == 2 * (2 + 3 * 3)
    by = {(test["metric"], test["attribute"], test["recipe"]): test for test in summary["tests"]}
    eod = [VALUES[name][:, 0, 3] for name in ("a", "after")]
    p = [stats.ttest_rel(values, VALUES["full"][:, 0, 3]).pvalue for values in eod]
    for name, expected in zip(("a", "after"), p, strict=True):
        assert by["eod", "sex", name]["p_value"] == pytest.approx(expected)
    holm = sorted(by["eod", "sex", name]["p_holm"] for name in ("a", "after"))
    assert holm == pytest.approx([min(2 * min(p), 1), min(max(max(p), 2 * min(p)), 1)])
    # The post-processed decisions have no AUC, so that family has one test, which needs no correction.
    assert by["auc", None, "after"]["p_value"] is None
    assert by["auc", None, "a"]["p_holm"] == by["auc", None, "a"]["p_value"] < 1e-4
    difference = VALUES["a"][:, 0, 0] - VALUES["full"][:, 0, 0]
    assert by["auc", None, "a"]["difference"] == pytest.approx(difference.mean())
    assert by["auc", None, "a"]["cohens_d"] == pytest.approx(difference.mean() / difference.std(ddof=1))


def test_randomised_decisions_have_no_ranking(summary):
    for metric, attribute in (("auc", None), ("es_auc", "sex"), ("es_auc", ACROSS)):
        assert measure(summary, "after", metric, attribute)["mean"] is None
    assert measure(summary, "after", "eod", "sex")["n"] == 5
    assert "rank nobody" in caption(summary)


def test_the_markdown_shows_all_of_it(summary):
    shown = markdown(summary)
    lines = shown.splitlines()
    cells = [line for line in lines if line.startswith("| ")]
    assert len(cells) == 2 + 3 * 3 + 2 + len(summary["tests"])  # evaluations without intervals, nothing trained
    assert len({line.replace("\\|", "").count("|") for line in cells[:11]}) == 1
    auc = VALUES["a"][:, 0, 0]
    assert f"| A \\| B | 0.{round(VALUES['a'][:, 1, 0].mean() * 1000)}" in shown
    assert f"{auc.mean():.3f} ± {auc.std(ddof=1):.3f} *" in shown
    assert "Each method minus Full" in shown
    assert "5 seeds" in caption(summary)
    assert "fewer than 10 images" in caption(summary)
    assert heads(summary)[-3:] == ["DPD", "EOD", "Pareto front"]
    assert rows(summary)[2][:4] == ["", "", "", ACROSS]


def test_the_terminal_shows_every_method_in_80_columns(summary):
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(summary))
    shown = console.export_text()
    assert "…" not in shown
    for title in ("Full", "After", f"{VALUES['full'][:, 0, 0].mean():.3f}"):
        assert title in shown


def test_numbers_that_some_seeds_lack():
    values = {name: array.copy() for name, array in VALUES.items()}
    values["a"][0, 0, 3] = np.nan  # suppressed in one seed
    values["full"][:, 1, 1] = np.nan  # in all
    made = summarise(GRID, found(values), min_cell=10)
    eod = measure(made, "a", "eod", "sex")
    assert (eod["n"], eod["values"][0]) == (4, None)
    assert eod["mean"] == pytest.approx(values["a"][1:, 0, 3].mean())
    assert spread(eod, 5).endswith("(4 of 5)")
    test = next(t for t in made["tests"] if (t["recipe"], t["metric"], t["attribute"]) == ("a", "eod", "sex"))
    assert test["n"] == 4
    assert test["p_value"] == pytest.approx(stats.ttest_rel(values["a"][1:, 0, 3], values["full"][1:, 0, 3]).pvalue)
    assert spread(measure(made, "full", "es_auc", "age_group"), 5) == "–"
    json.dumps(made, allow_nan=False)
    markdown(made)


def test_one_seed_claims_nothing():
    made = summarise(GRID, found({name: seeds[:1] for name, seeds in VALUES.items()}), min_cell=10)
    assert all(test["p_holm"] is None for test in made["tests"])
    assert "*" not in "".join(cell for row in rows(made) for cell in row)
    assert "±" not in markdown(made)
    assert "one seed" in caption(made)
    assert "t-test" not in caption(made)


def test_the_picture_has_a_panel_per_measure(summary, tmp_path):
    draw(summary, tmp_path / "picture.png")
    width, height = Image.open(tmp_path / "picture.png").size
    assert width > 3 * height
    nobody = {
        name: {None: [{**e, "test": {**e["test"], "attributes": {}}} for e in by[None]]} for name, by in found().items()
    }
    without = summarise(GRID, nobody, min_cell=10)
    assert without["attributes"] == []
    markdown(without)
    draw(without, tmp_path / "other.png")
    assert Image.open(tmp_path / "other.png").size[0] < width


# A model for sex and one for age_group, in this order; each was also judged on the other attribute.
MODELS = {
    name: {attribute: RNG.normal(0.8, 0.05, (4, 2, 4)).round(6) for attribute in ("sex", "age_group")}
    for name in ("full", "a", "after")
}
MODELS["a"]["age_group"][:, 1, 3] = MODELS["full"]["age_group"][:, 1, 3] + [0.1, 0.11, 0.09, 0.1]  # its EOD, surely


@pytest.fixture(scope="module")
def apart():
    judged = {
        name: {attribute: [evaluation(seed) for seed in seeds] for attribute, seeds in models.items()}
        for name, models in MODELS.items()
    }
    made = summarise(dataclasses.replace(GRID, apart=True), judged, min_cell=10)
    json.dumps(made, allow_nan=False)
    return made


def test_each_number_is_that_of_the_attributes_own_model(apart):
    assert apart["attributes"] == ["sex", "age_group", ACROSS]
    own = {"sex": MODELS["a"]["sex"], "age_group": MODELS["a"]["age_group"]}
    for attribute, place in (("sex", 0), ("age_group", 1)):
        expected = {
            "accuracy": own[attribute][:, 1, 0],
            "auc": own[attribute][:, 0, 0],
            **{name: own[attribute][:, place, i] for i, name in enumerate(("es_auc", "dpd", "eod"), start=1)},
        }
        for metric, values in expected.items():
            assert measure(apart, "a", metric, attribute)["values"] == values.tolist()
    for metric, means in {
        "auc": (own["sex"][:, 0, 0] + own["age_group"][:, 0, 0]) / 2,
        "eod": (own["sex"][:, 0, 3] + own["age_group"][:, 1, 3]) / 2,
    }.items():
        across = measure(apart, "a", metric, ACROSS)
        assert across["values"] == pytest.approx(means.tolist())
        assert across["sd"] == pytest.approx(means.std(ddof=1))
    # No model is for all of them, so no number is without an attribute.
    assert {found["attribute"] for recipe in apart["recipes"] for found in recipe["measures"]} == {*apart["attributes"]}


def test_the_models_of_an_attribute_are_tested_against_each_other(apart):
    assert len(apart["tests"]) == 2 * 3 * 5
    by = {(test["metric"], test["attribute"], test["recipe"]): test for test in apart["tests"]}
    pairs = [(MODELS[name]["age_group"][:, 1, 3], MODELS["full"]["age_group"][:, 1, 3]) for name in ("a", "after")]
    p = [stats.ttest_rel(*pair).pvalue for pair in pairs]
    assert [by["eod", "age_group", name]["p_value"] for name in ("a", "after")] == pytest.approx(p)
    assert by["eod", "age_group", "a"]["p_holm"] == pytest.approx(2 * p[0])
    starred = [row[1] for row in rows(apart)[3:6] if row[-2].endswith("*")]
    assert "age group" in starred
    assert "sex" not in starred
    assert by["auc", ACROSS, "after"]["p_value"] is None  # randomised decisions still rank nobody


def test_a_row_has_all_that_is_said_of_its_model(apart):
    assert heads(apart) == ["method", "attribute", "accuracy", "AUC", "ES-AUC", "DPD", "EOD", "Pareto front"]
    shown = rows(apart)
    assert [row[:2] for row in shown[:4]] == [["Full", "sex"], ["", "age group"], ["", ACROSS], ["A | B", "sex"]]
    auc = MODELS["full"]["age_group"][:, 0, 0]
    assert shown[1][3] == f"{auc.mean():.3f} ± {auc.std(ddof=1):.3f}"
    assert "Each attribute has its own model" in caption(apart)
    assert "Each attribute has its own model" not in caption(summarise(GRID, found(), min_cell=10))
    assert "| --- | --- | ---: |" in markdown(apart)


def test_the_terminal_and_the_picture_show_the_mean_over_the_models(apart, tmp_path):
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(apart))
    shown = console.export_text()
    assert f"{measure(apart, 'full', 'auc', ACROSS)['mean']:.3f}" in shown
    assert "All numbers here: mean over attributes." in " ".join(shown.split())
    draw(apart, tmp_path / "picture.png")
    width, height = Image.open(tmp_path / "picture.png").size
    assert width > 3 * height


def test_one_attribute_needs_no_mean(tmp_path):
    judged = {name: {"sex": [evaluation(seed) for seed in models["sex"]]} for name, models in MODELS.items()}
    made = summarise(dataclasses.replace(GRID, apart=True), judged, min_cell=10)
    assert made["attributes"] == ["sex"]
    assert [row[1] for row in rows(made)] == ["sex"] * 3
    assert "mean over attributes" not in markdown(made)
    draw(made, tmp_path / "picture.png")


FEW = RNG.normal(0.8, 0.05, (3, 3, 2, 4)).round(6)  # recipes, seeds, attributes, (auc, es_auc, dpd, eod)


def laid_out(layout, *, apart=False):
    """The table of a grid of the same recipes in another layout."""
    named = dict(zip(VALUES, FEW, strict=True))
    models = {
        name: {None: [evaluation(seed) for seed in seeds]}
        if not apart
        else {attribute: [evaluation(seed) for seed in seeds] for attribute in ("sex", "age_group")}
        for name, seeds in named.items()
    }
    return summarise(dataclasses.replace(GRID, apart=apart, layout=layout), models, min_cell=10), named


def test_a_block_for_each_attribute_as_in_fair_moe():
    made, named = laid_out(Layout(ATTRIBUTES, ("es_auc", "auc", "eod")), apart=True)
    assert heads(made) == ["attribute", "method", "ES-AUC", "AUC", "EOD", "Pareto front"]
    shown = rows(made)
    assert [row[0] for row in shown] == ["sex", "", "", "age group", "", "", ACROSS, "", ""]
    assert [row[1] for row in shown[3:6]] == ["Full", "A | B", "After †"]
    es_auc = named["a"][:, 1, 1]
    assert shown[4][2].startswith(f"{es_auc.mean():.3f} ± {es_auc.std(ddof=1):.3f}")
    assert "## All measures" not in markdown(made)


def test_a_column_for_each_attribute_and_all_measures_below():
    made, named = laid_out(Layout(WIDE, ("dpd", "eod"), worst=True))
    assert made["attributes"] == ["sex", "age_group", ACROSS, WORST]
    assert in_one(made) == ACROSS
    assert heads(made) == ["method", "measure", "sex", "age group", ACROSS, WORST]
    shown = rows(made)
    assert [row[:2] for row in shown] == [
        [title if i == 0 else "", metric]
        for title in ("Full", "A | B", "After †")
        for i, metric in enumerate(("DPD", "EOD"))
    ]
    assert measure(made, "a", "eod", WORST)["values"] == named["a"][:, :, 3].max(axis=1).tolist()
    worst = named["a"][:, :, 3].max(axis=1)
    assert shown[3][5].startswith(f"{worst.mean():.3f} ± {worst.std(ddof=1):.3f}")
    page = markdown(made)
    assert page.index("## All measures") < page.index("## Each method minus")
    auc = named["full"][:, 0, 0]
    assert f"{auc.mean():.3f} ± {auc.std(ddof=1):.3f}" in page  # which the layout leaves out


def test_the_worst_over_the_models_of_several_attributes():
    made, named = laid_out(Layout(WIDE, ("es_auc",), worst=True), apart=True)
    assert measure(made, "a", "es_auc", WORST)["values"] == named["a"][:, :, 1].min(axis=1).tolist()
    assert measure(made, "a", "dpd", WORST)["values"] == named["a"][:, :, 2].max(axis=1).tolist()


def test_a_wide_table_has_no_column_without_a_number():
    values = {name: array.copy() for name, array in zip(VALUES, FEW, strict=True)}
    for array in values.values():
        array[:, 0, 2:] = np.nan  # nobody's gaps of sex
    made = summarise(dataclasses.replace(GRID, layout=Layout(WIDE, ("dpd", "eod"))), found(values), min_cell=10)
    assert heads(made) == ["method", "measure", "age group", ACROSS]
    assert {len(row) for row in rows(made)} == {4}


@pytest.mark.parametrize(("way", "metrics"), [("wide", ("auc",)), ("wide", ()), ("deep", ("eod",))])
def test_a_layout_that_does_not_exist(way, metrics):
    with pytest.raises(ConfigError, match="no layout"):
        Layout(way, metrics)


def dominated(points, i):
    """By another of at least the accuracy and at most the gap, and not the same in both."""
    return any(
        a >= points[i][0] and gap <= points[i][1] and (a, gap) != points[i] for a, gap in points if a is not None
    )


@pytest.mark.parametrize("apart", [False, True])
def test_the_front_is_that_of_the_means_and_is_marked(apart):
    made, named = laid_out(Layout(), apart=apart)
    for attribute, place in (("sex", 0), ("age_group", 1)):
        for gap, column in (("dpd", 2), ("eod", 3)):
            points = [(values[:, 1, 0].mean(), values[:, place, column].mean()) for values in named.values()]
            expected = [name for i, name in enumerate(named) if not dominated(points, i)]
            assert front(made, gap, attribute) == expected
    column = heads(made).index("Pareto front")
    marks = [row[column] for row in rows(made)]
    for i, name in enumerate(named):
        expected = [metric.upper() for metric in ("dpd", "eod") if name in front(made, metric, "sex")]
        assert marks[3 * i] == (", ".join(expected) or "–")
    assert "Pareto front" in caption(made)


def test_who_reads_the_demographics_is_marked_wherever_it_is_named(summary):
    assert [recipe["reads_groups"] for recipe in summary["recipes"]] == [False, False, True]
    assert rows(summary)[6][0] == "After †"
    assert "† needs the patient's demographics at inference" in caption(summary)
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(summary))
    assert "After †" in console.export_text()
    nobody = dataclasses.replace(GRID, recipes=GRID.recipes[:2])
    kept = {name: found()[name] for name in ("full", "a")}
    assert "†" not in markdown(summarise(nobody, kept, min_cell=10))


def test_no_word_of_a_title_is_cut_in_the_terminal():
    from rich.console import Console

    long = dataclasses.replace(
        GRID, recipes=(*GRID.recipes[:2], FULL.derive("after", "Incomprehensibly post-processed", head=POSTPROCESS))
    )
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(summarise(long, found(), min_cell=10)))
    shown = console.export_text()
    assert "Incomprehensibly" in shown
    assert "…" not in shown


def test_the_picture_of_the_front(summary, apart, tmp_path):
    for name, made in (("one", summary), ("apart", apart)):
        draw_front(made, tmp_path / f"{name}.png")
        width, height = Image.open(tmp_path / f"{name}.png").size
        assert width > 2 * height
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("one", "apart")]
    # The line of the front is there in both, in its colour.
    assert all((abs(picture.astype(int) - (0x7A, 0x87, 0x94)).sum(axis=2) < 30).sum() > 100 for picture in pictures)
    nobody = {**summary, "attributes": []}
    draw_front(nobody, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
