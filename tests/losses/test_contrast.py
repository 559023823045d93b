import pytest
import torch
from comparing import assert_nothing_to_learn, assert_raised_to_float32, assert_same, unit, value_and_gradients
from pytorch_metric_learning.losses import NTXentLoss
from pytorch_metric_learning.reducers import DoNothingReducer

from fairvlm_core.losses import contrast_statistics, cross_group_contrast

NAN = float("nan")


def relation(labels, j, i, a):
    """+1 same label, -1 other label, 0 no part, for anchor i and sample a; j is the label of a multi-label task."""
    if j is None:
        mine, theirs = float(labels[i]), float(labels[a])
        return 0 if not (mine >= 0 and theirs >= 0) else (1 if mine == theirs else -1)
    mine, theirs = float(labels[i, j]), float(labels[a, j])
    return 0 if mine != 1 else {1.0: 1, 0.0: -1}.get(theirs, 0)


def members(z, labels, groups, margin, j, i):
    """P(i), N(i) and all samples of another label, as lists."""
    others = [a for a in range(len(z)) if a != i]
    positives = [
        p
        for p in others
        if relation(labels, j, i, p) == 1
        and any(
            groups[i, k] >= 0 and groups[p, k] >= 0 and groups[i, k] != groups[p, k] for k in range(groups.shape[1])
        )
    ]
    other = [a for a in others if relation(labels, j, i, a) == -1]
    return positives, [a for a in other if torch.dot(z[i], z[a]) > margin], other


def loop(x, labels, groups, temperature=0.07, margin=0.3, fallback=True, reduction="mean"):
    z = [unit(row) for row in x]
    per_label = []
    for j in [None] if labels.ndim == 1 else range(labels.shape[1]):
        terms = []
        for i in range(len(z)):
            positives, negatives, other = members(z, labels, groups, margin, j, i)
            if not positives:
                continue
            if not negatives and fallback and other:
                negatives = [max(other, key=lambda a: torch.dot(z[i], z[a]).item())]
            term = 0.0 * x.sum()
            for p in positives:
                numerator = (torch.dot(z[i], z[p]) / temperature).exp()
                term = term - torch.log(
                    numerator / sum(((torch.dot(z[i], z[a]) / temperature).exp() for a in negatives), numerator)
                )
            terms.append(term / len(positives))
        if terms:
            per_label.append(sum(terms) / (len(terms) if reduction == "mean" else 1))
    return sum(per_label, 0.0 * x.sum()) / (max(len(per_label), 1) if reduction == "mean" else 1)


def both(labels, groups, **options):
    renamed = {("hard_negative_fallback" if name == "fallback" else name): value for name, value in options.items()}
    return (
        lambda x: cross_group_contrast(x, labels, groups, **renamed),
        lambda x: loop(x, labels, groups, **options),
    )


def batch(seed, kind, n=12, d=6):
    g = torch.Generator().manual_seed(seed)
    groups = torch.randint(-1, 3, (n, 2), generator=g)
    if kind == "classes":
        labels = torch.randint(-1, 3, (n,), generator=g)
    else:
        labels = torch.randint(0, 2, (n, 4), generator=g).float()
        labels[torch.rand(n, 4, generator=g) < 0.2] = NAN
        labels[:, 3] = 0  # a label that nobody carries must not enter the mean
    return torch.randn(n, d, generator=g), labels, groups


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize(("margin", "seed"), [(0.3, 0), (0.3, 1), (0.5, 2), (-1.1, 3)])
def test_equals_a_loop(kind, reduction, fallback, margin, seed):
    x, labels, groups = batch(seed, kind)
    functions = both(labels, groups, margin=margin, fallback=fallback, reduction=reduction)
    assert assert_same(*functions, x, rtol=1e-3) > 0


def test_the_pairs_are_those_of_pytorch_metric_learning():
    """NT-Xent: each positive against the anchor's negatives, never against its other positives."""
    x, _, groups = batch(5, "classes", n=16)
    labels, groups = torch.arange(16) % 2, groups.clamp_min(0)
    different = (groups.unsqueeze(0) != groups.unsqueeze(1)).any(-1)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    a1, p = (same & different).nonzero(as_tuple=True)
    a2, n = (~same).nonzero(as_tuple=True)
    library = NTXentLoss(temperature=0.2, reducer=DoNothingReducer())
    losses = library(x, labels, indices_tuple=(a1, p, a2, n))["loss"]["losses"]
    per_anchor = [losses[a1 == i].mean() for i in range(16) if (a1 == i).any()]
    value = cross_group_contrast(x, labels, groups, temperature=0.2, margin=-1.1)
    torch.testing.assert_close(value, torch.stack(per_anchor).mean(), rtol=1e-4, atol=1e-5)


# Two label-0 samples of different groups, and others by hand.
ACROSS = torch.tensor([[0], [1], [0], [0]])


def test_fallback_takes_the_single_nearest_of_another_label():
    x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [-0.1, 0.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    nearest = 0.1 / 1.01**0.5
    expected = torch.log(1 + torch.tensor((nearest - 1.0) / 0.5).exp())
    value = cross_group_contrast(x, labels, ACROSS, temperature=0.5)
    torch.testing.assert_close(value, expected)


def test_without_fallback_the_anchor_counts_with_zero():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert_nothing_to_learn(lambda e: cross_group_contrast(e, labels, ACROSS, hard_negative_fallback=False), x)
    # One of two valid anchors has a hard negative: the mean is over both.
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [0.0, -1.0]])
    literal = cross_group_contrast(x, labels, ACROSS, temperature=1.0, hard_negative_fallback=False)
    only = torch.log(1 + torch.tensor(0.5**0.5).exp())
    torch.testing.assert_close(literal, only / 2)


def test_the_margin_is_on_the_cosine_and_strict():
    x = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, -5.0]])
    labels = torch.tensor([0, 0, 1, 1])
    at = contrast_statistics(x, labels, ACROSS, margin=1.0)["negatives"]
    below = contrast_statistics(x, labels, ACROSS, margin=0.999)["negatives"]
    assert (at, below) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0, 0, 1, 1], [[0], [0], [0], [0]]),  # one group
        ([0, 1, 2, 3], [[0], [1], [0], [1]]),  # no label twice
        ([0, 0, 1, 1], [[-1], [1], [-1], [0]]),  # unknown demographics make no positive
        ([0, 0, 1, 1], [[-1, 0], [1, -1], [-1, 1], [0, -1]]),  # never known for both
        ([-1, -1, -1, -1], [[0], [1], [0], [1]]),
        ([0, 0, 0, 0], [[0], [1], [0], [1]]),  # positives, but no other label at all
        ([[0.0], [0.0], [0.0], [0.0]], [[0], [1], [0], [1]]),
        ([[NAN], [1.0], [NAN], [0.0]], [[0], [1], [0], [1]]),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_valid_is_a_connected_zero(labels, groups, reduction):
    labels, groups = torch.tensor(labels), torch.tensor(groups)
    assert_nothing_to_learn(lambda x: cross_group_contrast(x, labels, groups, reduction=reduction), torch.randn(4, 3))


@pytest.mark.parametrize("temperature", [1e-4, 5e-3, 100.0])
def test_any_temperature(temperature):
    """The limit of a low temperature is a hinge on the hardest negative: exp of the scores would overflow."""
    x, labels, groups = batch(2, "classes")
    value, (gradient,) = value_and_gradients(
        lambda e: cross_group_contrast(e, labels, groups, temperature=temperature, margin=-1.1), x
    )
    z = torch.nn.functional.normalize(x.double())
    per_anchor = []
    for i in range(len(z)):
        positives, negatives, _ = members(z, labels, groups, -1.1, None, i)
        scores = (z @ z[i]) / temperature
        against = torch.logsumexp(scores[negatives], 0)
        terms = [torch.logaddexp(scores[p], against) - scores[p] for p in positives]
        per_anchor += [sum(terms) / len(terms)] if terms else []
    assert value == pytest.approx((sum(per_anchor) / len(per_anchor)).item(), rel=1e-4)
    assert gradient.norm() > 0


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("kind", ["classes", "multi-label", "no label", "no attribute"])
def test_no_sample_and_one_sample(n, kind):
    labels = {"multi-label": torch.ones(n, 2), "no label": torch.ones(n, 0)}.get(kind, torch.zeros(n))
    groups = torch.zeros(n, 0 if kind == "no attribute" else 2, dtype=torch.long)
    assert_nothing_to_learn(lambda x: cross_group_contrast(x, labels, groups), torch.randn(n, 3))


def test_duplicates_and_zero_vectors():
    x, labels, groups = batch(4, "classes", n=10)
    x[1], x[2], x[5] = x[0], x[0], 0.0
    assert_same(*both(labels, groups), x, rtol=1e-3)
    assert_same(*both(labels, groups), torch.ones(10, 3))
    value = cross_group_contrast(torch.zeros(10, 3, requires_grad=True), labels, groups)
    value.backward()
    assert value.isfinite()


def test_padding_a_batch_with_unknown_labels_changes_nothing():
    x, labels, groups = batch(6, "classes")
    more = torch.cat([x, x[:4]]), torch.cat([labels, torch.full((4,), -1)]), torch.cat([groups, groups[:4]])
    torch.testing.assert_close(cross_group_contrast(*more), cross_group_contrast(x, labels, groups))


def test_one_carried_label_equals_the_carriers_of_two_classes():
    """For a binary task the classes give both sides anchors, the multi-label form only the carriers."""
    x, _, groups = batch(7, "classes")
    labels = torch.arange(12) % 2
    of_carriers = loop(x.double(), labels.unsqueeze(1), groups)
    torch.testing.assert_close(cross_group_contrast(x, labels.unsqueeze(1), groups).double(), of_carriers)
    assert not torch.allclose(cross_group_contrast(x, labels, groups).double(), of_carriers)


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
def test_gradcheck_and_precision(kind):
    x, labels, groups = batch(8, kind, n=8, d=3)
    assert torch.autograd.gradcheck(lambda e: cross_group_contrast(e, labels, groups), x.double().requires_grad_())
    assert_raised_to_float32(lambda e: cross_group_contrast(e, labels, groups), x)


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_backward_has_no_hidden_nan(kind):
    x, labels, groups = batch(9, kind)
    with torch.autograd.detect_anomaly(check_nan=True):
        cross_group_contrast(x.requires_grad_(), labels, groups, hard_negative_fallback=False).backward()


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
def test_statistics_equal_a_loop(kind):
    x, labels, groups = batch(10, kind)
    z = [unit(row) for row in x]
    counted = []
    for j in [None] if kind == "classes" else range(4):
        for i in range(12):
            if relation(labels, j, i, i) == 1:
                positives, negatives, _ = members(z, labels, groups, 0.3, j, i)
                counted.append((len(positives), len(negatives), not positives))
    n = len(counted)
    expected = [n, *(sum(column) / n for column in zip(*counted, strict=True))]
    found = contrast_statistics(x, labels, groups)
    assert list(found) == ["anchors", "positives", "negatives", "skipped"]
    assert list(found.values()) == pytest.approx(expected)


def test_statistics_of_nothing_are_zero():
    found = contrast_statistics(torch.randn(0, 3), torch.zeros(0), torch.zeros(0, 1, dtype=torch.long))
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((4,), (4,), (4, 1)), "embeddings"),
        (((4, 0), (4,), (4, 1)), "embeddings"),
        (((4, 2), (3,), (4, 1)), "labels"),
        (((4, 2), (4, 2, 2), (4, 1)), "labels"),
        (((4, 2), (4,), (4,)), "groups"),
        (((4, 2), (4,), (3, 1)), "groups"),
    ],
)
def test_bad_shapes(shapes, named):
    with pytest.raises(ValueError, match=named):
        cross_group_contrast(*(torch.zeros(shape) for shape in shapes))


def test_bad_options():
    arguments = torch.ones(2, 2), torch.zeros(2), torch.zeros(2, 1)
    with pytest.raises(ValueError, match="temperature"):
        cross_group_contrast(*arguments, temperature=0.0)
    with pytest.raises(ValueError, match="reduction"):
        cross_group_contrast(*arguments, reduction="none")
