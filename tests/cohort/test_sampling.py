"""The kernels of the sampling agree with plain Python: hashes, numbers, allocation, and who is drawn."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvlm_core.cohort import sampling
from fairvlm_core.cohort.sampling import BLOCK, Numbers, allocate, as_ids, blocks, draw, hashes, key_of, rows_of

KEY = np.uint64(0x0123456789ABCDEF)
BITS = 2**64 - 1


def plain_hash(text: bytes, key: int) -> int:
    """The hash of one id, a number at a time."""

    def multiplied(state, factor, shift):
        state = state * factor & BITS
        return state ^ state >> shift

    state = key + len(text) & BITS
    if len(text) < 8:
        state ^= int.from_bytes(text, "big")
    else:
        for place in range(0, len(text) - 8, 8):
            word = int.from_bytes(text[place : place + 8], "little")
            state = multiplied(state ^ word, 0xD6E8FEB86659FD93, 32)
        state ^= int.from_bytes(text[-8:], "little")
    state ^= state >> 30
    return multiplied(multiplied(state, 0xBF58476D1CE4E5B9, 27), 0x94D049BB133111EB, 31)


IDS = ["", "a", "1234567", "12345678", "123456789", "Ωμέγα", "x" * 16, "y" * 17, "patients/p10/p10000032/s50414267.jpg"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), "dictionary"])
def test_hashes_are_those_of_plain_arithmetic(kind):
    ids = pa.array(IDS).dictionary_encode() if kind == "dictionary" else pa.array(IDS).cast(kind)
    expected = [plain_hash(text.encode(), int(KEY)) for text in IDS]
    assert hashes(ids, KEY).tolist() == expected
    assert hashes(ids.slice(3, 4), KEY).tolist() == expected[3:7]
    assert hashes(ids.slice(2, 0), KEY).tolist() == []


def test_hashes_stay_what_they_are():
    """Another number here means another split for everybody's cohort."""
    assert hashes(pa.array(["p10000032"]), key_of(0, "patients")).tolist() == [15209612016653121446]


def test_keys_differ_by_seed_and_purpose():
    keys = {int(key_of(seed, purpose)) for seed in (0, 1, 2**70) for purpose in ("rows", "patients", "test")}
    assert len(keys) == 9


@pytest.mark.parametrize("name", ["{}", "s{:08d}", "{:06d}/images/frontal.png", "patient-{:012d}-left", "{:07d}-scan"])
def test_hashes_of_numbered_ids_are_spread_evenly(name):
    n, bins = 1 << 17, 256
    found = hashes(pa.array([name.format(i) for i in range(n)]), key_of(0, "rows"))
    assert len(np.unique(found)) == n
    place = (found >> np.uint64(56)).astype(int)
    pairs = [place[: n // 2] ^ place[step : n // 2 + step] for step in (1, 2, 10, 64, 1000, 10_000)]
    for some in (place, place[: n // 4], place[::10], *pairs):
        expected = len(some) / bins
        excess = ((np.bincount(some, minlength=bins) - expected) ** 2 / expected).sum() - bins
        assert abs(excess) < 5 * (2 * bins) ** 0.5


def test_numbers_as_ids():
    numbers = np.arange(2 * BLOCK + 3, dtype=np.uint64) * np.uint64(2**40 + 1)
    arrays = list(as_ids(numbers))
    assert [len(array) for array in arrays] == [BLOCK, BLOCK, 3]
    assert arrays[2].to_pylist() == [int(number).to_bytes(8, "little") for number in numbers[-3:]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=60), max_size=6))
def test_numbers_count_up_in_the_order_of_appearance(batches):
    numbers, known = Numbers(), {}
    for batch in batches:
        expected = [known.setdefault(value, len(known)) for value in batch]
        assert numbers.of(np.array(batch, np.uint64)).tolist() == expected
    assert numbers.values.tolist() == list(known)


def test_numbers_of_many_different_values():
    values = np.random.default_rng(0).permutation(200_000).astype(np.uint64) * np.uint64(2**44)  # alike in the low bits
    numbers = Numbers()
    found = np.concatenate([numbers.of(values[rows]) for rows in (*blocks(len(values)), slice(0, 1000))])
    np.testing.assert_array_equal(found, [*range(200_000), *range(1000)])
    np.testing.assert_array_equal(numbers.values, values)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=8), min_size=1, max_size=5),
    st.data(),
)
def test_each_stratum_gets_its_share_of_its_cell(cells, data):
    cell = np.repeat(np.arange(len(cells)), [len(strata) for strata in cells])
    sizes = np.array([size for strata in cells for size in strata], np.int64)
    total = np.array([sum(strata) for strata in cells], np.int64)
    wanted = np.array([data.draw(st.integers(0, 3 * size)) for size in total], np.int64)
    phase = np.array([data.draw(st.integers(0, max(size - 1, 0))) for size in total], np.int64)
    taken = allocate(sizes, cell, wanted, phase)
    np.testing.assert_array_equal(np.bincount(cell, weights=taken, minlength=len(cells)), wanted)
    share = sizes * wanted[cell] / np.maximum(total, 1)[cell]
    assert (np.abs(taken - share) < 1).all()
    # Of several small strata the neighbours get their share together.
    np.testing.assert_array_less(np.abs(np.cumsum(taken - share)), 1)


def drawn(ids, kind, left, base, stratum, wanted, *, batches):
    """What `draw` writes, and what sorting the hashes gives."""
    sizes = np.bincount(stratum[kind[left == 0]], minlength=len(wanted))
    out = np.full(len(ids), 9, np.int8)
    draw(
        lambda: [ids[rows] for rows in batches],
        KEY,
        kind,
        left,
        out,
        base=base,
        stratum=stratum,
        sizes=sizes,
        wanted=wanted,
    )
    expected = np.where(left == 0, base[kind], 9)
    hashed = hashes(ids, KEY)
    for s, number in enumerate(wanted):
        rows = np.flatnonzero((left == 0) & (stratum[kind] == s))
        expected[rows[np.argsort(hashed[rows], kind="stable")[:number]]] += 1
    return out, expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([np.int16, np.int32]), st.sampled_from([3, 10, 10**6]))
def test_of_each_stratum_those_with_the_lowest_hashes_are_drawn(seed, kinds, different):
    """Ids that are repeated (of three, or ten), so that hashes are not spread evenly, are drawn in as exact numbers."""
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 400))
    ids = pa.array([f"id {i}" for i in random.integers(0, different, n)])
    kind = random.integers(0, 6, n).astype(kinds)
    left = random.choice([0, 0, 0, 1], n).astype(np.int8)
    stratum = random.integers(0, 3, 6)
    sizes = np.bincount(stratum[kind[left == 0]], minlength=3)
    wanted = np.array([random.integers(0, size + 1) for size in sizes])
    cut = int(random.integers(0, n + 1))
    out, expected = drawn(
        ids,
        kind,
        left,
        random.integers(0, 3, 6).astype(np.int8),
        stratum,
        wanted,
        batches=[slice(0, cut), slice(cut, n)],
    )
    np.testing.assert_array_equal(out, expected)


def test_a_large_draw_compares_few_rows(monkeypatch):
    n, compared = 3 * BLOCK + 5, []
    divide = sampling._divide
    monkeypatch.setattr(sampling, "_divide", lambda *a: compared.append(divide(*a)) or compared[-1])
    random = np.random.default_rng(1)
    ids = pa.array([f"{i}" for i in random.permutation(n)])
    kind, left = random.integers(0, 2, n).astype(np.int16), np.zeros(n, np.int8)
    sizes = np.bincount(kind)
    out, expected = drawn(
        ids, kind, left, np.array([0, 1], np.int8), np.arange(2), sizes // np.array([2, 7]), batches=[slice(0, n)]
    )
    np.testing.assert_array_equal(out, expected)
    assert len(compared) == 1
    assert 100 < len(compared[0][1]) < 0.05 * n


@pytest.mark.parametrize("most", [1, 2, 9])
def test_rows_of_a_sample(most):
    times = np.random.default_rng(0).integers(0, most + 1, 1000).astype(np.int8)
    np.testing.assert_array_equal(rows_of(times), np.repeat(np.arange(1000), times))
    assert Counter(rows_of(times).tolist())[3] == times[3]
    assert len(rows_of(times[:0])) == 0
