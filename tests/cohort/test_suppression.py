"""Suppression, against an adversary who solves for the hidden counts by linear programming."""

import numpy as np
import pytest
from scipy.optimize import linprog

from fairvlm_core.cohort import suppression
from fairvlm_core.cohort.suppression import count_with_margins, follows, hidden_counts

LEAST = 10


def rows(cells):
    """One row per patient of a table of counts."""
    return np.repeat(np.argwhere(np.ones_like(cells, dtype=bool)), np.ravel(cells), axis=0)


def hide(cells, **masks):
    counts = count_with_margins(rows(cells), cells.shape)
    nothing = np.zeros(counts.shape, dtype=bool)
    total = nothing.copy()
    total[(-1,) * counts.ndim] = True
    return counts, hidden_counts(counts, LEAST, **({"unknown": nothing, "public": total} | masks))


def possible(place, counts, hidden):
    """The range of one count that is consistent with all that are shown, by linear programming over the inner cells."""
    inner = [size - 1 for size in counts.shape]

    def members(at):
        chosen = np.zeros(inner)
        chosen[tuple(slice(None) if k == size - 1 else k for k, size in zip(at, counts.shape, strict=True))] = 1
        return chosen.ravel()

    shown = [at for at in np.ndindex(counts.shape) if not hidden[at]]
    equations, values = [members(at) for at in shown], [counts[at] for at in shown]
    return [
        sign * linprog(sign * members(place), A_eq=equations, b_eq=values, bounds=(0, None)).fun for sign in (1, -1)
    ]


def test_margins_are_sums_of_rows_and_count_a_patient_once():
    codes = np.array([[0, 0], [0, 1], [0, 1], [1, 1]])
    who = np.array([0, 0, 0, 1])
    assert count_with_margins(codes, (2, 2)).tolist() == [[1, 2, 3], [0, 1, 1], [1, 3, 4]]
    assert count_with_margins(codes, (2, 2), who).tolist() == [[1, 1, 1], [0, 1, 1], [1, 2, 2]]
    assert count_with_margins(np.zeros((5, 0), int), ()).tolist() == 5


@pytest.mark.parametrize("seed", range(12))
def test_no_small_count_can_be_computed(seed):
    rng = np.random.default_rng(seed)
    shape = [(2, 3, 1), (2, 3, 3), (2, 4, 2), (5, 3)][seed % 4]
    cells = rng.poisson(rng.choice([2.0, 9.0, 30.0, 200.0], size=shape))
    counts, hidden = hide(cells)
    small = (counts > 0) & (counts < LEAST)
    small[(-1,) * counts.ndim] = False
    assert hidden[small].all()
    assert not hidden[counts == 0].any()
    for place in np.argwhere(small)[:6]:
        low, high = possible(tuple(place), counts, hidden)
        assert high - low > 0.5


def test_large_counts_are_all_shown():
    _, hidden = hide(np.full((2, 3, 2), LEAST))
    assert not hidden.any()


def test_as_few_as_possible_are_hidden_with_a_small_one():
    # A block of four: any three of them would give the fourth away.
    counts, hidden = hide(np.array([[3, 200, 150], [120, 240, 180]]))
    assert hidden.tolist() == [
        [True, False, True, False],
        [True, False, True, False],
        [False, False, False, False],
    ]
    low, high = possible((0, 0), counts, hidden)
    assert low < 3 < high


def test_two_small_ones_hide_a_third_where_their_sum_is_small():
    _, hidden = hide(np.array([4, 3, 50, 60]))
    assert hidden.tolist() == [True, True, True, False, False]
    _, hidden = hide(np.array([7, 6, 50, 60]))
    assert hidden.tolist() == [True, True, False, False, False]


def test_what_is_unknown_is_not_protected_and_helps_only_where_nothing_else_does():
    def masks(size):
        unknown, public = np.zeros((2, size + 1), dtype=bool)
        unknown[-2], public[-1] = True, True
        return {"unknown": unknown, "public": public}

    _, hidden = hide(np.array([40, 30, 4]), **masks(3))
    assert not hidden.any()
    _, hidden = hide(np.array([40, 3, 20]), **masks(3))
    assert hidden.tolist() == [True, True, False, False]
    _, hidden = hide(np.array([0, 3, 20]), **masks(3))
    assert hidden.tolist() == [False, True, True, False]
    # Nothing can be done where everybody knows the size of the only group.
    _, hidden = hide(np.array([0, 3, 0]), **masks(3))
    assert hidden.tolist() == [False, True, False, False]


def test_what_is_hidden_anyway_stays_hidden_and_is_reckoned_with():
    cells = np.array([3, 50, 60])
    _, hidden = hide(cells)
    assert hidden.tolist() == [True, True, False, False]
    given = np.array([False, False, True, False])
    _, hidden = hide(cells, given=given)
    assert hidden.tolist() == [True, False, True, False]


def spanned(secret, shown):
    """Whether a sum follows, by the ranks of the sums without it and with it."""
    ranks = [np.linalg.matrix_rank(rows) for rows in (shown, np.vstack([shown, secret]))]
    return ranks[0] == ranks[1]


@pytest.mark.parametrize("seed", range(20))
def test_of_any_sums_no_secret_one_follows_and_nothing_is_hidden_in_vain(seed):
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 4, 9) * rng.integers(1, 60, 9)
    sums = np.vstack([np.eye(9), rng.random((8, 9)) < 0.4, np.ones(9)]).astype(float)
    secrets = np.vstack([np.eye(9)[:2], [1.0, 1, 0, 1, 0, 0, 0, 0, 0]])
    given = np.isin(np.arange(18), rng.integers(0, 9, 2))
    may_hide, last = rng.random(18) < 0.8, rng.random(18) < 0.2
    hidden = suppression.hide(sums, sums @ cells, given=given, secrets=secrets, may_hide=may_hide, last=last)
    assert hidden[given].all()
    more = np.flatnonzero(hidden & ~given)
    assert may_hide[more].all()
    assert (sums[more] @ cells > 0).all()
    most = ~(given | (may_hide & (sums @ cells > 0)))
    protected = [secret for secret in secrets if not spanned(secret, sums[most])]
    assert not any(spanned(secret, sums[~hidden]) for secret in protected)
    assert follows(secrets, sums[~hidden]).tolist() == [spanned(secret, sums[~hidden]) for secret in secrets]
    for place in more:
        shown = ~hidden
        shown[place] = True
        assert any(spanned(secret, sums[shown]) for secret in protected)
