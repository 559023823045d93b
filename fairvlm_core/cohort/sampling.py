"""Draw rows by who they are, not by where they stand: the members of a stratum whose ids hash lowest.

The hash of an id is as good as a random number, and it is the same in whatever order the rows come. So a sample of k is
the k lowest, and to find them nothing has to be sorted: nearly all rows are clearly below or clearly above the k-th
lowest hash, and only the few in between are compared. The loops over rows are compiled; they take rows block by block,
so that a column need not be in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from fairvlm_core.compiled import compiled

BLOCK = 1 << 16  # rows at a time: what is made of them stays in the cache
ALL = np.iinfo(np.uint64).max
# Within so many standard deviations of where it is expected the k-th lowest hash is looked for first; in one stratum of
# two thousand it is not there.
DEVIATIONS = 3.5


def blocks(rows: int) -> Iterator[slice]:
    """The rows block by block, so that what is made of a block on the way does not add up."""
    return (slice(begin, min(begin + BLOCK, rows)) for begin in range(0, rows, BLOCK))


def key_of(seed: int, purpose: str) -> np.uint64:
    """The key of the hashes: another for each seed and for each of its purposes."""
    return np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)[0]


def hashes(ids: pa.Array, key: np.uint64) -> np.ndarray:
    """A pseudo-random number per id, uint64 [n]: the same for the same key, wherever the row stands.

    Two different ids share one with a probability of 2^-64. This is no protection of the ids.
    """
    out = np.empty(len(ids), np.uint64)
    _hash(*_buffers(ids), key, out)
    return out


def as_ids(numbers: np.ndarray) -> Iterator[pa.Array]:
    """Numbers as ids of eight bytes, block by block: uint64 [n]."""
    places = pa.py_buffer(np.arange(0, 8 * BLOCK + 1, 8, dtype=np.int32))
    for block in blocks(len(numbers)):
        yield pa.Array.from_buffers(pa.binary(), block.stop - block.start, [None, places, pa.py_buffer(numbers[block])])


class Numbers:
    """Numbers the different values that come, block by block: 0, 1, ... in the order in which they first come.

    Args:
        expected: about as many different values will come; more may.

    Attributes:
        values: uint64, the values by their numbers.
    """

    def __init__(self, expected: int = 0) -> None:
        self._slots = np.full(1 << max(expected, 1 << 10).bit_length() + 1, -1, np.int32)
        self._values = np.empty(max(expected, 1 << 10), np.uint64)
        self._count = 0

    @property
    def values(self) -> np.ndarray:
        return self._values[: self._count]

    def of(self, values: np.ndarray) -> np.ndarray:
        """The number of each value: uint64 [n] to int32 [n]."""
        most = self._count + len(values)
        if most > len(self._values):
            grown = np.empty(2 * most, np.uint64)
            grown[: self._count] = self.values
            self._values = grown
        if 4 * most > 3 * len(self._slots):
            self._slots = np.full(1 << (2 * most).bit_length(), -1, np.int32)
            _enter(self.values, self._slots)
        out = np.empty(len(values), np.int32)
        self._count = _number(values, self._slots, self._values, self._count, out)
        return out


def target_sizes(sizes: np.ndarray, *, oversample_cap: float = 1.3, majority_cap: float | None = 1.0) -> np.ndarray:
    """How many rows each cell gets, given how many it has; an empty cell stays empty.

    >>> target_sizes(np.array([10, 20, 40, 100, 0]))  # the median of the four is 30
    array([13, 26, 30, 30,  0])
    """
    if not (sizes > 0).any():
        return sizes
    median = int(np.median(sizes[sizes > 0]))
    fewer = sizes if majority_cap is None else np.minimum(sizes, int(majority_cap * median))
    more = np.minimum(median, np.floor(oversample_cap * sizes).astype(np.int64))
    return np.where(sizes > median, fewer, more)


def allocate(sizes: np.ndarray, cell: np.ndarray, wanted: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """How many to take of each stratum so that each cell gets what it shall, int64 [strata].

    Systematic sampling: the members of a cell stand in a row, stratum by stratum, and one pointer every size / wanted
    members takes one, the first at `phase`. Of m neighbours it takes m x wanted / size, to within one. So each stratum
    gets its share, and several that are too small to be sampled on their own get theirs together.

    Args:
        sizes: members of each stratum, int64 [strata].
        cell: the cell of each stratum, in rising order.
        wanted, phase: per cell; the phase is a random number from 0 to below the cell's size.
    """
    total = np.bincount(cell, weights=sizes, minlength=len(wanted)).astype(np.int64)
    end = np.cumsum(sizes) - (np.cumsum(total) - total)[cell]
    size, wanted, phase = np.maximum(total, 1)[cell], wanted[cell], phase[cell]
    return (end * wanted + phase) // size - ((end - sizes) * wanted + phase) // size


def draw(
    ids: Callable[[], Iterable[pa.Array]],
    key: np.uint64,
    kind: np.ndarray,
    left: np.ndarray,
    out: np.ndarray,
    *,
    base: np.ndarray,
    stratum: np.ndarray,
    sizes: np.ndarray,
    wanted: np.ndarray,
) -> None:
    """Write how often each row is taken: `base` times, and once more the rows of a stratum whose ids hash lowest.

    Args:
        ids: gives the rows' ids in blocks, as often as it is called.
        key: of the hashes.
        kind: what each row is, int [n].
        left: int8 [n], not 0 for a row that is left out of it: its `out` stays as it is.
        out: int8 [n], written in place.
        base: int8 [kinds].
        stratum: the stratum of each kind, int [kinds].
        sizes: rows of each stratum, int64 [strata].
        wanted: so many rows of each stratum are taken once more, int64 [strata].
    """
    share = wanted / np.maximum(sizes, 1)
    slack = np.where((share > 0) & (share < 1), DEVIATIONS * (np.sqrt(share * (sizes - wanted)) + 1), 0)
    while True:
        low, high = (_as_hash((wanted + side * slack) / np.maximum(sizes, 1))[stratum] for side in (-1, 1))
        below, rows, between = _divide(ids, key, kind, left, out, base, low, high - low)
        missing = wanted - np.bincount(stratum, weights=below, minlength=len(sizes)).astype(np.int64)
        of = stratum[kind[rows]]
        if (missing >= 0).all() and (missing <= np.bincount(of, minlength=len(sizes))).all():
            break
        slack *= 100  # nor is it there where ids are repeated, whose hashes are not spread evenly
    order = np.lexsort((between, of))
    rows, of = rows[order], of[order]
    place = np.arange(len(rows)) - np.searchsorted(of, np.arange(len(sizes)))[of]
    out[rows[place < missing[of]]] += 1


def rows_of(times: np.ndarray) -> np.ndarray:
    """The rows of a sample, int32: each as often as `times` says, in order.

    >>> rows_of(np.array([1, 0, 3], dtype=np.int8))
    array([0, 2, 2, 2], dtype=int32)
    """
    total = int(times.sum(dtype=np.int64))
    out = np.empty(total + 2, np.int32)
    _repeat(times, out)
    return out[:total]


def _buffers(ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where each id begins and ends, int [n + 1], and the bytes of all."""
    if ids.type not in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary()):
        ids = ids.cast(pa.large_string())
    if not len(ids):
        return np.zeros(1, np.int32), np.empty(0, np.uint8)
    width = np.dtype(np.int64 if ids.type in (pa.large_string(), pa.large_binary()) else np.int32)
    _, places, text = ids.buffers()
    offsets = np.frombuffer(places, width, len(ids) + 1, ids.offset * width.itemsize)
    return offsets, np.frombuffer(text or b"", np.uint8)


def _as_hash(share: np.ndarray) -> np.ndarray:
    """The hash that this share of all hashes is below, uint64."""
    inside = np.clip(share, 0, 1 - 2**-53)
    return np.where(share >= 1, ALL, (inside * 2.0**64).astype(np.uint64))


def _divide(
    ids: Callable[[], Iterable[pa.Array]],
    key: np.uint64,
    kind: np.ndarray,
    left: np.ndarray,
    out: np.ndarray,
    base: np.ndarray,
    low: np.ndarray,
    span: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take all rows below `low` once more; return their number per kind, and the `span` above with their hashes."""
    below, begin = np.zeros(len(base), np.int64), 0
    rows, between = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    some_rows, some = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.uint64)
    for batch in ids():
        offsets, text = _buffers(batch)
        for block in blocks(len(batch)):
            row = slice(begin + block.start, begin + block.stop)
            count = _mark(
                offsets[block.start : block.stop + 1],
                text,
                key,
                kind[row],
                left[row],
                out[row],
                base,
                low,
                span,
                below,
                some_rows,
                some,
            )
            rows.append(some_rows[:count] + row.start)
            between.append(some[:count].copy())
        begin += len(batch)
    return below, np.concatenate(rows), np.concatenate(between)


@compiled
def _word(text: np.ndarray, place: np.uint64) -> np.uint64:
    """Eight bytes; compiled, this is one load."""
    word = np.uint64(0)
    for j in range(8):
        word |= np.uint64(text[place + np.uint64(j)]) << np.uint64(8 * j)
    return word


@compiled
def _mixed(state: np.uint64, word: np.uint64) -> np.uint64:
    state = (state ^ word) * np.uint64(0xD6E8FEB86659FD93)
    return state ^ (state >> np.uint64(32))


@compiled
def _hash_of(text: np.ndarray, place: np.uint64, end: np.uint64, key: np.uint64) -> np.uint64:
    """Mix in eight bytes at a time, the last eight overlapping those before; a shorter id byte by byte.

    The end is that of SplitMix64: without it the hashes of ids that differ in one letter would be related.
    """
    eight = np.uint64(8)
    state = key + (end - place)
    if end - place >= eight:
        while place + eight < end:
            state = _mixed(state, _word(text, place))
            place += eight
        state ^= _word(text, end - eight)
    else:
        word = np.uint64(0)
        while place < end:
            word = (word << eight) | np.uint64(text[place])
            place += np.uint64(1)
        state ^= word
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@compiled
def _hash(offsets: np.ndarray, text: np.ndarray, key: np.uint64, out: np.ndarray) -> None:
    for i in range(len(out)):
        out[i] = _hash_of(text, np.uint64(offsets[i]), np.uint64(offsets[i + 1]), key)


@compiled
def _mark(
    offsets: np.ndarray,
    text: np.ndarray,
    key: np.uint64,
    kind: np.ndarray,
    left: np.ndarray,
    out: np.ndarray,
    base: np.ndarray,
    low: np.ndarray,
    span: np.ndarray,
    below: np.ndarray,
    rows: np.ndarray,
    between: np.ndarray,
) -> int:
    count, end = 0, np.uint64(offsets[0])
    for i in range(len(out)):
        place, end = end, np.uint64(offsets[i + 1])
        if left[i]:
            continue
        k = np.uint64(kind[i])
        hashed, least = _hash_of(text, place, end, key), low[k]
        taken = hashed < least
        out[i] = base[k] + taken
        below[k] += taken
        if hashed - least <= span[k]:  # in between: unsigned, so this is false where `taken`
            rows[count] = i
            between[count] = hashed
            count += 1
    return count


@compiled
def _repeat(times: np.ndarray, out: np.ndarray) -> None:
    place = np.uint64(0)
    for i in range(len(times)):
        out[place] = out[place + np.uint64(1)] = i  # both, needed or not: to ask costs more than to write
        for j in range(2, times[i]):
            out[place + np.uint64(j)] = i
        place += np.uint64(times[i])


@compiled
def _number(values: np.ndarray, slots: np.ndarray, found: np.ndarray, count: int, out: np.ndarray) -> int:
    """Open addressing: a slot holds the number of the value whose hash leads there."""
    last = np.uint64(len(slots) - 1)
    for i in range(len(values)):
        value = values[i]
        slot = _mixed(np.uint64(0), value) & last
        while True:
            number = slots[slot]
            if number < 0:
                slots[slot] = number = count
                found[count] = value
                count += 1
                break
            if found[number] == value:
                break
            slot = (slot + np.uint64(1)) & last
        out[i] = number
    return count


@compiled
def _enter(values: np.ndarray, slots: np.ndarray) -> None:
    """Fill empty slots with the numbers of different values."""
    last = np.uint64(len(slots) - 1)
    for i in range(len(values)):
        slot = _mixed(np.uint64(0), values[i]) & last
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & last
        slots[slot] = i
