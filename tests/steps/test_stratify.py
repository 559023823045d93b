"""The stratify step: the files it writes agree with a plain count, small cells stay hidden, broken input is refused."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fairvlm_core.cohort import kinds
from fairvlm_core.cohort.strata import plan, stratify
from fairvlm_core.cohort.table import SCHEMA, Task, cohort_table, read_cohort, write_cohort
from fairvlm_core.errors import CohortError, ConfigError, FairVLMError
from fairvlm_core.files import sha256
from fairvlm_core.steps import execute
from fairvlm_core.steps.stratify import MOST_BARS, Config, summary

TASK = Task("binary", ("glaucoma",), ("glaucoma",), ("a healthy eye",))
GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40+")}
SHARES = {("female", "0-39"): 0.02, ("female", "40+"): 0.28, ("male", "0-39"): 0.2, ("male", "40+"): 0.45}


def cohort(n=900):
    random = np.random.default_rng(0)
    cells = [*SHARES, (None, "40+")]
    drawn = random.choice(len(cells), n, p=[*SHARES.values(), 0.05])
    return cohort_table(
        (
            {
                "sample_id": f"s{i}",
                "patient_id": f"p{i // 2}",
                "image": f"{i}.png",
                "labels": [int(random.random() < 0.3)],
                "sex": cells[cell][0],
                "age_group": cells[cell][1],
                "source": "made",
            }
            for i, cell in enumerate(drawn)
        ),
        task=TASK,
        groups=GROUPS,
    )


@pytest.fixture
def folder(tmp_path):
    write_cohort(cohort(), tmp_path)
    return tmp_path


def counted(frame, split):
    frame = frame[frame["split"] == split]
    known = frame.dropna(subset=["sex", "age_group"]).groupby(["sex", "age_group"])
    return known.size().to_dict(), known["patient_id"].nunique().to_dict()


def test_what_it_writes(folder, capsys):
    metrics = execute("stratify", Config(seed=5), {"cohort": folder}, {"out": folder / "out"})
    result = read_cohort(folder / "out")
    assert result.equals(stratify(cohort(), Config(seed=5)))
    frame, source = result.to_pandas(), cohort().to_pandas()

    strata = json.loads((folder / "out" / "strata.json").read_text())
    assert strata["attributes"] == ["sex", "age_group"]
    assert [(cell["sex"], cell["age_group"]) for cell in strata["cells"]] == list(SHARES)
    for split in ("validation", "test"):
        rows, patients = counted(frame, split)
        for cell, name in zip(strata["cells"], SHARES, strict=True):
            if patients.get(name, 0) < 10 or cell[split] is None:
                assert cell[split] is None
            else:
                assert cell[split] == rows[name]
    train = source[~source["patient_id"].isin(frame.loc[frame["split"] != "train", "patient_id"])]
    before, patients = counted(train.assign(split="train"), "train")
    after, _ = counted(frame, "train")
    assert min(patients.values()) >= 10
    for cell, name in zip(strata["cells"], SHARES, strict=True):
        assert (cell["train_before"], cell["train_after"]) == (before[name], after[name])
    assert strata["total"]["train_after"] == metrics["train"] == (frame["split"] == "train").sum()
    assert strata["unknown"]["train_after"] == metrics["train_unknown_group"] == train["sex"].isna().sum()

    assert metrics["rows"] == len(frame)
    assert metrics["train_before"] == len(train)
    assert metrics["validation"] + metrics["test"] == len(source) - len(train)
    assert metrics["rows_repeated"] == (frame["copy"] > 0).sum() > 0
    assert metrics["rows_dropped"] == len(set(source["sample_id"]) - set(frame["sample_id"])) > 0
    with Image.open(folder / "out" / "strata.png") as picture:
        assert picture.width > 600
        assert len(picture.getcolors(picture.width * picture.height)) > 10  # something is drawn
    shown = capsys.readouterr().out
    assert "Images per cell" in shown
    assert "suppressed" in shown


def test_the_same_seed_writes_the_same_bytes(folder):
    for name in ("a", "b"):
        execute("stratify", Config(seed=1), {"cohort": folder}, {"out": folder / name})
    for file in ("cohort.parquet", "strata.json", "strata.png", "metrics.json"):
        assert (folder / "a" / file).read_bytes() == (folder / "b" / file).read_bytes()


def test_a_file_is_read_and_written_batch_by_batch(folder, monkeypatch):
    monkeypatch.setattr(kinds, "FILE_ROWS", 128)
    execute("stratify", Config(seed=5), {"cohort": folder}, {"out": folder / "out"})
    written = pq.ParquetFile(folder / "out" / "cohort.parquet")
    sizes = [written.metadata.row_group(i).num_rows for i in range(written.num_row_groups)]
    assert len(sizes) == -(-900 // 128)
    assert max(sizes) <= 2 * 128
    result = read_cohort(folder / "out")
    assert result.equals(stratify(cohort(), Config(seed=5)))
    assert result.schema.equals(SCHEMA)
    assert result.schema.metadata == cohort().schema.metadata
    # Nobody who reads the file learns that it was written as numbers of values.
    assert written.schema_arrow.field("sex").type == pa.string()
    assert pd.read_parquet(folder / "out" / "cohort.parquet")["sex"].dtype == "str"


def test_columns_that_are_not_of_the_contract_are_kept(folder):
    more = cohort().append_column("site", pa.array([f"site {i % 3}" for i in range(900)]))
    pq.write_table(more.replace_schema_metadata(cohort().schema.metadata), folder / "cohort.parquet")
    execute("stratify", Config(), {"cohort": folder}, {"out": folder / "out"})
    result = read_cohort(folder / "out")
    place = {name: i for i, name in enumerate(more.column("sample_id").to_pylist())}
    expected = [f"site {place[name] % 3}" for name in result.column("sample_id").to_pylist()]
    assert result.column("site").to_pylist() == expected


def table_of(sizes, split="train"):
    """Cells of these numbers of patients, two images each."""
    rows = []
    for name, size in zip(SHARES, sizes, strict=True):
        rows += [(*name, f"{split} {name} {i}", j) for i in range(size) for j in range(2)]
    return cohort_table(
        (
            {
                "sample_id": f"{p}-{j}",
                "patient_id": p,
                "image": p,
                "labels": [0],
                "sex": sex,
                "age_group": age_group,
                "split": split,
                "source": "made",
            }
            for sex, age_group, p, j in rows
        ),
        task=TASK,
        groups=GROUPS,
    )


def counted_plan(table):
    """A plan that leaves the rows as they are."""
    config = Config(validation_share=0, test_share=0, oversample_cap=1, majority_cap=None, allow_empty_cells=True)
    return plan(kinds.of_table(table), config)


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ((10, 20, 30, 40), (20, 40, 60, 80)),  # ten patients are enough
        ((9, 20, 30, 40), (None, None, 60, 80)),  # the total would give the one away
        ((4, 5, 30, 40), (None, None, None, 80)),  # and so it would that together they are nine
        ((6, 5, 30, 40), (None, None, 60, 80)),
        ((0, 20, 30, 40), (0, 40, 60, 80)),  # an empty cell is nobody's
        ((0, 5, 0, 40), (0, None, 0, None)),
    ],
)
def test_cells_of_few_patients_are_suppressed_beyond_subtraction(sizes, shown):
    strata = summary(counted_plan(table_of(sizes)), ("sex", "age_group"), min_cell=10)
    assert tuple(cell["train_before"] for cell in strata["cells"]) == shown
    assert tuple(cell["train_after"] for cell in strata["cells"]) == shown
    assert [cell["test"] for cell in strata["cells"]] == [0] * 4
    assert strata["total"]["train_before"] == 2 * sum(sizes)


def test_a_cell_hidden_after_balancing_is_hidden_before():
    before, after = counted_plan(table_of((20, 20, 30, 40))), counted_plan(table_of((9, 20, 30, 40)))
    both = dataclasses.replace(before, rows_after=after.rows_after, patients_after=after.patients_after)
    strata = summary(both, ("sex", "age_group"), min_cell=10)
    assert [cell["train_before"] for cell in strata["cells"]] == [None, None, 60, 80]


def test_what_is_published_of_small_cells_is_nothing(tmp_path, capsys):
    write_cohort(pa.concat_tables([table_of((3, 40, 50, 60)), table_of((0, 30, 30, 30), "test")]), tmp_path)
    execute("stratify", Config(validation_share=0), {"cohort": tmp_path}, {"out": tmp_path / "out"})
    first = json.loads((tmp_path / "out" / "strata.json").read_text())["cells"][0]
    assert (first["train_before"], first["train_after"]) == (None, None)
    line = next(line for line in capsys.readouterr().out.splitlines() if "female" in line and "0-39" in line)
    assert line.count("suppressed") == 2


def of_unknown_group(count, split="train"):
    """Patients without a sex, one image each."""
    rows = [
        {
            "sample_id": f"unknown {split} {i}",
            "patient_id": f"unknown {split} {i}",
            "image": "i",
            "labels": [0],
            "age_group": "40+",
            "split": split,
            "source": "made",
        }
        for i in range(count)
    ]
    return cohort_table(rows, task=TASK, groups=GROUPS)


@pytest.mark.parametrize(
    ("sizes", "unknown", "shown", "told"),
    [
        ((20, 30, 40, 50), 10, (40, 60, 80, 100), 10),
        ((20, 30, 40, 50), 2, (None, 60, 80, 100), None),  # the total would give the two away
        ((6, 30, 40, 50), 4, (None, 60, 80, 100), None),
        ((6, 30, 40, 50), 12, (None, 60, 80, 100), None),  # and the twelve the six
        ((20, 30, 40, 50), 0, (40, 60, 80, 100), 0),
    ],
)
def test_a_few_of_unknown_group_are_suppressed_like_a_cell(tmp_path, capsys, sizes, unknown, shown, told):
    table = pa.concat_tables([table_of(sizes), of_unknown_group(unknown), table_of((30, 30, 30, 30), "test")])
    write_cohort(table, tmp_path)
    config = Config(validation_share=0, oversample_cap=1, majority_cap=None)
    metrics = execute("stratify", config, {"cohort": tmp_path}, {"out": tmp_path / "out"})
    strata = json.loads((tmp_path / "out" / "strata.json").read_text())
    assert tuple(cell["train_before"] for cell in strata["cells"]) == shown
    assert strata["unknown"] == {"train_before": told, "train_after": told, "validation": 0, "test": 0}
    assert metrics.get("train_unknown_group") == told
    assert ("train_unknown_group" in metrics) == (told is not None)
    line = next(line for line in capsys.readouterr().out.splitlines() if "unknown" in line)
    assert line.count("suppressed") == (2 if told is None else 0)


def test_a_picture_that_is_there_twice_is_in_one_split(tmp_path, capsys):
    parts = [table_of((30, 30, 30, 30)), table_of((30, 30, 30, 30), "test")]
    write_cohort(pa.concat_tables(parts), tmp_path)
    rows = [part.to_pylist() for part in parts]
    names = ("sample_id", "patient_id")
    pairs = ["sample_id_a,sample_id_b,patient_id_a,patient_id_b"]
    for i in (0, 7):
        pairs.append(",".join(f'"{side[i][name]}"' for name in names for side in rows))
    (tmp_path / "duplicates.csv").write_text("\n".join(pairs) + "\n")
    config = Config(validation_share=0, oversample_cap=1, majority_cap=None)
    metrics = execute("stratify", config, {"cohort": tmp_path}, {"out": tmp_path / "out"})
    assert (metrics["rows_leaking"], metrics["rows_dropped"], metrics["rows_repeated"]) == (2, 0, 0)
    left = set(read_cohort(tmp_path / "out").column("sample_id").to_pylist())
    assert left == {row["sample_id"] for side in rows for row in side} - {rows[0][i]["sample_id"] for i in (0, 7)}
    assert "2 images are left out" in capsys.readouterr().out
    assert metrics["train_before"] == len(rows[0]) - 2


def test_patients_of_an_earlier_cohort_keep_their_split(folder):
    execute("stratify", Config(seed=1), {"cohort": folder}, {"out": folder / "first"})
    config = Config(seed=2, reference=str(folder / "first"))
    execute("stratify", config, {"cohort": folder}, {"out": folder / "second"})
    first, second = (
        dict(zip(*(read_cohort(folder / name).column(key).to_pylist() for key in ("patient_id", "split")), strict=True))
        for name in ("first", "second")
    )
    assert all(second[patient] == split for patient, split in first.items() if patient in second)
    with pytest.raises(ConfigError, match="does not exist") as caught:
        execute("stratify", Config(reference="nowhere"), {"cohort": folder}, {"out": folder / "third"})
    assert "stratify.reference" in caught.value.where


def test_of_very_many_cells_the_picture_shows_some(tmp_path):
    places = tuple(f"{i}" for i in range(40))
    rows = [
        {
            "sample_id": f"s{i}",
            "patient_id": f"p{i}",
            "image": "i",
            "labels": [0],
            "sex": GROUPS["sex"][i % 2],
            "race": places[i // 2],
            "split": "train",
            "source": "made",
        }
        for i in range(80)
    ]
    write_cohort(cohort_table(rows, task=TASK, groups={"sex": GROUPS["sex"], "race": places}), tmp_path)
    config = Config(attributes=("sex", "race"), validation_share=0, test_share=0, min_cell=1)
    assert execute("stratify", config, {"cohort": tmp_path}, {"out": tmp_path / "out"})["cells"] == 80 > MOST_BARS
    assert len(json.loads((tmp_path / "out" / "strata.json").read_text())["cells"]) == 80
    with Image.open(tmp_path / "out" / "strata.png") as picture:
        assert picture.height < 4000


def test_no_attributes_means_no_balancing(folder):
    metrics = execute("stratify", Config(attributes=()), {"cohort": folder}, {"out": folder / "out"})
    assert (metrics["rows_dropped"], metrics["rows_repeated"], metrics["cells"]) == (0, 0, 1)


def validation(folder, **content):
    (folder / "validation").mkdir()
    (folder / "validation" / "validation.json").write_text(json.dumps(content))
    return {"cohort": folder, "validation": folder / "validation"}


def test_the_cohort_that_passed_is_accepted(folder):
    inputs = validation(folder, success=True, cohort_sha256=sha256(folder / "cohort.parquet"))
    assert execute("stratify", Config(), inputs, {"out": folder / "out"})["rows"] > 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"success": False}, "did not pass"),
        ({"success": True, "cohort_sha256": "0" * 64}, "not this cohort"),
        ({"success": True}, "not this cohort"),
    ],
)
def test_a_cohort_that_did_not_pass_is_refused(folder, content, words):
    with pytest.raises(CohortError, match=words) as caught:
        execute("stratify", Config(), validation(folder, **content), {"out": folder / "out"})
    assert "validation.json" in caught.value.where
    assert caught.value.mend
    assert not list(folder.glob("out*"))


def test_a_validation_that_is_missing_is_refused(folder):
    (folder / "empty").mkdir()
    with pytest.raises(FairVLMError, match=r"validation\.json is missing"):
        execute("stratify", Config(), {"cohort": folder, "validation": folder / "empty"}, {"out": folder / "out"})


def test_an_error_names_the_file_and_leaves_nothing(folder):
    table = read_cohort(folder).to_pandas()
    table["split"] = pd.Series(["train", "test"] + [None] * (len(table) - 2), dtype="string")
    schema = read_cohort(folder).schema
    pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False), folder / "cohort.parquet")
    write_cohort(read_cohort(folder).replace_schema_metadata(cohort().schema.metadata), folder)
    with pytest.raises(CohortError) as caught:
        execute("stratify", Config(), {"cohort": folder}, {"out": folder / "out"})
    assert caught.value.where == f"{folder / 'cohort.parquet'}, rows 0 and 1, column split"
    assert not list(folder.glob("out*"))


def test_an_attribute_that_is_named_twice():
    with pytest.raises(ConfigError) as caught:
        Config(attributes=("sex", "sex"))
    assert caught.value.where == "stratify.attributes"


def test_shares_that_leave_nobody_for_training():
    with pytest.raises(ConfigError) as caught:
        Config(validation_share=0.5, test_share=0.5)
    assert "stratify.validation_share" in caught.value.where
