"""Read a published release (or generate one): the cohort table, every picture decoded once, and a data card."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fairvlm_core.cohort.adapters import ADAPTERS, adapter, require_known
from fairvlm_core.config import Port, build, check, option
from fairvlm_core.errors import CohortError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from rich.table import Table

    from fairvlm_core.cohort.card import Card
    from fairvlm_core.cohort.duplicates import Track
    from fairvlm_core.cohort.groups import Cells
    from fairvlm_core.cohort.tolerance import Tolerance

INPUTS = {"root": Port("Folder of the release as published.", optional=True)}
OUTPUTS = {"out": Port("Folder to write.")}

PLOT_FILE = "cohort.png"
BAD_FILE = "skipped.csv"
COLOURS = ("#1273a3", "#c4532f")
CARD_FILES = ("card.md", "card.html")


@dataclass(frozen=True)
class Config:
    """Which release to read, and how."""

    dataset: str = option("generated", f"The release's adapter: {', '.join(ADAPTERS)}.")
    image_size: int = option(64, "Side of the stored pictures in pixels.", low=16, high=1024)
    age_edges: tuple[float, ...] = option((40.0, 60.0), "Whole years at which a new age group begins.", low=1)
    min_cell: int = option(10, "Groups with fewer patients than this are suppressed in what is shown.", low=1)
    decoding: str = option(
        "exact",
        "exact, or fast: JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where that suffices.",
        choices=("exact", "fast"),
    )
    skip_bad: int = option(0, "So many rows and images may be bad: they are left out and listed.", low=0)
    seed: int = option(0, "Seed of a generated cohort.", low=0)
    options: dict[str, Any] = option({}, "Options of the adapter, name: value.")  # noqa: RUF009 - a factory copies it

    def __post_init__(self) -> None:
        check(self)
        require_known(self.dataset)
        edges = self.age_edges
        if any(edge != int(edge) for edge in edges) or any(a >= b for a, b in pairwise(edges)):
            raise ConfigError(
                "The age groups do not follow one another.",
                where="ingest.age_edges",
                mend="Give whole years in rising order, like 40, 60.",
            )


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path]) -> dict[str, Any]:
    """Write the cohort, its images, its data card, and which pictures are duplicates; print the counts.

    The files are `cohort.parquet`, `images/`, `card.md`, `card.html`, `card.json`, `cohort.png`, `duplicates.csv` and,
    where rows were skipped, `skipped.csv`. The two tables name images and patients: they are as protected as the
    cohort. `card.json` holds the counts that the card shows, for stratify to heed.

    Raises:
        ConfigError: when the adapter has no such option or needs a root that is not given.
        CohortError: naming the file, row and column that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from rich.console import Console

    from fairvlm_core.cohort.card import make_card
    from fairvlm_core.cohort.card_page import warnings
    from fairvlm_core.cohort.duplicates import FILE, find_duplicates, write_pairs
    from fairvlm_core.cohort.groups import cell_counts
    from fairvlm_core.cohort.images import build_store
    from fairvlm_core.cohort.pictures import size_of
    from fairvlm_core.cohort.table import write_cohort
    from fairvlm_core.cohort.tolerance import Tolerance

    module, out = adapter(config.dataset), outputs["out"]
    options = build(module.Options, config.options, where=f"ingest.options of {config.dataset}")
    tolerance = Tolerance(config.skip_bad)
    with _progress() as track:
        read = track("Reading the release", 1)
        release = module.read(
            inputs.get("root"), options, age_edges=config.age_edges, seed=config.seed, tolerance=tolerance
        )
        read(1)
        keys = release.table.column("image").to_pylist()
        sizes: dict[str, tuple[int, int]] = {}

        def load(key: str) -> np.ndarray | Image.Image:
            picture = release.load(key)
            sizes[key] = size_of(picture)  # from several threads: setting an item is atomic
            return picture

        unique = len(set(keys))
        started = time.perf_counter()
        decoded = track("Decoding images", unique)
        store = build_store(
            keys,
            load,
            out,
            size=config.image_size,
            progress=decoded,
            tolerance=tolerance,
            fast=config.decoding == "fast",
        )
        seconds = time.perf_counter() - started
        stored = pa.array(store.keys, pa.string())
        table = release.table.filter(pc.is_in(release.table.column("image"), value_set=stored))
        if not len(table):
            raise CohortError(
                "No image of the release can be read.", where=config.dataset, mend="Lower ingest.skip_bad to see why."
            )
        duplicates = find_duplicates(table, store, track=track)
        card = make_card(
            table,
            dataset=config.dataset,
            source=_first_paragraph(module),
            options=config.options,
            counted={**release.counted, "skipped": len(tolerance.errors)},
            sizes=[sizes[key] for key in store.keys],
            duplicates=duplicates,
            image_size=config.image_size,
            min_cell=config.min_cell,
            track=track,
        )
    if tolerance.errors:
        _list_skipped(tolerance, out / BAD_FILE)
    write_cohort(table, out)
    write_pairs(duplicates, table, out / FILE)
    cells = cell_counts(card.together)
    _plot(cells, config.dataset, config.min_cell, out / PLOT_FILE)
    _write_card(card, out)
    Console().print(_summary(cells, card.together.attributes, config.dataset, config.min_cell))
    for warning in warnings(card):
        Console(stderr=True).print(f"Warning: {warning}", markup=False)
    return {
        "images": len(store.keys),
        "patients": card.patients,
        **{name: card.counted.get(name, n) for name, n in release.counted.items()},
        "skipped": len(tolerance.errors),
        **{f"duplicates_{where.replace(' ', '_')}": found["pairs"] for where, found in card.duplicates.counts.items()},
        "blank_images": card.duplicates.blank,
        "images_per_second": round(unique / seconds, 1),
    }


@contextmanager
def _progress() -> Iterator[Track]:
    """Bars on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def track(what: str, total: int) -> Callable[[int], object]:
            bar = bars.add_task(what, total=total, visible=total > 0)
            return lambda done: bars.advance(bar, done)

        yield track


def _first_paragraph(module: ModuleType) -> str:
    """What an adapter says of the release it reads."""
    return " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())


def _list_skipped(tolerance: Tolerance, file: Path) -> None:
    """Which rows and images were left out and why: it names them, so it belongs with the release, not in a log."""
    import csv

    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["where", "what", "mend"])
        writer.writerows([error.where, error.what, error.mend] for error in tolerance.errors)
    print(f"{len(tolerance.errors)} bad rows or images were left out; {file.name} lists them.", flush=True)


def _write_card(card: Card, out: Path) -> None:
    from fairvlm_core.cohort.card_counts import FILE, counts_of
    from fairvlm_core.cohort.card_page import pages
    from fairvlm_core.cohort.document import Picture
    from fairvlm_core.files import write_json, written

    alt = f"Images of {card.dataset} per {' and '.join(card.together.attributes) or 'split'}, as in the tables below."
    picture = Picture(PLOT_FILE, alt.replace("_", " "), (out / PLOT_FILE).read_bytes())
    for name, page in zip(CARD_FILES, pages(card, picture), strict=True):
        with written(out / name) as partial:
            partial.write_text(page, encoding="utf-8")
    write_json(out / FILE, counts_of(card))


def _summary(cells: Cells, attributes: Sequence[str], dataset: str, min_cell: int) -> Table:
    """The counts as a table to print: a row per cell, a column per split."""
    from rich.table import Table

    from fairvlm_core.cohort.groups import count_text

    shown = Table(
        title=f"Images of {dataset} by {' and '.join(attributes).replace('_', ' ') or 'split'}",
        caption=f"-: fewer than {min_cell} patients, or hidden with them",
    )
    for name in attributes:
        shown.add_column(name.replace("_", " "))
    for split in cells:
        shown.add_column(split, justify="right")
    for cell in next(iter(cells.values())):
        shown.add_row(*cell, *(count_text(counts[cell]) for counts in cells.values()))
    return shown


def _plot(cells: Cells, dataset: str, min_cell: int, path: Path) -> None:
    """The same counts as bars: a panel per split, a place per group of the last attribute, a bar per other group."""
    from matplotlib.figure import Figure

    from fairvlm_core.cohort.groups import UNKNOWN, count_text

    figure = Figure(figsize=(1.5 + 4.5 * len(cells), 3.6), layout="constrained")
    for axes, (split, counts) in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells.items(), strict=True):
        known = [cell for cell in counts if set(cell) != {UNKNOWN}]
        places = list(dict.fromkeys(cell[-1:] for cell in known))
        series = list(dict.fromkeys(cell[:-1] for cell in known))
        width = 0.8 / len(series)
        for k, name in enumerate(series):
            at = [j + (k - (len(series) - 1) / 2) * width for j in range(len(places))]
            values = [counts[name + place] for place in places]
            heights = [value if isinstance(value, int) else 0 for value in values]
            bars = axes.bar(at, heights, width * 0.94, label=" ".join(name), color=COLOURS[k % len(COLOURS)])
            axes.bar_label(bars, [count_text(value) for value in values], fontsize=8)
        axes.set_xticks(range(len(places)), [" ".join(place) or "all" for place in places])
        axes.set_ylabel("images")
        unknown = [
            f"{count_text(count)} of unknown group"
            for cell, count in counts.items()
            if count != 0 and cell and cell not in known
        ]
        axes.set_title("\n".join([f"{dataset}: {split}", *unknown]), fontsize=10)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    if series != [()]:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.supxlabel(f"-: fewer than {min_cell} patients, or hidden with them", fontsize=7, color="0.4")
    figure.savefig(path, dpi=110, metadata={"Software": None})
