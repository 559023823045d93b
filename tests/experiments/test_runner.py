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
from fairvlm_core.experiments import load_experiment, runner
from fairvlm_core.experiments.grid import changed
from fairvlm_core.experiments.heads import ADVERSARIAL_HEAD, POSTPROCESS
from fairvlm_core.experiments.runner import run_experiment
from fairvlm_core.experiments.tables import measure
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
PARAMS = changed(changed({}, GRID.toy, where=""), SMALLER, where="")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of an experiment that was stopped in the middle and started again."""
    out = tmp_path_factory.mktemp("experiment") / "out"
    calls, whole = [], runner.execute

    def until(name, *rest):
        calls.append(name)
        if calls.count("stage2") == 2:
            raise FairVLMError("Stopped.")
        return whole(name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "execute", until)
        with pytest.raises(FairVLMError, match="Stopped"):
            run_experiment(GRID, PARAMS, out, seeds=1)
    before = list(calls)
    assert not list(out.glob("smaller.*"))
    calls.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "execute", lambda name, *rest: calls.append(name) or whole(name, *rest))
        summary = run_experiment(GRID, PARAMS, out, seeds=1)
    return out, summary, before, calls


def test_what_was_done_before_the_stop_is_not_done_again(ran):
    _, _, before, after = ran
    once = [*before[:-1], *after]
    for step, times in {"ingest": 1, "validate": 1, "stratify": 1, "base_models": 1, "stage1": 1, "stage2": 2}.items():
        assert once.count(step) == times, step
    # Four recipes; what is post-processed are the predictions of the full method, and a head predicts by itself.
    assert (once.count("predict"), once.count("tune_thresholds"), once.count("evaluate")) == (2, 3, 4)


def test_the_tables_are_those_of_the_evaluations(ran):
    out, summary, _, _ = ran
    written = json.loads((out / "smaller.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert (out / "smaller.md").read_text().startswith(f"# {GRID.title}")
    assert (out / "smaller.png").stat().st_size > 10_000
    page = (out / "smaller.html").read_text()
    assert all(recipe.title in page for recipe in GRID.recipes)
    for name, runs in summary["runs"].items():
        (folders,) = runs
        judged = json.loads((out / folders["evaluate"] / "evaluation.json").read_text())
        assert measure(summary, name, "eod", "sex")["values"] == [judged["test"]["attributes"]["sex"]["eod"]]
        weight = json.loads((out / folders["stage2"] / "config.json").read_text())["fairness_weight"]
        assert weight == (0.0 if name == "no_fairness_loss" else 0.1)
        assert judged["thresholds"]["split"] == "validation"


def test_the_post_processed_decisions_are_evaluated_at_one_half(ran):
    out, summary, _, _ = ran
    for folders in summary["runs"]["postprocessed"]:
        judged = json.loads((out / folders["evaluate"] / "evaluation.json").read_text())
        assert judged["model"] == "stage2+threshold_optimizer"
        assert set(judged["thresholds"]["thresholds"].values()) == {0.5}
        before, after = (scores(read_predictions(out / folders[step]), "test") for step in ("predict", "evaluate"))
        assert (before.sample_ids == after.sample_ids).all()
        assert ((after.y_score >= 0.5) == after.y_pred).all()


def test_a_head_on_frozen_embeddings_is_judged_like_a_model(ran):
    """Its scores are those of a head fitted here to the embeddings of the trained model."""
    out, summary, _, _ = ran
    (folders,) = summary["runs"]["frozen"]
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
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a step ran again"))
    run_experiment(GRID, PARAMS, out, seeds=1)
    assert {file.name: file.read_bytes() for file in out.glob("smaller.*")} == before


def test_what_is_missing_is_made_again_and_nothing_else(ran, monkeypatch):
    out, summary, _, _ = ran
    before = (out / "smaller.json").read_bytes()
    shutil.rmtree(out / summary["runs"]["no_fairness_loss"][0]["evaluate"])
    calls, whole = [], runner.execute
    monkeypatch.setattr(runner, "execute", lambda name, *rest: calls.append(name) or whole(name, *rest))
    run_experiment(GRID, PARAMS, out, seeds=1)
    assert calls == ["evaluate"]
    assert (out / "smaller.json").read_bytes() == before


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not written by an experiment"):
        run_experiment(GRID, PARAMS, tmp_path, seeds=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
