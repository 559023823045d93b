"""An experiment as a user runs it, at the smallest size: what it writes, what it shares, and that it goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from experiments.fairmed import FULL
from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import group_codes, label_matrix, read_cohort, rows_of
from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.evaluation.predictions import read_predictions, scores
from fairvlm_core.experiments import load_experiment, schedule
from fairvlm_core.experiments.grid import changed
from fairvlm_core.experiments.heads import ADVERSARIAL_HEAD, POSTPROCESS
from fairvlm_core.experiments.runner import run_experiment
from fairvlm_core.experiments.summary import measure
from fairvlm_core.models import load
from fairvlm_core.training.frozen import adversarial_head

TABLE4 = load_experiment("fairmed_table4")
SMALLER = {
    "ingest.options": {"patients": 200, "pixels": 32},
    "base_models.clip_steps": 2,
    "base_models.llava_steps": 2,
}
GRID = dataclasses.replace(
    TABLE4,
    name="smaller",
    recipes=(
        *(recipe for recipe in TABLE4.recipes if recipe.name in ("fairmed_vlm", "no_fairness_loss")),
        FULL.derive("postprocessed", "Post-processed", head=POSTPROCESS),
        FULL.derive("frozen", "Adversarial, frozen embeddings", head=ADVERSARIAL_HEAD),
    ),
)
BASELINES = ("majority", "linear_probe", "bayes_image", "bayes_honest", "bayes")
PARAMS = changed(changed({}, GRID.toy, where=""), SMALLER, where="")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of an experiment that was stopped in the middle and started again."""
    out = tmp_path_factory.mktemp("experiment") / "out"
    calls, whole = [], schedule.execute

    def until(name, *rest):
        calls.append(name)
        if calls.count("stage2") == 2:
            raise FairVLMError("Stopped.")
        return whole(name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "execute", until)
        with pytest.raises(FairVLMError, match="Stopped"):
            run_experiment(GRID, PARAMS, out, seeds=1)
    before = list(calls)
    assert not list(out.glob("smaller.*"))
    calls.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "execute", lambda name, *rest: calls.append(name) or whole(name, *rest))
        summary = run_experiment(GRID, PARAMS, out, seeds=1)
    return out, summary, before, calls


def test_what_was_done_before_the_stop_is_not_done_again(ran):
    _, _, before, after = ran
    once = [*before[:-1], *after]
    # The baselines have all images: their cohort is another one.
    expected = {"ingest": 1, "validate": 1, "stratify": 2, "base_models": 1, "stage1": 1, "stage2": 2}
    for step, times in expected.items():
        assert once.count(step) == times, step
    # Four recipes; what is post-processed are the predictions of the full method, and a head predicts by itself. Of the
    # five baselines all but the majority have their thresholds tuned.
    assert (once.count("predict"), once.count("tune_thresholds"), once.count("evaluate")) == (2, 3 + 4, 4 + 5)


def test_the_tables_are_those_of_the_evaluations(ran):
    out, summary, _, _ = ran
    written = json.loads((out / "smaller.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert (out / "smaller.md").read_text().startswith(f"# {GRID.title}")
    assert (out / "smaller.png").stat().st_size > 10_000
    assert (out / "smaller-front.png").stat().st_size > 10_000
    # A generated cohort is nobody's data set: the grid has the name of no table, and neither would it help.
    assert (summary["dataset"], summary["published"], summary["sources"]) == ("generated", [], [])
    assert summary["reports"] == ["smaller.html"]
    page = (out / "smaller.html").read_text()
    assert all(recipe.title in page for recipe in GRID.recipes)
    assert "Post-processed †" in page
    assert "† needs the patient" in page
    for name, runs in summary["runs"].items():
        (run,) = runs
        assert (run["seed"], run["attribute"]) == (0, None)
        folders = run["steps"]
        judged = json.loads((out / folders["evaluate"] / "evaluation.json").read_text())
        assert measure(summary, name, "eod", "sex")["values"] == [judged["test"]["attributes"]["sex"]["eod"]]
        assert judged["thresholds"]["split"] == "validation"
        if name not in BASELINES:
            weight = json.loads((out / folders["stage2"] / "config.json").read_text())["fairness_weight"]
            assert weight == (0.0 if name == "no_fairness_loss" else 0.1)


def test_the_post_processed_decisions_are_evaluated_at_one_half(ran):
    out, summary, _, _ = ran
    for run in summary["runs"]["postprocessed"]:
        folders = run["steps"]
        judged = json.loads((out / folders["evaluate"] / "evaluation.json").read_text())
        assert judged["model"] == "stage2+threshold_optimizer"
        assert set(judged["thresholds"]["thresholds"].values()) == {0.5}
        before, after = (scores(read_predictions(out / folders[step]), "test") for step in ("predict", "evaluate"))
        assert (before.sample_ids == after.sample_ids).all()
        assert ((after.y_score >= 0.5) == after.y_pred).all()


def test_a_head_on_frozen_embeddings_is_judged_like_a_model(ran):
    """Its scores are those of a head fitted here to the embeddings of the trained model."""
    out, summary, _, _ = ran
    folders = summary["runs"]["frozen"][0]["steps"]
    ours = read_predictions(out / folders["predict"])
    assert set(ours.column("model").to_pylist()) == {"stage2+adversarial_head"}
    assert set(ours.column("split").to_pylist()) == {"validation", "test"}
    cohort = read_cohort(out / folders["stratify"])
    model = load(out / folders["stage2"], out / folders["base_models"])
    store = ImageStore.open(out / folders["ingest"])
    train, test = (rows_of(cohort, split) for split in ("train", "test"))
    z = [model.embed(store.read(rows.column("image").to_pylist())).numpy() for rows in (train, test)]
    groups = group_codes(train, ("sex", "age_group"))
    head = adversarial_head(z[0], label_matrix(train), groups, "binary", alpha=1.0, seed=0)
    found = scores(ours, "test")
    place = {sample: row for row, sample in enumerate(test.column("sample_id").to_pylist())}
    expected = head(z[1])[[place[sample] for sample in found.sample_ids]]
    np.testing.assert_allclose(found.y_score, expected, atol=1e-6)


def test_a_finished_experiment_does_nothing_and_writes_the_same(ran, monkeypatch):
    out, _, _, _ = ran
    before = {file.name: file.read_bytes() for file in out.glob("smaller.*")}
    assert len(before) == 4
    monkeypatch.setattr(schedule, "execute", lambda *_: pytest.fail("a step ran again"))
    run_experiment(GRID, PARAMS, out, seeds=1)
    assert {file.name: file.read_bytes() for file in out.glob("smaller.*")} == before


def test_what_is_missing_is_made_again_and_nothing_else(ran, monkeypatch):
    out, summary, _, _ = ran
    before = (out / "smaller.json").read_bytes()
    shutil.rmtree(out / summary["runs"]["no_fairness_loss"][0]["steps"]["evaluate"])
    calls, whole = [], schedule.execute
    monkeypatch.setattr(schedule, "execute", lambda name, *rest: calls.append(name) or whole(name, *rest))
    run_experiment(GRID, PARAMS, out, seeds=1)
    assert calls == ["evaluate"]
    assert (out / "smaller.json").read_bytes() == before


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not written by an experiment"):
        run_experiment(GRID, PARAMS, tmp_path, seeds=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


MOE = load_experiment("fairmoe_table1")
APART = dataclasses.replace(
    MOE, name="apart", recipes=tuple(recipe for recipe in MOE.recipes if recipe.name in ("fairclip", "fair_moe"))
)
ONE_EACH = ("sex", "race")


@pytest.fixture(scope="module")
def ran_apart(tmp_path_factory):
    """The folder and the table of an experiment with a model for each of two attributes, two seeds."""
    out = tmp_path_factory.mktemp("apart") / "out"
    small = {**SMALLER, "fair_moe.attributes": ONE_EACH}
    return out, run_experiment(APART, changed(changed({}, MOE.toy, where=""), small, where=""), out, seeds=2)


def test_every_attribute_gets_the_numbers_of_its_own_model(ran_apart):
    out, summary = ran_apart
    assert summary["attributes"][:2] == list(ONE_EACH)
    for name, runs in summary["runs"].items():
        if name in BASELINES:
            assert [(run["seed"], run["attribute"]) for run in runs] == [(0, a) for a in ONE_EACH]
            continue
        assert [(run["seed"], run["attribute"]) for run in runs] == [(s, a) for s in (0, 1) for a in ONE_EACH]
        for attribute in ONE_EACH:
            own = [run["steps"] for run in runs if run["attribute"] == attribute]
            judged = [json.loads((out / steps["evaluate"] / "evaluation.json").read_text())["test"] for steps in own]
            assert measure(summary, name, "auc", attribute)["values"] == [test["overall"]["auc"] for test in judged]
            of_attribute = [test["attributes"][attribute]["es_auc"] for test in judged]
            assert measure(summary, name, "es_auc", attribute)["values"] == of_attribute
            for steps, seed in zip(own, (0, 1), strict=True):
                config = json.loads((out / steps["fair_moe"] / "config.json").read_text())
                assert (config["attributes"], config["seed"]) == ([attribute], seed)
    methods = [name for name in summary["runs"] if name not in BASELINES]
    aucs = {tuple(measure(summary, name, "auc", a)["values"]) for name in methods for a in ONE_EACH}
    assert len(aucs) == 4  # four different models


def test_every_attribute_has_its_own_report(ran_apart):
    out, summary = ran_apart
    assert summary["reports"] == ["apart-sex.html", "apart-race.html"]
    assert sorted(file.name for file in out.glob("apart*.html")) == sorted(summary["reports"])
    for attribute in ONE_EACH:
        page = (out / f"apart-{attribute}.html").read_text()
        assert f"the models for {attribute}, the first seed" in page
        assert all(recipe.title in page for recipe in APART.recipes)
        # Only the models for this attribute: their AUC stands in the page.
        for name in summary["runs"]:
            assert f"{measure(summary, name, 'auc', attribute)['values'][0]:.3f}" in page
    assert (out / "apart.png").stat().st_size > 10_000
    assert (out / "apart.md").read_text().startswith(f"# {APART.title}")
