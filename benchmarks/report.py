"""From 100,000 predictions to a finished report, with intervals: processor time and memory of the whole command.

python benchmarks/report.py            # prints the table; about two minutes, one thread
python benchmarks/report.py --write    # also writes it to benchmarks/report.md

Each number is of a process of its own, from the start of Python to its end. Loops were compiled before. What the rows
mean is in benchmarks/README.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from side_by_side import command, machine, one_thread

GROUPS = {
    "sex": ("female", "male"),
    "age_group": ("0-39", "40-59", "60+"),
    "race": ("asian", "black", "white"),
    "language": ("english", "spanish"),
}
SIZES = ((100_000, 1), (7_000, 14))  # images, labels
OURS = "from fairvlm_core.cli import app; app(['report', file, '--out', page], standalone_mode=False)"
READING = {".csv": "import pandas; pandas.read_csv(file)", ".parquet": "import pandas; pandas.read_parquet(file)"}
# The process says by itself what it took, for what its parent is told begins with the parent's own memory.
AROUND = """
import json, sys
sys.path.insert(0, {folder!r})
from strata_parquet import taken
file, page = sys.argv[1:]
{work}
print(json.dumps(taken()))
"""


@dataclass(frozen=True)
class Result:
    """Processor seconds and most memory in MB (medians over the rounds), and what reading the file takes by itself."""

    name: str
    seconds: list[float]
    megabytes: float
    reading: float


def predictions(images: int, labels: int) -> pd.DataFrame:
    """Two images of each patient, four attributes, a row per image and label; seven tenths of it is the test split."""
    rng = np.random.default_rng(images)
    truth = rng.random((images, labels)) < 0.3
    score = np.clip(0.3 * truth + 0.7 * rng.random(truth.shape), 0, 1).round(6)
    image = np.repeat(np.arange(images), labels)
    given = {
        "sample_id": [f"i{i}" for i in image],
        "patient_id": [f"p{i // 2}" for i in image],
        "split": np.where(image // 2 % 10 < 3, "validation", "test"),
        "label": [f"finding {j}" for j in range(labels)] * images,
        "y_true": truth.ravel().astype(np.int8),
        "y_score": score.ravel(),
    }
    groups = {name: rng.choice(np.array(values, dtype=object), images)[image] for name, values in GROUPS.items()}
    return pd.DataFrame({**given, **groups})


def process(work: str, file: Path, page: Path) -> dict[str, float]:
    """What a Python of its own takes for this: seconds, megabytes."""
    script = AROUND.format(folder=str(Path(__file__).parent), work=work)
    done = subprocess.run(
        [sys.executable, "-c", script, str(file), str(page)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"The process failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def results(rounds: int, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Result]:
    """Both files of each size; other sizes than the defaults serve the tests."""
    found = []
    with TemporaryDirectory() as temporary:
        page = Path(temporary) / "report.html"
        for images, labels in sizes:
            frame = predictions(images, labels)
            for ending, reading in READING.items():
                file = Path(temporary) / f"{labels}{ending}"
                frame.to_csv(file, index=False) if ending == ".csv" else frame.to_parquet(file, index=False)
                process(OURS, file, page)  # compiles
                if "</html>" not in page.read_text():
                    raise RuntimeError("There is no report.")
                turns = [(process(OURS, file, page), process(reading, file, page)) for _ in range(rounds)]
                name = f"{images:,} images, {labels} label{'s' * (labels > 1)}, {ending[1:]}"
                found.append(
                    Result(
                        name,
                        [ours["seconds"] for ours, _ in turns],
                        statistics.median(ours["megabytes"] for ours, _ in turns),
                        statistics.median(read["seconds"] for _, read in turns),
                    )
                )
    return found


def table(found: Sequence[Result]) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = ["| predictions | processor s (lowest to highest) | most memory, MB | pandas reads the file in, s |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for result in found:
        low, high = min(result.seconds), max(result.seconds)
        lines.append(
            f"| {result.name} | {statistics.median(result.seconds):.1f} ({low:.1f} to {high:.1f}) "
            f"| {result.megabytes:,.0f} | {result.reading:.1f} |"
        )
    about = machine("numpy", "pandas", "pyarrow", "numba")
    return "\n".join([*lines, "", f"{about} Rounds: {len(found[0].seconds)}."]) + "\n"


def measure(rounds: int) -> str:
    with one_thread():
        return table(results(rounds))


if __name__ == "__main__":
    command(__file__, __doc__, "Report", measure, rounds=3)
