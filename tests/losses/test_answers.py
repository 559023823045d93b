import pytest
import torch
from comparing import assert_nothing_to_learn, assert_raised_to_float32, assert_same
from sklearn.metrics import log_loss

from fairvlm_core.losses import (
    answer_bce,
    instruction_loss,
    option_cross_entropy,
    option_scores,
    yes_no_log_odds,
    yes_no_scores,
)

NAN = float("nan")


def test_instruction_loss_equals_a_loop():
    g = torch.Generator().manual_seed(0)
    targets = torch.tensor([3, -100, 0, 6, -100, 2])

    def loop(logits):
        terms = []
        for row, target in zip(logits, targets.tolist(), strict=True):
            if target != -100:
                terms.append(-torch.log(row.exp()[target] / row.exp().sum()))
        return sum(terms) / len(terms)

    assert_same(lambda x: instruction_loss(x, targets), loop, torch.randn(6, 7, generator=g))


@pytest.mark.parametrize("count", [0, 3])
def test_instruction_loss_without_an_answer_is_a_connected_zero(count):
    targets = torch.full((count,), -100)
    assert_nothing_to_learn(lambda x: instruction_loss(x, targets), torch.randn(count, 5))


def test_instruction_loss_precision_and_shapes():
    assert_raised_to_float32(lambda x: instruction_loss(x, torch.tensor([0, 1, 2])), torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"\[A, V\]"):
        instruction_loss(torch.randn(2, 3), torch.zeros(3, dtype=torch.long))


def test_yes_no_scores_are_the_share_of_yes():
    logits = torch.randn(5, 9, dtype=torch.float64)
    p = logits.softmax(-1)
    torch.testing.assert_close(yes_no_scores(logits, 4, 7), p[:, 4] / (p[:, 4] + p[:, 7]))


def test_yes_no_scores_where_both_answers_underflow():
    logits = torch.tensor([[1000.0, -1000.0, -1001.0], [1000.0, -2000.0, 900.0]], dtype=torch.bfloat16)
    scores = yes_no_scores(logits, 1, 2)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert scores[1] == 0


@pytest.mark.parametrize("ids", [(1, 1), (0, 9), (-1, 2)])
def test_yes_no_needs_two_tokens(ids):
    with pytest.raises(ValueError, match="yes_id"):
        yes_no_scores(torch.randn(2, 4), *ids)


def test_yes_no_needs_rows():
    with pytest.raises(ValueError, match=r"\[n, V\]"):
        yes_no_log_odds(torch.randn(4), 0, 1)


def test_answer_bce_equals_a_loop_and_scikit_learn():
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([[1.0, 0.0, NAN], [NAN, NAN, NAN], [0.0, 1.0, 1.0], [-1.0, 0.0, 0.0]])

    def loop(x):
        terms = []
        for i in range(4):
            for j in range(3):
                if labels[i, j] >= 0:
                    p = 1 / (1 + (-x[i, j]).exp())
                    terms.append(-torch.log(p if labels[i, j] == 1 else 1 - p))
        return sum(terms) / len(terms)

    log_odds = torch.randn(4, 3, generator=g)
    value = assert_same(lambda x: answer_bce(x, labels), loop, log_odds)
    known = labels >= 0
    assert value == pytest.approx(log_loss(labels[known].numpy(), log_odds[known].double().sigmoid().numpy()), rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_answer_bce_without_known_labels(shape):
    assert_nothing_to_learn(lambda x: answer_bce(x, torch.full(shape, NAN)), torch.randn(shape))


def test_answer_bce_extremes_precision_and_shapes():
    labels = torch.tensor([[1.0, 0.0]])
    extreme = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    value = answer_bce(extreme, labels)
    value.backward()
    assert value.item() == pytest.approx(1e4)
    assert extreme.grad.tolist() == [[-0.5, 0.5]]
    assert_raised_to_float32(lambda x: answer_bce(x, labels), torch.randn(1, 2))
    with pytest.raises(ValueError, match="labels"):
        answer_bce(torch.randn(2, 3), torch.zeros(2))


def test_integer_labels_are_fine():
    x = torch.randn(3, 2)
    labels = torch.tensor([[1, 0], [-1, 1], [0, 0]])
    torch.testing.assert_close(answer_bce(x, labels), answer_bce(x, labels.float()))


def test_options_are_compared_per_token():
    """The longer option has the lower sum and the higher mean: it wins."""
    scores = option_scores(torch.tensor([[-2.0, -3.0]]), torch.tensor([1, 3]))
    torch.testing.assert_close(scores, torch.tensor([[-2.0, -1.0]]).softmax(-1))


@pytest.mark.parametrize("per_sample", [False, True])
def test_option_cross_entropy_equals_a_loop(per_sample):
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 5, (4, 3) if per_sample else (3,), generator=g)
    labels = torch.tensor([2, -1, 0, 1])

    def loop(x):
        terms = []
        for i in (0, 2, 3):
            means = [x[i, o] / (lengths[i, o] if per_sample else lengths[o]).item() for o in range(3)]
            terms.append(-torch.log(means[labels[i]].exp() / sum(m.exp() for m in means)))
        return sum(terms) / 3

    assert_same(lambda x: option_cross_entropy(x, lengths, labels), loop, -10 * torch.rand(4, 3, generator=g))


@pytest.mark.parametrize("n", [0, 2])
def test_option_cross_entropy_without_known_labels(n):
    labels = torch.full((n,), -1)
    assert_nothing_to_learn(lambda x: option_cross_entropy(x, torch.ones(3), labels), torch.randn(n, 3))


def test_options_refuse_what_does_not_fit():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="lengths"):
        option_scores(x, torch.ones(2))
    with pytest.raises(ValueError, match="at least one token"):
        option_scores(x, torch.tensor([1, 0, 2]))
    with pytest.raises(ValueError, match="labels must be"):
        option_cross_entropy(x, torch.ones(3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="number of options"):
        option_cross_entropy(x, torch.ones(3), torch.tensor([0, 3]))
