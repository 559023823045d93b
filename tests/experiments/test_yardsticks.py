"""The yardsticks of every table against scikit-learn, the formulas of the generative model, and counts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from fairvlm_core.cohort.adapters import generated
from fairvlm_core.cohort.adapters.generated import Options, anatomy_auc, draw_latents
from fairvlm_core.cohort.images import build_store
from fairvlm_core.cohort.table import Task, cohort_table, label_matrix, rows_of, write_cohort
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.evaluation.predictions import read_predictions, scores
from fairvlm_core.experiments import load_experiment
from fairvlm_core.experiments.baselines import with_baselines
from fairvlm_core.experiments.chain import plan
from fairvlm_core.experiments.grid import Recipe
from fairvlm_core.experiments.heads import run_head
from fairvlm_core.experiments.heads.baselines import fit_probe
from fairvlm_core.experiments.heads.features import FEATURES_FILE, open_features

SPLITS = ["validation", "test"]
GROUPS = {"sex": ("female", "male")}


def task(kind, labels):
    words = tuple(f"finding {label}" for label in labels)
    return Task(
        kind=kind,
        labels=labels,
        concepts=words,
        negatives=tuple(f"no {word}" for word in words),
        question="Does it show {concept}?",
        prompt="An image of {concept}",
    )


def made(tmp_path, labels, kind, *, names=None):
    """A cohort of images whose features say something of their labels; the folders of a probe's inputs."""
    names = names or tuple("abc"[: labels.shape[1]])
    rng = np.random.default_rng(1)
    n = len(labels)
    split = np.array(["train", "validation", "test"])[np.repeat([0, 1, 2], [n // 2, n // 4, n - n // 2 - n // 4])]
    keys = [f"image {i}" for i in range(n)]
    rows = [
        {
            "sample_id": f"s{i}",
            "patient_id": f"p{i}",
            "image": keys[i],
            "labels": [None if np.isnan(value) else int(value) for value in labels[i]],
            "sex": GROUPS["sex"][i % 2],
            "split": str(split[i]),
            "source": "made",
        }
        for i in range(n)
    ]
    write_cohort(cohort_table(rows, task=task(kind, names), groups=GROUPS), tmp_path / "cohort")
    # The store has another order than the cohort, as after repeated rows.
    build_store(keys[::-1], lambda key: np.zeros((16, 16, 3), np.uint8), tmp_path / "images", size=16)
    known = np.nan_to_num(labels, nan=0.5)
    x = rng.normal(size=(n, 5)) * [1, 10, 0.1, 1, 1] + known @ rng.normal(size=(labels.shape[1], 5)) * 0.8
    x[:, 4] = 3.0  # a constant
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / FEATURES_FILE, x[::-1].astype(np.float32))
    return {name: tmp_path / name for name in ("cohort", "images", "features")}, x.astype(np.float32), split


def head(name, config, inputs, tmp_path):
    out = tmp_path / name
    out.mkdir()
    run_head(name, {"splits": SPLITS, **config}, inputs, out)
    return out, json.loads((out / "metrics.json").read_text())


def test_the_probe_is_scikit_learns_at_the_best_cost(tmp_path):
    labels = (np.random.default_rng(0).random((240, 1)) < 0.4).astype(float)
    labels[::17] = np.nan
    inputs, x, split = made(tmp_path, labels, "binary")
    costs = [0.001, 0.1, 10.0]
    out, metrics = head("linear_probe", {"costs": costs}, inputs, tmp_path)
    train, y = split == "train", labels[:, 0]
    scaler = StandardScaler().fit(x[train])
    seen = scaler.transform(x)
    known = ~np.isnan(y)
    models = {
        cost: LogisticRegression(C=cost, max_iter=2000).fit(seen[train & known], y[train & known]) for cost in costs
    }
    validation = (split == "validation") & known
    areas = {
        cost: roc_auc_score(y[validation], model.predict_proba(seen[validation])[:, 1])
        for cost, model in models.items()
    }
    best = max(areas, key=areas.__getitem__)
    assert metrics["cost"] == best
    assert metrics["validation_auc"] == pytest.approx(areas[best])
    found = scores(read_predictions(out), "test")
    expected = models[best].predict_proba(seen[split == "test"])[:, 1]
    np.testing.assert_allclose(found.y_score[:, 0], expected, atol=1e-5)
    assert list(found.sample_ids) == [f"s{i}" for i in np.flatnonzero(split == "test")]
    # Whoever reads test cannot change what validation chose.
    assert not (out / "thresholds.json").exists()


def test_a_probe_of_several_labels_or_classes():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(90, 3))
    classes = rng.integers(0, 3, 90)
    x[np.arange(90), classes] += 1.5
    one_hot = np.eye(4)[classes]  # nobody is of the fourth class
    found = fit_probe(x, one_hot, "multiclass", 1.0)(x)
    np.testing.assert_allclose(found[:, :3], LogisticRegression().fit(x, classes).predict_proba(x), atol=1e-6)
    assert (found[:, 3] == 0).all()
    several = np.stack([classes == 0, np.ones(90), np.full(90, np.nan)], 1).astype(float)
    several[:5, 0] = np.nan
    found = fit_probe(x, several, "multilabel", 1.0)(x)
    expected = LogisticRegression().fit(x[5:], several[5:, 0]).predict_proba(x)[:, 1]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    assert (found[:, 1] == 1).all()  # the same for everybody
    assert (found[:, 2] == 0).all()  # unknown for everybody
    with pytest.raises(CohortError, match="known label"):
        fit_probe(x, np.full((90, 2), np.nan), "multiclass", 1.0)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_the_majority_decides_what_most_of_training_has(kind, tmp_path):
    rng = np.random.default_rng(3)
    if kind == "multiclass":
        labels = np.eye(3)[rng.choice(3, 120, p=[0.2, 0.5, 0.3])]
    else:
        labels = (rng.random((120, 1 if kind == "binary" else 2)) < [[0.7, 0.2][: 1 if kind == "binary" else 2]]) * 1.0
        labels[::7] = np.nan
    inputs, _, split = made(tmp_path, labels, kind)
    out, _ = head("majority", {}, {"cohort": inputs["cohort"]}, tmp_path)
    share = np.nanmean(labels[split == "train"], axis=0)
    for part in SPLITS:
        found = scores(read_predictions(out), part)
        np.testing.assert_allclose(found.y_score, np.tile(share, (len(found.sample_ids), 1)), atol=1e-6)
    fixed = json.loads((out / "thresholds.json").read_text())
    assert set(fixed["thresholds"].values()) <= {0.5}
    assert bool(fixed["thresholds"]) == (kind != "multiclass")


def judged(name, config, tmp_path, options):
    """The scores of a Bayes head on a cohort of which all images are test, and the latents of its rows."""
    release = generated.read(None, options, age_edges=(40.0, 60.0), seed=4)
    table = release.table
    column = table.schema.get_field_index("split")
    halves = pa.array(["validation", "test"] * (len(table) // 2) + ["test"] * (len(table) % 2))
    write_cohort(table.set_column(column, table.schema.field(column), halves), tmp_path / "cohort")
    given = {"options": dataclasses.asdict(options), "ingest_seed": 4, **config}
    out, _ = head("bayes", given, {"cohort": tmp_path / "cohort"}, tmp_path)
    latents = draw_latents(options, 4)
    place = {sample: i for i, sample in enumerate(table.column("sample_id").to_pylist())}
    found = scores(read_predictions(out), "test")
    return found, latents, np.array([place[sample] for sample in found.sample_ids])


def test_the_best_possible_auc_is_that_of_the_formula(tmp_path):
    """Without bias all patients are alike; with a weak signal the gap of women of 60 and over is the formula's."""
    none = {"representation": 0.0, "prevalence": 0.0, "weak_signal": 0.0, "shortcut": 0.0}
    options = Options(patients=30_000, images_per_patient=1, **{**none, "weak_signal": 1.0})
    found, latents, rows = judged("bayes", {"shortcut": True, "groups": False}, tmp_path, options)
    truth, score = found.y_true[:, 0], found.y_score[:, 0]
    np.testing.assert_array_equal(truth, latents.recorded[rows])
    weak = (latents.sex[rows] == 0) & (latents.age[rows] >= 60)
    assert roc_auc_score(truth[~weak], score[~weak]) == pytest.approx(anatomy_auc(2.09), abs=0.008)
    assert roc_auc_score(truth[weak], score[weak]) == pytest.approx(anatomy_auc(2.09 / 1.75), abs=0.02)


def test_who_may_not_use_the_marker_ranks_men_and_women_alike(tmp_path):
    options = Options(
        patients=30_000, images_per_patient=1, representation=0.0, prevalence=0.0, weak_signal=0.0, shortcut=1.0
    )
    areas = {}
    for shortcut in (True, False):
        folder = tmp_path / str(shortcut)
        folder.mkdir()
        found, latents, rows = judged("bayes", {"shortcut": shortcut, "groups": False}, folder, options)
        areas[shortcut] = [
            roc_auc_score(found.y_true[members, 0], found.y_score[members, 0])
            for members in (latents.sex[rows] == 0, latents.sex[rows] == 1)
        ]
    assert areas[False] == pytest.approx([anatomy_auc(2.09)] * 2, abs=0.01)
    # The marker is a clue in men, and misleads about women.
    assert areas[True][1] > areas[False][1] + 0.01
    assert areas[True][0] < areas[False][0] - 0.002


def test_every_table_has_them_and_only_a_generated_cohort_has_the_possible():
    grid = load_experiment("fairmed_table4")
    made_up = [recipe.name for recipe in with_baselines(grid, {}).recipes if recipe.baseline]
    assert made_up == ["majority", "linear_probe", "bayes_image", "bayes_honest", "bayes"]
    real = [r.name for r in with_baselines(grid, {"ingest": {"dataset": "ham10000"}}).recipes if r.baseline]
    assert real == ["majority", "linear_probe"]
    with pytest.raises(ConfigError, match='no option "cost"'):
        plan(dataclasses.replace(grid, recipes=(*grid.recipes, probe(cost=1.0))), {}, seeds=1)


def probe(**options):
    return Recipe("probe", "Probe", {f"head.{key}": value for key, value in options.items()}, "linear_probe")


@pytest.mark.parametrize(
    ("name", "family", "step"), [("fairmed_table4", "vlm", "stage2"), ("fairmoe_table1", "dual", "fair_moe")]
)
def test_a_baseline_trains_nothing_and_runs_once(name, family, step):
    runs = [run for run in plan(with_baselines(load_experiment(name), {}), {}, seeds=3) if run.recipe.baseline]
    assert {run.seed for run in runs} == {0}
    for run in runs:
        assert not {"stage1", "stage2", "fair_moe"} & set(run.work)
        # Every image of training once, whatever the methods leave out.
        assert run.work["stratify"].config.majority_cap is None
        assert run.work["stratify"].config.oversample_cap == 1.0
        assert ("features" in run.work) == (run.recipe.name == "linear_probe")
        if "features" in run.work:
            assert run.work["features"].config == {"family": family}
            assert set(run.work["features"].inputs) == {"images", "base"}
    trained = plan(load_experiment(name), {}, seeds=1)
    assert all(step in run.work for run in trained)


def test_features_of_other_images_are_refused(tmp_path):
    labels = np.ones((20, 1))
    inputs, x, _ = made(tmp_path, labels, "binary")
    from fairvlm_core.cohort.images import ImageStore

    store = ImageStore.open(inputs["images"])
    found = open_features(inputs["features"], store)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found[store.rows(["image 3"])[0]], x[3])
    np.save(inputs["features"] / FEATURES_FILE, x[:-1])
    with pytest.raises(CohortError, match="features of 19 images"):
        open_features(inputs["features"], store)


def test_labels_are_those_of_the_cohort(tmp_path):
    labels = (np.random.default_rng(5).random((40, 2)) < 0.5) * 1.0
    inputs, _, split = made(tmp_path, labels, "multilabel")
    out, _ = head("majority", {}, {"cohort": inputs["cohort"]}, tmp_path)
    from fairvlm_core.cohort.table import read_cohort

    cohort = read_cohort(inputs["cohort"])
    np.testing.assert_array_equal(scores(read_predictions(out), "test").y_true, label_matrix(rows_of(cohort, "test")))
    np.testing.assert_array_equal(labels[split == "test"], label_matrix(rows_of(cohort, "test")))
