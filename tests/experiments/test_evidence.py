"""What docs/results.md is made by: the stages of experiments/dvc.yaml, their parameters, and the document's marks."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from fairvlm_core.config import read_params
from fairvlm_core.experiments import load_experiment
from fairvlm_core.experiments.baselines import with_baselines
from fairvlm_core.experiments.document import BEGIN, END
from fairvlm_core.experiments.grid import CHAIN, Suite, resolved
from fairvlm_core.experiments.runner import check
from fairvlm_core.steps import STEPS

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "experiments" / "dvc.yaml").read_text())["stages"]


def commands():
    """Every command that runs an experiment, with what the stage says that it reads and writes."""
    for stage in STAGES.values():
        matrix = stage.get("matrix", {})
        for values in itertools.product(*matrix.values()):
            text = yaml.safe_dump(stage)
            for name, value in zip(matrix, values, strict=True):
                text = text.replace(f"${{item.{name}}}", value)
            filled = yaml.safe_load(text)
            words = shlex.split(filled["cmd"])
            if "experiment" in words:
                words = words[words.index("experiment") + 1 :]
                yield words[0], dict(zip(words[1::2], words[2::2], strict=True)), filled


RUNS = list(commands())


@pytest.mark.parametrize(("name", "flags", "stage"), RUNS, ids=[f"{r[0]}-{Path(r[1]['--out']).name}" for r in RUNS])
def test_a_stage_runs_what_its_parameters_allow_and_depends_on_it(name, flags, stage, tmp_path):
    file = ROOT / flags["--params"]
    params = {step: read_params(file, step, STEPS) for step in CHAIN}
    for grid in _grids(name):
        check(with_baselines(resolved(grid, params), params), params, tmp_path, seeds=5, root=None)
        # All methods of a table are judged by models that see every attribute.
        assert not grid.apart
    assert flags["--params"] in stage["deps"]
    assert flags.get("--root", "fairvlm_core") in stage["deps"]
    assert set(stage["outs"]) == {f"{flags['--out']}/{name}.{kind}" for kind in ("json", "md", "png")}
    for path in stage["deps"]:
        assert path.startswith(("datasets/", "pretrained")) or (ROOT / path).exists(), path
        assert path != "experiments"  # DVC's lock file is in it
    # Every grid that the named one is made of.
    for module in _imported(ROOT / "experiments" / f"{name}.py"):
        assert f"experiments/{module}.py" in stage["deps"]


def test_the_document_has_every_table_as_its_stage_makes_it():
    text = (ROOT / "docs" / "results.md").read_text()
    for name, flags, _ in RUNS:
        _, table = text.split(f"<!-- experiment {Path(flags['--out']).name}/{name} -->\n")
        table = table[: table.index(END)]
        assert f"fairvlm experiment {name} --params {flags['--params']} " in table
        titles = {recipe.title for grid in _grids(name) for recipe in grid.recipes}
        rows = set(re.findall(r"^\| ([^|†]+?) (?:† )?\|", table, re.MULTILINE))
        assert {"Majority class", "Linear probe of the base", *titles} <= rows


def test_the_document_waits_for_every_table():
    marks = [mark["name"] for mark in BEGIN.finditer((ROOT / "docs" / "results.md").read_text())]
    written = {f"{Path(flags['--out']).name}/{name}" for name, flags, _ in RUNS}
    assert written <= set(marks)
    assert len(marks) == len(set(marks))
    assert {f"results/{name}.json" for name in written} == set(STAGES["document"]["deps"])


def _grids(name):
    found = load_experiment(name)
    return [grid for each in found.experiments.values() for grid in each] if isinstance(found, Suite) else [found]


def _imported(file, known=None):
    known = set() if known is None else known
    known.add(file.stem)
    for name in re.findall(r"^from experiments\.(\w+) import", file.read_text(), re.MULTILINE):
        if name not in known:
            _imported(file.with_name(f"{name}.py"), known)
    return known
