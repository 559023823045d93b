import math

import pytest
import torch
from comparing import assert_nothing_to_learn, assert_raised_to_float32, assert_same, unit

from fairvlm_core.losses import concept_alignment


def loop(images, concepts, positives, temperature):
    terms = []
    for i in range(len(images)):
        scores = [torch.dot(unit(images[i]), unit(concept)) / temperature for concept in concepts]
        negatives = [scores[c] for c in range(len(concepts)) if not positives[i, c]]
        for c in range(len(concepts)):
            if positives[i, c]:
                terms.append(-torch.log(scores[c].exp() / sum((s.exp() for s in negatives), scores[c].exp())))
    return sum(terms, 0.0 * (images.sum() + concepts.sum())) / max(len(terms), 1)


def both(positives, temperature=0.07):
    return (
        lambda x, e: concept_alignment(x, e, positives, temperature=temperature),
        lambda x, e: loop(x, e, positives, temperature),
    )


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop(seed, temperature):
    g = torch.Generator().manual_seed(seed)
    positives = torch.rand(6, 5, generator=g) < 0.4
    positives[0], positives[1] = False, True  # an image without a concept, one with all of them
    images, concepts = torch.randn(6, 8, generator=g), torch.randn(5, 8, generator=g)
    assert assert_same(*both(positives, temperature), images, concepts) > 0


def test_one_positive_per_image_is_the_usual_cross_entropy():
    g = torch.Generator().manual_seed(0)
    images, concepts, target = torch.randn(6, 8, generator=g), torch.randn(5, 8, generator=g), torch.arange(6) % 5
    positives = torch.nn.functional.one_hot(target, 5).bool()
    normal = torch.nn.functional.normalize
    expected = torch.nn.functional.cross_entropy(normal(images) @ normal(concepts).T / 0.07, target)
    torch.testing.assert_close(concept_alignment(images, concepts, positives), expected)


def test_the_other_positives_of_an_image_do_not_push():
    """Orthogonal concepts: the gradient on a positive concept must not contain a repulsion by the second positive."""
    images, concepts = torch.tensor([[1.0, 1.0, 0.0]]), torch.eye(3)
    value = concept_alignment(images, concepts, torch.tensor([[True, True, False]]), temperature=1.0)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-1 / math.sqrt(2))), rel=1e-6)


@pytest.mark.parametrize(
    "shape", [(0, 5), (3, 0), (0, 0), (3, 5), (1, 1)], ids=["no image", "no concept", "neither", "none holds", "one"]
)
def test_nothing_valid_is_a_connected_zero(shape):
    n, count = shape
    positives = torch.zeros(shape, dtype=torch.bool)
    assert_nothing_to_learn(lambda x, e: concept_alignment(x, e, positives), torch.randn(n, 4), torch.randn(count, 4))


def test_all_concepts_positive_is_zero():
    positives = torch.ones(2, 3, dtype=torch.bool)
    assert_nothing_to_learn(lambda x, e: concept_alignment(x, e, positives), torch.randn(2, 4), torch.randn(3, 4))


def test_zero_vectors_duplicates_and_extreme_lengths():
    g = torch.Generator().manual_seed(1)
    images, concepts = torch.randn(5, 4, generator=g), torch.randn(4, 4, generator=g)
    images[0], images[2], concepts[1], concepts[3] = 0.0, images[1], 0.0, concepts[2]
    positives = torch.rand(5, 4, generator=g) < 0.5
    positives[:, 0] = True
    assert_same(*both(positives), images, concepts)
    scaled = images * torch.tensor([[1.0], [1e25], [1e-10], [1.0], [1e30]])
    torch.testing.assert_close(
        concept_alignment(scaled, concepts, positives), concept_alignment(images, concepts, positives)
    )


def test_a_nan_is_not_hidden():
    images = torch.tensor([[float("nan"), 1.0], [1.0, 0.0]])
    assert concept_alignment(images, torch.eye(2), torch.eye(2, dtype=torch.bool)).isnan()


def test_gradcheck_and_precision():
    g = torch.Generator().manual_seed(2)
    images, concepts = torch.randn(3, 4, generator=g), torch.randn(4, 4, generator=g)
    positives = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    doubles = [tensor.double().requires_grad_() for tensor in (images, concepts)]
    assert torch.autograd.gradcheck(lambda x, e: concept_alignment(x, e, positives), doubles)
    assert_raised_to_float32(lambda x, e: concept_alignment(x, e, positives), images, concepts)


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((3,), (4, 2), (3, 4)), "image_embeddings"),
        (((3, 2), (4, 3), (3, 4)), "concept_embeddings"),
        (((3, 2), (4, 2), (4, 3)), "positives"),
    ],
)
def test_bad_shapes(shapes, named):
    images, concepts, positives = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=named):
        concept_alignment(images, concepts, positives.bool())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        concept_alignment(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 1).bool(), temperature=temperature)
