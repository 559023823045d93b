"""Validation of a million rows, beside the same expectations over the cohort as pandas reads it.

python benchmarks/validation.py            # prints the table; five minutes, 3 GB, one thread
python benchmarks/validation.py --write    # also writes it to benchmarks/validation.md

Both sides must first find the same in a sound cohort and in one that breaks rules: what holds, how many rows break it,
and the first of them. Ours and the peer's then take turns. What the rows mean is in benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from side_by_side import command, machine, one_thread, speedups, spread, take_turns

from fairvlm_core.cohort.expectation_frames import row_frame
from fairvlm_core.cohort.expectation_reference import Reference
from fairvlm_core.cohort.expectation_suites import great_expectations, validated
from fairvlm_core.cohort.expectations import examine, row_expectations
from fairvlm_core.cohort.table import SCHEMA, SPLITS, Task, cohort_table
from fairvlm_core.steps.validate import Config

ROWS = 1_000_000
LABELS = 14
NAMES = tuple(f"finding {j}" for j in range(LABELS))
TASK = Task("multilabel", NAMES, NAMES, tuple(f"no {name}" for name in NAMES))
GROUPS = {
    "sex": ("female", "male"),
    "age_group": ("0-39", "40-59", "60+"),
    "race": ("asian", "black", "white"),
    "ethnicity": ("non-hispanic", "hispanic"),
    "language": ("english", "spanish", "other"),
}
PLANTED = 11  # so many rules does a cohort with mistakes break, with one image missing in the store
# Rule, whether it holds, how many rows break it, and the first of them.
Outcome = tuple[str, bool, int, int | None]
Work = Callable[[], list[Outcome]]


@dataclass(frozen=True)
class Race:
    """Two ways to the same outcomes; without `theirs`, ours is only timed."""

    name: str
    ours: Work
    theirs: Work | None = None
    peer: str = ""


@dataclass(frozen=True)
class Result:
    """Seconds of CPU per call in each round."""

    race: Race
    ours: list[float]
    theirs: list[float] = field(default_factory=list)


def cohort(rows: int, *, seed: int = 0, breaks: bool = False) -> pa.Table:
    """A cohort as CheXpert's is named, three images per patient; `breaks` plants mistakes of every kind in it."""
    random, number = np.random.default_rng(seed), np.arange(rows)
    paths = pa.array([f"CheXpert-v1.0/train/patient{i // 3:06d}/study{i % 3}/view1_frontal.jpg" for i in range(rows)])
    strange = (number % 997 == 5) if breaks else np.zeros(rows, dtype=bool)

    def drawn(names: Sequence[str], share: float = 0.05) -> pa.Array:
        code = np.where(strange, len(names), random.integers(len(names), size=rows)).astype(np.int32)
        unknown = (random.random(rows) < share) & ~strange
        return pa.DictionaryArray.from_arrays(pa.array(code, mask=unknown), pa.array([*names, "elsewhere"])).cast(
            "string"
        )

    labels = random.choice([0, 1, -1], rows * LABELS, p=[0.8, 0.1, 0.1]).astype(np.int8)
    unknown = labels < 0
    labels[::LABELS][strange], unknown[::LABELS][strange] = 3, False
    age = random.integers(18, 90, rows).astype(np.float32) + np.where(strange, 200, 0).astype(np.float32)
    split = np.array(SPLITS)[np.array([0, 0, 0, 0, 1, 2])[(number // 3 + np.where(strange, 3, 0)) % 6]]
    twice = paths.take(pa.array(np.where(strange, np.maximum(number - 4, 0), number)))
    columns = {
        "sample_id": twice,
        "patient_id": pa.array([f"patient{i // 3:06d}" for i in range(rows)]),
        "image": twice,
        "modality": pa.array(["X-ray"] * rows),
        "note": pa.nulls(rows, pa.string()),
        "labels": pa.ListArray.from_arrays(
            np.arange(0, rows * LABELS + 1, LABELS).astype(np.int32), pa.array(labels, mask=unknown)
        ),
        "age": pa.array(age, mask=(random.random(rows) < 0.01) & ~strange),
        **{name: drawn(names) for name, names in GROUPS.items()},
        "split": pa.array(split),
        "source": pa.array(["chexpert"] * rows),
        "copy": pa.array(np.zeros(rows, np.int16)),
    }
    return cohort_table(pa.table([columns[name] for name in SCHEMA.names], SCHEMA.names), task=TASK, groups=GROUPS)


def plain_frame(table: pa.Table, stored: pa.Array) -> pd.DataFrame:
    """The columns of `row_frame` as somebody who knows pandas would write them."""
    frame = table.drop_columns(["note", "modality"]).to_pandas()
    values = np.stack(frame.pop("labels").to_numpy()).astype(np.float64)
    frame["label_count"] = values.shape[1]
    frame["label_strange"] = (~np.isin(values, (0, 1)) & ~np.isnan(values)).sum(axis=1)
    frame["image_stored"] = frame["image"].isin(stored.to_pandas())
    frame["image_shared"] = frame.groupby("image")["patient_id"].transform("nunique") > 1
    frame["patient_splits"] = frame.groupby("patient_id")["split"].transform("nunique")
    return frame


def plainly(frame: pd.DataFrame, expectations: Sequence[Any]) -> list[Outcome]:
    """Great Expectations as its documentation calls it, with a summary of each result."""
    gx = great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("plain").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(name="plain", expectations=list(expectations))
    found = []
    for result in batch.validate(suite, result_format="SUMMARY").results:
        lines = result.result.get("partial_unexpected_index_list") or [None]
        count = result.result.get("unexpected_count", 0)
        found.append((result.expectation_config.meta["rule"], bool(result.success), int(count), lines[0]))
    return sorted(found)


def compactly(frame: pd.DataFrame, expectations: Sequence[Any]) -> list[Outcome]:
    """The same over our frame."""
    checks, suite = validated(frame, expectations, unit="rows", min_cell=1)
    counts = [result["result"].get("unexpected_count", 0) for result in suite["results"]]
    return sorted((check.rule, check.success, count, check.row) for check, count in zip(checks, counts, strict=True))


def examined(table: pa.Table, stored: pa.Array, reference: Reference | None = None) -> list[Outcome]:
    """All of the step but its files."""
    found = examine(table, stored, Config(), reference)
    return [(check.rule, check.success, 0, check.row) for check in found.checks]


def races(table: pa.Table, before: pa.Table) -> list[Race]:
    """What is timed on one cohort, and with another one as its reference."""
    stored = table.column("image").combine_chunks()
    expectations = row_expectations(table, Config().max_unknown)
    ours, theirs = row_frame(table, stored), plain_frame(table, stored)
    return [
        Race(
            "frame of rows and its expectations",
            lambda: compactly(row_frame(table, stored), expectations),
            lambda: plainly(plain_frame(table, stored), expectations),
            "to_pandas and the same expectations",
        ),
        Race(
            "the expectations alone",
            lambda: compactly(ours, expectations),
            lambda: plainly(theirs, expectations),
            "the same on its frame",
        ),
        Race("all that validate examines", lambda: examined(table, stored)),
        Race(f"the same, with a reference of {len(before):,} rows", lambda: examined(table, stored, Reference(before))),
    ]


def require_same(table: pa.Table, *, broken: bool) -> None:
    """Raise unless both sides find the same, and it is what was planted."""
    # One image is missing in the store, where something is to be found.
    stored = table.column("image").combine_chunks()[1 if broken else 0 :]
    expectations = row_expectations(table, Config().max_unknown)
    ours, theirs = (
        compactly(row_frame(table, stored), expectations),
        plainly(plain_frame(table, stored), expectations),
    )
    for a, b in zip(ours, theirs, strict=True):
        if a != b:
            raise RuntimeError(f"Both sides differ: {a} and {b}.")
    failed = sum(not success for _, success, _, _ in ours)
    if failed != PLANTED * broken:
        raise RuntimeError(f"{failed} rules are broken, not {PLANTED * broken}.")


def timed(work: Work) -> tuple[Callable[[int], object], list[float], list[list[Outcome]]]:
    """A step that notes the seconds of CPU of each call, and what it found."""
    spent: list[float] = []
    found: list[list[Outcome]] = []

    def step(_: int) -> None:
        started = time.process_time()
        outcomes = work()
        spent.append(time.process_time() - started)
        found.append(outcomes)

    return step, spent, found


def run(race: Race, rounds: int) -> Result:
    """Let both work in turn, once per round; who begins alternates. They must find the same each time."""
    ours, spent, found = timed(race.ours)
    theirs, by_them, found_by_them = timed(race.theirs or list)
    take_turns(ours, theirs, rounds=rounds, seconds=0)
    if race.theirs and found != found_by_them:
        raise RuntimeError(f"{race.name}: both sides differ.")
    return Result(race, spent[-rounds:], by_them[-rounds:] if race.theirs else [])


def table_of(results: Sequence[Result], rows: int) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = [
        f"| {rows:,} rows | s of CPU | peer | its s | ratio (lowest to highest) |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for result in results:
        theirs = f"{statistics.median(result.theirs):.1f}" if result.theirs else ""
        ratio = spread(speedups(result.ours, result.theirs), 1) if result.theirs else ""
        ours = f"{statistics.median(result.ours):.1f}"
        lines.append(f"| {result.race.name} | {ours} | {result.race.peer} | {theirs} | {ratio} |")
    told = machine("great-expectations", "pandas", "pyarrow", "numpy")
    return "\n".join([*lines, "", f"{told} Rounds: {len(results[0].ours)}."]) + "\n"


@contextmanager
def one_arrow_thread() -> Iterator[None]:
    """Arrow works in one thread, too."""
    threads = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(threads)


def measure(rounds: int) -> str:
    with one_thread(), one_arrow_thread():
        for broken in (False, True):
            require_same(cohort(ROWS // 20, breaks=broken), broken=broken)
        pair = cohort(ROWS), cohort(ROWS, seed=1)
        return table_of([run(race, rounds) for race in races(*pair)], ROWS)


if __name__ == "__main__":
    command(__file__, __doc__, "Validation", measure, rounds=3)
