"""The balancing of cells at ten million rows, beside pandas: choosing the rows, and from Parquet to Parquet.

python benchmarks/strata.py            # prints the tables; about ten minutes, 8 GB, one thread
python benchmarks/strata.py --write    # also writes them to benchmarks/strata.md

Before anything is timed, both sides must have taken as many rows of each cell, and each of these as often as the others
or once more. What the rows mean is in benchmarks/README.md.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from side_by_side import command, machine, one_thread, speedups, spread, take_turns
from strata_parquet import SIDES, sampled

from fairvlm_core.cohort.kinds import cells, of_table, read_kinds, tally
from fairvlm_core.cohort.sampling import rows_of
from fairvlm_core.cohort.strata import balance
from fairvlm_core.cohort.table import SCHEMA, SPLITS, Task, cohort_table
from fairvlm_core.steps.stratify import Config

ROWS = 10_000_000
GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40-59", "60+")}
SHARES = (0.05, 0.10, 0.15, 0.20, 0.20, 0.30)  # of the six cells
CHUNK = 1_000_000  # rows written at a time; a patient's are in one
TASK = Task("binary", ("glaucoma",), ("glaucoma",), ("a healthy eye",))

Choose = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Race:
    """Two ways to choose rows; a call gives their numbers.

    Attributes:
        group: the group of each row of which both must take `wanted` rows.
    """

    name: str
    peer: str
    ours: Choose
    theirs: Choose
    group: np.ndarray
    wanted: np.ndarray


@dataclass(frozen=True)
class Result:
    """Seconds per call (medians over the rounds), theirs / ours of each round, and megabytes where they are known."""

    name: str
    peer: str
    ours: float
    theirs: float
    ratios: list[float]
    memory: tuple[float, float] | None = None


def columns(rows: int) -> tuple[pa.Table, pd.DataFrame]:
    """The columns that decide, as Arrow has them and as pandas has them; and the cells, numbered."""
    random = np.random.default_rng(0)
    cell = random.choice(len(SHARES), rows, p=SHARES)
    label = (random.random(rows) < 0.3).astype(np.int8)
    codes = dict(zip(GROUPS, (cell // 3, cell % 3), strict=True))
    table = pa.table(
        {
            **{
                name: pa.DictionaryArray.from_arrays(code.astype(np.int32), list(GROUPS[name]))
                for name, code in codes.items()
            },
            "labels": pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32)), pa.array(label)),
            "sample_id": numbered("s", np.arange(rows), 8),
        }
    )
    frame = pd.DataFrame({name: pd.Categorical.from_codes(code, GROUPS[name]) for name, code in codes.items()})
    frame = frame.assign(label=label, cell=pd.Categorical.from_codes(cell, [str(i) for i in range(len(SHARES))]))
    return table, frame.assign(sample_id=table["sample_id"].to_pandas())


def numbered(letter: str, numbers: np.ndarray, digits: int) -> pa.Array:
    """Ids like p0000012."""
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0"), "")


def races(rows: int = ROWS) -> list[Race]:
    """The comparisons of the choice alone."""
    table, frame = columns(rows)
    source, split, once = of_table(table), np.zeros(rows, np.int8), np.ones(rows, np.int8)

    def chosen(kinds) -> np.ndarray:
        def ids():
            return (batch.column("sample_id") for batch in source.batches(["sample_id"]))

        _, cell = cells(kinds, GROUPS)
        return rows_of(balance(kinds, cell, split, once, tally(kinds, split, once)[0], ids, Config()))

    def from_columns() -> np.ndarray:
        return chosen(read_kinds(source, GROUPS))

    def by(*keys: str, more: Sequence[str] = ()) -> tuple[Choose, np.ndarray, np.ndarray]:
        """pandas' choice by these keys; the groups' codes, and how many rows ours takes of each."""
        group = frame.groupby(list(keys), observed=True).ngroup().to_numpy()
        wanted = np.bincount(group[from_columns()])
        some = frame[[*keys, *more]]
        names = some.groupby(list(keys), observed=True).size().index
        target = dict(zip(names, wanted.tolist(), strict=True))

        def choose() -> np.ndarray:
            groups = some.groupby(list(keys) if len(keys) > 1 else keys[0], observed=True, group_keys=False)
            return groups[list(some.columns)].apply(lambda group: sampled(group, target[group.name])).index.to_numpy()

        return choose, group, wanted

    kinds = read_kinds(source, GROUPS)
    keys, label = ("sex", "age_group"), ("sex", "age_group", "label")
    called = "groupby({}).apply(sample)"
    by_label = called.format("sex, age group, label")
    return [
        Race("by sex, age group and label", f"{by_label} with ids", from_columns, *by(*label, more=["sample_id"])),
        Race("by sex, age group and label", by_label, from_columns, *by(*label)),
        Race("by sex and age group", called.format("sex, age group"), from_columns, *by(*keys)),
        Race("cells and labels numbered before", called.format("cell"), lambda: chosen(kinds), *by("cell")),
    ]


def check(race: Race) -> None:
    """Both sides take what they shall, and no row twice before its neighbours have been taken once.

    Raises:
        RuntimeError: naming the side that does not.
    """
    sizes = np.bincount(race.group)
    for side, choose in (("ours", race.ours), ("theirs", race.theirs)):
        times = np.bincount(choose(), minlength=len(race.group))
        taken = np.bincount(race.group, weights=times)
        whole = (race.wanted // sizes)[race.group]
        if (taken != race.wanted).any() or (times < whole).any() or (times > whole + 1).any():
            raise RuntimeError(f"{race.name}: {side} has not taken the rows it should.")


def run(race: Race, rounds: int) -> Result:
    """Let both work in turn; who begins alternates."""
    check(race)
    ours, theirs = take_turns(lambda _: race.ours(), lambda _: race.theirs(), rounds=rounds, seconds=1)
    return Result(race.name, race.peer, statistics.median(ours), statistics.median(theirs), speedups(ours, theirs))


def write_release(file: Path, rows: int = ROWS) -> None:
    """A cohort of official splits: five images of two patients, 3 % of the patients of unknown sex and age."""
    schema = cohort_table([], task=TASK, groups=GROUPS).schema
    with pq.ParquetWriter(file, schema) as writer:
        for begin in range(0, rows, CHUNK):
            place = np.arange(begin, min(begin + CHUNK, rows))
            patient, row = np.unique(2 * place // 5, return_inverse=True)
            random = np.random.default_rng(begin)
            cell = random.choice(7, len(patient), p=[*SHARES[:-1], 0.27, 0.03])[row]
            split = random.choice(3, len(patient), p=[0.65, 0.15, 0.2])[row]
            age = np.array([20, 40, 60])[cell % 3] + random.integers(0, 19, len(patient))[row]
            unknown = cell == 6
            ids = numbered("s", place, 8)
            made = {
                "sample_id": ids,
                "patient_id": numbered("p", patient[row], 7),
                "image": pc.binary_join_element_wise("images/", ids, ".png", ""),
                "modality": pa.repeat("fundus", len(place)),
                "labels": pa.ListArray.from_arrays(
                    pa.array(np.arange(len(place) + 1, dtype=np.int32)),
                    pa.array((random.random(len(place)) < 0.3).astype(np.int8)),
                ),
                "sex": pa.array([*GROUPS["sex"], None]).take(pa.array(cell // 3)),
                "age": pa.array(age.astype(np.float32), mask=unknown),
                "age_group": pa.array(GROUPS["age_group"]).take(pa.array(cell % 3, mask=unknown)),
                "split": pa.array(SPLITS).take(pa.array(split)),
                "source": pa.repeat("made", len(place)),
                "copy": pa.repeat(pa.scalar(0, pa.int16()), len(place)),
            }
            columns = [made.get(field.name, pa.nulls(len(place), field.type)) for field in SCHEMA]
            writer.write_table(
                pa.table(columns, names=SCHEMA.names).cast(SCHEMA).replace_schema_metadata(schema.metadata)
            )


def process(side: str, file: Path, folder: Path) -> dict[str, float]:
    """One side in a process of its own: its processor seconds and the most memory it took."""
    script = Path(__file__).with_name("strata_parquet.py")
    done = subprocess.run([sys.executable, str(script), side, str(file), str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr}")
    return json.loads(done.stdout)


def compare(ours: Path, theirs: Path) -> None:
    """Both files have as many rows of each split and cell, and the same ones wherever nothing is balanced.

    Raises:
        RuntimeError: where they have not.
    """
    counts, kept = [], []
    for file in (ours, theirs):
        keys = ["split", "sex", "age_group"]
        table = pq.read_table(file, columns=["sample_id", *keys])
        counted = table.group_by(keys).aggregate([([], "count_all")])
        counts.append(sorted(map(str, counted.to_pylist())))
        ids = table.filter(pc.or_(pc.not_equal(table["split"], "train"), pc.is_null(table["sex"])))["sample_id"]
        kept.append(ids.take(pc.sort_indices(ids)).cast(pa.string()))  # pandas writes another kind of text
    if counts[0] != counts[1] or not kept[0].equals(kept[1]):
        raise RuntimeError("The two files do not have the same rows.")


def parquet(rounds: int, rows: int = ROWS) -> list[Result]:
    """From Parquet to Parquet: ours against each way of pandas, in turns."""
    results = []
    with TemporaryDirectory() as temporary:
        file, folders = Path(temporary) / "cohort.parquet", {side: Path(temporary) / side for side in SIDES}
        write_release(file, rows)
        for side in SIDES:
            process(side, file, folders[side])
        for side in SIDES:
            compare(folders["ours"] / file.name, folders[side] / file.name)
        took: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(rounds):
            for side in list(SIDES) if number % 2 else reversed(SIDES):
                took[side].append(process(side, file, folders[side]))
    seconds = {side: [turn["seconds"] for turn in turns] for side, turns in took.items()}
    memory = {side: statistics.median(turn["megabytes"] for turn in turns) for side, turns in took.items()}
    for side in list(SIDES)[1:]:
        middle = [statistics.median(seconds[name]) for name in ("ours", side)]
        ratios = speedups(seconds["ours"], seconds[side])
        results.append(Result("Parquet to Parquet", side, *middle, ratios, (memory["ours"], memory[side])))
    return results


def tables(choices: Sequence[Result], files: Sequence[Result], rows: int) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = ["| choosing the rows | ms | ns per row | peer | its ms | ratio (lowest to highest) |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: |")
    for result in choices:
        lines.append(
            f"| {result.name} | {1e3 * result.ours:,.0f} | {1e9 * result.ours / rows:.1f} "
            f"| {result.peer} | {1e3 * result.theirs:,.0f} | {spread(result.ratios, 1)} |"
        )
    lines += [
        "",
        "| whole step | processor s | most memory, MB | peer | its s | its MB | ratio of s (lowest to highest) |",
    ]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for result in files:
        mine, its = result.memory or (0, 0)
        lines.append(
            f"| {result.name} | {result.ours:.1f} | {mine:,.0f} | {result.peer} | {result.theirs:.1f} "
            f"| {its:,.0f} | {spread(result.ratios, 1)} |"
        )
    about = f"{rows:,} rows, 6 cells. {machine('torch', 'pandas', 'pyarrow', 'numba')}"
    return "\n".join([*lines, "", f"{about} Rounds: {len(choices[0].ratios)}."]) + "\n"


def measure(rounds: int) -> str:
    files = parquet(rounds)
    with one_thread():
        return tables([run(race, rounds) for race in races()], files, ROWS)


if __name__ == "__main__":
    command(__file__, __doc__, "Strata", measure)
