"""Balance a cohort from Parquet to Parquet, by this project or by pandas, and say what the process took.

python benchmarks/strata_parquet.py ours COHORT.parquet FOLDER

`strata.py` runs it, each side in a process of its own: what one imports, or keeps, is not the other's. It prints the
seconds of processor time and the most memory that the whole process took, from its start, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KEYS = ["sex", "age_group"]


def ours(file: Path, folder: Path) -> None:
    """What the step `stratify` does but for its table and its picture, which pandas' side has neither."""
    from fairvlm_core.cohort.kinds import of_file
    from fairvlm_core.cohort.strata import plan, planned, planned_schema
    from fairvlm_core.cohort.table import open_cohort, write_batches
    from fairvlm_core.steps.stratify import Config

    with open_cohort(file) as opened:
        source = of_file(opened)
        write_batches(planned(source, plan(source, Config())), folder, schema=planned_schema(source.schema))


def pandas(file: Path, folder: Path, **how: str) -> None:
    """The same numbers of rows by `groupby` and `sample`; the rows are of the official training split."""
    import pandas as pd

    frame = pd.read_parquet(file, **how)
    balanced = (frame["split"] == "train") & frame["sex"].notna() & frame["age_group"].notna()
    groups = frame[balanced].groupby(KEYS, observed=True)
    sizes = groups.size()
    median = int(sizes.median())
    target = {cell: min(median, int(1.3 * size)) for cell, size in sizes.items()}
    parts = [sampled(group, target[cell]) for cell, group in groups]
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat([frame[~balanced], *parts]).to_parquet(folder / "cohort.parquet", index=False)


def pandas_with_arrow_columns(file: Path, folder: Path) -> None:
    """As `pandas`, but the columns stay Arrow's: text and lists do not become Python objects."""
    pandas(file, folder, dtype_backend="pyarrow")


def sampled(group, rows: int):
    """So many rows of a frame, each as often as the others or once more."""
    import pandas as pd

    whole, more = divmod(rows, len(group))
    some = group.sample(n=more, random_state=0)
    return pd.concat([*[group] * whole, some]) if whole else some


SIDES = {"ours": ours, "pandas": pandas, "pandas, Arrow columns": pandas_with_arrow_columns}


def taken() -> dict[str, float]:
    """Seconds of processor time, and the most memory in MB."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = usage.ru_maxrss / 1024
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss of a process that was just forked begins with that of its parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        peak = int(line.split()[1]) / 1024
    return {"seconds": usage.ru_utime + usage.ru_stime, "megabytes": peak * 1.048576}


if __name__ == "__main__":
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    name, file, folder = sys.argv[1:]
    SIDES[name](Path(file), Path(folder))
    print(json.dumps(taken()))
