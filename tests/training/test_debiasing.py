"""The baselines in a training step: their weights and their gradients, whatever the size of the parts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases, write_cohort_with_images

from fairvlm_core.models.vlm import load_base
from fairvlm_core.steps import stage1
from fairvlm_core.steps.shared import DEBIASING, begin
from fairvlm_core.training import fairmed
from fairvlm_core.training.baselines import project_gradients
from fairvlm_core.training.batches import read_samples, strata
from fairvlm_core.training.debiasing import debiasing, diagnosis_losses, log_odds
from fairvlm_core.training.job import Job


def test_log_odds_and_losses_equal_loops():
    scores = torch.randn(5, 3).double()
    chance = scores.softmax(1).numpy()
    np.testing.assert_allclose(log_odds(scores, "multiclass").numpy(), np.log(chance / (1 - chance)))
    assert log_odds(scores, "multilabel") is scores

    labels = torch.tensor([[0, 1, 0], [1, 0, 0], [np.nan] * 3, [0, 0, 1], [1, 0, 0]])
    found = diagnosis_losses(scores, labels, "multiclass")
    assert found[2].isnan()
    assert found[0].item() == pytest.approx(-np.log(chance[0, 1]))

    labels = torch.tensor([[1, 0, np.nan], [np.nan] * 3, [0, 0, 1], [1, 1, 1], [0, 0, 0]])
    found = diagnosis_losses(scores, labels, "multilabel")
    p = torch.sigmoid(scores).numpy()
    assert found[0].item() == pytest.approx(-(np.log(p[0, 0]) + np.log(1 - p[0, 1])) / 2)
    assert found[1].isnan()
    assert found[3].item() == pytest.approx(-np.log(p[3]).mean())


@pytest.fixture(scope="module", params=list(TASKS))
def place(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_cohort_with_images(folder / "cohort", TASKS[request.param])
    write_bases(folder / "base", TASKS[request.param])
    return folder


def samples_of(place):
    return [
        read_samples(place / "cohort", place / "cohort", split, ("sex", "age_group"))
        for split in ("train", "validation")
    ]


@pytest.mark.parametrize("place", ["multiclass"], indirect=True)
def test_a_resampled_stage_shows_every_stratum_equally_often(place):
    inputs = {"cohort": place / "cohort", "images": place / "cohort"}
    for method in ("resampled", "none"):
        config = stage1.Config(debiasing=method, oversample=0.0, batch_size=8)
        job = begin(config, inputs, {"out": place / method}, read=("cohort",))
        shown = np.concatenate([batch.indices for batch in job.epoch(1)])
        often = np.bincount(strata(job.train.labels, job.train.groups)[shown])
        assert len(shown) <= len(job.train)
        # The last crumb of an epoch is left out.
        assert (np.ptp(often) <= 4) == (method == "resampled")


def test_group_dro_gives_each_cell_its_weight_and_moves_it_to_the_worst(place):
    train, _ = samples_of(place)
    method = debiasing("group_dro", train, alpha=1.0, step_size=0.5, device=torch.device("cpu"))
    indices, cells = np.arange(len(train)), method.cells.numpy()
    assert len(method.buffers["group_weights"]) == 4
    scores = torch.randn(len(train), train.labels.shape[1])
    losses = diagnosis_losses(scores.double(), torch.from_numpy(train.labels), train.task.kind).numpy()
    means = np.array([losses[cells == g].mean() for g in range(4)])
    expected = np.exp(0.5 * means) / np.exp(0.5 * means).sum()
    weights = method.group_weights(scores, indices).numpy()
    np.testing.assert_allclose(method.buffers["group_weights"].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose([weights[cells == g].sum() for g in range(4)], expected, rtol=1e-5)
    assert (weights[cells < 0] == 0).all()
    assert (cells < 0).any()
    assert (method.group_weights(scores[:2], np.flatnonzero(cells < 0)[:2]) == 1).all()


def first_step(place, method, micro_batch, monkeypatch=None):
    """Terms, gradients and buffers of the first step of instruction tuning."""
    caught = {}

    class Caught(Job):
        def fit(self, parameters, schedule, gradients, score, name, buffers=None, faster=None):
            batch = self.epoch(0)[0]
            torch.manual_seed(5)
            caught["terms"] = gradients(batch, torch.Generator().manual_seed(5))
            caught["gradients"] = {name: p.grad for name, p in parameters.items()}
            caught["buffers"], caught["faster"] = buffers, faster
            return []

    samples = samples_of(place)
    vlm = load_base(str(place / "base" / "llava"), samples[0].task, SIZE)
    config = stage1.Config(batch_size=32, lora_rank=4, concept_epochs=0, debiasing=method, micro_batch=micro_batch)
    job = Caught(
        *samples, checkpoint=place, key="", seed=0, batch_size=32, oversample=1.5, augment=True, criterion="auc"
    )
    fairmed.train_stage1(vlm, job, config)
    return caught


@pytest.mark.parametrize("method", [name for name in DEBIASING if name not in ("none", "resampled")])
def test_parts_have_the_gradient_of_the_whole(place, method):
    whole, parts, plain = (first_step(place, *how) for how in ((method, 0), (method, 7), ("none", 0)))
    largest = max(float(gradient.abs().max()) for gradient in whole["gradients"].values())
    for name, gradient in whole["gradients"].items():
        torch.testing.assert_close(parts["gradients"][name], gradient, rtol=1e-3, atol=1e-5 * largest)
    for name, value in whole["buffers"].items():
        torch.testing.assert_close(parts["buffers"][name], value)
    assert any(
        not torch.allclose(whole["gradients"][name], gradient, rtol=1e-3, atol=1e-4 * largest)
        for name, gradient in plain["gradients"].items()
    )
    adversary = {name for name in whole["gradients"] if name.startswith("adversary.")}
    assert bool(adversary) == (method == "adversarial")
    assert set(whole["faster"]) == adversary


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_the_adversarial_gradient_is_that_of_one_graph(place, monkeypatch):
    """Task and adversary differentiated from the same forward pass, by autograd alone."""
    seen = {}
    losses = fairmed.answer_losses

    def watched(*arguments):
        seen["scores"] = losses(*arguments)
        return seen["scores"]

    def build(*arguments, **options):
        seen["method"] = debiasing(*arguments, **options)
        return seen["method"]

    monkeypatch.setattr(fairmed, "answer_losses", watched)
    monkeypatch.setattr(fairmed, "debiasing", build)
    gradient_of = fairmed.batch_gradient

    def both(parts, count, *, tokens, coupled, separate, parameters, correct, **more):
        parameters = list(parameters)
        method = seen["method"]
        image_tokens = tokens(parts[0])
        task = coupled(image_tokens.mean(1))["loss"] + separate(parts[0], image_tokens)["loss"]
        scores, indices = seen["scores"][2], seen["indices"]
        labels, groups = (
            torch.from_numpy(values[indices]) for values in (method.samples.labels, method.samples.groups)
        )
        adversary = copy.deepcopy(method.adversary).loss(scores, labels, groups)
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        plain, against = (torch.autograd.grad(loss, parameters, **options) for loss in (task, adversary))
        seen["expected"] = project_gradients(plain, against, 1.0)
        seen["names"] = len(parameters)
        given = {"tokens": tokens, "coupled": coupled, "separate": separate}
        return gradient_of(parts, count, **given, parameters=parameters, correct=correct, **more)

    monkeypatch.setattr(fairmed, "batch_gradient", both)
    epoch = Job.epoch

    def remembered(self, number):
        batches = epoch(self, number)
        seen["indices"] = batches[0].indices
        return batches

    monkeypatch.setattr(Job, "epoch", remembered)
    found = first_step(place, "adversarial", 0)
    mine = [gradient for name, gradient in found["gradients"].items() if not name.startswith("adversary.")]
    assert len(mine) == seen["names"]
    largest = max(float(gradient.abs().max()) for gradient in mine)
    for gradient, wanted in zip(mine, seen["expected"], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * largest)
