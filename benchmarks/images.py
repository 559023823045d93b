"""The image store, written and read, beside Pillow on the same JPEG files.

python benchmarks/images.py            # prints the tables; three minutes, 1 GB, one core
python benchmarks/images.py --write    # also writes them to benchmarks/images.md

Ours and the peer's take turns. Before anything is timed, both must have the same pixels, bit for bit; where pictures
are decoded at a fraction of their size, the table says by how many grey levels they differ. What the rows mean is in
benchmarks/README.md.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from side_by_side import command, machine, one_thread, speedups, spread, take_turns

from fairvlm_core.cohort.fundus import draw_fundus
from fairvlm_core.cohort.images import build_store, open_image, usable_cores

WIDTH, HEIGHT, QUALITY = 664, 512, 90  # of the files: the size of Harvard-FairVLMed's photographs
SIDES = (224, 64)  # of the stored squares
BATCH = 64
REPEATED = 4  # times each file is stored, so that beginning and ending a store, some milliseconds, count for little
SECONDS = 0.4  # how long each side works before it is the other's turn
APART = 2.0  # grey levels: the mean difference above which scaled decoding would not be what it says
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "ham10000"


@dataclass(frozen=True)
class Race:
    """Two ways to make the same pictures, uint8 [images, S, S, 3]; a call of a step makes its i-th piece.

    Attributes:
        exact: both give the same pixels.
        cores: how many may be used, of both.
    """

    name: str
    peer: str
    ours: Callable[[int], np.ndarray]
    theirs: Callable[[int], np.ndarray]
    images: int
    exact: bool = True
    cores: int = 1


@dataclass(frozen=True)
class Result:
    """Milliseconds per image (medians over the rounds), theirs / ours of each round, and how far apart they are."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]
    apart: str


def drawn(count: int) -> np.ndarray:
    """Fundus photographs of a generated cohort, uint8 [n, H, W, 3]."""
    rng = np.random.default_rng(0)
    above = (WIDTH - HEIGHT) // 2
    return draw_fundus(rng, cup_to_disc=rng.random(count), size=WIDTH)[:, above : above + HEIGHT]


def mosaics(folder: Path, count: int, *, side: int = 224) -> np.ndarray:
    """Dermoscopy photographs of HAM10000, of 224 px, side by side until they fill a picture; uint8 [n, H, W, 3]."""
    files = sorted(folder.rglob("*.jpg"))
    across, down = -(-WIDTH // side), -(-HEIGHT // side)
    out = np.empty((count, down * side, across * side, 3), np.uint8)
    for place, (i, y, x) in enumerate(np.ndindex(count, down, across)):
        photograph = Image.open(files[place * 37 % len(files)]).resize((side, side))
        out[i, y * side : (y + 1) * side, x * side : (x + 1) * side] = np.asarray(photograph)
    return out[:, :HEIGHT, :WIDTH]


def noise(count: int) -> np.ndarray:
    """What no photograph is like, and a scaled decoder shows worst; uint8 [n, H, W, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def kinds(count: int, real: Path = REAL) -> dict[str, np.ndarray]:
    """The pictures, [n, H, W, 3] or [n, H, W]; the real ones where they are at hand."""
    fundus = drawn(count)
    found = {"drawn fundus": fundus, "drawn fundus, grey": fundus[..., 1]}
    if real.is_dir():
        found["dermoscopy"] = mosaics(real, count)
    return found


def files_of(pictures: np.ndarray, folder: Path) -> list[Path]:
    """JPEG files of these pictures."""
    folder.mkdir(parents=True)
    files = [folder / f"{i}.jpg" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file, quality=QUALITY)
    return files


def stored(files: Sequence[Path], size: int, *, fast: bool = False) -> np.ndarray:
    """Through `build_store`, which also checks every file and writes an index."""
    folder, by_key = files[0].parent, {str(i): file for i, file in enumerate(files)}
    store = build_store(list(by_key), lambda key: open_image(by_key[key], where=key), folder, size=size, fast=fast)
    return store.pixels


def plain(file: Path, size: int) -> np.ndarray:
    """The central square of a file, as Pillow's documentation has one decode, cut and shrink it."""
    with Image.open(file) as image:
        picture = image.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))


def looped(files: Sequence[Path], size: int) -> np.ndarray:
    """The peer of `stored`: one file after the other, and an array in a file at the end."""
    array = files[0].parent / "plain.npy"
    np.save(array, np.stack([plain(file, size) for file in files]))
    return np.load(array, mmap_mode="r")


def ingest_races(files: dict[str, list[Path]]) -> Iterator[Race]:
    """Files to an array on disk; the first kind with all cores, too."""
    for kind, paths in files.items():
        for size in SIDES:
            yield from (ingest_race(kind, paths, size, fast=fast) for fast in (False, True))
    kind, *_ = files
    if (all_cores := usable_cores()) > 1:
        yield from (ingest_race(kind, files[kind], SIDES[0], fast=fast, cores=all_cores) for fast in (False, True))


def ingest_race(kind: str, files: Sequence[Path], size: int, *, fast: bool, cores: int = 1) -> Race:
    name = f"store {kind} at {size} px, {'fast' if fast else 'exact'}" + (f", {cores} cores" if cores > 1 else "")
    return Race(
        name,
        "Pillow in a loop",
        lambda _: stored(files, size, fast=fast),
        lambda _: looped(files, size),
        len(files),
        exact=not fast,
        cores=cores,
    )


def batch_races(files: list[Path], size: int, *, rows: int) -> Iterator[Race]:
    """Random rows of a store of so many pictures (the files, over and over) to a batch."""
    folder, keys = files[0].parent / "rows", [str(i) for i in range(rows)]
    squares = [plain(file, size) for file in files]
    store = build_store(keys, lambda key: squares[int(key) % len(files)], folder, size=size)
    order = np.random.default_rng(0).permutation(rows)
    shuffled, out = store.pixels[order], np.empty((BATCH, size, size, 3), np.uint8)

    def chosen(i: int) -> slice:
        start = i * BATCH % (rows - BATCH + 1)
        return slice(start, start + BATCH)

    def read(i: int) -> np.ndarray:
        return store.read([keys[row] for row in order[chosen(i)]])

    def decode(i: int) -> np.ndarray:
        return np.stack([plain(files[row % len(files)], size) for row in order[chosen(i)]])

    def copy(i: int) -> np.ndarray:
        np.copyto(out, shuffled[chosen(i)])
        return out

    name = f"read a batch of {BATCH} at {size} px from the store"
    yield Race(name, "Pillow in a loop", read, decode, BATCH)
    yield Race(name, "copying as many bytes that lie in order", read, copy, BATCH)


def levels(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, int]:
    """Difference in grey levels: mean, 99th percentile, largest."""
    apart = np.abs(ours.astype(np.int16) - theirs)
    return float(apart.mean()), float(np.percentile(apart, 99)), int(apart.max())


def told(apart: tuple[float, float, int]) -> str:
    return "none" if not apart[-1] else f"{apart[0]:.2f} / {apart[1]:.0f} / {apart[2]}"


def run(race: Race, rounds: int) -> Result:
    """Compare, then let both work in turn."""
    with cores(race.cores):
        ours, theirs = race.ours(0), race.theirs(0)
        apart = levels(ours, theirs)
        if len(ours) != race.images or (apart[-1] if race.exact else apart[0] > APART):
            raise RuntimeError(f"{race.name}: the pictures differ ({told(apart)} grey levels).")
        times = take_turns(race.ours, race.theirs, rounds=rounds, seconds=SECONDS)
    middles = [1e3 * statistics.median(side) / race.images for side in times]
    return Result(race, *middles, speedups(*times), told(apart))


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Only so many cores, for this thread and those that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def digits(value: float) -> str:
    """Three digits."""
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(value))))}f}"


def table(results: Sequence[Result]) -> str:
    """The results as Markdown."""
    lines = ["| | ms per image | peer | its ms | ratio (lowest to highest) | grey levels apart: mean / 99 % / most |"]
    lines.append("| --- | ---: | --- | ---: | ---: | ---: |")
    for result in results:
        race, ratio = result.race, spread(result.ratios, 2 if statistics.median(result.ratios) < 10 else 0)
        cells = (race.name, digits(result.ours), race.peer, digits(result.theirs), ratio, result.apart)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(files: dict[str, list[Path]], sides: Sequence[int]) -> str:
    """What scaled decoding changes, of all kinds of pictures at all sizes, as Markdown."""
    lines = ["| fast decoding to | " + " | ".join(f"{side} px" for side in sides) + " |"]
    lines.append("| --- |" + " ---: |" * len(sides))
    for kind, paths in files.items():
        cells = [told(levels(stored(paths, side, fast=True), looped(paths, side))) for side in sides]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure(rounds: int) -> str:
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = {kind: files_of(pictures, place / kind) for kind, pictures in kinds(BATCH).items()}
        often = {kind: REPEATED * paths for kind, paths in files.items()}
        races = [*ingest_races(often), *batch_races(files["drawn fundus"], SIDES[0], rows=1024)]
        raced = table([run(race, rounds) for race in races])
        files["noise"] = files_of(noise(8), place / "noise")
        changed = differences(files, (448, 336, 256, 224, 128, 64, 32))
    what = f"JPEG files of {WIDTH} x {HEIGHT} px, quality {QUALITY}; one core unless a row says otherwise."
    return f"{raced}\n{changed}\n{what} {machine('pillow', 'numpy')} Rounds: {rounds}.\n"


if __name__ == "__main__":
    command(__file__, __doc__, "Images", measure)
