"""Privacy: nothing that is shown or published names a row, a note or an age, or tells of a small group.

`cohort.parquet`, `images/`, `duplicates.csv` and `skipped.csv` are the protected data themselves.
"""

import base64
import html
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.compute as pc
import pytest
from attacker import leaks
from PIL import Image

from fairvlm_core.cohort.adapters import ADAPTERS, Release
from fairvlm_core.cohort.table import Task, age_group, age_group_names, cohort_table, read_cohort, write_cohort
from fairvlm_core.errors import CohortError
from fairvlm_core.steps import execute, step_module

PROTECTED = {"cohort.parquet", "duplicates.csv", "skipped.csv", "pixels.npy", "index.parquet"}
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ham10000"
EDGES = (40.0, 60.0)
LEAST = 100
# Numbers that stand for nothing else here. In each table all cells but the small ones are large.
SMALL_CELL, SMALL_RACE, SMALL_POSITIVES = 61, 73, 83
CELLS = {
    ("female", 0): SMALL_CELL, ("female", 1): 310, ("female", 2): 290,
    ("male", 0): 305, ("male", 1): 320, ("male", 2): 330,
}  # fmt: skip
RACES = ("asian", "black", "white")
TASK = Task("binary", ("edema",), ("edema",), ("no edema",))


def people():
    """A row per patient, with texts and ages that can be recognised anywhere."""
    rng = np.random.default_rng(0)
    rows = []
    for (sex, band), size in CELLS.items():
        for _ in range(size):
            i = len(rows)
            # An age that no other number of a report resembles.
            age = (20.21875, 43.21875, 71.21875)[band] + i % 16
            rows.append(
                {
                    "sample_id": f"SECRET-{i:04d}",
                    "patient_id": f"PERSON-{i:04d}",
                    "image": f"SECRETFILE-{i:04d}.png",
                    "note": f"CONFIDENTIAL {i:04d}: a {age}-year-old with edema.",
                    "age": age,
                    "age_group": age_group(age, EDGES),
                    "sex": sex,
                    "source": "secret",
                }
            )
    order = rng.permutation(len(rows))
    for place, i in enumerate(order):
        rows[i]["race"] = RACES[0] if place < SMALL_RACE else RACES[1 + (place % 3 == 0)]
        black = rows[i]["race"] == "black"
        rows[i]["labels"] = [int(place % 3 == 0)] if not black else [0]
    for i in [i for i in order if rows[i]["race"] == "black"][:SMALL_POSITIVES]:
        rows[i]["labels"] = [1]
    return rows


def pixels(key):
    """Different in each file, but for two patients whose picture is the same."""
    seed = 5 if key == "SECRETFILE-0006.png" else int(key[11:15])
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def load(key):
    if key == "SECRETFILE-0400.png":
        raise CohortError("The image cannot be read.", where=f"{key} (secret.csv, row 402)", mend="Download it again.")
    return pixels(key)


@dataclass(frozen=True)
class Options:
    pass


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All that ingest, validate and stratify wrote, printed and logged."""
    root = tmp_path_factory.mktemp("privacy")
    module = ModuleType("secret_adapter", "A clinic that must not be recognised.")
    groups = {"sex": ("female", "male"), "age_group": age_group_names(EDGES), "race": RACES}
    module.Options = Options
    module.read = lambda *_, **__: Release(cohort_table(people(), task=TASK, groups=groups), load, {})
    outputs = {name: root / name for name in ("ingest", "validate", "stratify")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "secret_adapter", module)
        patch.setitem(ADAPTERS, "secret", "secret_adapter")
        chatter = Chatter(patch)
        config = step_module("ingest").Config(dataset="secret", image_size=16, skip_bad=3, min_cell=LEAST)
        execute("ingest", config, {}, {"out": outputs["ingest"]})
        execute(
            "validate",
            step_module("validate").Config(min_group=200, min_cell=LEAST),
            {"cohort": outputs["ingest"]},
            {"out": outputs["validate"]},
        )
        execute(
            "stratify",
            step_module("stratify").Config(min_cell=LEAST, attributes=("sex", "age_group")),
            {"cohort": outputs["ingest"], "validation": outputs["validate"]},
            {"out": outputs["stratify"]},
        )
    return outputs, {"what was printed": chatter.text()} | texts(root)


class Chatter:
    """What is printed and logged, at all levels."""

    def __init__(self, patch):
        import io

        self.stream = io.StringIO()
        patch.setattr(sys, "stdout", self.stream)
        patch.setattr(sys, "stderr", self.stream)
        handler = logging.StreamHandler(self.stream)
        patch.setattr(logging.getLogger(), "handlers", [handler])
        patch.setattr(logging.getLogger(), "level", logging.DEBUG)
        patch.setattr(logging.getLogger("matplotlib"), "level", logging.INFO)  # it scores each font there is

    def text(self):
        return self.stream.getvalue()


def texts(root):
    """File -> its text, with the pictures' own texts, for all files that may be published."""
    found = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name in PROTECTED:
            continue
        if path.suffix == ".png":
            with Image.open(path) as picture:
                found[str(path.relative_to(root))] = json.dumps({str(k): str(v) for k, v in picture.info.items()})
        text = path.read_bytes().decode("utf-8", errors="replace") if path.suffix != ".png" else ""
        for k, data in enumerate(re.findall(r"base64,([A-Za-z0-9+/=]+)", text)):
            found[f"{path.relative_to(root)}, picture {k}"] = base64.b64decode(data).decode("latin-1")
        if text:
            found[str(path.relative_to(root))] = html.unescape(re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    return found


def test_there_is_something_to_look_at(published):
    outputs, found = published
    expected = {
        "what was printed", "ingest/card.md", "ingest/card.html", "ingest/card.json", "ingest/metrics.json",
        "ingest/cohort.png",
        "ingest/config.json", "validate/validation.json", "validate/validation.html", "stratify/strata.json",
        "stratify/strata.png",
    }  # fmt: skip
    assert expected <= set(found)
    assert "Warning" in found["what was printed"]
    protected = (outputs["ingest"] / "duplicates.csv").read_text() + (outputs["ingest"] / "skipped.csv").read_text()
    assert all(name in protected for name in ("SECRET-0005", "PERSON-0006", "SECRETFILE-0400"))


def test_no_identifier_note_or_age_is_published(published):
    _, found = published
    ages = {str(row["age"]) for row in people()}
    for where, text in found.items():
        for mark in ("SECRET-", "PERSON-", "SECRETFILE", "CONFIDENTIAL"):
            assert mark not in text, (where, mark)
        assert not [age for age in ages if age in text], where


def test_no_small_group_is_published(published):
    _, found = published
    for where, text in found.items():
        if "picture" in where or where.startswith("stratify"):
            continue
        for small in (SMALL_CELL, SMALL_RACE, SMALL_POSITIVES):
            assert not re.search(rf"(?<![\w.#-]){small}(?![\w.%-])", text), (where, small)


def test_nor_does_one_follow_from_the_card(published):
    _, found = published
    tables = markdown_tables(found["ingest/card.md"])
    sizes = {row[0]: row[-1] for row in tables["By race."]}
    assert sizes["asian"] == "-"
    assert list(sizes.values()).count("-") == 2
    cells = {(row[0], row[1]): row[2] for row in tables["By sex and age group."]}
    hidden = {cell for cell, count in cells.items() if count == "-"}
    assert ("female", "0-39") in hidden
    # Whatever is hidden shares its row and its column with something else that is.
    for sex, age in hidden:
        assert [cell[0] for cell in hidden].count(sex) > 1
        assert [cell[1] for cell in hidden].count(age) > 1
    positives = {row[1]: row[3] for row in tables["Patients with edema."] if row[0] == "race"}
    assert sizes["black"] != "-"
    assert positives["black"] == "-"


def markdown_tables(text):
    """Caption -> rows of cells, without the head."""
    found = {}
    for block in re.finditer(r"(?m)^(.+)\n\n\|.*\|\n\| -.*\|\n((?:\|.*\|\n?)+)", text):
        rows = [line.strip("|").split("|") for line in block.group(2).splitlines()]
        found[block.group(1)] = [[cell.strip() for cell in row] for row in rows]
    return found


def test_the_strata_tell_of_no_small_cell(published):
    outputs, found = published
    strata = json.loads(found["stratify/strata.json"])
    table = read_cohort(outputs["stratify"]).to_pandas()
    hidden = 0
    for cell in strata["cells"]:
        for key, split in (("train_after", "train"), ("validation", "validation"), ("test", "test")):
            rows = table[(table.sex == cell["sex"]) & (table.age_group == cell["age_group"]) & (table.split == split)]
            if rows.patient_id.nunique() < LEAST:
                assert cell[key] is None, (cell["sex"], cell["age_group"], key)
                hidden += 1
            else:
                assert cell[key] in (None, len(rows))
    assert hidden > 6


def attack(ingested, stratified, min_cell):
    """What a reader of the card and of the strata finds out who solves for it."""
    card, strata = (json.loads(path.read_text()) for path in (ingested / "card.json", stratified / "strata.json"))
    before = read_cohort(ingested).to_pandas()
    # Of the training rows some are left out by balancing; their patients have no other split.
    split = read_cohort(stratified).to_pandas().groupby("patient_id")["split"].first()
    after = before.assign(split=before["patient_id"].map(split).fillna("train"))
    return leaks(card, strata, before, after, min_cell)


def test_nor_does_one_follow_from_card_and_strata_together(published):
    outputs, found = published
    assert attack(outputs["ingest"], outputs["stratify"], LEAST) == []
    metrics = json.loads((outputs["stratify"] / "metrics.json").read_text())
    unknown = json.loads(found["stratify/strata.json"])["unknown"]
    for split, key in (("train", "train_before"), ("validation", "validation"), ("test", "test")):
        assert metrics.get(f"{split}_unknown_group") == unknown[key]


def test_card_json_holds_what_the_card_shows(published):
    _, found = published
    tables, numbers = markdown_tables(found["ingest/card.md"]), []
    for entry in json.loads(found["ingest/card.json"])["counts"]:
        groups = {name: entry["groups"][name] for name in ("sex", "age_group", "race") if name in entry["groups"]}
        told = "-" if entry["images"] is None else f"{entry['images']:,}"
        if "lacking" in entry:
            printed = [line for line in found["what was printed"].splitlines() if "unknown" in line]
            assert any(told in re.split(r"\W+", line) for line in printed)
            continue
        caption = f"By {' and '.join(groups).replace('_', ' ')}." if groups else "Images and patients per split."
        row = next(row for row in tables[caption] if row[: len(groups)] == [*groups.values()])
        assert told == row[len(groups) or 1]
        # Each patient has one image, so that the groups' tables have no column for patients.
        assert ("patients" in entry) == (not groups)
        numbers.append(tuple(groups))
    expected = {("sex", "age_group"): 6, ("sex",): 2, ("age_group",): 3, ("race",): 3, (): 1}
    assert {names: numbers.count(names) for names in numbers} == expected


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not at hand")
def test_nor_does_one_follow_of_the_real_skin_lesions(tmp_path):
    edges = tuple(float(age) for age in range(20, 90, 10))
    config = step_module("ingest").Config(dataset="ham10000", image_size=16, decoding="fast", age_edges=edges)
    execute("ingest", config, {"root": REAL}, {"out": tmp_path / "ingest"})
    for attributes in (("sex", "age_group"), ("sex",)):
        config = step_module("stratify").Config(attributes=attributes, allow_empty_cells=True)
        execute("stratify", config, {"cohort": tmp_path / "ingest"}, {"out": tmp_path / "stratify"})
        strata = json.loads((tmp_path / "stratify" / "strata.json").read_text())
        assert strata["unknown"]["train_before"] is None or strata["unknown"]["train_before"] >= 10
        assert attack(tmp_path / "ingest", tmp_path / "stratify", 10) == []


def test_a_broken_cohort_is_refused_without_naming_anybody(published, tmp_path):
    outputs, _ = published
    table = read_cohort(outputs["ingest"])
    import shutil

    shutil.copytree(outputs["ingest"], tmp_path / "broken")
    patients = table.column("patient_id").to_pylist()
    patients[1] = patients[0]
    splits = ["train", "test", *["train"] * (len(table) - 2)]
    for name, values in (("patient_id", patients), ("split", splits)):
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), [values])
    write_cohort(table, tmp_path / "broken")
    with pytest.raises(CohortError) as caught:
        execute(
            "validate", step_module("validate").Config(), {"cohort": tmp_path / "broken"}, {"out": tmp_path / "out"}
        )
    with pytest.raises(CohortError) as also:
        execute("stratify", step_module("stratify").Config(), {"cohort": tmp_path / "broken"}, {"out": tmp_path / "o"})
    assert "row" in str(caught.value)
    for told in (str(caught.value), str(also.value)):
        assert not re.search("SECRET|PERSON|CONFIDENTIAL", told)
    assert pc.count_distinct(table.column("patient_id")).as_py() == len(table) - 1
