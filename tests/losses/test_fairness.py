import inspect

import pytest
import test_contrast
import test_moments
import torch
from comparing import assert_nothing_to_learn, assert_raised_to_float32, assert_same, value_and_gradients

from fairvlm_core.losses import contrast_statistics, cross_group_contrast, fairness_terms, moment_alignment
from fairvlm_core.losses import gram as gram_module

WEIGHTS = 0.7, 1.3


def weighted(terms):
    return WEIGHTS[0] * terms["contrast"] + WEIGHTS[1] * terms["moments"]


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
@pytest.mark.parametrize("d", [5, 40])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fallback", [True, False])
def test_equals_both_loops(kind, d, reduction, fallback):
    x, labels, groups = test_moments.batch(d, kind, d=d)

    def loop(e):
        contrast = test_contrast.loop(e, labels, groups, 0.1, 0.2, fallback, reduction)
        return weighted({"contrast": contrast, "moments": test_moments.loop(e, labels, groups, 0.5, reduction)})

    def ours(e):
        options = {"temperature": 0.1, "margin": 0.2, "covariance_weight": 0.5}
        terms = fairness_terms(e, labels, groups, **options, hard_negative_fallback=fallback, reduction=reduction)
        return weighted(terms)

    assert assert_same(ours, loop, x, rtol=1e-3) > 0


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
@pytest.mark.parametrize("d", [5, 40])
def test_is_what_the_three_functions_give(kind, d):
    x, labels, groups = test_moments.batch(1, kind, d=d)
    terms = fairness_terms(x, labels, groups)
    torch.testing.assert_close(terms["contrast"], cross_group_contrast(x, labels, groups))
    torch.testing.assert_close(terms["moments"], moment_alignment(x, labels, groups))
    statistics = contrast_statistics(x, labels, groups)
    assert {name: terms[name] for name in statistics} == statistics
    assert set(terms) == {"contrast", "moments", *statistics}


def test_the_defaults_are_those_of_the_two_losses():
    mine = inspect.signature(fairness_terms).parameters
    for loss in (cross_group_contrast, moment_alignment):
        for name, parameter in inspect.signature(loss).parameters.items():
            assert mine[name].default == parameter.default


def test_one_product_forward_and_one_backward(monkeypatch):
    done = []
    for name in ("_quick_product", "_exact_product", "_mix"):
        original = getattr(gram_module, name)
        monkeypatch.setattr(
            gram_module, name, lambda *args, name=name, original=original: done.append(name) or original(*args)
        )
    x, labels, groups = test_moments.batch(2, "multi-label", d=40)
    weighted(fairness_terms(x.requires_grad_(), labels, groups)).backward()
    assert done == ["_quick_product", "_mix"]


@pytest.mark.parametrize("term", ["contrast", "moments"])
@pytest.mark.parametrize("d", [5, 40])
def test_a_term_that_is_not_used_gives_no_gradient(term, d):
    x, labels, groups = test_moments.batch(3, "classes", d=d)
    alone = {"contrast": cross_group_contrast, "moments": moment_alignment}[term]
    _, (gradient,) = value_and_gradients(lambda e: fairness_terms(e, labels, groups)[term], x)
    _, (wanted,) = value_and_gradients(lambda e: alone(e, labels, groups), x)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("kind", ["classes", "multi-label", "no label", "no attribute", "unknown"])
@pytest.mark.parametrize("d", [1, 3])
def test_nothing_valid_is_a_connected_zero(n, kind, d):
    labels = {"multi-label": torch.ones(n, 2), "no label": torch.ones(n, 0), "unknown": torch.full((n,), -1)}
    groups = torch.zeros(n, 0 if kind == "no attribute" else 2, dtype=torch.long)
    arguments = labels.get(kind, torch.zeros(n)), groups
    assert_nothing_to_learn(lambda x: weighted(fairness_terms(x, *arguments)), torch.randn(n, d) + 3)


@pytest.mark.parametrize("d", [3, 12])
def test_gradcheck_and_precision(d):
    x, labels, groups = test_moments.batch(8, "multi-label", n=8, d=d)
    for term in ("contrast", "moments"):

        def loss(e, term=term):
            return fairness_terms(e, labels, groups, covariance_weight=1.0)[term]

        assert torch.autograd.gradcheck(loss, x.double().requires_grad_())
        assert_raised_to_float32(loss, x)


def test_labels_as_halves_and_on_a_graph_are_fine():
    x, labels, groups = test_moments.batch(5, "multi-label", d=40)
    expected = fairness_terms(x, labels, groups)
    found = fairness_terms(x, labels.bfloat16().requires_grad_(), groups.int())
    assert found == expected


def test_bad_arguments():
    x, labels, groups = test_moments.batch(6, "classes")
    for name, value in {"temperature": 0.0, "reduction": "max"}.items():
        with pytest.raises(ValueError, match=name):
            fairness_terms(x, labels, groups, **{name: value})
    with pytest.raises(ValueError, match="groups"):
        fairness_terms(x, labels, groups[:-1])
