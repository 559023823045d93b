"""Split the patients, then balance the training rows over demographic cells (by default sex x age group).

Official splits win; validation and test are never rebalanced. Patients whose pictures are the same (`duplicates.csv` of
the cohort) come into one split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairvlm_core.config import Port, check, option
from fairvlm_core.errors import CohortError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fairvlm_core.cohort.card_counts import Published
    from fairvlm_core.cohort.strata import Plan

INPUTS = {
    "cohort": Port("Folder that ingest wrote."),
    "validation": Port("Folder that validate wrote: then only the cohort that passed is accepted.", optional=True),
}
OUTPUTS = {"out": Port("Folder to write: cohort.parquet, strata.json, strata.png.")}

MOST_BARS = 60  # more cells than this are in the table and the file alone


@dataclass(frozen=True)
class Config:
    """How patients are split and cells are balanced (FairMed-VLM, dataset construction)."""

    attributes: tuple[str, ...] = option(
        ("sex", "age_group"), "Groups whose combinations are balanced; none: no balancing."
    )
    validation_share: float = option(
        0.15, "Share of the patients for validation, without an official one.", low=0, high=0.9
    )
    test_share: float = option(0.2, "Share of the patients for test, without an official one.", low=0, high=0.9)
    reference: str = option("", "Folder of an earlier cohort that stratify wrote: its patients keep their split.")
    oversample_cap: float = option(1.3, "A small cell is repeated to at most this many times its rows.", low=1, high=10)
    majority_cap: float | None = option(
        1.0, "A large cell keeps this many times the median cell; none: all its rows.", low=1
    )
    allow_empty_cells: bool = option(False, "Accept a training split in which a cell has no rows.")
    min_cell: int = option(10, "Cells with fewer patients are suppressed in what is published.", low=1)
    seed: int = option(0, "Which patients and rows are chosen.", low=0)

    def __post_init__(self) -> None:
        check(self)
        if len(set(self.attributes)) < len(self.attributes):
            raise ConfigError(
                "An attribute is named twice.", where="stratify.attributes", mend="Name each attribute once."
            )
        if self.validation_share + self.test_share >= 1:
            raise ConfigError(
                "No patient would be left for training.",
                where="stratify.validation_share, stratify.test_share",
                mend="Give shares that add up to less than 1.",
            )


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path]) -> dict[str, Any]:
    """Write the balanced cohort, its counts per cell before and after, and their picture.

    The counts give nothing away that the cohort's data card hides (`card.json` beside the cohort, where there is one).
    """
    from contextlib import ExitStack

    from fairvlm_core.cohort.card_counts import read_counts
    from fairvlm_core.cohort.duplicates import FILE, read_pairs
    from fairvlm_core.cohort.kinds import of_file
    from fairvlm_core.cohort.strata import plan, planned, planned_schema
    from fairvlm_core.cohort.table import COHORT_FILE, SPLITS, open_cohort, write_batches
    from fairvlm_core.files import write_json

    file = inputs["cohort"] / COHORT_FILE if inputs["cohort"].is_dir() else inputs["cohort"]
    pairs = file.parent / FILE
    with ExitStack() as opened:
        source = of_file(opened.enter_context(open_cohort(file)))
        card = read_counts(file.parent)
        if "validation" in inputs:
            _refuse_unvalidated(file, inputs["validation"])
        reference = of_file(opened.enter_context(open_cohort(_earlier(config)))) if config.reference else None
        duplicates = read_pairs(pairs) if pairs.is_file() else None
        decided = plan(source, config, duplicates=duplicates, reference=reference, where=str(file))
        write_batches(planned(source, decided), outputs["out"], schema=planned_schema(source.schema))

    strata = summary(decided, config.attributes, min_cell=config.min_cell, card=card)
    write_json(outputs["out"] / "strata.json", strata)
    _draw(strata, outputs["out"] / "strata.png")
    _print(strata)
    if decided.leaking:
        print(
            f"{decided.leaking} images are left out: their picture is also in a split nearer to test "
            f"({FILE} of the cohort lists them).",
            flush=True,
        )
    before, after = decided.rows_before, decided.rows_after
    dropped = int((decided.times == 0).sum()) - decided.leaking
    return {
        "rows": int(after.sum()),
        "train_before": int(before[SPLITS.index("train")].sum()),
        **{name: int(counts.sum()) for name, counts in zip(SPLITS, after, strict=True)},
        "rows_dropped": dropped,
        "rows_repeated": int(after.sum()) - (int(before.sum()) - dropped),
        "rows_leaking": decided.leaking,
        "cells": len(decided.cells),
        **{
            f"{name}_unknown_group": strata["unknown"][key]
            for name, key in zip(SPLITS, ("train_before", "validation", "test"), strict=True)
            if strata["unknown"][key] is not None
        },
    }


def summary(
    plan: Plan, attributes: tuple[str, ...], *, min_cell: int, card: Sequence[Published] = ()
) -> dict[str, Any]:
    """The counts per cell as `strata.json` publishes them.

    Args:
        plan: what was done to the cohort.
        attributes: the groups whose combinations are the cells.
        min_cell: the count of a cell with fewer patients, or of so few whose group is unknown, is null. So are others,
            until it follows neither from these counts nor from them and the card together (`cohort.joint`).
        card: what the cohort's data card publishes.

    Returns:
        `cells`: one mapping per cell with its groups and the numbers of images train_before, train_after, validation
        and test; `unknown` and `total`: these four for the images of unknown group and for all images.
    """
    from fairvlm_core.cohort.joint import hidden_strata
    from fairvlm_core.cohort.table import SPLITS

    away, counts, hidden = hidden_strata(plan, attributes, card, min_cell), {}, {}
    for key, rows, name in (
        ("train_before", plan.rows_before, "train"),
        ("train_after", plan.rows_after, "train"),
        ("validation", plan.rows_before, "validation"),
        ("test", plan.rows_before, "test"),
    ):
        counts[key], hidden[key] = rows[SPLITS.index(name)], away[SPLITS.index(name)]
    return {
        "attributes": list(attributes),
        "min_cell": min_cell,
        "cells": [
            dict(zip(attributes, name, strict=True))
            | {key: None if hidden[key][i] else int(values[i]) for key, values in counts.items()}
            for i, name in enumerate(plan.cells)
        ],
        "unknown": {key: None if hidden[key][-1] else int(values[-1]) for key, values in counts.items()},
        "total": {key: int(values.sum()) for key, values in counts.items()},
    }


def _earlier(config: Config) -> Path:
    path = Path(config.reference)
    if not path.exists():
        raise ConfigError(
            "The earlier cohort does not exist.",
            where=f"stratify.reference, {path}",
            mend="Pass the folder that `fairvlm stratify` wrote for it, or leave it empty.",
        )
    return path


def _refuse_unvalidated(file: Path, validation: Path) -> None:
    from fairvlm_core.files import read_json, sha256

    path = validation / "validation.json"
    found = read_json(path, made_by="validate")
    if not found.get("success"):
        raise CohortError(
            "The cohort did not pass its validation.", where=str(path), mend="Mend it and validate it again."
        )
    if found.get("cohort_sha256") != sha256(file):
        raise CohortError(
            "What was validated is not this cohort.",
            where=f"{path}, {file}",
            mend="Run `fairvlm validate` on this cohort, or pass the folder that belongs to it.",
        )


def _draw(strata: dict[str, Any], path: Path) -> None:
    """Bars of each cell's training rows before and after balancing."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    from fairvlm_core.files import written

    rows = strata["cells"][:MOST_BARS]
    title = "Training split before and after balancing"
    if len(rows) < len(strata["cells"]):
        title += f": {len(rows)} of {len(strata['cells'])} cells"
    names = [" ".join(row[name] for name in strata["attributes"]) or "all" for row in rows]
    figure = Figure(figsize=(7, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for key, offset, colour, label in (
        ("train_before", -0.2, "#9aa5b1", "before"),
        ("train_after", 0.2, "#1f6f8b", "after"),
    ):
        heights = [row[key] or 0 for row in rows]
        axes.barh([i + offset for i in range(len(rows))], heights, height=0.38, color=colour, label=label)
        for i, row in enumerate(rows):
            shown = "suppressed" if row[key] is None else f"{row[key]:,}"
            axes.annotate(
                shown, (row[key] or 0, i + offset), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("training images")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    with written(path) as partial:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})


def _print(strata: dict[str, Any]) -> None:
    """The same counts as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    columns = ("train_before", "train_after", "validation", "test")
    table = Table(title="Images per cell", title_justify="left")
    for name in strata["attributes"]:
        table.add_column(name.replace("_", " "))
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")

    def line(groups: list[str], row: dict[str, Any]) -> None:
        table.add_row(*groups, *("suppressed" if row[key] is None else f"{row[key]:,}" for key in columns))

    for row in strata["cells"]:
        line([row[name] for name in strata["attributes"]], row)
    blanks = [""] * (len(strata["attributes"]) - 1)
    if strata["attributes"]:
        line(["unknown", *blanks], strata["unknown"])
        line(["total", *blanks], strata["total"])
    Console().print(table)
