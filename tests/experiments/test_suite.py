"""The table over several settings, the document, and the sections under a table, from judgements written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from fairvlm_core.errors import FairVLMError
from fairvlm_core.experiments.baselines import EVERYWHERE, KNOWN_TRUTH
from fairvlm_core.experiments.chain import Run, Work
from fairvlm_core.experiments.diagnostics import diagnostics
from fairvlm_core.experiments.document import END, block, update
from fairvlm_core.experiments.grid import ACROSS, Experiment, Recipe, Suite
from fairvlm_core.experiments.heads import POSTPROCESS
from fairvlm_core.experiments.suite import draw_suite, find, suite_markdown, summarise_suite
from fairvlm_core.experiments.summary import front, measure, summarise
from fairvlm_core.experiments.tables import caption, markdown, rows

FULL = Recipe("full", "Full")
OTHER = Recipe("other", "Other", {"stage2.epochs": 1})
AFTER = Recipe("after", "After", head=POSTPROCESS)
BASELINES = (*EVERYWHERE, *KNOWN_TRUTH)
METRICS = ("es_auc", "dpd", "eod")
ATTRIBUTES = ("sex", "age_group", "sex x age_group")
PROVENANCE = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "command": "fairvlm experiment made",
    "work_commits": {"0123456789abcdef": 7, "fedcba9876543210": 2},
    "seeds": [0, 1, 2],
    "pieces": 9,
    "hours": 2.5,
    "cpu_hours": 0.5,
    "untimed": 0,
    "machine": {"cpu": "Some CPU", "cores": 4, "gpu": None, "system": "Linux x86_64"},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}


def evaluation(seed, *, level=0.8, gap=0.1, attributes=ATTRIBUTES):
    """What evaluate writes, as far as the tables read it, with intervals."""
    rng = np.random.default_rng(seed)
    values = {
        attribute: {"es_auc": level + rng.normal(0, 0.01), "dpd": gap + rng.normal(0, 0.01), "eod": gap}
        for attribute in attributes
    }
    overall = {"accuracy": level + rng.normal(0, 0.01), "auc": level + 0.05}
    across = {metric: {"mean": float(np.mean([v[metric] for v in values.values()]))} for metric in METRICS}
    for metric in across:
        across[metric]["worst"] = across[metric]["mean"]

    def around(found):
        return {name: [value - 0.1 - seed / 100, value + 0.1] for name, value in found.items()}

    intervals = {
        "overall": around(overall),
        "attributes": {name: around(found) for name, found in values.items()},
        "across": {metric: around(found) for metric, found in across.items()},
    }
    test = {"n": 500, "overall": overall, "attributes": values, "across": across, "intervals": intervals}
    return {"kind": "binary", "labels": ["glaucoma"], "test": test}


def grid(name, **changes):
    return Experiment(name, name.capitalize(), (OTHER, AFTER, FULL, *BASELINES), "full", **changes)


def made(name, *, shift=0.0, attributes=ATTRIBUTES):
    levels = {"other": 0.75, "after": 0.74, "full": 0.8, "majority": 0.5, "linear_probe": 0.7}
    found = {}
    for place, recipe in enumerate(grid(name).recipes):
        level = levels.get(recipe.name, 0.9)
        seeds = [0] if recipe.baseline else [0, 1, 2]
        found[recipe.name] = {
            None: [
                evaluation(seed + 10 * place, level=level + shift, gap=0.3 - 0.2 * level, attributes=attributes)
                for seed in seeds
            ]
        }
    summary = summarise(grid(name), found, min_cell=10)
    summary["provenance"] = PROVENANCE
    json.dumps(summary, allow_nan=False)
    return summary, found


def test_a_baseline_has_one_value_no_test_and_is_on_no_front():
    summary, _ = made("table")
    assert {test["recipe"] for test in summary["tests"]} == {"other", "after"}
    names = {recipe.name for recipe in BASELINES}
    for attribute in ("sex", "age_group", ACROSS):
        for gap in ("dpd", "eod"):
            assert front(summary, gap, attribute)
            assert not names & set(front(summary, gap, attribute))
    for recipe in BASELINES:
        found = measure(summary, recipe.name, "auc")
        assert (len(found["values"]), found["sd"], found["n"]) == (1, None, 1)
    shown = {row[0]: row[1] for row in rows(summary) if row[0]}
    assert "±" in shown["Full"]
    assert not any(mark in shown["Majority class"] for mark in ("±", "of 3"))
    assert "The methods from Majority class on are yardsticks" in caption(summary)


def test_an_interval_is_the_mean_of_the_ends():
    summary, found = made("table")
    for metric, attribute, read in (
        ("accuracy", None, lambda test: test["overall"]["accuracy"]),
        ("eod", "sex", lambda test: test["attributes"]["sex"]["eod"]),
        ("es_auc", ACROSS, lambda test: test["across"]["es_auc"]["mean"]),
    ):
        ends = [read(one["test"]["intervals"]) for one in found["full"][None]]
        expected = [np.mean([low for low, _ in ends]), np.mean([high for _, high in ends])]
        assert measure(summary, "full", metric, attribute)["interval"] == pytest.approx(expected)
    assert measure(summary, "after", "es_auc", "sex")["interval"] is None  # ranks nobody
    assert measure(summary, "after", "eod", "sex")["interval"] is not None
    page = markdown(summary)
    assert "## Intervals over the patients" in page
    low, high = measure(summary, "full", "eod", "sex")["interval"]
    assert f"{low:.3f}–{high:.3f}" in page


def test_the_mean_of_the_ends_is_no_narrower_than_an_interval_of_the_mean():
    """Of values that vary together by any correlation, by simulation."""
    rng = np.random.default_rng(0)
    for shared in (0.0, 0.5, 1.0):
        draws = shared * rng.normal(size=(4000, 1)) + (1 - shared) * rng.normal(size=(4000, 5))
        ends = np.quantile(draws, [0.025, 0.975], axis=0).mean(axis=1)
        of_mean = np.quantile(draws.mean(axis=1), [0.025, 0.975])
        assert ends[1] - ends[0] >= (of_mean[1] - of_mean[0]) * 0.98


def test_what_was_tuned_and_where_it_comes_from_stand_below():
    summary, _ = made("table")
    summary["tuning"] = [
        {
            "recipe": "full",
            "criterion": "es_auc",
            "seed": 100,
            "candidates": [
                {"overrides": {"stage2.learning_rate": 0.001}, "value": 0.81234, "reason": ""},
                {"overrides": {"stage2.learning_rate": 0.1}, "value": None, "reason": "The loss is not finite."},
            ],
            "chosen": 0,
        }
    ]
    summary["follows"] = {"after": "full"}
    page = markdown(summary)
    assert "| Full | stage2.learning_rate = 0.001 | 0.812 | chosen |" in page
    assert "The loss is not finite." in page
    assert "2 candidates, each trained once with the seed 100" in page
    assert "After that of Full" in page
    assert "At commit `0123456`, seeds 0, 1, 2; 9 pieces of work, 2.5 hours added up" in page
    assert "other commits: `fedcba9`" in page
    assert "Some CPU, 4 cores" in page


def test_diagnostics_are_means_of_the_last_epoch_over_the_models(tmp_path):
    runs = []
    for seed, skipped in ((0, 0.2), (1, 0.4)):
        work = Work("stage2", {}, {}, f"seed{seed}-of-full")
        folder = tmp_path / "steps" / work.folder
        folder.mkdir(parents=True)
        epochs = [{"epoch": 1, "skipped": 9.0, "score": 1}, {"epoch": 2, "skipped": skipped, "auc": 0.7, "score": 1}]
        (folder / "history.json").write_text(json.dumps({"concept": [{"epoch": 1}], "fairness": epochs}))
        (folder / "metrics.json").write_text(json.dumps({"best_epoch": seed + 1}))
        runs.append(Run(FULL, seed, None, {"stage2": work}))
    runs.append(Run(BASELINES[0], 0, None, {}))
    (found,) = diagnostics(runs, tmp_path, trained="stage2")
    assert found["figures"] == pytest.approx({"skipped": 0.3, "auc": 0.7})
    assert (found["recipe"], found["phase"], found["models"], found["epochs"]) == ("full", "fairness", 2, 2)
    assert found["best_epoch"] == 1.5
    summary, _ = made("table")
    summary["diagnostics"] = [found]
    assert "| skipped | 0.3 |" in markdown(summary)


@pytest.fixture(scope="module")
def suite():
    settings = {"none": "no bias", "all": "all of them"}
    experiments = {name: (grid(f"{name}_one"), grid(f"{name}_two")) for name in settings}
    found = {
        name: {one.name: made(one.name, shift=-0.1 * (name == "all"))[0] for one in experiments[name]}
        for name in settings
    }
    return Suite("many", "Many", settings, experiments, "none"), found


def test_a_suite_puts_the_settings_side_by_side(suite, tmp_path):
    described, found = suite
    summary = summarise_suite(described, found, made=PROVENANCE)
    json.dumps(summary, allow_nan=False)
    keys = [method["key"] for method in summary["methods"]]
    # What is the same whatever is trained stands once, behind the methods of both kinds.
    assert keys == [
        *("other 0", "after 0", "full 0", "linear_probe 0", "other 1", "after 1", "full 1", "linear_probe 1"),
        *("majority", "bayes_image", "bayes_honest", "bayes"),
    ]
    for setting in ("none", "all"):
        cell = find(summary, setting, "full 1", "eod", "sex")
        assert cell["mean"] == measure(found[setting][f"{setting}_two"], "full", "eod", "sex")["mean"]
        possible = measure(found[setting][f"{setting}_two"], "bayes_image", "eod", "sex")["mean"]
        assert cell["possible"] == possible
        starred = {
            test["recipe"]
            for test in found[setting][f"{setting}_one"]["tests"]
            if (test["metric"], test["attribute"]) == ("accuracy", None) and (test["p_holm"] or 1) < 0.05
        }
        assert starred == {
            key.split()[0]
            for key in keys
            if key.endswith(" 0") and find(summary, setting, key, "accuracy", None)["differs"]
        }
    page = suite_markdown(summary)
    assert page.startswith("# Many")
    assert "| method | no bias | all of them |" in page
    assert "[all_two](all_two.md)" in page
    assert page.count("| Best possible from image and groups |") == 2 + 3 * 3
    draw_suite(summary, tmp_path / "many.png")
    width, height = Image.open(tmp_path / "many.png").size
    assert min(width, height) > 500


def test_a_document_shows_a_few_attributes_and_of_many_the_mean():
    few, many = (block(made("table", attributes=(*ATTRIBUTES, *more))[0]) for more in ((), ("race", "language")))
    assert "| ES-AUC, sex |" in few
    assert "| ES-AUC | DPD | EOD |" in many
    assert "ES-AUC and gaps: mean over attributes." in many


def test_the_tables_of_a_document_are_written_anew_and_its_prose_stays(suite, tmp_path):
    described, found = suite
    results = tmp_path / "results"
    (results / "one").mkdir(parents=True)
    table, whole = found["none"]["none_one"], summarise_suite(described, found, made=PROVENANCE)
    (results / "one" / "table.json").write_text(json.dumps(table))
    (results / "one" / "many.json").write_text(json.dumps(whole))
    document = tmp_path / "results.md"
    before = (
        "# Results\n\nProse.\n\n<!-- experiment one/table -->\nstale number\n<!-- end of experiment -->\n\nMore.\n\n"
        "<!-- experiment one/many -->\n<!-- end of experiment -->\n<!-- experiment one/missing -->\nstays\n"
        "<!-- end of experiment -->\nLast.\n"
    )
    document.write_text(before)
    assert update(document, results) == ["one/table", "one/many"]
    text = document.read_text()
    assert "stale number" not in text
    for kept in ("# Results\n\nProse.\n", "\nMore.\n", "<!-- experiment one/missing -->\nstays\n", "Last.\n"):
        assert kept in text
    assert block(table) in text
    assert f"{measure(table, 'full', 'accuracy')['mean']:.3f} ± " in text
    assert text.count(END) == 3
    assert update(document, results) == ["one/table", "one/many"]
    assert document.read_text() == text
    document.write_text(before.replace(f"stale number\n{END}\n", ""))
    with pytest.raises(FairVLMError, match="one/table has no end"):
        update(document, results)
