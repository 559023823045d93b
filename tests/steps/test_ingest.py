"""The ingest step, through `execute` and the CLI: what it writes, what it shows, what it refuses."""

import base64
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
from fairvlm_core.steps.ingest import Config

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
    shown = capsys.readouterr()
    assert "Images of generated" in shown.out
    for work in ("Reading the release", "Decoding images", "Hashing pictures", "Counting groups", "Searching notes"):
        assert work in shown.err
    assert "Warning" not in shown.err


def test_the_data_card(tmp_path):
    execute("ingest", Config(image_size=32, options=SMALL), {}, {"out": tmp_path / "out"})
    markdown, page = ((tmp_path / "out" / name).read_text() for name in ("card.md", "card.html"))
    assert markdown.startswith("# Data card: generated")
    assert "The generated cohort: fundus-like photographs and notes" in markdown
    assert "with patients: 60; each picture's central square is stored with 32 x 32 pixels" in markdown
    assert "All pictures have 64 x 64 pixels." in markdown
    assert "![Images of generated per sex and age group, as in the tables below.](cohort.png)" in markdown
    picture = base64.b64encode((tmp_path / "out" / "cohort.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{picture}"' in page
    assert "src=" not in page.replace('src="data:', "")
    assert "href=" not in page


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        execute("ingest", Config(image_size=32, seed=1, options=SMALL), {}, {"out": tmp_path / name})
    for file in (
        "cohort.parquet",
        "images/pixels.npy",
        "images/index.parquet",
        "cohort.png",
        "card.md",
        "card.html",
        "card.json",
        "duplicates.csv",
    ):
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


def cohort(cells):
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
        }
        for c, (sex, age, patients, images) in enumerate(cells)
        for p in range(patients)
        for i in range(images)
    ]
    task = Task("binary", ("x",), ("x",), ("no x",))
    return cohort_table(rows, task=task, groups={"sex": ("female", "male"), "age_group": ("0-39", "40+")})


def stub(monkeypatch, load, **counted):
    """Register an adapter in one line, as CONTRIBUTING says, whose pictures come from `load`."""
    from dataclasses import dataclass
    from types import ModuleType

    @dataclass(frozen=True)
    class Options:
        pass

    module = ModuleType("stub_adapter", "Twelve women.\n\nMore about them.")
    module.Options = Options
    module.read = lambda root, options, *, age_edges, seed, tolerance: Release(
        cohort([("female", "0-39", 12, 1)]), load, counted
    )
    monkeypatch.setitem(sys.modules, "stub_adapter", module)
    monkeypatch.setitem(ADAPTERS, "stub", "stub_adapter")


def noise(key, shape=(20, 20, 3)):
    """A picture for each key."""
    return np.random.default_rng(list(key.encode())).integers(0, 256, shape, dtype=np.uint8)


def test_an_adapter_is_one_line_and_its_counts_are_metrics(tmp_path, monkeypatch):
    stub(monkeypatch, noise, without_age=12, without_sex=3, excluded_view=3)
    metrics = execute("ingest", Config(dataset="stub"), {}, {"out": tmp_path / "out"})
    # Few who lack something are told as few; what was left out is counted.
    assert [metrics[name] for name in ("without_age", "without_sex", "excluded_view")] == [12, "<10", 3]
    markdown = (tmp_path / "out" / "card.md").read_text()
    assert "\n\nTwelve women.\n\n" in markdown
    assert "| without sex | &lt;10 |" in markdown
    assert "| excluded view | 3 |" in markdown
    with pytest.raises(ConfigError, match="no parameter"):
        execute("ingest", Config(dataset="stub", options={"x": 1}), {}, {"out": tmp_path / "other"})


def test_pictures_are_decoded_once_and_measured_before_they_are_cut(tmp_path, monkeypatch):
    asked = []

    def load(key):
        asked.append(key)
        picture = noise(key, (30, 40 + 10 * (len(asked) % 2), 3))
        return picture if len(asked) % 3 else Image.fromarray(picture)

    stub(monkeypatch, load)
    execute("ingest", Config(dataset="stub", image_size=16), {}, {"out": tmp_path / "out"})
    assert len(asked) == len(set(asked)) == 12
    markdown = (tmp_path / "out" / "card.md").read_text()
    assert "| width | 40 | 45 | 50 |" in markdown
    assert "| height | 30 | 30 | 30 |" in markdown


def test_duplicates_are_listed_counted_and_warned_about(tmp_path, monkeypatch, capsys):
    names = cohort([("female", "0-39", 12, 1)]).column("image").to_pylist()
    stub(monkeypatch, lambda key: noise(names[4] if key == names[9] else key, (64, 64, 3)))
    metrics = execute("ingest", Config(dataset="stub"), {}, {"out": tmp_path / "out"})
    told = {name: value for name, value in metrics.items() if name.startswith(("duplicates", "blank"))}
    assert told == {
        "duplicates_within_a_patient": 0,
        "duplicates_between_patients": 1,
        "duplicates_across_splits": 0,
        "blank_images": 0,
    }
    listed = (tmp_path / "out" / "duplicates.csv").read_text().splitlines()
    assert listed[1] == f"{names[4]},{names[9]},{names[4][:-2]},{names[9][:-2]},,,0,1,0"
    warning = " ".join(capsys.readouterr().err.split())
    assert "Warning: 1 pair of pictures that look the same belong to different patients" in warning
    assert "1 pair of pictures that look the same" in (tmp_path / "out" / "card.html").read_text()


def test_a_cohort_without_demographics_has_a_card(tmp_path, monkeypatch, capsys):
    table = cohort([(None, None, 12, 1)])
    stub(monkeypatch, noise)
    module = sys.modules["stub_adapter"]
    bare = cohort_table(table, task=Task("binary", ("x",), ("x",), ("no x",)), groups={})
    module.read = lambda *_, **__: Release(bare, noise)
    execute("ingest", Config(dataset="stub"), {}, {"out": tmp_path / "out"})
    assert "Images of stub by split" in " ".join(capsys.readouterr().out.split())
    assert "Known of no image: note, modality, age, sex" in (tmp_path / "out" / "card.md").read_text()


def test_bad_images_are_left_out_and_listed_up_to_a_number(tmp_path, monkeypatch, capsys):
    bad = []

    def load(key):
        if key in bad:
            raise CohortError("The image cannot be read.", where=f"{key} (t.csv, row 2)", mend="Download it again.")
        return noise(key, (16, 16, 3))

    stub(monkeypatch, load)
    execute("ingest", Config(dataset="stub", image_size=16), {}, {"out": tmp_path / "whole"})
    images = read_cohort(tmp_path / "whole").column("image").to_pylist()
    bad += images[3:5]
    metrics = execute("ingest", Config(dataset="stub", image_size=16, skip_bad=2), {}, {"out": tmp_path / "out"})
    assert metrics["skipped"] == 2
    assert metrics["images"] == len(images) - 2
    table, store = read_cohort(tmp_path / "out"), ImageStore.open(tmp_path / "out")
    assert table.column("image").to_pylist() == store.keys == [name for name in images if name not in bad]
    np.testing.assert_array_equal(store.read(store.keys), [load(key) for key in store.keys])
    listed = (tmp_path / "out" / "skipped.csv").read_text()
    assert all(name in listed for name in bad)
    assert "| skipped | 2 |" in (tmp_path / "out" / "card.md").read_text()
    shown = capsys.readouterr()
    assert not any(name in shown.out + shown.err for name in bad)
    with pytest.raises(CohortError, match="More than 1 rows or images are bad") as caught:
        execute("ingest", Config(dataset="stub", image_size=16, skip_bad=1), {}, {"out": tmp_path / "no"})
    assert bad[1] in caught.value.where
    bad += [name for name in images if name not in bad]
    with pytest.raises(CohortError, match="No image of the release can be read"):
        execute("ingest", Config(dataset="stub", image_size=16, skip_bad=20), {}, {"out": tmp_path / "none"})


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
