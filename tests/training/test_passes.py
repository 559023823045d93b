"""A batch in several parts has the gradient of the batch, and two ranks end with the weights of one."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import SIZE, TASKS, write_bases, write_cohort_with_images
from torch import nn

from fairvlm_core.files import read_json
from fairvlm_core.losses import cross_group_contrast, moment_alignment
from fairvlm_core.models.vlm import load_base
from fairvlm_core.steps import execute, stage1, stage2
from fairvlm_core.training.batches import read_samples
from fairvlm_core.training.fairmed import train_stage2
from fairvlm_core.training.job import Job
from fairvlm_core.training.passes import batch_gradient


def coupled(labels, groups):
    def loss(z):
        contrast, moments = cross_group_contrast(z, labels, groups), moment_alignment(z, labels, groups)
        return {"loss": contrast + moments, "contrast": contrast, "moments": moments}

    return loss


@pytest.mark.parametrize("width", [1, 5, 12])
def test_parts_have_the_gradient_of_the_whole(width):
    torch.manual_seed(0)
    count = 24
    images, targets = torch.randn(count, 7, 5).double(), torch.randn(count, 3).double()
    labels, groups = torch.arange(count) % 2, torch.randint(0, 3, (count, 2))
    tower, head = nn.Linear(5, 6).double(), nn.Linear(6, 3).double()
    other = copy.deepcopy(tower), copy.deepcopy(head)
    fairness = coupled(labels, groups)

    tokens = tower(images)
    task = (head(tokens.mean(1)) - targets).square().sum() / count
    expected = task + fairness(tokens.mean(1))["loss"]
    expected.backward()

    def separate(part, tokens):
        return {"loss": (other[1](tokens.mean(1)) - targets[part]).square().sum() / count}

    terms = batch_gradient(
        np.array_split(np.random.default_rng(0).permutation(count), count // width),
        count,
        tokens=lambda part: other[0](images[part]),
        coupled=fairness,
        separate=separate,
        parameters=other[0].parameters(),
    )
    assert terms["loss"] == pytest.approx(expected.item(), rel=1e-10)
    assert set(terms) == {"loss", "contrast", "moments"}
    for mine, wanted in zip(
        [*tower.parameters(), *head.parameters()], [p for m in other for p in m.parameters()], strict=True
    ):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-9, atol=1e-12)


def test_dropout_is_the_same_in_both_passes():
    """z of the first pass is z of the second, or the cached gradient would belong to another forward pass."""
    torch.manual_seed(0)
    layer, drop, seen = nn.Linear(5, 6), nn.Dropout(0.5), []

    def tokens(part):
        seen.append(drop(layer(torch.ones(3, 2, 5))))
        return seen[-1]

    batch_gradient(
        [np.array([3, 0, 1]), np.array([5, 4, 2])],
        6,
        tokens=tokens,
        coupled=lambda z: {"loss": z.square().sum()},
        separate=lambda part, tokens: {"loss": tokens.sum() * 0},
        parameters=layer.parameters(),
    )
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


@pytest.fixture(scope="module", params=list(TASKS))
def place(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_cohort_with_images(folder / "cohort", TASKS[request.param])
    write_bases(folder / "base", TASKS[request.param])
    return folder


def first_gradient(place, micro_batch, bank=0, **more):
    """Terms and gradients of the first step of Stage 2; with a bank, of the second, which finds the first in it."""
    samples = [
        read_samples(place / "cohort", place / "cohort", split, ("sex", "age_group"))
        for split in ("train", "validation")
    ]
    caught = {}

    class Caught(Job):
        def fit(self, parameters, schedule, gradients, score, name, **more):
            batch = self.epoch(0)[0]
            torch.manual_seed(5)
            if bank:
                gradients(self.epoch(0)[1], torch.Generator().manual_seed(5))
                caught["seen"] = int(more["buffers"]["bank.seen"])
                for parameter in parameters.values():
                    parameter.grad = None
            caught["terms"] = gradients(batch, torch.Generator().manual_seed(5))
            caught["gradients"] = {name: p.grad for name, p in parameters.items()}
            return []

    vlm = load_base(str(place / "base" / "llava"), samples[0].task, SIZE)
    config = stage2.Config(batch_size=32, lora_rank=4, micro_batch=micro_batch, bank=bank, **more)
    job = Caught(
        *samples, checkpoint=place, key="", seed=0, batch_size=32, oversample=1.5, augment=True, criterion="auc"
    )
    train_stage2(vlm, job, config)
    return caught


@pytest.mark.parametrize(("bank", "embedding"), [(0, "projector"), (20, "projector"), (0, "last_hidden_state")])
def test_stage2_in_micro_batches_has_the_gradient_of_one_pass(place, bank, embedding):
    whole, parts = (first_gradient(place, size, bank, embedding=embedding) for size in (0, 5))
    if bank:
        assert whole["seen"] == parts["seen"] > 20
    assert set(whole["terms"]) == set(parts["terms"])
    for name, value in whole["terms"].items():
        assert float(parts["terms"][name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    largest = max(float(gradient.abs().max()) for gradient in whole["gradients"].values())
    for name, gradient in whole["gradients"].items():
        torch.testing.assert_close(parts["gradients"][name], gradient, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_the_papers_form_is_the_sum_over_the_anchors(place):
    mean, total = (first_gradient(place, 0, reduction=reduction)["terms"] for reduction in ("mean", "sum"))
    valid = round(mean["anchors"] * (1 - mean["skipped"]))
    assert valid > 1
    assert float(total["contrast"]) == pytest.approx(valid * float(mean["contrast"]), rel=1e-5)


@pytest.mark.parametrize("place", ["binary"], indirect=True)
def test_parameters_of_the_embedding_and_the_temperature_arrive(place):
    plain = first_gradient(place, 0)["terms"]
    hidden = first_gradient(place, 0, embedding="last_hidden_state")["terms"]
    assert float(hidden["concept"]) == pytest.approx(float(plain["concept"]), rel=1e-6)
    assert abs(float(hidden["moments"]) / float(plain["moments"]) - 1) > 1e-3
    warmer = first_gradient(place, 0, concept_temperature=0.7)["terms"]
    assert abs(float(warmer["concept"]) / float(plain["concept"]) - 1) > 1e-3
    assert float(warmer["contrast"]) == pytest.approx(float(plain["contrast"]), rel=1e-6)


def run_on(ranks, step, place, out, *more):
    """Train with torchrun on CPUs, as a user would; returns the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    flags = ["--cohort", place / "cohort", "--images", place / "cohort", "--base", place / "base", "--out", out]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
        *("-m", "fairvlm_core.cli", step, *flags, *more),
        *("--batch-size", "32", "--epochs", "1", "--lora-rank", "4", "--learning-rate", "1e-3"),
    ]
    ended = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return out


@pytest.mark.parametrize("place", ["binary"], indirect=True)
@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_two_ranks_end_with_the_weights_of_one(place, tmp_path, how):
    """Replicated: each holds the model. Sharded: each holds half of it (FSDP2), and takes its images in two parts."""
    from safetensors.torch import load_file

    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--shard", "--micro-batch", "8"] if how == "sharded" else []
    run_on(2, "stage1", place, two / "stage1", *more)
    run_on(2, "stage2", place, two / "stage2", "--stage1", two / "stage1", *more)
    inputs = {"cohort": place / "cohort", "images": place / "cohort", "base": place / "base"}
    common = {"batch_size": 32, "epochs": 1, "lora_rank": 4, "learning_rate": 1e-3}
    execute("stage1", stage1.Config(**common), inputs, {"out": one / "stage1"})
    execute("stage2", stage2.Config(**common), {**inputs, "stage1": one / "stage1"}, {"out": one / "stage2"})
    for stage in ("stage1", "stage2"):
        mine, wanted = (
            load_file(side / stage / f"adapter-{stage}" / "adapter_model.safetensors") for side in (two, one)
        )
        assert mine.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5)
        mine, wanted = (read_json(side / stage / "history.json", made_by=stage) for side in (two, one))
        for phase, epochs in wanted.items():
            for a, b in zip(mine[phase], epochs, strict=True):
                assert a.keys() == b.keys()
                np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3, atol=1e-5)
    assert sorted(path.name for path in two.iterdir()) == ["stage1", "stage2"]
