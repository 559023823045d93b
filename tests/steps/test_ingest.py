"""The ingest step, through `execute` and the CLI: what it writes, what it shows, what it refuses."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fairvlm_core.cohort.adapters import ADAPTERS, Release, adapter, generated
from fairvlm_core.cohort.images import ImageStore
from fairvlm_core.cohort.table import Task, cohort_table, read_cohort
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.steps import execute
from fairvlm_core.steps.ingest import NOT_SPLIT, UNKNOWN, Config, shown_counts

SMALL = {"patients": 60}


def test_the_generated_cohort_end_to_end(tmp_path, capsys):
    config = Config(image_size=48, seed=3, options=SMALL)
    metrics = execute("ingest", config, {}, {"out": tmp_path / "cohort"})
    table, store = read_cohort(tmp_path / "cohort"), ImageStore.open(tmp_path / "cohort")
    assert metrics["images"] == len(table) == len(store.pixels)
    assert metrics["patients"] == 60
    assert metrics["images_per_second"] > 0
    assert json.loads((tmp_path / "cohort" / "metrics.json").read_text()) == metrics
    assert store.size == 48
    with Image.open(tmp_path / "cohort" / "cohort.png") as plot:
        assert plot.format == "PNG"
    release = generated.read(None, generated.Options(**SMALL), age_edges=(40.0, 60.0), seed=3)
    assert table.equals(release.table)
    key = table.column("image")[7].as_py()
    expected = np.asarray(Image.fromarray(release.load(key)).resize((48, 48), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(store.read([key])[0], expected)
    assert "Images of generated" in capsys.readouterr().out


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        execute("ingest", Config(image_size=32, seed=1, options=SMALL), {}, {"out": tmp_path / name})
    for file in ("cohort.parquet", "images/pixels.npy", "images/index.parquet", "cohort.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_command(tmp_path):
    from fairvlm_core.cli import app

    arguments = [
        "ingest",
        "--out",
        str(tmp_path / "out"),
        "--options",
        "{patients: 40, shortcut: 0}",
        "--age-edges",
        "50",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    table = read_cohort(tmp_path / "out")
    assert set(table.column("age_group").to_pylist()) == {"0-49", "50+"}


def cohort(cells, split=None):
    """A cohort from (sex, age group, number of patients, images of each)."""
    rows = [
        {
            "sample_id": f"{c}-{p}-{i}",
            "patient_id": f"{c}-{p}",
            "image": f"{c}-{p}-{i}",
            "labels": [0],
            "source": "s",
            "sex": sex,
            "age_group": age,
            "split": split,
        }
        for c, (sex, age, patients, images) in enumerate(cells)
        for p in range(patients)
        for i in range(images)
    ]
    task = Task("binary", ("x",), ("x",), ("no x",))
    return cohort_table(rows, task=task, groups={"sex": ("female", "male"), "age_group": ("0-39", "40+")})


def test_small_cells_are_not_shown():
    # Nine patients with two images each are still nine patients.
    counts = shown_counts(cohort([("female", "0-39", 9, 2), ("male", "0-39", 4, 1), ("male", "40+", 12, 2)]), 10)
    assert counts == {
        NOT_SPLIT: {
            ("female", "0-39"): None,
            ("female", "40+"): 0,
            ("male", "0-39"): None,
            ("male", "40+"): 24,
            UNKNOWN: 0,
        }
    }


def test_a_single_small_cell_cannot_be_computed_from_the_total():
    cells = [("female", "0-39", 3, 1), ("female", "40+", 20, 1), ("male", "0-39", 15, 1), ("male", None, 30, 1)]
    counts = shown_counts(cohort(cells, split="train"), 10)
    assert counts == {
        "train": {
            ("female", "0-39"): None,
            ("female", "40+"): 20,
            ("male", "0-39"): None,
            ("male", "40+"): 0,
            UNKNOWN: 30,
        }
    }


def stub(monkeypatch, load):
    """Register an adapter in one line, as CONTRIBUTING says, whose pictures come from `load`."""
    from dataclasses import dataclass
    from types import ModuleType

    @dataclass(frozen=True)
    class Options:
        pass

    module = ModuleType("stub_adapter")
    module.Options = Options
    module.read = lambda root, options, *, age_edges, seed, tolerance: Release(
        cohort([("female", "0-39", 12, 1)]), load, {"without_age": 12}
    )
    monkeypatch.setitem(sys.modules, "stub_adapter", module)
    monkeypatch.setitem(ADAPTERS, "stub", "stub_adapter")


def test_an_adapter_is_one_line_and_its_counts_are_metrics(tmp_path, monkeypatch):
    stub(monkeypatch, lambda key: np.zeros((20, 20, 3), np.uint8))
    metrics = execute("ingest", Config(dataset="stub"), {}, {"out": tmp_path / "out"})
    assert metrics["without_age"] == 12
    with pytest.raises(ConfigError, match="no parameter"):
        execute("ingest", Config(dataset="stub", options={"x": 1}), {}, {"out": tmp_path / "other"})


def test_bad_images_are_left_out_and_listed_up_to_a_number(tmp_path, monkeypatch, capsys):
    bad = []

    def load(key):
        if key in bad:
            raise CohortError("The image cannot be read.", where=f"{key} (t.csv, row 2)", mend="Download it again.")
        return np.full((20, 20, 3), 7, np.uint8)

    stub(monkeypatch, load)
    execute("ingest", Config(dataset="stub", image_size=16), {}, {"out": tmp_path / "whole"})
    images = read_cohort(tmp_path / "whole").column("image").to_pylist()
    bad += images[3:5]
    metrics = execute("ingest", Config(dataset="stub", image_size=16, skip_bad=2), {}, {"out": tmp_path / "out"})
    assert metrics["skipped"] == 2
    assert metrics["images"] == len(images) - 2
    table, store = read_cohort(tmp_path / "out"), ImageStore.open(tmp_path / "out")
    assert table.column("image").to_pylist() == store.keys == [name for name in images if name not in bad]
    assert (store.read(store.keys) == 7).all()
    listed = (tmp_path / "out" / "skipped.csv").read_text()
    assert all(name in listed for name in bad)
    shown = capsys.readouterr()
    assert not any(name in shown.out + shown.err for name in bad)
    with pytest.raises(CohortError, match="More than 1 rows or images are bad") as caught:
        execute("ingest", Config(dataset="stub", image_size=16, skip_bad=1), {}, {"out": tmp_path / "no"})
    assert bad[1] in caught.value.where


def test_a_failure_leaves_the_earlier_output_and_nothing_half_written(tmp_path, monkeypatch):
    execute("ingest", Config(image_size=16, options=SMALL), {}, {"out": tmp_path / "out"})
    before = (tmp_path / "out" / "cohort.parquet").read_bytes()

    def load(key):
        raise CohortError("The image cannot be read.", where="a.jpg (t.csv, row 2)")

    stub(monkeypatch, load)
    with pytest.raises(CohortError, match=r"a\.jpg \(t\.csv, row 2\)"):
        execute("ingest", Config(dataset="stub"), {}, {"out": tmp_path / "out"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "cohort.parquet").read_bytes() == before


def test_misspelt_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match='Did you mean "ham10000"'):
        Config(dataset="ham1000")
    with pytest.raises(ConfigError, match='Did you mean "generated"'):
        adapter("generate")
    with pytest.raises(ConfigError, match=r'"shortcuts"[^$]*Did you mean "shortcut"'):
        execute("ingest", Config(options={"shortcuts": 1}), {}, {"out": tmp_path / "out"})
    with pytest.raises(ConfigError, match="--root"):
        execute("ingest", Config(dataset="ham10000"), {}, {"out": tmp_path / "out"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("edges", [[60, 40], [40, 40], [39.5], [0, 40]])
def test_age_groups_must_follow_one_another(edges):
    with pytest.raises(ConfigError, match="age_edges"):
        Config(age_edges=edges)
