"""Read a published release (or generate one): the cohort table, every picture decoded once, and its group sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairvlm_core.cohort.adapters import ADAPTERS, adapter, require_known
from fairvlm_core.config import Port, build, check, option
from fairvlm_core.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from fairvlm_core.cohort.tolerance import Tolerance

INPUTS = {"root": Port("Folder of the release as published.", optional=True)}
OUTPUTS = {"out": Port("Folder to write.")}

PLOT_FILE = "cohort.png"
BAD_FILE = "skipped.csv"
NOT_SPLIT = "not split yet"
UNKNOWN = ("unknown", "unknown")  # the cell of images whose sex or age group is unknown


@dataclass(frozen=True)
class Config:
    """Which release to read, and how."""

    dataset: str = option("generated", f"The release's adapter: {', '.join(ADAPTERS)}.")
    image_size: int = option(64, "Side of the stored pictures in pixels.", low=16, high=1024)
    age_edges: tuple[float, ...] = option((40.0, 60.0), "Whole years at which a new age group begins.", low=1)
    min_cell: int = option(10, "Groups with fewer patients than this are suppressed in what is shown.", low=1)
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
    """Write `cohort.parquet`, `images/`, `cohort.png` and, where rows were skipped, `skipped.csv`; print the counts.

    Raises:
        ConfigError: when the adapter has no such option or needs a root that is not given.
        CohortError: naming the file, row and column that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fairvlm_core.cohort.images import build_store
    from fairvlm_core.cohort.table import write_cohort
    from fairvlm_core.cohort.tolerance import Tolerance

    module, out = adapter(config.dataset), outputs["out"]
    options = build(module.Options, config.options, where=f"ingest.options of {config.dataset}")
    tolerance = Tolerance(config.skip_bad)
    release = module.read(
        inputs.get("root"), options, age_edges=config.age_edges, seed=config.seed, tolerance=tolerance
    )
    keys = release.table.column("image").to_pylist()

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        job = bar.add_task("Decoding images", total=len(set(keys)))
        store = build_store(
            keys,
            release.load,
            out,
            size=config.image_size,
            progress=lambda done: bar.advance(job, done),
            tolerance=tolerance,
        )
    seconds = time.perf_counter() - started
    table = release.table.filter(pc.is_in(release.table.column("image"), value_set=pa.array(store.keys, pa.string())))
    if tolerance.errors:
        _list_skipped(tolerance, out / BAD_FILE)

    write_cohort(table, out)
    counts = shown_counts(table, config.min_cell)
    _plot(counts, config.dataset, config.min_cell, out / PLOT_FILE)
    Console().print(_summary(counts, config.dataset, config.min_cell))
    return {
        "images": len(store.keys),
        "patients": len(table.column("patient_id").unique()),
        **release.counted,
        "skipped": len(tolerance.errors),
        "images_per_second": round(len(set(keys)) / seconds, 1),
    }


def _list_skipped(tolerance: Tolerance, file: Path) -> None:
    """Which rows and images were left out and why: it names them, so it belongs with the release, not in a log."""
    import csv

    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["where", "what", "mend"])
        writer.writerows([error.where, error.what, error.mend] for error in tolerance.errors)
    print(f"{len(tolerance.errors)} bad rows or images were left out; {file.name} lists them.", flush=True)


# split -> (sex, age group) -> number of images, None where suppressed.
Counts = dict[str, dict[tuple[str, str], int | None]]


def shown_counts(table: pa.Table, min_cell: int) -> Counts:
    """Images per split, sex and age group, as far as they may be shown.

    A cell of fewer than `min_cell` patients is suppressed (None); an empty cell is 0. Where a split would have a single
    suppressed cell, its next smallest one is suppressed too, because the total would give the first away.
    """
    from fairvlm_core.cohort.table import SPLITS, groups_of

    groups = groups_of(table)
    known = [(sex, age) for sex in groups["sex"] for age in groups["age_group"]]
    names = ("split", "sex", "age_group", "patient_id")
    members: dict[str, dict[tuple[str, str], list[str]]] = {}
    for split, sex, age, patient in zip(*(table.column(name).to_pylist() for name in names), strict=True):
        cell = (sex, age) if (sex, age) in known else UNKNOWN
        members.setdefault(split or NOT_SPLIT, {}).setdefault(cell, []).append(patient)

    shown: Counts = {}
    for split in (name for name in (*SPLITS, NOT_SPLIT) if name in members):
        cells = {cell: members[split].get(cell, []) for cell in (*known, UNKNOWN)}
        counts = {cell: None if 0 < len(set(p)) < min_cell else len(p) for cell, p in cells.items()}
        left = [(n, cell) for cell, n in counts.items() if n]
        if list(counts.values()).count(None) == 1 and left:
            counts[min(left)[1]] = None
        shown[split] = counts
    return shown


def _summary(counts: Counts, dataset: str, min_cell: int) -> Any:
    """The counts as a table to print: a row per sex and age group, a column per split."""
    from rich.table import Table

    shown = Table(
        title=f"Images of {dataset} by sex and age group",
        caption=f"-: fewer than {min_cell} patients, or hidden with them",
    )
    for name in ("sex", "age"):
        shown.add_column(name)
    for split in counts:
        shown.add_column(split, justify="right")
    for cell in next(iter(counts.values())):
        shown.add_row(*cell, *(_text(cells[cell]) for cells in counts.values()))
    return shown


def _text(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _plot(counts: Counts, dataset: str, min_cell: int, path: Path) -> None:
    """The same counts as bars: a panel per split, a group of bars per age group, a bar per sex."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 4.5 * len(counts), 3.6), layout="constrained")
    for axes, (split, cells) in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts.items(), strict=True):
        known = [cell for cell in cells if cell != UNKNOWN]
        ages = list(dict.fromkeys(age for _, age in known))
        sexes = list(dict.fromkeys(sex for sex, _ in known))
        width = 0.8 / len(sexes)
        for k, sex in enumerate(sexes):
            places = [j + (k - (len(sexes) - 1) / 2) * width for j in range(len(ages))]
            values = [cells[sex, age] for age in ages]
            bars = axes.bar(places, [value or 0 for value in values], width * 0.94, label=sex)
            axes.bar_label(bars, [_text(value) for value in values], fontsize=8)
        axes.set_xticks(range(len(ages)), ages)
        axes.set_xlabel("age group (years)")
        axes.set_ylabel("images")
        axes.set_title(f"{dataset}: {split}\n{_text(cells[UNKNOWN])} without sex or age", fontsize=10)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="sex", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.supxlabel(f"-: fewer than {min_cell} patients, or hidden with them", fontsize=7, color="0.4")
    figure.savefig(path, dpi=110)
