"""Duplicates: pictures that a cohort holds more than once, found by perceptual hash and confirmed by their detail.

The hash is the 64-bit DCT hash of the package imagehash, computed for many pictures at once. It sees only the coarsest
8 x 8 frequencies, in which the photographs of one apparatus are much alike, so pictures whose hashes are near are
compared once more in the frequencies that it does not see.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import label_matrix
from fairvlm_core.errors import CohortError
from fairvlm_core.files import written

FILE = "duplicates.csv"
# (what is done, how many) -> called with how many have been done since the last call.
Track = Callable[[str, int], Callable[[int], object]]


def untracked(what: str, total: int) -> Callable[[int], object]:
    """Show no progress."""
    return lambda done: None


SIDE, COARSE = 32, 8  # of the picture that is hashed, and of its frequencies that the hash sees
# Of 5 million pairs of real dermoscopic images 13 to 18 differ in at most 4 bits, and 1 of them is a duplicate; of
# 90,000 pairs of chest radiographs and CT slices 5, all of them duplicates. JPEG at quality 30, half the size, or 15 %
# more light change at most 4 bits in 99 of 100 pictures, and at most 2 in 95.
NEAR = 4
# Correlation of the detail: up to 0.5 between different real pictures with near hashes, up to 0.9 between different
# generated fundus photographs, which share their rim; 0.92 or more after these changes (of 95 in 100 real ones), 0.97
# or more between the duplicates that were found.
SAME_DETAIL = 0.92
BLANK = 2.0  # standard deviation in grey levels: below it, hash and detail are noise
BANDS = 7
# Of more pictures with the same hash, each is compared with the next so many; and a hash with so many that share bands.
CROWD, NEIGHBOURS = 100, 1000
BATCH = 2048
AT_A_TIME = 2**20  # pixels that are made grey at a time: enough for speed, and little memory
# Row k samples the k-th cosine at the pixels' centres: DCT-II, not normalised, as imagehash takes it.
COSINES = 2 * np.cos(np.pi * np.arange(SIDE)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))


@dataclass(frozen=True)
class Duplicates:
    """Pairs of rows that show the same picture, in rising order.

    Attributes:
        a, b: rows of the cohort, a < b, int64 [m].
        distance: bits in which the two hashes differ, int64 [m].
        identical: whether all stored pixels are equal, bool [m].
        same_patient: bool [m].
        across: whether the two rows have different splits (none is a split of its own), bool [m].
        labels_differ: whether a label that both rows know differs, bool [m].
        blank: number of pictures that show nothing; they are not compared.
        complete: False where so many pictures are alike that not all were compared.
    """

    a: np.ndarray
    b: np.ndarray
    distance: np.ndarray
    identical: np.ndarray
    same_patient: np.ndarray
    across: np.ndarray
    labels_differ: np.ndarray
    blank: int
    complete: bool


def find_duplicates(table: pa.Table, store: ImageStore, *, track: Track = untracked) -> Duplicates:
    """Compare all pictures of a cohort.

    Args:
        table: the cohort.
        store: its pictures; a kilobyte of memory is taken for each.
        track: shows progress.
    """
    greys = grey_pictures(store.pixels, progress=track("Hashing pictures", len(store.pixels)))
    shown = np.flatnonzero(greys.reshape(len(greys), -1).std(axis=1) >= BLANK)
    hashes = np.zeros(len(greys), dtype=np.uint64)
    hashes[shown] = perceptual_hashes(greys[shown])
    near, complete = near_pairs(hashes[shown])
    pairs = shown[near]
    pairs = pairs[same_detail(greys, pairs, progress=track("Comparing pictures", len(pairs)))]
    identical = np.array([np.array_equal(store.pixels[i], store.pixels[j]) for i, j in pairs], dtype=bool)

    picture = store.rows(table.column("image").to_pylist())
    # A picture that several rows list makes pairs with itself.
    repeated = np.flatnonzero(np.bincount(picture, minlength=len(greys)) > 1)
    pairs = np.concatenate([pairs, np.stack([repeated, repeated], axis=1)])
    identical = np.concatenate([identical, np.ones(len(repeated), dtype=bool)])
    a, b, of = _rows_of(pairs, picture)
    patient, split = _numbered(table, "patient_id"), _numbered(table, "split")
    labels = label_matrix(table)
    return Duplicates(
        a=a,
        b=b,
        distance=_bits(hashes[picture[a]], hashes[picture[b]]),
        identical=identical[of],
        same_patient=patient[a] == patient[b],
        across=split[a] != split[b],
        labels_differ=(np.abs(labels[a] - labels[b]) > 0).any(axis=1),
        blank=len(greys) - len(shown),
        complete=complete,
    )


def grey_pictures(pixels: np.ndarray, *, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
    """Pictures uint8 [N, S, S, 3] as small grey ones, uint8 [N, 32, 32], antialiased as Pillow does it."""
    side = pixels.shape[1]
    # What Pillow makes of a unit matrix are the weights of its filter.
    unit = Image.fromarray(np.eye(side, dtype=np.float32))
    weights = np.asarray(unit.resize((side, SIDE), Image.Resampling.LANCZOS))
    greys = np.empty((len(pixels), SIDE, SIDE), dtype=np.uint8)
    several = max(1, AT_A_TIME // side**2)
    for start in range(0, len(pixels), several):
        batch = pixels[start : start + several]
        grey = np.asarray(Image.fromarray(batch.reshape(-1, side, 3)).convert("L"), dtype=np.float32)
        rows = _whole(grey @ weights.T).reshape(len(batch), side, SIDE)
        greys[start : start + several] = _whole(weights @ rows)
        progress(len(batch))
    return greys


def _whole(grey: np.ndarray) -> np.ndarray:
    """Grey levels as Pillow rounds them."""
    return np.floor(grey + 0.5).clip(0, 255)


def perceptual_hashes(greys: np.ndarray) -> np.ndarray:
    """Hashes of grey pictures [N, 32, 32], uint64 [N]: which of the 8 x 8 lowest frequencies exceed their median.

    The first frequency is the highest bit.
    """
    hashes = np.zeros(len(greys), dtype=np.uint64)
    for start in range(0, len(greys), BATCH):
        # Rounded, so that what is 0 in a symmetric picture does not become noise.
        low = (COSINES[:COARSE] @ greys[start : start + BATCH] @ COSINES[:COARSE].T).round(3).reshape(-1, COARSE**2)
        bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
        hashes[start : start + BATCH] = bits.view(">u8")[:, 0]
    return hashes


def near_pairs(
    hashes: np.ndarray, *, near: int = NEAR, crowd: int = CROWD, neighbours: int = NEIGHBOURS
) -> tuple[np.ndarray, bool]:
    """Pairs of hashes that differ in at most `near` bits, found without comparing all with all.

    Cut into 7 bands of bits, two such hashes agree in at least 7 - `near` bands. So it is enough to sort by each choice
    of so many bands and to compare neighbours.

    Args:
        hashes: uint64 [N].
        near: less than 7.
        crowd: of more equal hashes than this, each is paired with the next so many.
        neighbours: a hash is compared with at most so many others per choice of bands.

    Returns:
        Places int64 [m, 2] in rising order, and whether neither limit was reached.
    """
    unique, group, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    members = np.argsort(group, kind="stable")
    ends = np.cumsum(sizes)
    starts = ends - sizes
    found, complete = [], not (sizes > crowd + 1).any()
    place = np.arange(len(hashes))
    for step in range(1, min(crowd, sizes.max(initial=1) - 1) + 1):
        place = place[place + step < ends[group[members[place]]]]
        found.append(np.stack([members[place], members[place + step]], axis=1))
    groups, all_compared = _near_unique(unique, near, neighbours)
    for first, second in groups:
        few = [members[starts[k] : min(ends[k], starts[k] + crowd)] for k in (first, second)]
        found.append(np.stack(np.meshgrid(*few, indexing="ij"), axis=-1).reshape(-1, 2))
    pairs = np.sort(np.concatenate([np.empty((0, 2), dtype=np.int64), *found]), axis=1)
    return pairs[np.lexsort(pairs.T[::-1])], complete and all_compared


def _near_unique(hashes: np.ndarray, near: int, neighbours: int) -> tuple[np.ndarray, bool]:
    """As `near_pairs`, of hashes that are all different; the pairs are in no order."""
    edges = np.linspace(0, 64, BANDS + 1).astype(int)
    bands = [np.uint64(sum(1 << bit for bit in range(low, high))) for low, high in pairwise(edges)]
    found, complete = [np.empty((0, 2), dtype=np.int64)], True
    for chosen in combinations(range(BANDS), BANDS - near):
        keys = hashes & np.bitwise_or.reduce([bands[k] for k in chosen])
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], hashes[order]
        left = np.arange(len(keys))
        for step in range(1, neighbours + 2):
            # Equal keys lie side by side: a hash without another at this distance has none farther away.
            left = left[left + step < len(keys)]
            left = left[keys[left] == keys[left + step]]
            if not len(left):
                break
            if step > neighbours:
                complete = False
                break
            differing = ordered[left] ^ ordered[left + step]
            close = np.bitwise_count(differing) <= near
            # A pair that agrees in more bands is taken in the first choice only.
            for k in range(chosen[-1]):
                if k not in chosen:
                    close &= (differing & bands[k]) != 0
            found.append(np.stack([order[left[close]], order[left[close] + step]], axis=1))
    return np.concatenate(found), complete


def same_detail(
    greys: np.ndarray, pairs: np.ndarray, *, progress: Callable[[int], object] = lambda done: None
) -> np.ndarray:
    """Whether pairs of pictures agree in all frequencies but the coarse ones, bool [m].

    Their square roots are correlated, so that a strong edge that many pictures share does not decide.
    """
    agree = np.empty(len(pairs), dtype=bool)
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        agree[start : start + BATCH] = (_detail(greys[batch[:, 0]]) * _detail(greys[batch[:, 1]])).sum(1) >= SAME_DETAIL
        progress(len(batch))
    return agree


def _detail(greys: np.ndarray) -> np.ndarray:
    """Unit vectors, float32 [m, 1024]."""
    cosines = COSINES.astype(np.float32)
    waves = cosines @ greys @ cosines.T
    waves[:, :COARSE, :COARSE] = 0
    roots = (np.sign(waves) * np.sqrt(np.abs(waves))).reshape(len(greys), -1)
    return roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-9)


def _bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b).astype(np.int64)


def _numbered(table: pa.Table, column: str) -> np.ndarray:
    """A number for each value, null being one of them."""
    return table.column(column).combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()


def _rows_of(pairs: np.ndarray, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of pictures as pairs of rows a < b that list them, in rising order, and the place in `pairs` of each."""
    order = np.argsort(picture, kind="stable")
    starts, ends = np.searchsorted(picture[order], pairs), np.searchsorted(picture[order], pairs, side="right")
    found = [
        (min(a, b), max(a, b), of)
        for of, (first, second) in enumerate(zip(starts, ends, strict=True))
        for a in order[first[0] : second[0]]
        for b in order[first[1] : second[1]]
        if pairs[of, 0] != pairs[of, 1] or a < b
    ]
    rows = np.array(sorted(found), dtype=np.int64).reshape(-1, 3)
    return rows[:, 0], rows[:, 1], rows[:, 2]


def write_pairs(found: Duplicates, table: pa.Table, file: Path) -> None:
    """Write the pairs as CSV. It names images and patients, so it belongs with the cohort, not in a report."""
    names = ("sample_id", "patient_id", "split")
    columns = [table.column(name).take(side).to_pylist() for name in names for side in (found.a, found.b)]
    told = (found.distance, found.identical.astype(int), found.labels_differ.astype(int))
    with written(file) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        header = [f"{name}_{side}" for name in names for side in ("a", "b")]
        writer.writerow([*header, "differing_bits", "identical", "labels_differ"])
        writer.writerows(zip(*columns, *(values.tolist() for values in told), strict=True))


def read_pairs(file: Path) -> pa.Table:
    """Read what `write_pairs` wrote: the columns sample_id_a, sample_id_b, patient_id_a and patient_id_b.

    Raises:
        CohortError: when a column is missing or the file is no such table.
    """
    from pyarrow import csv as arrow_csv

    names = [f"{name}_{side}" for name in ("sample_id", "patient_id") for side in "ab"]
    try:
        return arrow_csv.read_csv(
            file,
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=names
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError):  # their texts quote the file, which names patients
        raise CohortError(
            "This is not a table of duplicate pictures.",
            where=f"{file}, columns {', '.join(names)}",
            mend="Run `fairvlm ingest` again.",
        ) from None
