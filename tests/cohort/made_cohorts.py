"""Cohorts of all sorts for property tests: skewed cells, unknown groups and labels, patients of several rows."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from fairvlm_core.cohort.table import Task, cohort_table
from fairvlm_core.steps.stratify import Config

GROUPS = {
    "sex": ("female", "male"),
    "age_group": ("0-39", "40-59", "60+"),
    "race": ("asian", "black", "white"),
    "language": ("english", "spanish"),
}
WIDTHS = {"binary": [1], "multiclass": [3, 7], "multilabel": [2, 5, 14, 45]}
OFFICIAL = [
    (None,),
    (None, None, "train"),
    (None, None, "test"),
    (None, None, "train", "validation"),
    ("train", "train", "validation", "test"),
]
ID_STYLES = ["{}", "s{:08d}", "patients/p{0}/s{0}/view-{0}.jpg", "пациент {}"]


@dataclass
class Case:
    """A cohort and how to stratify it."""

    table: pa.Table
    config: Config

    @property
    def rows(self):
        return self.table.to_pylist()


@st.composite
def cases(draw):
    """Skewed cohorts with unknown groups and labels, patients of several rows, some official splits, and any caps."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(list(WIDTHS)))
    width = draw(st.sampled_from(WIDTHS[kind]))
    rows = draw(st.integers(0, 30) | st.integers(30, 300))
    patients = draw(st.sampled_from([1, 2, 3, 10])) * rows // draw(st.integers(1, 4)) + 1
    patient = random.integers(0, patients, rows)
    official = random.choice(np.array(draw(st.sampled_from(OFFICIAL)), object), patients)
    # A patient's rows carry the official split or none.
    split = np.where(random.random(rows) < draw(st.sampled_from([0.5, 1.0])), official[patient], None)

    if kind == "multiclass":
        labels = np.eye(width, dtype=int)[random.integers(0, width, rows)].tolist()
    else:
        often = random.random(width) ** draw(st.sampled_from([1, 4]))
        labels = (random.random((rows, width)) < often).astype(int).astype(object)
        labels[random.random((rows, width)) < draw(st.sampled_from([0, 0.1]))] = None
        labels = labels.tolist()

    id_style = draw(st.sampled_from(ID_STYLES))
    columns = {
        "sample_id": [id_style.format(i) for i in random.permutation(10 * rows)[:rows]],
        "patient_id": [id_style.format(i) for i in patient],
        "image": [f"{i}.png" for i in range(rows)],
        "modality": ["made"] * rows,
        "note": [None if i % 3 else f"note of {i}" for i in range(rows)],
        "labels": labels,
        "age": random.integers(0, 90, rows).astype(float),
        "ethnicity": [None] * rows,
        "split": split.tolist(),
        "source": ["made"] * rows,
        "copy": [0] * rows,
    }
    unknown = draw(st.sampled_from([0, 0.1, 0.6]))
    skew = draw(st.sampled_from([0.3, 1, 10]))
    for name, groups in GROUPS.items():
        values = random.choice(groups, rows, p=random.dirichlet([skew] * len(groups))).astype(object)
        values[random.random(rows) < unknown] = None
        columns[name] = values.tolist()
    task = Task(kind, *[tuple(f"finding {j}" for j in range(width))] * 3)
    types = {"labels": pa.list_(pa.int8()), "age": pa.float32(), "copy": pa.int16()}
    table = pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})
    config = Config(
        attributes=tuple(draw(st.lists(st.sampled_from(list(GROUPS)), unique=True, max_size=4))),
        validation_share=draw(st.sampled_from([0, 0.15, 0.4])),
        test_share=draw(st.sampled_from([0, 0.2, 0.5])),
        oversample_cap=draw(st.sampled_from([1, 1.3, 2.5, 10])),
        majority_cap=draw(st.sampled_from([1, 1.7, None])),
        allow_empty_cells=True,
        seed=draw(st.integers(0, 2**40)),
    )
    return Case(cohort_table(table, task=task, groups=GROUPS), config)
