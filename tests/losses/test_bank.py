import pytest
import torch
from comparing import assert_nothing_to_learn, assert_same, unit
from safetensors.torch import load_file, save_file
from test_contrast import batch, members, relation
from test_contrast import loop as loop_without_bank

from fairvlm_core.losses import (
    MemoryBank,
    bank_from_tensors,
    bank_tensors,
    cross_group_contrast,
    empty_bank,
    fairness_terms,
    remember,
)

NAN = float("nan")


def loop(x, labels, groups, bank, temperature=0.07, margin=0.3, fallback=True, reduction="mean"):
    """The loss where P(i) is taken from the bank, a list of (embedding, label, group), if the batch has none."""
    z = [unit(row) for row in x]
    stored = [(unit(row.to(x.dtype)), label, group) for row, label, group in bank]
    per_label = []
    for j in [None] if labels.ndim == 1 else range(labels.shape[1]):
        terms = []
        for i in range(len(z)):
            positives, negatives, other = members(z, labels, groups, margin, j, i)
            positive = [z[p] for p in positives]
            if not positive and relation(labels, j, i, i) == 1:
                positive = [
                    row
                    for row, label, group in stored
                    if (float(label) == float(labels[i]) if j is None else float(label[j]) == 1)
                    and any(a >= 0 and b >= 0 and a != b for a, b in zip(groups[i], group, strict=True))
                ]
            if not positive:
                continue
            if not negatives and fallback and other:
                negatives = [max(other, key=lambda a: torch.dot(z[i], z[a]).item())]
            term = 0.0 * x.sum()
            for row in positive:
                numerator = (torch.dot(z[i], row) / temperature).exp()
                total = sum(((torch.dot(z[i], z[a]) / temperature).exp() for a in negatives), numerator)
                term = term - torch.log(numerator / total)
            terms.append(term / len(positive))
        if terms:
            per_label.append(sum(terms) / (len(terms) if reduction == "mean" else 1))
    return sum(per_label, 0.0 * x.sum()) / (max(len(per_label), 1) if reduction == "mean" else 1)


def lonely(seed, kind):
    """A batch in which many anchors have no positive, and an earlier one."""
    x, labels, groups = batch(seed, kind)
    groups[:11], groups[11] = 0, 1
    return (x, labels, groups), batch(seed + 100, kind)


def filled(capacity, x, labels, groups):
    bank = empty_bank(
        capacity, dim=x.shape[1], attributes=groups.shape[1], labels=None if labels.ndim == 1 else labels.shape[1]
    )
    remember(bank, x, labels, groups)
    return bank


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("margin", [0.3, -1.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_a_loop(kind, reduction, fallback, margin, seed):
    (x, labels, groups), earlier = lonely(seed, kind)
    bank = filled(20, *earlier)
    options = {"margin": margin, "reduction": reduction}
    stored = list(zip(*earlier, strict=True))

    def ours(e):
        return cross_group_contrast(e, labels, groups, hard_negative_fallback=fallback, bank=bank, **options)

    value = assert_same(ours, lambda e: loop(e, labels, groups, stored, fallback=fallback, **options), x, rtol=1e-3)
    assert value != pytest.approx(loop_without_bank(x.double(), labels, groups, fallback=fallback, **options).item())


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
def test_gradcheck_and_extreme_lengths(kind):
    (x, labels, groups), earlier = lonely(3, kind)
    bank = filled(20, *earlier)

    def loss(e):
        return cross_group_contrast(e, labels, groups, temperature=0.5, bank=bank)

    x = x.double()
    assert torch.autograd.gradcheck(loss, x.clone().requires_grad_())
    scaled = x.clone()
    scaled[1] *= 1e20
    assert loss(scaled).item() == pytest.approx(loss(x).item())


def test_an_empty_bank_changes_nothing_and_a_full_one_fills_only_gaps():
    x, labels, groups = batch(1, "classes")
    empty = empty_bank(5, dim=x.shape[1], attributes=2)
    expected = cross_group_contrast(x, labels, groups)
    assert cross_group_contrast(x, labels, groups, bank=empty) == expected
    # Where every anchor has a positive in the batch, what the bank holds is not looked at.
    labels, groups = torch.arange(12) % 2, torch.arange(24).reshape(12, 2)
    full = filled(12, torch.randn(12, x.shape[1]), labels, groups + 50)
    assert cross_group_contrast(x, labels, groups, bank=full) == cross_group_contrast(x, labels, groups)


def test_the_bank_gets_no_gradient_and_is_not_changed():
    (x, labels, groups), earlier = lonely(0, "classes")
    leaf = earlier[0].requires_grad_()
    bank = filled(20, leaf, *earlier[1:])
    assert not bank.embeddings.requires_grad
    before = {name: tensor.clone() for name, tensor in bank_tensors(bank).items()}
    cross_group_contrast(x.requires_grad_(), labels, groups, bank=bank).backward()
    assert leaf.grad is None
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in bank_tensors(bank).items())


def test_both_losses_together_take_the_bank_too():
    (x, labels, groups), earlier = lonely(0, "multi-label")
    bank = filled(20, *earlier)
    terms, without = (fairness_terms(x, labels, groups, bank=given) for given in (bank, None))
    assert terms["contrast"] == cross_group_contrast(x, labels, groups, bank=bank)
    assert terms["moments"] == without["moments"]
    assert terms["skipped"] < without["skipped"]
    assert terms["positives"] > without["positives"]


def test_nothing_in_bank_or_batch_is_a_connected_zero():
    labels, groups = torch.zeros(3), torch.zeros(3, 1, dtype=torch.long)
    bank = filled(4, torch.randn(2, 5), torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]))
    assert_nothing_to_learn(lambda e: cross_group_contrast(e, labels, groups, bank=bank), torch.randn(3, 5))


def test_the_ring_holds_the_last_samples_in_order():
    """Against a list from which the oldest are dropped."""
    g = torch.Generator().manual_seed(0)
    bank, kept = empty_bank(7, dim=2, attributes=1), []
    for size in (3, 3, 0, 5, 20, 1, 7, 2):
        x, labels = torch.randn(size, 2, generator=g), torch.randint(-1, 3, (size,), generator=g)
        groups = torch.randint(-1, 2, (size, 1), generator=g)
        remember(bank, x, labels, groups)
        kept += [row for row in zip(x, labels, groups, strict=True) if row[1] >= 0 and row[2][0] >= 0]
        held = [(bank.seen - len(kept[-7:]) + k) % 7 for k in range(len(kept[-7:]))]
        assert bank.seen == len(kept)
        for slot, (row, label, group) in zip(held, kept[-7:], strict=True):
            assert torch.equal(bank.embeddings[slot], row)
            assert bank.labels[slot] == label
            assert torch.equal(bank.groups[slot], group)


def test_only_samples_that_can_be_a_positive_are_kept():
    bank = empty_bank(4, dim=1, attributes=2, labels=2)
    labels = torch.tensor([[1.0, NAN], [0.0, NAN], [NAN, 1.0], [1.0, 1.0]])
    groups = torch.tensor([[0, -1], [0, 1], [-1, -1], [2, 2]])
    remember(bank, torch.arange(4.0).unsqueeze(1), labels, groups)
    assert bank.seen == 2
    assert bank.embeddings[:2, 0].tolist() == [0.0, 3.0]


@pytest.mark.parametrize("kind", ["classes", "multi-label"])
def test_a_saved_bank_goes_on_bit_by_bit(tmp_path, kind):
    (x, labels, groups), earlier = lonely(0, kind)
    bank = filled(9, *earlier)
    save_file(bank_tensors(bank), tmp_path / "bank.safetensors")
    loaded = bank_from_tensors(load_file(tmp_path / "bank.safetensors"))
    for one in (bank, loaded):
        remember(one, x, labels, groups)
    assert loaded.seen == bank.seen
    for name, tensor in bank_tensors(bank).items():
        torch.testing.assert_close(bank_tensors(loaded)[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert cross_group_contrast(x, labels, groups, bank=loaded) == cross_group_contrast(x, labels, groups, bank=bank)


def test_halves_are_stored_as_float32():
    x, labels, groups = batch(0, "classes")
    bank = filled(12, x.bfloat16(), labels, groups)
    assert bank.embeddings.dtype == torch.float32
    assert cross_group_contrast(x.bfloat16(), labels, groups, bank=bank).dtype == torch.float32


def test_what_does_not_fit_is_refused():
    bank = empty_bank(4, dim=3, attributes=1)
    good = torch.randn(2, 3), torch.zeros(2), torch.zeros(2, 1, dtype=torch.long)
    for place, bad, named in (
        (0, torch.randn(2, 4), "embeddings"),
        (1, torch.zeros(2, 2), "labels"),
        (2, torch.zeros(2, 2, dtype=torch.long), "groups"),
    ):
        arguments = [bad if k == place else given for k, given in enumerate(good)]
        with pytest.raises(ValueError, match=named):
            remember(bank, *arguments)
        with pytest.raises(ValueError, match=named):
            cross_group_contrast(*arguments, bank=bank)
    with pytest.raises(ValueError, match="capacity"):
        empty_bank(0, dim=3, attributes=1)
    with pytest.raises(ValueError, match="seen"):
        bank_from_tensors({name: tensor for name, tensor in bank_tensors(bank).items() if name != "seen"})
    assert isinstance(bank_from_tensors(bank_tensors(bank)), MemoryBank)
