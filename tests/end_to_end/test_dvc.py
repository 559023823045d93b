"""The second door: `dvc repro` in a folder with dvc.yaml, params.yaml and paths.yaml, as `make run` does it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_run import SMALL

from fairvlm_core.steps import STEPS, step_module

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A DVC project with the repository's dvc.yaml, its own copy of the code, and small parameters.

    The code lies inside the project, as in the repository: .dvcignore speaks of nothing outside, and Python and numba
    write their caches beside the code.
    """
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "fairvlm_core", folder / "fairvlm_core", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "paths.yaml").write_text(yaml.safe_dump({"code": "fairvlm_core", "dataset": "release"}))
    write_params(folder)
    (folder / "release").mkdir()
    (folder / "release" / "README.md").write_text("Nothing to download.")
    shutil.copy(ROOT / ".dvcignore", folder)
    dvc(folder, "init", "--no-scm", "-q")
    return folder


def write_params(folder, **more):
    content = {step: {**SMALL.get(step, {}), **more.get(step, {})} for step in STEPS}
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def environment(folder):
    """The commands of this interpreter first on the path, one thread, the registry beside the project."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DVC_NO_ANALYTICS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }


def dvc(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, env=environment(folder), capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_chain_runs_once_and_the_second_time_nothing_does(place):
    first = dvc(place, "repro")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "<html" in (place / "results" / "comparison" / "report.html").read_text()
    assert json.loads((place / "results" / "registration" / "registration.json").read_text())["alias"] == "challenger"

    shown = subprocess.run(
        [sys.executable, "-m", "fairvlm_core.cli", "summary", "results/comparison"],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    for words in ("Stage 1", "Stage 2", "Fair-MoE", "report.html"):
        assert words in shown.stdout

    second = dvc(place, "repro")
    assert second.returncode == 0
    assert "Running stage" not in second.stdout + second.stderr
    assert "up to date" in second.stdout + second.stderr


@pytest.mark.slow
def test_a_misspelt_parameter_stops_the_run_and_names_the_right_one(place):
    write_params(place, validate={"min_grup": 3})
    stopped = dvc(place, "repro")
    write_params(place)
    assert stopped.returncode != 0
    assert 'There is no parameter "min_grup"' in stopped.stdout + stopped.stderr
    assert 'Did you mean "min_group"?' in stopped.stdout + stopped.stderr


@pytest.mark.parametrize("step", STEPS)
def test_the_default_parameters_name_every_field(step):
    """params.yaml is the place to look for what can be changed, so nothing is missing from it."""
    written = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert list(written) == list(STEPS)
    assert set(written[step]) == {field.name for field in dataclasses.fields(step_module(step).Config)}
    step_module(step).Config(**written[step])


@pytest.mark.parametrize("profile", sorted(path.name for path in (ROOT / "profiles").iterdir()))
def test_profiles_have_every_section_and_no_unknown_field(profile):
    from fairvlm_core.config import build

    written = yaml.safe_load((ROOT / "profiles" / profile / "params.yaml").read_text())
    assert list(written) == list(STEPS)
    for step, values in written.items():
        build(step_module(step).Config, values, where=profile)
